"""justimage train."""

import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from justimage import recipe as recipes, run as runs
from justimage.cli import stopped_exit_code
from justimage.cli.estimate import Estimate
from justimage.cli.options import checked_device, parse, peek_option
from justimage.cli.progress import Advance, bar
from justimage.data.store import is_store, open_store
from justimage.distributed import rank_and_size
from justimage.recipe import Recipe
from justimage.stopping import requests
from justimage.training import Step

DESCRIPTION = f"""Train a model in a directory, or go on there: the same command resumes, exactly.

examples:
  justimage train --preset folder-64 --data photos/            one sub-folder a class, or a flat folder
  justimage train --preset folder-32 --data cifar10.zip --out runs/cifar
  justimage train --preset folder-64 --data scans/ --image-size 96 --channels 1
  justimage train --preset jit-b16-256 --data stores/imagenet-256 --accumulate 8     a store knows its size
  torchrun --standalone --nproc-per-node=gpu --max-restarts=10 -m justimage train --preset jit-l16-256 \
      --data stores/imagenet-256 --parallel fsdp --out runs/l16

Ctrl-C, SIGTERM, SIGUSR1 and a file called STOP in the directory save and stop (exit code 75: start it again). The directory
holds recipe.json, metrics.jsonl, events.jsonl, samples/ and checkpoints/.

presets: {", ".join(recipes.PRESETS)}"""


@dataclass(frozen=True)
class TrainOptions:
    recipe: Recipe
    preset: str
    """the recipe to start from; every option below changes one of its numbers"""
    out: Path | None = None
    """the run's directory [runs/PRESET-DATA]"""
    device: str | None = None
    """cpu, cuda, cuda:1 [cuda if there is one; under torchrun, one each]"""
    fresh: bool = False
    """begin anew; an older run in the directory is set aside as OUT.old-1"""


def main(words: Sequence[str]) -> int:
    names = peek_option(words, "--preset") or ["digits" if peek_option(words, "--data") == ["digits"] else "folder-64"]
    default = recipes.preset(names[0])
    size = [int(word) for word in peek_option(words, "--image-size", most=2) if re.fullmatch(r"[1-9]\d*", word)]
    if size:
        default = recipes.resized(default, size[0] if len(size) == 1 else (size[0], size[1]))
    data = peek_option(words, "--data")
    if data and is_store(place := Path(data[0]).expanduser()):
        default = recipes.for_store(default, open_store(place))
    options = parse(TrainOptions, words, "train", DESCRIPTION, default=TrainOptions(default, names[0]))
    source = Path(options.recipe.data).stem
    out = options.out or Path("runs") / (names[0] if source in ("", names[0]) else f"{names[0]}-{source}")
    return run_training(
        options.recipe, out, checked_device(options.device), shlex.join(["justimage", "train", *words]), options.fresh
    )


def run_training(recipe: Recipe, out: Path, device: torch.device, again: str, fresh: bool = False, hint: bool = True) -> int:
    """Train with progress shown; asked to stop, end after a step that all processes agree on, saved. Returns the exit code.

    hint: say at the end what to try with the model.
    """
    first = rank_and_size()[0] == 0
    say = partial(print, flush=True) if first else lambda *words, **options: None
    say(f"reading {recipe.data or 'images'}")
    with bar("reading images", shown=first) as advance:

        def progress(what: str, done: int, total: int) -> None:
            advance(done, total) if total else say(what)

        run = runs.open_run(recipe, out, device, fresh, on_progress=progress)
    for warning in run.warnings:
        say(f"warning: {warning}", file=sys.stderr)
    images, seen = run.recipe.training.total_images, run.state.images_seen
    parameters = sum(p.numel() for p in run.state.denoiser.net.parameters())
    classes = f"{len(run.recipe.class_names)} classes" if run.recipe.class_names else "no classes"
    where = f"{run.world.device}" if run.world.size == 1 else f"{run.world.size} processes ({run.recipe.parallelism.parallel})"
    say(f"{len(run.source):,} images, {classes}; a network of {parameters / 1e6:.3g} M parameters on {where}; in {out}")
    tried = shlex.join(["justimage", "sample", "--from", str(out), "--out", "grid.png"])
    if seen >= images or run.ended_early:
        run.log_event("finished early" if run.ended_early else "finished")
        say(f"this run is complete, at {seen:,} images" + (f"; now try:  {tried}" if hint else ""))
        return 0
    if run.resumed:
        say(f"going on from {seen:,} of {images:,} images")
    outlook = Estimate(run)
    for line in outlook.before():
        say(line)

    def begins(images: float) -> None:
        for line in outlook.moved(images):
            say(line)

    with requests(), bar("training", shown=first) as advance, track_microbatches(run, advance, begins) as note:
        try:
            for step in runs.steps(run):
                note(step)
        except torch.OutOfMemoryError as error:
            remedy = "give a larger --grad-accumulation, --activation-checkpointing, or a smaller network"
            raise ValueError(f"out of memory: {remedy} ({error})") from error
        except RuntimeError as error:
            if type(error).__name__ == "BackendCompilerFailed":
                raise ValueError("torch.compile failed, which needs a working C++ compiler; or add --no-compile") from error
            raise
    stopped = run.state.images_seen < images and not run.ended_early
    early = f", as {run.recipe.checkpoint.monitor} did not become better" if run.ended_early else ""
    say(f"{'stopped and saved' if stopped else 'done'} at {run.state.images_seen:,} images{early}, in {out}")
    if stopped or hint:
        say(f"go on with:  {again}" if stopped else f"now try:  {tried}")
    return stopped_exit_code() if stopped else 0


@contextmanager
def track_microbatches(run: runs.Run, advance: Advance, begins: Callable[[float], object]) -> Iterator[Callable[[Step], None]]:
    """Within the block the bar moves with every part of a batch and image of a preview; call what is given after a step.

    begins: called as a part begins, with the images done before it.
    """
    images, seen, note = run.recipe.training.total_images, run.state.images_seen, ""
    part, passed = run.recipe.training.batch / run.tuning.grad_accumulation, 0

    def after(step: Step) -> None:
        nonlocal seen, passed, note
        seen, passed, note = step.images_seen, 0, f"loss {step.loss:.4f}"
        advance(min(seen, images), images, lambda: note)

    def forward(net: Any, *_: Any) -> None:
        nonlocal passed
        if net.training:
            begins(seen + passed * part)
            advance(min(seen + passed * part, images), images, lambda: note or "first step")
            passed += 1

    hook = run.state.denoiser.net.register_forward_pre_hook(forward)
    run.on_progress = lambda what, done, total: advance(min(seen, images), images, lambda: f"{what} {done} of {total}")
    try:
        yield after
    finally:
        hook.remove()
