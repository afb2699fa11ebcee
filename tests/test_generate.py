"""Many images, sampled in chunks: the same to the bit by any process, in any order, after any kill."""

import csv
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from justimage import chunks, disk, generate
from justimage.data.arrays import open_array_file
from justimage.generate import ImageGenerator, SampleJob
from justimage.progress import finish
from justimage.sampling import Sampling

COUNT, STEPS = 2000, "2"


def environment(run: Path, threads: int = 1) -> dict[str, str]:
    return os.environ | {"JUSTIMAGE_CACHE": str(run.parent / "cache"), "OMP_NUM_THREADS": str(threads)}


def command(run: Path, out: str, processes: int = 1) -> list[str]:
    launched = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    words = f"sample --from {run} --count {COUNT} --balanced --steps {STEPS} --device cpu --folder {run.parent / out}".split()
    return [sys.executable, *launched, "-m", "justimage", *words]


def table(run: Path, out: str) -> dict[str, str]:
    """The SHA-256 that images.csv states of each image, after comparing it with the picture's pixels."""
    with open(run.parent / out / "images.csv") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    for name, row in list(rows.items())[::97]:
        pixels = np.asarray(Image.open(run.parent / out / name))
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == row["sha256"]
    assert len(list((run.parent / out).glob("*.png"))) == len(rows) and not (run.parent / out / "chunks").exists()
    assert [int(row["class"]) for row in rows.values()] == [i % 10 for i in range(len(rows))]
    return {name: row["sha256"] for name, row in rows.items()}


@pytest.fixture(scope="session")
def alone(run: Path) -> dict[str, str]:
    done = subprocess.run(command(run, "alone"), env=environment(run, 2), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = table(run, "alone")
    assert len(found) == COUNT == len(set(found.values()))
    return found


@pytest.mark.full
def test_two_processes_sample_what_one_samples(run: Path, alone: dict[str, str]) -> None:
    done = subprocess.run(command(run, "both", 2), env=environment(run), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert table(run, "both") == alone


@pytest.mark.full
def test_killed_three_times_and_resumed_by_more_it_is_the_same(run: Path, alone: dict[str, str]) -> None:
    done, place, draw = 0, run.parent / "killed" / "chunks", random.Random(0)
    for kill in range(3):
        process = subprocess.Popen(
            command(run, "killed"), env=environment(run), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and len(list(place.glob("0*.npz"))) < done + 3:
            time.sleep(0.01)
        time.sleep(draw.random() / 10)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"it was done before kill {kill}"
        done = len(list(place.glob("0*.npz")))
    ended = subprocess.run(command(run, "killed", 2), env=environment(run), capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr
    assert table(run, "killed") == alone


@pytest.mark.full
def test_asked_to_stop_it_ends_with_75_and_resumes(run: Path) -> None:
    place = run.parent / "asked" / "chunks"
    process = subprocess.Popen(
        command(run, "asked"), env=environment(run), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while process.poll() is None and not list(place.glob("0*.npz")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and "the same command resumes" in said and "Traceback" not in said
    assert not (run.parent / "asked" / "images.csv").exists() and list(place.glob("0*.npz"))


class Dead(BaseException):
    """A process that ends at once."""


def work(folder: Path, made: list[int] | None = None) -> dict[int, list[int]]:
    """Six units of numbers, by one thread."""

    def make(number: int) -> chunks.Chunk:
        (made if made is not None else []).append(number)
        return {"numbers": np.arange(number * 4, number * 4 + 4)}

    chunks.begin(folder, {"of": "numbers"})
    for _ in chunks.compute_missing(folder, 6, make, threads=1):
        pass
    return {i: unit["numbers"].tolist() for i, unit in enumerate(chunks.read_chunks(folder, 6))}


def test_killed_at_any_operation_on_the_disk_the_units_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean, and in the middle of a write; then gone on with."""
    seen: list[str] = []
    monkeypatch.setattr(disk, "observe", lambda operation, path, content=b"": seen.append(operation))
    wanted = work(tmp_path / "whole")
    assert len(seen) >= 30 and wanted[5] == [20, 21, 22, 23]

    def until(point: int, torn: bool) -> Any:
        count = iter(range(10**6))

        def observe(operation: str, path: Path, content: Any = b"") -> None:
            if next(count) == point:
                if torn and operation == "write":
                    path.write_bytes(bytes(content[: len(content) // 2]))
                raise Dead

        return observe

    for point in range(len(seen)):
        for torn in False, True:
            folder = tmp_path / f"{point}-{torn}"
            monkeypatch.setattr(disk, "observe", until(point, torn))
            monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # nothing is tidied by the dead
            with pytest.raises(Dead):
                work(folder)
            monkeypatch.undo()
            assert work(folder) == wanted


@pytest.mark.full
def test_a_damaged_unit_is_made_again_and_no_other(tmp_path: Path) -> None:
    wanted = work(tmp_path)
    draw = random.Random(0)
    for _ in range(1000):
        path = chunks.chunk_path(tmp_path, draw.randrange(6))
        content = bytearray(path.read_bytes())
        bit = draw.randrange(len(content) * 8)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        made: list[int] = []
        assert work(tmp_path, made) == wanted and set(made) <= {int(path.stem)}


def test_another_job_in_the_folder_is_refused_by_what_differs(tmp_path: Path) -> None:
    chunks.begin(tmp_path, {"guidance": 1.5, "steps": 50})
    with pytest.raises(ValueError, match=r"its guidance is 1.5, not 2.0"):
        chunks.begin(tmp_path, {"guidance": 2.0, "steps": 50})
    chunks.begin(tmp_path / "deep", {"drawing": {"seed": 1, "classes": [1] * 1000}, "count": 5})
    with pytest.raises(ValueError, match=r"its seed is 1, not 2; give another place$"):
        chunks.begin(tmp_path / "deep", {"drawing": {"seed": 2, "classes": [1] * 1000}, "count": 5})


def test_every_process_does_its_share_first_and_then_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        orders.append(chunks.own_first(range(10)))
    assert [o[:3] for o in orders] == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert all(sorted(o) == list(range(10)) for o in orders) and orders[1][3:] == [9, 8, 6, 5, 3, 2, 0]


def test_no_more_units_than_threads_are_in_memory() -> None:
    """Of a thousand, with a slow reader."""
    alive, most = 0, 0

    def make(number: int) -> int:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        return number

    def read() -> Iterator[int]:
        nonlocal alive
        for number in chunks.map_threads(make, range(1000), threads=3):
            yield number
            alive -= 1

    assert list(read()) == list(range(1000)) and most <= 3 + 2


def test_the_npz_is_what_prepare_reads(run: Path, tmp_path: Path) -> None:
    generator = ImageGenerator(run, torch.device("cpu"))
    job = generator.make_job(300.0, [3, 7], Sampling(steps=1), batch=8)
    finish(generate.save_images(generator, job, 20, None, tmp_path / "s.npz"))
    found = open_array_file(tmp_path / "s.npz")
    assert len(found) == 20 and found.shape == (1, 32, 32) and found.labels == [3, 7] * 10
    whole = [generator.sample_chunk(job, unit).numpy() for unit in range(3)]
    assert np.array_equal(torch.stack([found[i][0] for i in range(20)]).numpy(), np.concatenate(whole)[:20])
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


def test_random_labels_are_a_function_of_the_number() -> None:
    job = SampleJob(weights_hash="", ema=0.0, classes=tuple(range(10)), labels="random", seed=3)
    labels = [job.label(i) for i in range(5000)]
    assert labels == [job.label(i) for i in range(5000)] and labels[:50] != [i % 10 for i in range(50)]
    assert max(abs(labels.count(c) - 500) for c in range(10)) < 100


def test_a_job_says_all_that_decides_its_images(run: Path) -> None:
    stated = json.loads((run.parent / "alone" / "job.json").read_text()) if (run.parent / "alone").exists() else None
    generator = ImageGenerator(run, torch.device("cpu"), stated["job"]["precision"] if stated else "fp32")
    job = generator.make_job(300.0, sampling=replace(generator.recipe.sampling, steps=2))
    assert len(job.weights_hash) == 64 and job.weights_hash != generator.weights_hash(100.0)
    assert stated is None or stated["job"] == job.describe()


def test_many_threads_load_an_average_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, load = [], generate.checkpoint.load

    def slowly(*words: Any, **options: Any) -> Any:
        loaded.append(words)
        time.sleep(0.2)
        return load(*words, **options)

    monkeypatch.setattr(generate.checkpoint, "load", slowly)
    generator = ImageGenerator(run, torch.device("cpu"))
    with ThreadPoolExecutor(8) as pool:
        models = list(pool.map(lambda _: generator.denoiser(100.0), range(8)))
    assert len(loaded) == 1 and all(model is models[0] for model in models)
