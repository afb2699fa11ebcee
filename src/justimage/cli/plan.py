"""justimage plan."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from justimage import checkpoint, log, plan as plans, recipe as recipes, tuning
from justimage.cli.options import parse
from justimage.plan import Mode, Request, TrainingPlan

DESCRIPTION = f"""Plan a training: bytes per GPU, images/s, days, and where the time goes. Arithmetic; no GPU is needed.

examples:
  justimage plan --preset jit-g16-256 --gpus 64 --gpu-type h100
  justimage plan --preset jit-b16-256 --gpus 8 --gpu-type a100 --mfu 0.3
  justimage plan --preset jit-h16-256 --gpus 8 --parallel ddp --grad-accumulation 8
  justimage plan --preset jit-g16-256 --gpus 32 --gpu-type a100 --parallel hsdp
  justimage plan --preset folder-64 --gpu-type rtx4090 --json
  justimage plan --from runs/mine --gpus 4 --gpu-type l40s

What is not given is chosen: the simplest arrangement that fits and is fast. The formulas: docs/scale.md.

GPU types: {", ".join(plans.GPUS)}"""


@dataclass(frozen=True)
class PlanOptions:
    preset: str | None = None
    """the recipe [jit-b16-256]"""
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """a run, whose recipe to plan instead of a preset"""
    gpus: int = 1
    """number of GPUs; divides the batch"""
    gpu_type: str = "h100"
    """type of GPU"""
    batch: int | None = None
    """images per step, of all GPUs together [the recipe's]"""
    total_images: int | None = None
    """images of the whole training [the recipe's]"""
    parallel: Mode = "auto"
    """whole copies of the network (ddp), sharded within each node (hsdp), or over all GPUs (fsdp)"""
    grad_accumulation: int | None = None
    """microbatches of a GPU per step [as few as fit]"""
    activation_checkpointing: bool = False
    """recompute the blocks in the backward pass, or --no-... do not [only if necessary]"""
    mfu: float = plans.MFU
    """fraction of the peak that forward and backward reach"""
    gpu_memory: float | None = None
    """GB of a GPU [the data sheet's]"""
    json: bool = False
    """print the numbers for programs, in bytes and seconds"""


def main(argv: Sequence[str]) -> int:
    defaults = PlanOptions(), PlanOptions(activation_checkpointing=True)
    o, other = (parse(PlanOptions, argv, "plan", DESCRIPTION, default=default) for default in defaults)
    recompute = o.activation_checkpointing if o == other else None  # where it is given, the default does not matter
    if o.preset and o.source:
        raise ValueError(f"preset is {o.preset} and from is {o.source}; give one of them")
    name = str(o.source) if o.source else o.preset or "jit-b16-256"
    recipe = recipe_of_run(o.source) if o.source else recipes.preset(name)
    changes = {k: getattr(o, k) for k in ("batch", "total_images") if getattr(o, k) is not None}
    if recipe.training.budget and not o.source and o.total_images is None:
        seconds = recipe.training.budget
        raise ValueError(f"{name} trains for {seconds:g} seconds, on as many images as it sees by then; give --total-images")
    memory = None if o.gpu_memory is None else o.gpu_memory * 1e9
    request = Request(
        recipes.with_values(recipe, **changes), o.gpus, o.gpu_type, o.parallel, o.grad_accumulation, recompute, o.mfu, memory
    )  # fmt: skip
    p = plans.plan(request)
    start = f"--recipe {shlex.quote(name)} --out RUN" if o.source else f"--preset {name} --data STORE --out RUN"
    options = " ".join([start, *(f"--{k.replace('_', '-')} {v}" for k, v in changes.items())])
    command = plans.launch_command(p, options)
    if o.json:
        totals = {"memory_total": p.memory.total, "seconds_total": p.seconds.total, "fits": p.fits, "command": command}
        print(json.dumps({**asdict(p), "flags": p.flags, **totals, "assumed_mfu": o.mfu}, indent=1))
        return 0
    show(p, name, command, o.mfu)
    return 0


def recipe_of_run(source: Path) -> recipes.Recipe:
    """The recipe of a run or a converted folder, without what was chosen for the device that it was trained on."""
    recipe = checkpoint.read_recipe(checkpoint.resolve(source))
    return tuning.as_asked(recipe, log.last_value(source, "tuning")) if (source / "recipe.json").exists() else recipe


def show(p: TrainingPlan, name: str, command: str, mfu: float) -> None:
    """Print the plan as tables and sentences."""
    nodes = f", {p.nodes} nodes of {p.gpus // p.nodes}" if p.nodes > 1 else ""
    size = f"{p.parameters / 1e6:,.1f} M parameters, batch {p.batch}, {p.images:,} images"
    print(f"{name}: {size}; {p.gpus} x {p.gpu_type}{nodes}\n")
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(plan_table(p))
    speed = f"{p.images_per_second:,.0f} images/s, {format_duration(p.days)} for {p.images:,} images"
    print(f"\n{speed}, MFU {p.mfu:.0%} of the whole step")
    print(f"data to read: {gb(p.data_rate)}/s of raw pixels, {gb(p.data_rate / p.gpus)}/s per GPU")
    print(f"a checkpoint: {gb(p.checkpoint)}; host memory at the start: {gb(p.host_memory)} per GPU")
    for note in p.notes:
        print(f"note: {note}")
    if p.why:
        print(f"chosen {p.flags}: {p.why}" if p.fits else p.why)
    if not p.fits:
        print(f"it does not fit; {p.advice or 'no change known to this command makes it fit'}")
    else:
        print(f"\n{command}")
    print(
        f"\nAssumed, not measured: {mfu:.0%} of the peak in forward and backward (B/16 on one H100 reached 23% of the whole "
        "step); links and memory as in docs/scale.md."
    )


def plan_table(p: TrainingPlan) -> Table:
    """Where memory and time go, with bars."""
    m, s = p.memory, p.seconds
    microbatches = f"{p.microbatch} images" + (f", {p.grad_accumulation} times" if p.grad_accumulation > 1 else "")
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    rows = [
        ("weights", m.weights), ("gradients", m.gradients), ("Adam's moments", m.moments), ("averages", m.averages),
        ("bf16 weights" if p.parallel == "ddp" else "gathered blocks", m.copies),
        (f"activations of {microbatches}", m.activations), ("reserve", m.reserve),
    ]  # fmt: skip
    table.add_row("memory of a GPU", "GB", "")
    for label, amount in rows:
        table.add_row("  " + label, f"{amount / 1e9:.1f}", memory_bar(amount / p.capacity))
    table.add_row(f"  of {p.capacity / 1e9:.0f}", f"{m.total / 1e9:.1f}", "fits" if p.fits else "does not fit")
    table.add_row("", "", "")
    table.add_row("time of a step", "ms", "")
    recomputed = ", blocks recomputed" if p.activation_checkpointing else ""
    for label, amount in (
        (f"forward and backward{recomputed}", s.compute), ("communication not overlapped", s.communication),
        ("optimizer", s.optimizer), ("averages", s.averages),
    ):  # fmt: skip
        table.add_row("  " + label, f"{amount * 1e3:.1f}", f"{amount / s.total:4.0%} {memory_bar(amount / s.total)}")
    table.add_row("  total", f"{s.total * 1e3:.1f}", f" and {s.hidden * 1e3:.1f} of communication overlapped")
    return table


def memory_bar(share: float, width: int = 30) -> str:
    eighths = round(min(share, 1) * width * 8)
    return "█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else "")


def gb(amount: float) -> str:
    return f"{amount / 1e9:.1f} GB" if amount >= 1e9 else f"{amount / 1e6:.0f} MB"


def format_duration(days: float) -> str:
    return f"{days:.1f} days" if days >= 2 else f"{days * 24:.1f} hours"
