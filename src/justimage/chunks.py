"""Work cut into chunks, each computed by itself and always alike, by any process, and published by rename.

A folder holds a job.json, which describes the chunks, and a file of arrays for each chunk that is complete. Processes share
the chunks without communicating: each computes its own, then those of the others that are missing. So the work may be killed,
resumed by more or fewer processes, or shared by several machines with one disk, and the result is the same.
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

from justimage import disk, stopping
from justimage.distributed import rank_and_size

Item = TypeVar("Item")
Result = TypeVar("Result")
Chunk = dict[str, np.ndarray]
JOB = "job.json"
DIGEST_BYTES = 32
"""Bytes of a SHA-256."""
STALE_SECONDS = 3600
"""Age in seconds at which a temporary file is abandoned."""


def tmp_prefix() -> str:
    """`host-pid-`, a prefix for temporary files, so that concurrent writers never collide."""
    return f"{socket.gethostname()}-{os.getpid()}-"


@contextmanager
def single_threaded() -> Iterator[None]:
    """Within the block PyTorch uses one thread per caller, so that rounding does not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cpu_count() -> int:
    """Cores that this process may use: its share where several run on this machine."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, there // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def concurrency(device: torch.device | str) -> int:
    """Chunks to compute at once: on a CPU one a core; on a GPU two, one computing while the other is read or written."""
    return cpu_count() if torch.device(device).type == "cpu" else 2


def map_threads(action: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None) -> Iterator[Result]:
    """Map `action` over items in order, computed ahead by one thread a core; closed early, it cancels what is pending."""
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
    """The arrays of a chunk: an .npz followed by its SHA-256; None where it is missing or damaged."""
    with suppress(OSError):
        content = chunk_path(folder, number).read_bytes()
        if hashlib.sha256(content[:-DIGEST_BYTES]).digest() == content[-DIGEST_BYTES:]:
            with np.load(BytesIO(content[:-DIGEST_BYTES])) as arrays:
                return {name: arrays[name] for name in arrays.files}
    return None


def begin(folder: Path, job: dict[str, Any]) -> None:
    """Write job.json, which describes a folder's chunks; ValueError where the folder holds those of another job."""
    path, job = folder / JOB, json.loads(json.dumps(job))
    if not path.exists():
        disk.write(path, json.dumps(job, indent=1).encode(), tmp_prefix())
    found = disk.read_json(path)
    while found != job:
        odd = next(k for k in [*job, *found] if found.get(k) != job.get(k))
        there, wanted = found.get(odd), job.get(odd)
        if not isinstance(there, dict) or not isinstance(wanted, dict):
            words = (disk.printable(value, 100) for value in (odd, there, wanted))
            raise ValueError("{} holds another job: its {} is {}, not {}; give another place".format(folder, *words))
        found, job = there, wanted


def own_first(missing: Sequence[int]) -> list[int]:
    """This process's share of the missing chunks, then those of the others from the end, which they reach last."""
    rank, size = rank_and_size()
    own = list(missing[rank::size])
    return own + sorted(set(missing) - set(own), reverse=True)


def compute_missing(folder: Path, count: int, make: Callable[[int], Chunk], threads: int | None = None) -> Iterator[int]:
    """Compute the missing ones of chunks 0, ..., count - 1; yields how many are complete, first and after each.

    Raises `Stopped` when a person asks the process to stop.
    """
    disk.mkdir(folder)
    for left in folder.glob(".tmp-*"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                disk.remove(left)
    there = {n for n in range(count) if read_chunk(folder, n) is not None}

    def compute(number: int) -> int:
        over = not folder.exists()  # another process has joined the chunks and removed them
        if not over and not stopping.requested() and not (rank_and_size()[1] > 1 and read_chunk(folder, number) is not None):
            buffer = BytesIO()
            np.savez(buffer, allow_pickle=False, **make(number))
            content = buffer.getvalue()
            disk.write(chunk_path(folder, number), content + hashlib.sha256(content).digest(), tmp_prefix())
        return number

    yield len(there)
    for number in map_threads(compute, own_first([n for n in range(count) if n not in there]), threads):
        stopping.check()
        there.add(number)
        yield len(there)


def read_chunks(folder: Path, count: int) -> Iterator[Chunk]:
    """The arrays of chunks 0, ..., count - 1, in order; ValueError for one that is missing."""
    for number in range(count):
        chunk = read_chunk(folder, number)
        if chunk is None:
            raise ValueError(f"{chunk_path(folder, number)} is missing or damaged; the same command computes it again")
        yield chunk
