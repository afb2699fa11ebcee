"""The endless training sequence, whose every position is a function of the seed, and its batches read ahead by processes."""

import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from justimage import randomness
from justimage.conditions import Condition
from justimage.data.arrays import ArraySource
from justimage.data.source import Source

T = TypeVar("T")
END: Any = object()


@dataclass(frozen=True)
class Stream:
    """The endless training sequence: epoch after epoch of a source, each in its own order, flipped at random if asked.

    What is at a position is a function of (seed, position) alone.
    """

    source: Source
    seed: int
    flip: bool

    def batch(self, start: int, size: int) -> tuple[Tensor, Condition]:
        """The images (size, channels, height, width) and conditions of the positions start, start + 1, ..."""
        count = len(self.source)
        epochs = range(start // count, (start + size - 1) // count + 1)
        orders = [
            randomness.order(self.seed, epoch, count)[max(start - epoch * count, 0) : start + size - epoch * count]
            for epoch in epochs
        ]
        images, condition = self.source.batch(np.concatenate(orders))
        if self.flip:
            chances = randomness.uniform(self.seed, "flip", np.arange(start, start + size))
            mirror(images.numpy(), np.flatnonzero(chances < 0.5))  # in PyTorch this takes several times as long
        return images, condition


def mirror(images: NDArray[Any], turned: NDArray[np.intp]) -> None:
    """Mirror some of the images (b, channels, height, width), in place."""
    if images.dtype == np.uint8 and images.shape[-1] % 8 == 0 and images.flags.c_contiguous:
        images = images.view(np.uint64)  # eight pixels at once, which takes half as long
        images[turned] = images[turned].byteswap(inplace=True)[..., ::-1]
    else:
        images[turned] = images[turned][..., ::-1]


@dataclass(frozen=True)
class BatchDataset(Dataset[tuple[Tensor, Condition] | Exception]):
    """Whole batches of a stream by the position of their first image. A bad image is handed over, to be raised where it is
    read: raised in a worker process it would arrive wrapped in a foreign traceback."""

    stream: Stream
    size: int

    def __getitem__(self, start: int) -> tuple[Tensor, Condition] | Exception:
        try:
            return self.stream.batch(start, self.size)
        except (ValueError, OSError) as error:
            return error


def ignore_signals(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM to the process that trains, which ends its workers after the step in hand."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def batches(
    stream: Stream, starts: Iterable[int], size: int, workers: int = 0, pinned: bool = False
) -> Iterator[tuple[Tensor, Condition]]:
    """Images (size, channels, height, width) and conditions of the `size` positions from each of `starts` on, in order.

    Worker processes prepare them ahead, or, without any, a thread the next one (all that a source in memory needs); in pinned
    memory for a GPU.
    """
    workers = 0 if isinstance(stream.source, ArraySource) else workers
    ahead = BatchDataset(stream, size)
    loader = DataLoader(
        ahead, batch_size=None, sampler=starts, num_workers=workers, pin_memory=pinned, worker_init_fn=ignore_signals
    )  # fmt: skip
    for batch in loader if workers else prefetch(loader):
        if isinstance(batch, Exception):
            raise batch
        yield batch


def prefetch(items: Iterable[T]) -> Iterator[T]:
    """The same items, the next one made by a thread while the last one is used."""
    with ThreadPoolExecutor(1) as thread:
        rest = iter(items)
        following = thread.submit(next, rest, END)
        while (item := following.result()) is not END:
            following = thread.submit(next, rest, END)
            yield item  # pyright: ignore[reportReturnType]
