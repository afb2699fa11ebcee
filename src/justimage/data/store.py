"""A store: a set of images decoded and cropped once, in shards in which any image is found by its offset.

    store/index.json  labels.npy  images-00000.npy  images-00001.npy  ...

Shards are plain .npy arrays (n, channels, height, width), uint8 or float32. index.json is written last, describes every other
file, and carries a checksum of itself. `prepare.py` makes a store; this module reads it.

There may be more shards than files that a process may open: ImageNet at 1024 x 1024 has 61,000. So only the most recently
used are open. Reads are positional: there is no file position for threads or forked processes to share.
"""

import hashlib
import math
import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from justimage import disk
from justimage.checks import check_range
from justimage.data.arrays import MAX_HEADER_BYTES, NpyHeader
from justimage.data.images import Decode
from justimage.data.source import LabeledImages
from justimage.strict_json import parse

VERSION = 2
"""Of index.json and plan.json."""
INDEX, PLAN, LABELS = "index.json", "plan.json", "labels.npy"
HINT = "remove the store and prepare it again"
DTYPES = {"uint8": torch.uint8, "float32": torch.float32}
MAX_COUNT = 2**53
NOWAIT = getattr(os, "RWF_NOWAIT", 0)
"""The flag to read only what is in memory; on a system without it every read waits."""
MAX_MAPPED_IMAGE = 2**14
"""Bytes of an image up to which a system call takes longer than its copy; shards of such images are mapped, and few."""
MAX_OPEN_SHARDS = 4096
"""Shards to keep open, and at most a quarter of the files that the system allows a process: it opens others, too."""


@dataclass(frozen=True)
class StorePlan:
    """Everything that decides what a store holds."""

    source: str
    fingerprint: str
    count: int
    image_size: tuple[int, int]
    channels: int
    upscale: bool
    decode: Decode
    dtype: str
    shard_images: int
    version: int = VERSION

    @property
    def shards(self) -> int:
        return -(-self.count // self.shard_images)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, *self.image_size


@dataclass(frozen=True)
class ArrayEntry:
    """An .npy file of a store: images or labels in it, its bytes, and their hash."""

    count: int
    size: int
    sha256: str

    def __post_init__(self) -> None:
        check_range(self, count=(0, MAX_COUNT), size=(0, MAX_COUNT))


@dataclass(frozen=True)
class Index:
    """The contents of a store: the content of index.json, without its checksum."""

    version: int
    count: int
    shape: tuple[int, int, int]
    dtype: Literal["uint8", "float32"]
    class_names: tuple[str, ...]
    fingerprint: str
    mean: tuple[float, ...]
    """of each channel, over the whole set"""
    std: tuple[float, ...]
    plan: StorePlan
    refused: tuple[tuple[str, str], ...]
    """name and reason of each image that could not be used"""
    labels: ArrayEntry
    shards: tuple[ArrayEntry, ...]

    def __post_init__(self) -> None:
        if min(*self.shape, self.count) < 1 or sum(shard.count for shard in self.shards) != self.count:
            raise ValueError("its shards do not hold as many images as it says")
        if not len(self.mean) == len(self.std) == self.shape[0]:
            raise ValueError("its mean and std are not one number for each channel")
        if min(self.std) < 0 or not all(abs(value) < 1e300 for value in (*self.mean, *self.std)):
            raise ValueError("its mean and std are not finite, or std is below 0")


def shard_name(number: int) -> str:
    return f"images-{number:05d}.npy"


@dataclass(eq=False)
class StoreShard:
    """An open shard. Its descriptor closes with the last reference, so a thread may read a shard that another evicts."""

    path: Path
    descriptor: int
    start: int
    """of the first image, in bytes"""
    mapped: memoryview | None = None
    """all its images, where they are small, or the system has no positional reads"""

    def __del__(self, close: Callable[[int], object] = os.close) -> None:
        close(self.descriptor)

    def read_cached(self, out: memoryview, offset: int) -> bool:
        """Fill `out` with the bytes from an offset into the images on, if they are in the system's memory; otherwise ask the
        system to fetch them and return False at once, so that a slow disk works on many reads at a time."""
        if self.mapped:
            out[:] = self.mapped[offset : offset + len(out)]
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
    """Tell the system, where it takes such hints, that a range of a file will be read soon."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)


def open_shard(root: Path, index: Index, number: int) -> StoreShard:
    """Open a shard and check its header; ValueError or OSError, in one line, for one that is not what the index says."""
    path, entry = root / shard_name(number), index.shards[number]
    shape, dtype = (entry.count, *index.shape), np.dtype(index.dtype)
    start = entry.size - math.prod(shape) * dtype.itemsize
    shard = StoreShard(path, os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)), start)
    size = os.fstat(shard.descriptor).st_size
    try:
        header = cached_header(os.read(shard.descriptor, start), size)
    except ValueError as error:
        raise ValueError(f"{path} is not an array: {error}; {HINT}") from error
    if (header.shape, header.dtype, header.order, header.offset) != (shape, dtype, "C", start):
        raise ValueError(f"{path} is {header.dtype} {header.shape}, which is not what {INDEX} says; {HINT}")
    if size - start <= MAX_MAPPED_IMAGE * entry.count or not hasattr(os, "preadv"):
        advise(shard.descriptor, 0, size)
        shard.mapped = memoryview(mmap.mmap(shard.descriptor, 0, access=mmap.ACCESS_READ))[start:]
    return shard


cached_header = lru_cache(maxsize=16)(NpyHeader)
"""Shards of equally many images begin alike, and parsing a header takes longer than opening the file."""


def max_open_shards() -> int:
    """How many shards to keep open under the limit that this process has now."""
    try:
        import resource
    except ImportError:  # Windows allows 512 files
        return 128
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_OPEN_SHARDS if soft == resource.RLIM_INFINITY else max(1, min(MAX_OPEN_SHARDS, soft // 4))


@dataclass(frozen=True)
class Store(LabeledImages):
    """A source that reads a store. It is pickled as its path: worker processes open it again."""

    root: Path
    index: Index = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    starts: NDArray[np.int64] = field(repr=False)
    """of each shard, the number of images before it"""
    open_shard: Callable[[int], StoreShard] = field(repr=False, compare=False)
    """a shard by its number; the most recently used stay open"""

    def __reduce__(self) -> tuple[Callable[..., "Store"], tuple[Path, bool]]:
        return open_store, (self.root, False)  # the sizes were compared here

    @property
    def class_names(self) -> list[str]:
        return list(self.index.class_names)

    @property
    def fingerprint(self) -> str:
        return self.index.fingerprint

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.index.shape

    @property
    def floats(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.index.dtype == "float32"

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.index.mean, self.index.std

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
        images = torch.empty(len(indices), *self.shape, dtype=DTYPES[self.index.dtype])
        shards = np.searchsorted(self.starts, indices, side="right") - 1
        size = math.prod(self.shape) * images.itemsize
        offsets = (indices - self.starts[shards]) * size
        content = images.numpy().reshape(-1).view(np.uint8).data
        rows = [content[i : i + size] for i in range(0, len(content), size)]
        wanted = zip(rows, shards.tolist(), offsets.tolist(), strict=True)
        late = [(row, shard, offset) for row, shard, offset in wanted if not self.open_shard(shard).read_cached(row, offset)]
        for row, shard, offset in late:
            self.open_shard(shard).read(row, offset)
        return images, torch.from_numpy(self.labels[indices])


def is_store(place: Path) -> bool:
    """Whether a folder is a store, complete or begun."""
    return (place / INDEX).is_file() or (place / PLAN).is_file()


def open_store(root: Path, sizes: bool = True) -> Store:
    """Open the store in a folder; ValueError or OSError, in one line, for one that is incomplete or damaged.

    Index, labels and the sizes of the shards are checked here; a shard's header when it is opened; hashes when the store is
    prepared again. sizes: compare the sizes of the shards, of which there may be many; False where another process did.
    """
    index = read_index(root)
    image = math.prod(index.shape) * np.dtype(index.dtype).itemsize
    if any(not 0 <= shard.size - shard.count * image <= MAX_HEADER_BYTES for shard in index.shards):
        raise ValueError(f"{root / INDEX} says of a shard that it is larger or smaller than its images; {HINT}")
    if sizes:
        check_sizes(root, [shard.size for shard in index.shards])
    labels = read_labels(root / LABELS, index)
    starts = np.cumsum([0, *(shard.count for shard in index.shards[:-1])])
    return Store(root, index, labels, starts, lru_cache(maxsize=max_open_shards())(partial(open_shard, root, index)))


def check_sizes(root: Path, sizes: list[int]) -> None:
    """ValueError for a shard that is missing or of another size than the index says."""
    with os.scandir(root) as entries:  # a network file system sends the sizes with the names
        found = {e.name: e.stat().st_size for e in entries if e.name.endswith(".npy") and e.is_file()}
    for number, size in enumerate(sizes):
        name = shard_name(number)
        if name not in found:
            raise ValueError(f"{root / name} is missing; {HINT}")
        if found[name] != size:
            raise ValueError(f"{root / name} has {found[name]:,} bytes, not {size:,}; {HINT}")


def read_labels(path: Path, index: Index) -> NDArray[np.int64]:
    """Read the class of each image; ValueError, in one line, for a file that is damaged or of other classes."""
    limit = 8 * index.count + MAX_HEADER_BYTES
    content = path.read_bytes() if path.is_file() and path.stat().st_size <= limit else b""
    if hashlib.sha256(content).hexdigest() != index.labels.sha256:
        raise ValueError(f"{path} is missing or was changed; {HINT}")
    try:
        header = NpyHeader(content[:MAX_HEADER_BYTES], len(content))
        if header.dtype != np.int64 or header.shape != (index.count,):
            raise ValueError(f"{header.dtype} {header.shape}")
        labels = np.frombuffer(content, np.int64, offset=header.offset)
        if labels.min() < -1 or labels.max() >= len(index.class_names):
            raise ValueError(f"there are {len(index.class_names)} classes")
    except ValueError as error:
        raise ValueError(f"{path} is not a class for each image ({error}); {HINT}") from error
    return labels


def read_index(root: Path) -> Index:
    """Read a store's index; ValueError, in one line, for one that is missing, damaged, changed or of another version."""
    path = root / INDEX
    if not path.is_file() and (root / PLAN).is_file():
        raise ValueError(f"{root} is not finished; the same justimage prepare resumes it")
    values = read_versioned(path)
    try:
        if values.pop("sha256", None) != disk.self_checksum(values):
            raise ValueError("its checksum of itself does not match")
        return parse(values, Index, "index")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); {HINT}") from error


def read_versioned(path: Path) -> dict[str, Any]:
    """Read a JSON object of this version; ValueError, in one line, for anything else."""
    try:
        values = disk.read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is missing or damaged ({error}); {HINT}") from error
    if values.get("version") != VERSION:
        version = disk.printable(values.get("version"), 100)
        raise ValueError(f"{path} is of version {version}; this justimage reads version {VERSION}: {HINT}")
    return values
