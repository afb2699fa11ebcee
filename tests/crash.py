"""Trainings that are killed: a process that imports everything once and forks a child for each, so that a case takes a moment.

    python -m tests.crash points PART PARTS     kill at every operation on the disk, clean and torn
    python -m tests.crash kills COUNT SEED      SIGKILL at random instants, until the training is done
    python -m tests.crash faults PART PARTS     no space left, and input/output errors, at every operation

Each prints one JSON line of what it found. test_crash.py runs them in parts; 500 kills: `python -m tests.crash kills 500 1`.
"""

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from justimage import checkpoint, data, disk, log, run as runs
from justimage.recipe import Recipe, preset, with_values
from justimage.run.metrics import Metrics

BATCH, STEPS = 4, 9
KILLED, FAULTY = 9, 3


def recipe(steps: int = STEPS) -> Recipe:
    """Dropout, dropped labels, flips, three averages, two parts a batch; a save every three steps, of which two are
    kept. The precision is stated: a run that is killed before it notes what it measured would measure anew."""
    r = preset("digits")
    network = replace(
        r.model, image_size=8, patch_size=4, width=8, depth=4, heads=1, bottleneck=2, context_tokens=1, context_start=1,
        dropout=0.2,
    )  # fmt: skip
    training = replace(
        r.training, total_images=steps * BATCH, batch=BATCH, warmup=8, ema=(10, 20, 40), sample_ema=10,
        lr_schedule="constant", flip=True, precision="fp32",
    )  # fmt: skip
    return with_values(
        replace(r, model=network, training=training), grad_accumulation=2, log_every=1, save_every=3 * BATCH,
        preview_every=10**9, preview_count=1, steps=1,
    )  # fmt: skip


def prepare() -> None:
    """Before the forks: the data read, all imported, and no TensorBoard, whose files are nobody's progress."""
    digits = data.digits((8, 8))
    source = data.ArraySource(digits.images[:30], digits.labels[:30], digits.class_names, digits.fingerprint)
    data.open_source = lambda *_: source
    Metrics.open_tensorboard = lambda *_: None
    with tempfile.TemporaryDirectory() as name:
        train(Path(name) / "run", steps=1)  # what PyTorch imports when it first trains


def train(directory: Path, steps: int = STEPS) -> None:
    for _ in runs.steps(runs.open_run(recipe(steps), directory, "cpu")):
        pass


def outcome(directory: Path) -> tuple[str, list[tuple[int, str]]]:
    """The last checkpoint's hashes, and every logged loss, as hexadecimal floats."""
    folder = checkpoint.list_checkpoints(directory)[-1]
    files = checkpoint.verify(folder)["files"]
    digest = hashlib.sha256(json.dumps({n: f["sha256"] for n, f in files.items()}, sort_keys=True).encode()).hexdigest()
    return digest, [(line["images_seen"], line["loss"].hex()) for line in log.records(directory / "metrics.jsonl")]


def child(action: Callable[[], Any]) -> int:
    """Run an action in a fork of this process; its exit code, or minus the signal that ended it."""
    process = os.fork()
    if process == 0:
        try:
            action()
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr)
            os._exit(FAULTY)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def count_operations(place: Path) -> int:
    """Operations on the disk of an uninterrupted training, kept at place/whole."""
    listing = place / "operations"

    def action() -> None:
        done = 0

        def count(operation: str, path: Path, content: Any = b"") -> None:
            nonlocal done
            done += 1
            listing.write_text(str(done))

        disk.observe = count
        train(place / "whole")

    assert child(action) == 0
    return int(listing.read_text())


def at(number: int, act: Callable[[str, Path, Any], None], until: int | None = None) -> None:
    """Act at the operation of that number on the disk (and on, up to another)."""
    done = -1

    def observe(operation: str, path: Path, content: Any = b"") -> None:
        nonlocal done
        done += 1
        if number <= done < (number + 1 if until is None else until):
            act(operation, path, content)

    disk.observe = observe


def die(torn: bool) -> Callable[[str, Path, Any], None]:
    def act(operation: str, path: Path, content: Any) -> None:
        if torn and operation == "write":
            with open(path, "ab") as file:
                file.write(bytes(content[: len(content) // 2]))
        elif torn and operation == "remove" and path.is_dir():
            for file in sorted(path.iterdir())[::2]:
                file.unlink()
        os._exit(KILLED)

    return act


def interrupted(run: Path, point: int | None, act: Callable[[str, Path, Any], None]) -> None:
    """Train, and act at an operation."""
    if point is not None:
        at(point, act)
    train(run)


def fail(code: int) -> Callable[[str, Path, Any], None]:
    def act(operation: str, path: Path, content: Any) -> None:
        raise OSError(code, os.strerror(code), str(path))

    return act


def points(part: int, parts: int) -> dict[str, Any]:
    """Kill at each operation in turn, then once more at some operation of the resume, then let it finish."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        total = count_operations(place)
        whole, wrong, cases = outcome(place / "whole"), [], 0
        for number in range(part, total, parts):
            for torn in False, True:
                run, cases = place / f"{number}-{torn}", cases + 1
                codes = []
                for point in (number, (number * 7) % 23, None):  # first in the whole training, then early in the resume
                    codes.append(child(partial(interrupted, run, point, die(torn))))
                if codes[0] != KILLED or codes[-1] != 0 or outcome(run) != whole:
                    wrong.append([number, torn, codes])
                shutil.rmtree(run, ignore_errors=True)
    return {"operations": total, "cases": cases, "wrong": wrong}


def kills(count: int, seed: int) -> dict[str, Any]:
    """SIGKILL after a random time, again and again, over as many trainings as it takes."""
    draw, killed, trainings, wrong = random.Random(seed), 0, 0, []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        began = time.perf_counter()
        assert child(lambda: train(place / "whole")) == 0
        duration, whole = time.perf_counter() - began, outcome(place / "whole")
        while killed < count:
            run, trainings, done = place / f"run{trainings}", trainings + 1, False
            while not done:
                process = os.fork()
                if process == 0:
                    try:
                        train(run)
                    except BaseException as error:
                        print(type(error).__name__, error, file=sys.stderr)
                        os._exit(FAULTY)
                    os._exit(0)
                if killed < count:
                    time.sleep(draw.random() * duration * 0.8)
                    os.kill(process, signal.SIGKILL)
                code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                killed, done = killed + (code == -signal.SIGKILL), code == 0
                if code == FAULTY:
                    wrong.append("did not resume")
                    break
            if done and outcome(run) != whole:
                wrong.append("another result")
            shutil.rmtree(run, ignore_errors=True)
    return {"kills": killed, "trainings": trainings, "wrong": wrong}


def faults(part: int, parts: int) -> dict[str, Any]:
    """A disk that is full, or fails, at one operation of a save: training goes on, and the end is the same.

    A fault before there is a run, and one that lasts, end it with a message; then the same command goes on.
    """
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        total = count_operations(place)
        whole, wrong, cases, ended = outcome(place / "whole"), [], 0, 0
        for number in range(part, total, parts):
            for code in errno.ENOSPC, errno.EIO:
                run, cases = place / f"{number}-{code}", cases + 1
                first = child(partial(interrupted, run, number, fail(code)))
                before = len(checkpoint.list_checkpoints(run))
                intact = all(checkpoint.verify(folder) for folder in checkpoint.list_checkpoints(run))
                ended += first != 0
                again = child(partial(train, run)) if first else 0
                if again or not intact or outcome(run) != whole or (first and before):
                    wrong.append([number, code, first, again, before])
                shutil.rmtree(run, ignore_errors=True)
    return {"operations": total, "cases": cases, "ended": ended, "wrong": wrong}


if __name__ == "__main__":
    prepare()
    what, first, second = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    print(json.dumps({"points": points, "kills": kills, "faults": faults}[what](first, second)))
