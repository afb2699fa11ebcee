"""The endless training sequence, each position a function of the seed, and its batches, prefetched by processes."""

import os
import pickle
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from justimage import randomness
from justimage.conditions import Condition, map_tensors
from justimage.data.arrays import ArraySource
from justimage.data.beside import ToldSource
from justimage.data.source import Source

T = TypeVar("T")
END: Any = object()
GRACE = 30
"""Seconds that a process which reads images goes on after SIGTERM."""


@dataclass(frozen=True)
class Stream:
    """The endless training sequence: epochs of a source, each in another order, with random horizontal flips if `flip`.

    The image at a position is a function of (seed, position) alone. Conditions that are images are flipped with theirs.
    """

    source: Source
    seed: int
    flip: bool
    indices: NDArray[np.int64] | None = None
    """the images of an epoch, some more than once; None: each once"""

    def batch(self, start: int, size: int) -> tuple[Tensor, Any]:
        """The images (size, channels, height, width) and conditions of the positions start, start + 1, ..."""
        count = len(self.source if self.indices is None else self.indices)
        epochs = range(start // count, (start + size - 1) // count + 1)
        orders = [
            randomness.order(self.seed, epoch, count)[max(start - epoch * count, 0) : start + size - epoch * count]
            for epoch in epochs
        ]
        order = np.concatenate(orders)
        images, condition = self.source.batch(order if self.indices is None else self.indices[order])
        if self.flip:
            flipped = np.flatnonzero(randomness.uniform(self.seed, "flip", np.arange(start, start + size)) < 0.5)
            mirror(images, flipped)
            map_tensors(lambda tensor: mirror(tensor, flipped) if tensor.ndim == 4 else tensor, condition)
        return images, condition


def balanced(source: Source) -> NDArray[np.int64]:
    """The images of an epoch with all classes equally often: as often as the largest is there, the others' images in turn.

    ValueError for a source without classes.
    """
    labels = np.asarray(getattr(source, "labels", ()), dtype=np.int64)
    if len(source.class_names) < 2 or not len(labels):
        raise ValueError("balance_classes needs a folder, an archive or a store with two classes or more")
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    most = max(map(len, members))
    return np.concatenate([np.resize(each, most) for each in members])


def mirror(images: Tensor, chosen: NDArray[np.intp]) -> Tensor:
    """Mirror the chosen of the images (b, channels, height, width), in place."""
    pixels = images.numpy()  # in PyTorch this takes several times as long
    if pixels.dtype == np.uint8 and pixels.shape[-1] % 8 == 0 and pixels.flags.c_contiguous:
        pixels = pixels.view(np.uint64)  # eight pixels at once, which takes half as long
        pixels[chosen] = pixels[chosen].byteswap(inplace=True)[..., ::-1]
    else:
        pixels[chosen] = pixels[chosen][..., ::-1]
    return images


@dataclass(frozen=True)
class BatchDataset(Dataset[tuple[Tensor, Condition] | Exception]):
    """Batches of a stream by the position of their first image. An error is returned, to be raised by the reader: raised in a
    worker process it would arrive wrapped in that process's traceback."""

    stream: Stream
    size: int

    def __getitem__(self, start: int) -> tuple[Tensor, Condition] | Exception:
        try:
            return self.stream.batch(start, self.size)
        except (ValueError, OSError) as error:
            return error


def in_memory(source: Source | None) -> bool:
    """Whether a source needs no worker processes to read it."""
    if isinstance(source, ToldSource):
        return in_memory(source.source) and (source.images is None or in_memory(source.images))
    return isinstance(source, ArraySource)


def ignore_signals(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM to the process that trains, which ends its workers after the current step.

    Torchrun sends SIGTERM to a process group, so that workers are in one of their own; service managers to every process, which
    a worker therefore outlives for GRACE seconds.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def workers_of(loader: DataLoader[Any]) -> Iterator[Any]:
    """What a loader's processes read. PyTorch raises an error wherever the main thread is when one of them is gone; left to its
    own looking, every few seconds, it does so to who waits for the next batch."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    read = iter(loader)
    signal.signal(signal.SIGCHLD, before)
    return read


def batches(
    stream: Stream, starts: Iterable[int], size: int, workers: int = 0, pinned: bool = False
) -> Iterator[tuple[Tensor, Condition]]:
    """Yield images (size, channels, height, width) and conditions of the `size` positions from each of `starts` on, in order.

    Worker processes prefetch batches, or, without any, a thread prefetches the next one (all that a source in memory needs);
    into pinned memory for a GPU.
    """
    workers = 0 if in_memory(stream.source) else workers
    dataset = BatchDataset(stream, size)
    loader = DataLoader(
        dataset, batch_size=None, sampler=starts, num_workers=workers, pin_memory=pinned, worker_init_fn=ignore_signals
    )  # fmt: skip
    try:
        read = workers_of(loader) if workers else prefetch(loader)
    except (pickle.PicklingError, AttributeError, TypeError) as error:  # where processes are spawned, rather than forked
        raise ValueError(f"the data cannot be sent to worker processes ({error}); --workers 0 reads it without them") from error
    while (batch := next_of(read)) is not END:
        if isinstance(batch, Exception):
            raise batch
        yield batch


def next_of(read: Iterator[T]) -> T:
    """The next batch, or END; OSError where a worker process is gone."""
    try:
        return next(read, END)  # pyright: ignore[reportReturnType]
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = " ".join(str(error).split())
        raise OSError(
            f"a process that reads images is gone, often for want of memory; try fewer --workers ({reason})"
        ) from error


def prefetch(items: Iterable[T]) -> Iterator[T]:
    """Yield the items, each fetched by a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        rest = iter(items)
        following = thread.submit(next, rest, END)
        while (item := following.result()) is not END:
            following = thread.submit(next, rest, END)
            yield item  # pyright: ignore[reportReturnType]
