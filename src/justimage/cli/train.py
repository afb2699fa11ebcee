"""justimage train."""

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._dynamo.exc import BackendCompilerFailed

from justimage import recipe as recipes, run as runs
from justimage.cli import code_when_stopped
from justimage.cli.options import checked_device, given, parse
from justimage.cli.progress import bar
from justimage.data.store import is_store, open_store
from justimage.recipe import Recipe
from justimage.stopping import requests

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
class Options:
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
    names = given(words, "--preset") or ["digits" if given(words, "--data") == ["digits"] else "folder-64"]
    default = recipes.preset(names[0])
    size = [int(word) for word in given(words, "--image-size", most=2) if re.fullmatch(r"[1-9]\d*", word)]
    if size:
        default = recipes.resized(default, size[0] if len(size) == 1 else (size[0], size[1]))
    data = given(words, "--data")
    if data and is_store(place := Path(data[0]).expanduser()):
        default = recipes.fitted(default, open_store(place))
    options = parse(Options, words, "train", DESCRIPTION, default=Options(default, names[0]))
    source = Path(options.recipe.data).stem
    out = options.out or Path("runs") / (names[0] if source in ("", names[0]) else f"{names[0]}-{source}")
    return follow(
        options.recipe, out, checked_device(options.device), shlex.join(["justimage", "train", *words]), options.fresh
    )


def follow(recipe: Recipe, out: Path, device: torch.device, again: str, fresh: bool = False) -> int:
    """Train with progress shown; asked to stop, end after a step that all processes agree on, saved. Returns the exit code."""
    with bar("reading images") as advance:
        run = runs.open_run(recipe, out, device, decoding=advance, fresh=fresh)
    leads = run.world.leads
    say = print if leads else lambda *words, **options: None
    for warning in run.warnings:
        say(f"warning: {warning}", file=sys.stderr)
    images, seen = run.recipe.training.images, run.state.images_seen
    parameters = sum(p.numel() for p in run.state.model.net.parameters())
    classes = f"{len(run.recipe.class_names)} classes" if run.recipe.class_names else "no classes"
    where = f"{run.world.device}" if run.world.size == 1 else f"{run.world.size} processes ({run.recipe.machine.parallel})"
    say(f"{len(run.source):,} images, {classes}; a network of {parameters / 1e6:.3g} M parameters on {where}; in {out}")
    tried = shlex.join(["justimage", "sample", "--from", str(out), "--out", "grid.png"])
    if seen >= images or run.ended_early:
        run.event("finished early" if run.ended_early else "finished")
        say(f"this run is complete, at {seen:,} images; now try:  {tried}")
        return 0
    if run.resumed:
        say(f"going on from {seen:,} of {images:,} images")
    with requests() as asked, bar("training", shown=leads) as advance:
        run.asked = lambda: bool(asked)
        try:
            for step in runs.steps(run):
                advance(min(step.images_seen, images), images, lambda loss=step.loss: f"loss {loss:.4f}")
        except torch.OutOfMemoryError as error:
            hint = "give a larger --accumulate, --activation-checkpointing, or a smaller network"
            raise ValueError(f"out of memory: {hint} ({error})") from error
        except BackendCompilerFailed as error:
            raise ValueError("torch.compile failed, which needs a working C++ compiler; or add --no-compile") from error
    stopped = run.state.images_seen < images and not run.ended_early
    early = f", as {run.recipe.upkeep.watch} did not become better" if run.ended_early else ""
    say(f"{'stopped and saved' if stopped else 'done'} at {run.state.images_seen:,} images{early}, in {out}")
    say(f"go on with:  {again}" if stopped else f"now try:  {tried}")
    return code_when_stopped() if stopped else 0
