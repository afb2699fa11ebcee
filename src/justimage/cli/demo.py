"""justimage demo."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from justimage.cli.options import checked_device, parse
from justimage.cli.progress import stage, stages, track_batches
from justimage.cli.train import in_seconds, recipe_for, run_training
from justimage.demo import digits, images
from justimage.progress import Progress, finish
from justimage.recipe import preset

DESCRIPTION = """Train a model from raw pixels, from scratch, judge it, and show what it draws.

Of 1,797 real handwritten digits, on the CPU in two minutes; or of your own images: a folder (one sub-folder a class, or flat),
a .zip or .tar, a store. Size, patches and length follow from them, and from a time. Writes pictures and report.json (of digits
samples.png, a class a column, denoising.png and training.png; of images grid.png, neighbours.png, denoising.png, training.png),
and the run itself. The same command resumes; with a longer --budget it goes on.

examples:
  justimage demo
  justimage demo --data photos/
  justimage demo --data scans.zip --budget 1h --out demos/scans"""


@dataclass(frozen=True)
class DemoOptions:
    data: str = ""
    """your images [the digits]"""
    budget: float = 900
    """time to train on your images: 15m, 1h, overnight, or seconds; judging takes some minutes more"""
    out: Path | None = None
    """where to put it [demo; of your images demo-DATA]"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps [of digits cpu; cuda if there is one]"""


def main(words: Sequence[str]) -> int:
    o = parse(DemoOptions, in_seconds(words), "demo", DESCRIPTION)
    again = shlex.join(["justimage", "demo", *words])
    started = time.perf_counter()
    if not o.data or o.data == "digits":
        return show_digits(o.out or Path("demo"), again, started)
    out, device = o.out or Path(f"demo-{Path(o.data).stem}"), checked_device(o.device)
    recipe = replace(recipe_for(o.data, "laptop", device, o.budget, out / "run"), data=o.data)
    if code := run_training(recipe, out / "run", device, again, hint=False):
        return code
    with stages() as show:
        facts = finish(images.judged(out, device), show)
    print(images.describe_report(facts))
    words = ["justimage", "sample", "--from", str(out / "run"), "--guidance", f"{facts['guidance']:g}", "--out", "grid.png"]
    say_finished(out, started, words)
    longer = ["justimage", "demo", "--data", o.data, "--budget", f"{max(round(4 * o.budget / 60), 1)}m", "--out", str(out)]
    print(f"or longer: {shlex.join(longer)}")
    return 0


def show_digits(out: Path, again: str, started: float) -> int:
    """The demo of handwritten digits."""
    with stage("reading digits"):
        digits.check_installed()
    if code := run_training(preset("digits"), out / "run", torch.device("cpu"), again, hint=False):
        return code
    with stages() as show:
        show(Progress("reading the model"))
        recipe, model = digits.load_run(out)
        with track_batches([model.net], recipe.sampling, digits.BATCH, show) as show_batches:
            report = finish(digits.report(out, recipe, model), show_batches)
    print(digits.summary(report))
    say_finished(out, started, ["justimage", "sample", "--from", str(out / "run"), "--out", "grid.png"])
    return 0


def say_finished(out: Path, started: float, words: Sequence[str]) -> None:
    """Say where everything is, and what to try with the model."""
    print(f"{time.perf_counter() - started:.0f} s in all; pictures and report.json are in {out}")
    print(f"now try:  {shlex.join(words)}")
