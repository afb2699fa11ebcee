"""justimage demo."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from justimage import demo
from justimage.cli.options import parse
from justimage.cli.progress import stage, stages, track_batches
from justimage.cli.train import run_training
from justimage.progress import Progress, finish
from justimage.recipe import preset

DESCRIPTION = """Learn 1,797 real handwritten digits from raw pixels, from scratch, on the CPU, and draw them.

Writes samples.png (a class a column), denoising.png (from noise to digit), training.png, report.json, and the run itself.

examples:
  justimage demo
  justimage demo --out runs/demo"""


@dataclass(frozen=True)
class DemoOptions:
    out: Path = Path("demo")
    """where to put it; the same command resumes what is there"""


def main(words: Sequence[str]) -> int:
    out = parse(DemoOptions, words, "demo", DESCRIPTION).out
    started = time.perf_counter()
    with stage("reading digits"):
        demo.check_installed()
    again = shlex.join(["justimage", "demo", *words])
    if code := run_training(preset("digits"), out / "run", torch.device("cpu"), again, hint=False):
        return code
    with stages() as show:
        show(Progress("reading the model"))
        recipe, model = demo.load_run(out)
        with track_batches([model.net], recipe.sampling, demo.BATCH, show) as show_batches:
            report = finish(demo.report(out, recipe, model), show_batches)
    print(demo.summary(report))
    print(f"{time.perf_counter() - started:.0f} s in all; pictures and report.json are in {out}")
    print(f"now try:  {shlex.join(['justimage', 'sample', '--from', str(out / 'run'), '--out', 'grid.png'])}")
    return 0
