"""How long training waits for a checkpoint, and how long the writing takes beside it.

    python benchmarks/saving.py                                     # a state of some 100 MB on the CPU
    python benchmarks/saving.py --network L/16 --device cuda --images 4096 --every 1024 --batch 128

Trains on random images, saves on the way, and compares: the blocking part of a save with the time between two saves, and
images/s of the stretches with and without saves, which alternate in one run.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from justimage import data, run as runs
from justimage.architectures import architecture
from justimage.recipe import Checkpointing, Logging, Parallelism, Recipe, Training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="S/4")
    parser.add_argument("--depth", type=int, default=1, help="blocks; 0 for the network's own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--every", type=int, default=160, help="images between two saves")
    parser.add_argument("--images", type=int, default=960)
    o = parser.parse_args()
    a = architecture(o.network, classes=10)
    if o.depth:
        a = replace(a, depth=o.depth, context_start=0)
    images = torch.randint(0, 256, (256, a.channels, *a.size), dtype=torch.uint8)
    source = data.ArraySource(images, torch.randint(0, 10, (256,)), [str(i) for i in range(10)], "random")
    data.open_source = lambda *_: source
    recipe = Recipe(
        data="random", model=a, training=Training(total_images=o.images, batch=o.batch, warmup=0, flip=False),
        parallelism=Parallelism(compile=False, workers=0),
        logging=Logging(preview_every=10**12, log_every=1), checkpoint=Checkpointing(save_every=o.every),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        run = runs.open_run(recipe, Path(name) / "run", o.device)
        run.metrics.open_tensorboard = lambda images_seen: None
        seconds, began = [], time.perf_counter()
        busy = []
        for _ in runs.steps(run):
            seconds.append(time.perf_counter() - began)
            busy.append(run.checkpoints.saver.pending is not None)
            began = time.perf_counter()
        lines = map(json.loads, (Path(name) / "run" / "events.jsonl").read_text().splitlines())
        saves = [e for e in lines if e["event"] == "saved"]
        size = sum(f.stat().st_size for f in (Path(name) / "run" / "checkpoints" / f"{o.images:09d}").iterdir())
    between = statistics.median(seconds) * o.every / o.batch
    first, later = saves[0]["blocked"], [s["blocked"] for s in saves[1:]]
    writing = [t for t, b in zip(seconds[2:], busy[2:], strict=True) if b]
    alone = [t for t, b in zip(seconds[2:], busy[2:], strict=True) if not b]
    print(f"checkpoint of {size / 1e6:.0f} MB, {len(saves)} saves, {between:.1f} s of training between two; on {o.device}")
    middle, most = statistics.median(later), max(later)
    print(
        f"a save blocks {1e3 * first:.1f} ms the first time, then {1e3 * middle:.1f} ms (median), {1e3 * most:.1f} ms (most):"
    )
    print(f"{middle / between:.2%} and {most / between:.2%} of the time between two")
    print(f"writing takes {statistics.median(s['seconds'] for s in saves):.2f} s in the background", end="; ")
    if writing and alone:
        print(f"a step takes {statistics.median(writing):.3f} s during it, {statistics.median(alone):.3f} s otherwise")


if __name__ == "__main__":
    main()
