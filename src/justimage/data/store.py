"""A store: a set of images decoded and cropped once, in shards that are mapped into memory and read by offset.

    store/index.json  labels.npy  images-00000.npy  images-00001.npy  ...

Shards are plain .npy arrays (n, channels, height, width), uint8 or float32. index.json is written last, says what each
file must be, and carries a hash of itself. `prepare.py` makes a store; here it is read.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from justimage import disk
from justimage.data.arrays import LONGEST_HEADER, Header, mapped_array

VERSION = 1
INDEX, LABELS = "index.json", "labels.npy"
REMEDY = "remove the store and prepare it again"
KINDS = {"uint8": torch.uint8, "float32": torch.float32}


def is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < 2**53


def all_of(kind: Callable[[Any], bool], values: Any) -> bool:
    return isinstance(values, list) and all(map(kind, values))


def is_word(value: Any) -> bool:
    return isinstance(value, str)


def is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


WELL_FORMED: dict[str, Callable[[Any], bool]] = {
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


@dataclass(frozen=True)
class Store:
    """A source that reads a store. Another process opens it anew by its path: workers are handed nothing else."""

    root: Path
    index: dict[str, Any] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    starts: NDArray[np.int64] = field(repr=False)
    """of each shard, the number of images before it"""
    shards: dict[int, NDArray[Any]] = field(default_factory=dict, repr=False)
    """those mapped so far"""

    def __reduce__(self) -> tuple[Callable[[Path], "Store"], tuple[Path]]:
        return open_store, (self.root,)

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

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, labels = self.gather(np.array([index]))
        return images[0], int(labels[0])

    def gather(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The images (b, channels, height, width) and labels (b,) at some indices, in range(len)."""
        images = torch.empty(len(indices), *self.shape, dtype=KINDS[self.index["dtype"]])
        out = images.numpy()
        shards = np.searchsorted(self.starts, indices, side="right") - 1
        places = indices - self.starts[shards]
        for row, (shard, place) in enumerate(zip(shards.tolist(), places.tolist(), strict=True)):
            out[row] = (self.shards[shard] if shard in self.shards else self.mapped(shard))[place]
        return images, torch.from_numpy(self.labels[indices])

    def mapped(self, number: int) -> NDArray[Any]:
        path = self.root / shard_name(number)
        try:
            with open(path, "rb") as file:
                shard = mapped_array(path, file, 0, path.stat().st_size)
        except ValueError as error:
            raise ValueError(f"{path} is not an array: {error}; {REMEDY}") from error
        if shard.shape != (self.index["shards"][number]["count"], *self.shape) or shard.dtype.name != self.index["dtype"]:
            raise ValueError(f"{path} is {shard.dtype} {shard.shape}, which is not what {INDEX} says; {REMEDY}")
        self.shards[number] = np.asarray(shard)  # a plain array: indexing np.memmap costs more than the copy
        return self.shards[number]


def is_store(place: Path) -> bool:
    """Whether a folder is a store, complete or begun."""
    return (place / INDEX).is_file() or (place / "plan.json").is_file()


def open_store(root: Path) -> Store:
    """The store in a folder. Its index, its labels and the sizes of its shards are checked here, one line for what is wrong;
    the shards' hashes when it is prepared again."""
    index = read_index(root)
    least = [shard["count"] * math.prod(index["shape"]) * np.dtype(index["dtype"]).itemsize for shard in index["shards"]]
    if any(not 0 <= shard["size"] - size <= LONGEST_HEADER for shard, size in zip(index["shards"], least, strict=True)):
        raise ValueError(f"{root / INDEX} says of a shard that it is larger or smaller than its images; {REMEDY}")
    for number, shard in enumerate(index["shards"]):
        path = root / shard_name(number)
        if not path.is_file():
            raise ValueError(f"{path} is missing; {REMEDY}")
        if path.stat().st_size != shard["size"]:
            raise ValueError(f"{path} has {path.stat().st_size:,} bytes, not {shard['size']:,}; {REMEDY}")
    labels = read_labels(root / LABELS, index)
    return Store(root, index, labels, np.cumsum([0, *(shard["count"] for shard in index["shards"][:-1])]))


def read_labels(path: Path, index: dict[str, Any]) -> NDArray[np.int64]:
    """The class of each image, or a ValueError."""
    most = 8 * index["count"] + LONGEST_HEADER
    content = path.read_bytes() if path.is_file() and path.stat().st_size <= most else b""
    if hashlib.sha256(content).hexdigest() != index["labels"]["sha256"]:
        raise ValueError(f"{path} is missing or was changed; {REMEDY}")
    try:
        header = Header(content[:LONGEST_HEADER], len(content))
        if header.dtype != np.int64 or header.shape != (index["count"],):
            raise ValueError(f"{header.dtype} {header.shape}")
        labels = np.frombuffer(content, np.int64, offset=header.offset)
        if labels.min() < -1 or labels.max() >= len(index["class_names"]):
            raise ValueError(f"there are {len(index['class_names'])} classes")
    except ValueError as error:
        raise ValueError(f"{path} is not a class for each image ({error}); {REMEDY}") from error
    return labels


def read_index(root: Path) -> dict[str, Any]:
    """A store's index, whole and unchanged, or a ValueError."""
    path = root / INDEX
    if not path.is_file() and (root / "plan.json").is_file():
        raise ValueError(f"{root} is not finished; the same justimage prepare goes on with it")
    try:
        index = disk.read_json(path)
        if index["sha256"] != disk.own_hash(index):
            raise ValueError("its hash of itself does not match")
        if index["version"] != VERSION:
            raise ValueError(f"it is of version {disk.shown(index['version'])}, where this program reads {VERSION}")
        if wrong := [name for name, right in WELL_FORMED.items() if not right(index[name])]:
            raise ValueError(f"its {wrong[0]} is not one")
        if sum(shard["count"] for shard in index["shards"]) != index["count"]:
            raise ValueError("its shards have not as many images as it says")
        if not len(index["mean"]) == len(index["deviation"]) == index["shape"][0]:
            raise ValueError("its statistics are of other channels")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is missing or damaged ({error}); {REMEDY}") from error
    return index
