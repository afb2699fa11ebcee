"""justimage plan."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from justimage import checkpoint, plan as plans, recipe as recipes
from justimage.cli.options import parse
from justimage.plan import TrainingPlan

DESCRIPTION = f"""What a training will take: bytes a GPU, images/s, days, and where the time goes. Arithmetic; no GPU is needed.

examples:
  justimage plan --preset jit-g16-256 --gpus 64 --kind h100
  justimage plan --preset jit-b16-256 --gpus 8 --kind a100 --mfu 0.3
  justimage plan --preset jit-h16-256 --gpus 8 --parallel ddp --accumulate 8
  justimage plan --preset jit-g16-256 --gpus 32 --kind a100 --parallel hsdp
  justimage plan --preset folder-64 --kind rtx4090 --json
  justimage plan --from runs/mine --gpus 4 --kind l40s

What is not forced is chosen: the simplest arrangement that fits and is fast. How it is counted: docs/scale.md.

kinds: {", ".join(plans.GPUS)}"""


@dataclass(frozen=True)
class PlanOptions:
    preset: str | None = None
    """the recipe [jit-b16-256]"""
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """a run, for its recipe, in place of a preset"""
    gpus: int = 1
    """all of them; divides the batch"""
    gpu_type: str = "h100"
    """of GPU"""
    batch: int | None = None
    """images a step, of all GPUs together [the recipe's]"""
    total_images: int | None = None
    """of the whole training [the recipe's]"""
    parallel: Literal["auto", "ddp", "hsdp", "fsdp"] = "auto"
    """whole copies of the network (ddp), sharded within each node (hsdp), or over all GPUs (fsdp)"""
    grad_accumulation: int | None = None
    """parts of a GPU's share, one after the other [as few as fit]"""
    activation_checkpointing: bool = False
    """compute the blocks again in the backward pass rather than keep what is inside them [if it must be]"""
    mfu: float = plans.MFU
    """fraction of the peak that forward and backward reach"""
    gpu_memory: float | None = None
    """GB of a GPU [the data sheet's]"""
    json: bool = False
    """print the numbers for programs, in bytes and seconds"""


def main(words: Sequence[str]) -> int:
    o = parse(PlanOptions, words, "plan", DESCRIPTION)
    if o.preset and o.source:
        raise ValueError(f"preset is {o.preset} and from is {o.source}; give one of them")
    name = str(o.source) if o.source else o.preset or "jit-b16-256"
    recipe = checkpoint.read_recipe(checkpoint.resolve(o.source)) if o.source else recipes.preset(name)
    changed = {k: getattr(o, k) for k in ("batch", "total_images") if getattr(o, k) is not None}
    recipe = replace(recipe, training=replace(recipe.training, **changed))
    memory = None if o.gpu_memory is None else o.gpu_memory * 1e9
    said = any(word.replace("_", "-").endswith("-activation-checkpointing") for word in words)
    again = o.activation_checkpointing if said else None
    p = plans.plan(recipe, o.gpus, o.gpu_type, o.parallel, o.grad_accumulation, again, o.mfu, memory)
    begun = f"[as begun] --out {shlex.quote(name)}" if o.source else f"--preset {name} --data STORE --out RUN"
    command = plans.launch_command(p, " ".join([begun, *(f"--{k.replace('_', '-')} {v}" for k, v in changed.items())]))
    if o.json:
        totals = {"memory_total": p.memory.total, "seconds_total": p.seconds.total, "fits": p.fits, "command": command}
        print(json.dumps({**asdict(p), "flags": p.flags, **totals, "assumed_mfu": o.mfu}, indent=1))
        return 0
    show(p, name, command, o.mfu)
    return 0


def show(p: TrainingPlan, name: str, command: str, mfu: float) -> None:
    """The plan for a person."""
    nodes = f", {p.nodes} nodes of {p.gpus // p.nodes}" if p.nodes > 1 else ""
    print(
        f"{name}: {p.parameters / 1e6:,.1f} M parameters, batch {p.batch}, {p.images:,} images; {p.gpus} x {p.gpu_type}{nodes}\n"
    )
    m, s = p.memory, p.seconds
    parts = f"{p.microbatch} images" + (f", {p.grad_accumulation} times" if p.grad_accumulation > 1 else "")
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    rows = [
        ("weights", m.weights), ("gradients", m.gradients), ("Adam's moments", m.moments), ("averages", m.averages),
        ("bf16 weights" if p.parallel == "ddp" else "gathered blocks", m.copies),
        (f"activations of {parts}", m.activations), ("reserve", m.reserve),
    ]  # fmt: skip
    table.add_row("a GPU holds", "GB", "")
    for label, amount in rows:
        table.add_row("  " + label, f"{amount / 1e9:.1f}", bar(amount / p.capacity))
    table.add_row(f"  of {p.capacity / 1e9:.0f}", f"{m.total / 1e9:.1f}", "fits" if p.fits else "does not fit")
    table.add_row("", "", "")
    table.add_row("a step takes", "ms", "")
    again = ", blocks computed again" if p.activation_checkpointing else ""
    for label, amount in (
        (f"forward and backward{again}", s.compute), ("communication that shows", s.communication),
        ("optimizer", s.optimizer), ("averages", s.averages),
    ):  # fmt: skip
        table.add_row("  " + label, f"{amount * 1e3:.1f}", f"{amount / s.total:4.0%} {bar(amount / s.total)}")
    table.add_row("  in all", f"{s.total * 1e3:.1f}", f" and {s.hidden * 1e3:.1f} of communication hidden")
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)
    print(
        f"\n{p.images_per_second:,.0f} images/s, {format_duration(p.days)} for {p.images:,} images, MFU {p.mfu:.0%} of the whole step"
    )
    print(f"data to read: {gb(p.data_rate)}/s of raw pixels, {gb(p.data_rate / p.gpus)}/s a GPU")
    print(f"a checkpoint: {gb(p.checkpoint)}; of the host's memory, to begin: {gb(p.host_memory)} a GPU")
    for note in p.notes:
        print(f"note: {note}")
    if p.why:
        print(f"chosen {p.flags}: {p.why}" if p.fits else p.why)
    if not p.fits:
        print(f"it does not fit; {p.advice or 'nothing that this command knows makes it fit'}")
    else:
        print(f"\n{command}")
    print(f"\nAssumed, not measured: {mfu:.0%} of the peak in forward and backward; links and memory as in docs/scale.md.")


def bar(share: float, width: int = 30) -> str:
    eighths = round(min(share, 1) * width * 8)
    return "█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else "")


def gb(amount: float) -> str:
    return f"{amount / 1e9:.1f} GB" if amount >= 1e9 else f"{amount / 1e6:.0f} MB"


def format_duration(days: float) -> str:
    return f"{days:.1f} days" if days >= 2 else f"{days * 24:.1f} hours"
