"""A store: a set of images decoded and cropped once, in shards of which any image is read by its offset.

    store/index.json  labels.npy  images-00000.npy  images-00001.npy  ...

Shards are plain .npy arrays (n, channels, height, width), uint8 or float32. index.json is written last, says what each
file must be, and carries a hash of itself. `prepare.py` makes a store; here it is read.

There may be more shards than a process may open files: ImageNet at 1024 x 1024 has 61,000. So only the last ones used are
kept open. Reads are positional, which needs no file position that threads or forked processes would share.
"""

import hashlib
import math
import mmap
import os
import resource
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from justimage import disk
from justimage.data.arrays import MAX_HEADER_BYTES, NpyHeader
from justimage.data.source import Pixels

VERSION = 1
INDEX, LABELS = "index.json", "labels.npy"
HINT = "remove the store and prepare it again"
KINDS = {"uint8": torch.uint8, "float32": torch.float32}
NOWAIT = getattr(os, "RWF_NOWAIT", 0)
"""Read only what is in memory; on a system that cannot, every read waits."""
MAX_CACHED_SHARD = 2**14
"""Bytes of an image up to which a system call takes longer than its copy; shards of such images are mapped, and few."""
MAX_OPEN_SHARDS = 4096
"""Shards that are kept open, where the system allows a process four times as many files: it has other files, and stores."""


def is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < 2**53


def all_of(kind: Callable[[Any], bool], values: Any) -> bool:
    return isinstance(values, list) and all(map(kind, values))


def is_word(value: Any) -> bool:
    return isinstance(value, str)


def is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


INDEX_SCHEMA: dict[str, Callable[[Any], bool]] = {
    "count": lambda v: is_count(v, 1),
    "shape": lambda v: all_of(lambda side: is_count(side, 1), v) and len(v) == 3,
    "dtype": lambda v: is_word(v) and v in KINDS,
    "class_names": lambda v: all_of(is_word, v),
    "fingerprint": is_word,
    "mean": lambda v: all_of(is_finite, v),
    "deviation": lambda v: all_of(is_finite, v) and all(d >= 0 for d in v),
    "made": lambda v: isinstance(v, dict),
    "refused": lambda v: all_of(lambda item: all_of(is_word, item) and len(item) == 2, v),
    "labels": lambda v: is_word(v["sha256"]),
    "shards": lambda v: all_of(lambda s: is_count(s["count"]) and is_count(s["size"]) and is_word(s["sha256"]), v),
}
"""What each entry of an index must be."""


def shard_name(number: int) -> str:
    return f"images-{number:05d}.npy"


@dataclass(eq=False)
class Shard:
    """An opened shard. Its descriptor closes with the last reference, so a thread may read what another one has let go."""

    path: Path
    descriptor: int
    start: int
    """of the first image, in bytes"""
    small: memoryview | None = None
    """all its images, mapped, where they are SMALL"""

    def __del__(self, close: Callable[[int], object] = os.close) -> None:
        close(self.descriptor)

    def read_cached(self, out: memoryview, offset: int) -> bool:
        """Fill `out` with the bytes from an offset into the images on, if the system has them in memory; otherwise ask it to
        fetch them and return False at once, so that a slow disk works on many at a time."""
        if self.small:
            out[:] = self.small[offset : offset + len(out)]
            return True
        try:
            complete = os.preadv(self.descriptor, (out,), self.start + offset, NOWAIT) == len(out)
        except OSError:  # not in memory, or on a file system that cannot tell
            complete = False
        if not complete:
            advise(self.descriptor, self.start + offset, len(out))
        return complete

    def read(self, out: memoryview, offset: int) -> None:
        """Fill `out` with the bytes from an offset into the images on; ValueError or OSError, with the file's name."""
        done = 0
        while done < len(out):
            try:
                count = os.preadv(self.descriptor, (out[done:],), self.start + offset + done)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.path)) from error
            if not count:
                raise ValueError(f"{self.path} ends within an image; {HINT}")
            done += count


def advise(descriptor: int, offset: int, size: int) -> None:
    """Tell the system, where it listens, that a part of a file will be read soon."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)


def open_shard(root: Path, index: dict[str, Any], number: int) -> Shard:
    """A shard of a store, its header checked; ValueError or OSError, in one line, for one that is not what the index says."""
    path, its = root / shard_name(number), index["shards"][number]
    shape, dtype = (its["count"], *index["shape"]), np.dtype(index["dtype"])
    start = its["size"] - math.prod(shape) * dtype.itemsize
    shard = Shard(path, os.open(path, os.O_RDONLY), start)
    size = os.fstat(shard.descriptor).st_size
    try:
        header = header_of(os.pread(shard.descriptor, start, 0), size)
    except ValueError as error:
        raise ValueError(f"{path} is not an array: {error}; {HINT}") from error
    if (header.shape, header.dtype, header.order, header.offset) != (shape, dtype, "C", start):
        raise ValueError(f"{path} is {header.dtype} {header.shape}, which is not what {INDEX} says; {HINT}")
    if size - start <= MAX_CACHED_SHARD * its["count"]:
        advise(shard.descriptor, 0, size)
        shard.small = memoryview(mmap.mmap(shard.descriptor, 0, access=mmap.ACCESS_READ))[start:]
    return shard


header_of = lru_cache(maxsize=16)(NpyHeader)
"""Shards of as many images begin alike; parsing a header takes longer than opening the file."""


def most_opened() -> int:
    """How many shards may be kept open by the limit that this process has now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_OPEN_SHARDS if soft == resource.RLIM_INFINITY else max(1, min(MAX_OPEN_SHARDS, soft // 4))


@dataclass(frozen=True)
class Store(Pixels):
    """A source that reads a store. Another process opens it anew by its path: workers are handed nothing else."""

    root: Path
    index: dict[str, Any] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    starts: NDArray[np.int64] = field(repr=False)
    """of each shard, the number of images before it"""
    opened: Callable[[int], Shard] = field(repr=False, compare=False)
    """a shard by its number; keeps the last ones open"""

    def __reduce__(self) -> tuple[Callable[..., "Store"], tuple[Path, bool]]:
        return open_store, (self.root, False)  # the sizes were compared here

    @property
    def class_names(self) -> list[str]:
        return self.index["class_names"]

    @property
    def fingerprint(self) -> str:
        return self.index["fingerprint"]

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.index["shape"])

    @property
    def floats(self) -> bool:
        """Whether images are float32 in the data's own units, rather than uint8."""
        return self.index["dtype"] == "float32"

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, over the whole set."""
        return tuple(self.index["mean"]), tuple(self.index["deviation"])

    def __len__(self) -> int:
        return len(self.labels)

    def file(self, index: int) -> Path:
        """The shard that holds an image."""
        return self.root / shard_name(int(np.searchsorted(self.starts, index, side="right")) - 1)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, labels = self.batch(np.array([index]))
        return images[0], int(labels[0])

    def batch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The images (b, channels, height, width) and labels (b,) at some indices, in range(len)."""
        images = torch.empty(len(indices), *self.shape, dtype=KINDS[self.index["dtype"]])
        shards = np.searchsorted(self.starts, indices, side="right") - 1
        size = math.prod(self.shape) * images.itemsize
        offsets = (indices - self.starts[shards]) * size
        content = images.numpy().reshape(-1).view(np.uint8).data
        rows = [content[i : i + size] for i in range(0, len(content), size)]
        wanted = zip(rows, shards.tolist(), offsets.tolist(), strict=True)
        late = [(row, shard, offset) for row, shard, offset in wanted if not self.opened(shard).read_cached(row, offset)]
        for row, shard, offset in late:
            self.opened(shard).read(row, offset)
        return images, torch.from_numpy(self.labels[indices])


def is_store(place: Path) -> bool:
    """Whether a folder is a store, complete or begun."""
    return (place / INDEX).is_file() or (place / "plan.json").is_file()


def open_store(root: Path, sizes: bool = True) -> Store:
    """The store in a folder. Its index, its labels and the sizes of its shards are checked here, one line for what is wrong;
    each shard's header when it is opened; their hashes when the store is prepared again.

    sizes: compare the sizes of the files, of which there may be many; what another process has opened was compared there.
    """
    index = read_index(root)
    image = math.prod(index["shape"]) * np.dtype(index["dtype"]).itemsize
    if any(not 0 <= shard["size"] - shard["count"] * image <= MAX_HEADER_BYTES for shard in index["shards"]):
        raise ValueError(f"{root / INDEX} says of a shard that it is larger or smaller than its images; {HINT}")
    if sizes:
        check_sizes(root, [shard["size"] for shard in index["shards"]])
    labels = read_labels(root / LABELS, index)
    starts = np.cumsum([0, *(shard["count"] for shard in index["shards"][:-1])])
    return Store(root, index, labels, starts, lru_cache(maxsize=most_opened())(partial(open_shard, root, index)))


def check_sizes(root: Path, sizes: list[int]) -> None:
    """ValueError for a shard that is missing or of another size than the index says."""
    with os.scandir(root) as entries:  # of which a network's file system sends the sizes with the names
        found = {e.name: e.stat().st_size for e in entries if e.name.endswith(".npy") and e.is_file()}
    for number, size in enumerate(sizes):
        name = shard_name(number)
        if name not in found:
            raise ValueError(f"{root / name} is missing; {HINT}")
        if found[name] != size:
            raise ValueError(f"{root / name} has {found[name]:,} bytes, not {size:,}; {HINT}")


def read_labels(path: Path, index: dict[str, Any]) -> NDArray[np.int64]:
    """The class of each image, or a ValueError."""
    most = 8 * index["count"] + MAX_HEADER_BYTES
    content = path.read_bytes() if path.is_file() and path.stat().st_size <= most else b""
    if hashlib.sha256(content).hexdigest() != index["labels"]["sha256"]:
        raise ValueError(f"{path} is missing or was changed; {HINT}")
    try:
        header = NpyHeader(content[:MAX_HEADER_BYTES], len(content))
        if header.dtype != np.int64 or header.shape != (index["count"],):
            raise ValueError(f"{header.dtype} {header.shape}")
        labels = np.frombuffer(content, np.int64, offset=header.offset)
        if labels.min() < -1 or labels.max() >= len(index["class_names"]):
            raise ValueError(f"there are {len(index['class_names'])} classes")
    except ValueError as error:
        raise ValueError(f"{path} is not a class for each image ({error}); {HINT}") from error
    return labels


def read_index(root: Path) -> dict[str, Any]:
    """A store's index, whole and unchanged, or a ValueError."""
    path = root / INDEX
    if not path.is_file() and (root / "plan.json").is_file():
        raise ValueError(f"{root} is not finished; the same justimage prepare goes on with it")
    try:
        index = disk.read_json(path)
        if index["sha256"] != disk.self_checksum(index):
            raise ValueError("its hash of itself does not match")
        if index["version"] != VERSION:
            raise ValueError(f"it is of version {disk.printable(index['version'])}, where this program reads {VERSION}")
        if wrong := [name for name, right in INDEX_SCHEMA.items() if not right(index[name])]:
            raise ValueError(f"its {wrong[0]} is not one")
        if sum(shard["count"] for shard in index["shards"]) != index["count"]:
            raise ValueError("its shards have not as many images as it says")
        if not len(index["mean"]) == len(index["deviation"]) == index["shape"][0]:
            raise ValueError("its statistics are of other channels")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is missing or damaged ({error}); {HINT}") from error
    return index
