"""justimage train."""

import re
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.exc import BackendCompilerFailed

from justimage import recipe as recipes, run as runs
from justimage.cli.options import checked_device, given, parse
from justimage.cli.progress import bar
from justimage.data.store import is_store, open_store
from justimage.recipe import Recipe

DESCRIPTION = f"""Train a model in a directory, or go on there: the same command resumes, exactly.

examples:
  justimage train --preset folder-64 --data photos/            one sub-folder a class, or a flat folder
  justimage train --preset folder-32 --data cifar10.zip --out runs/cifar
  justimage train --preset folder-64 --data scans/ --image-size 96 --channels 1
  justimage train --preset jit-b16-256 --data stores/imagenet-256 --accumulate 8     a store knows its size

Ctrl-C saves and stops. The directory holds recipe.json, metrics.jsonl, samples/ and checkpoints/.

presets: {", ".join(recipes.PRESETS)}"""


@dataclass(frozen=True)
class Options:
    recipe: Recipe
    preset: str
    """the recipe to start from; every option below changes one of its numbers"""
    out: Path | None = None
    """the run's directory [runs/PRESET-DATA]"""
    device: str | None = None
    """cpu, cuda, cuda:1 [cuda if there is one]"""


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
    return follow(options.recipe, out, checked_device(options.device), again=shlex.join(["justimage", "train", *words]))


def follow(recipe: Recipe, out: Path, device: torch.device, again: str) -> int:
    """Train with progress shown; on Ctrl-C end after the step in hand, saved. Returns the exit code."""
    with bar("reading images") as advance:
        run = runs.open_run(recipe, out, device, decoding=advance)
    for warning in run.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    images, seen = run.recipe.training.images, run.state.images_seen
    parameters = sum(p.numel() for p in run.state.model.net.parameters())
    classes = f"{len(run.recipe.class_names)} classes" if run.recipe.class_names else "no classes"
    print(f"{len(run.source):,} images, {classes}; a network of {parameters / 1e6:.1f} M parameters on {device}; in {out}")
    tried = shlex.join(["justimage", "sample", "--from", str(out), "--out", "grid.png"])
    if seen >= images:
        print(f"this run is complete, at {seen:,} images; now try:  {tried}")
        return 0
    if run.resumed:
        print(f"going on from {seen:,} of {images:,} images")
    stopped = False
    with stopping() as asked, bar("training") as advance:
        steps = runs.steps(run)
        try:
            for step in steps:
                advance(min(step.images_seen, images), images, lambda loss=step.loss: f"loss {loss.item():.4f}")
                if asked and step.images_seen < images:
                    steps.close()
                    stopped = True
                    break
        except torch.OutOfMemoryError as error:
            raise ValueError(f"out of memory: give a larger --accumulate, or a smaller network ({error})") from error
        except BackendCompilerFailed as error:
            raise ValueError("torch.compile failed, which needs a working C++ compiler; or add --no-compile") from error
    print(f"{'stopped and saved' if stopped else 'done'} at {run.state.images_seen:,} images, in {out}")
    print(f"go on with:  {again}" if stopped else f"now try:  {tried}")
    return 75 if stopped else 0


@contextmanager
def stopping() -> Iterator[list[int]]:
    """A list that is empty until Ctrl-C or SIGTERM comes; a second one interrupts at once, unsaved."""
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        print("\nstopping after this step, saved; once more stops at once, unsaved", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
