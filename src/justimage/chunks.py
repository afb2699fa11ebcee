"""Work cut into units, each computed by itself and always alike, by whichever process gets to it, and published by rename.

A folder holds a job.json, which says what the units are, and a file of arrays for each that is done. Processes share the
units without speaking to each other: each does its own, then what it finds missing of the others'. So the work may be
killed, gone on with by more or fewer processes, or done by several machines that share a disk, and the result is the same.
"""

import hashlib
import json
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from justimage import disk
from justimage.distributed import rank_and_size
from justimage.stopping import Stopped

Item = TypeVar("Item")
Result = TypeVar("Result")
Chunk = dict[str, np.ndarray]
JOB = "job.json"
DIGEST_BYTES = 32
"""Bytes of a SHA-256."""
STALE_SECONDS = 3600
"""Seconds after which what somebody was writing will not be finished."""


def tmp_prefix() -> str:
    """In the names of what this process is writing; others may be writing the same."""
    return f"{socket.gethostname()}-{os.getpid()}-"


@contextmanager
def single_threaded() -> Iterator[None]:
    """Within the block PyTorch computes with one thread a caller, so that rounding does not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cpu_count() -> int:
    """Cores that this process may use, its part of them where several run on this machine."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, there // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def concurrency(device: torch.device | str) -> int:
    """Units to compute at once: on a CPU one a core; on a GPU two, so that one computes while the other is read or written."""
    return cpu_count() if torch.device(device).type == "cpu" else 2


def map_threads(action: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None) -> Iterator[Result]:
    """What the action gives for each item, in order, computed ahead by one thread a core; closed early, it ends those."""
    threads = threads or cpu_count()
    with single_threaded(), ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1)) as pool:
        ahead: deque[Future[Result]] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(action, item))
                if len(ahead) > threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def chunk_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npz"


def read_chunk(folder: Path, number: int) -> Chunk | None:
    """The arrays of a unit; None where it is not done, or not whole: an .npz, and after it its SHA-256."""
    with suppress(OSError):
        content = chunk_path(folder, number).read_bytes()
        if hashlib.sha256(content[:-DIGEST_BYTES]).digest() == content[-DIGEST_BYTES:]:
            with np.load(BytesIO(content[:-DIGEST_BYTES])) as arrays:
                return {name: arrays[name] for name in arrays.files}
    return None


def begin(folder: Path, job: dict[str, Any]) -> None:
    """Say in job.json what a folder's units are; ValueError where it holds those of another job."""
    path, job = folder / JOB, json.loads(json.dumps(job))
    if not path.exists():
        disk.write(path, json.dumps(job, indent=1).encode(), tmp_prefix())
    found = disk.read_json(path)
    while found != job:
        odd = next(k for k in [*job, *found] if found.get(k) != job.get(k))
        there, asked = found.get(odd), job.get(odd)
        if not isinstance(there, dict) or not isinstance(asked, dict):
            words = (disk.printable(value, 100) for value in (odd, there, asked))
            raise ValueError("{} holds another job: its {} is {}, not {}; give another place".format(folder, *words))
        found, job = there, asked


def own_first(todo: Sequence[int]) -> list[int]:
    """This process's share of the units, then everybody else's from the end, where they are last to come."""
    rank, size = rank_and_size()
    mine = list(todo[rank::size])
    return mine + sorted(set(todo) - set(mine), reverse=True)


def complete(
    folder: Path, count: int, make: Callable[[int], Chunk], threads: int | None = None, stop: Callable[[], bool] = lambda: False
) -> Iterator[int]:
    """Do what is missing of units 0, ..., count - 1; yields how many are there, now and after each.

    `Stopped` where `stop` asks for it."""
    disk.mkdir(folder)
    for left in folder.glob(".tmp-*"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                disk.remove(left)
    there = {n for n in range(count) if read_chunk(folder, n) is not None}

    def do(number: int) -> int:
        over = not folder.exists()  # whoever came first has put the units together, and removed them
        if not over and not stop() and not (rank_and_size()[1] > 1 and read_chunk(folder, number) is not None):
            buffer = BytesIO()
            np.savez(buffer, allow_pickle=False, **make(number))
            content = buffer.getvalue()
            disk.write(chunk_path(folder, number), content + hashlib.sha256(content).digest(), tmp_prefix())
        return number

    yield len(there)
    for number in map_threads(do, own_first([n for n in range(count) if n not in there]), threads):
        if stop():
            raise Stopped("stopped as asked; the same command goes on where it was")
        there.add(number)
        yield len(there)


def read_chunks(folder: Path, count: int) -> Iterator[Chunk]:
    """The arrays of units 0, ..., count - 1, in order; ValueError for one that is not there."""
    for number in range(count):
        unit = read_chunk(folder, number)
        if unit is None:
            raise ValueError(f"{chunk_path(folder, number)} is missing or damaged; the same command makes it again")
        yield unit
