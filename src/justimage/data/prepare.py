"""Make a store: decode and crop every image once, in parallel, so that a kill at any moment costs a shard at most.

A plan, written first, fixes the source and the settings. Shard k holds the images k n, ..., k n + n - 1 of the source, without
those refused, so that it does not depend on which process makes it, or when. It is published by a rename, and after it a note
(`images-00000.json`) with its hash, labels, sums, and refused images. The index is merged from the notes, in their order, and
published last; then plan and notes are removed.
"""

import hashlib
import io
import json
import os
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from justimage import disk
from justimage.data.arrays import SUFFIXES, ArrayFile, ArraySource, open_array_file
from justimage.data.built_in import BUILT_IN, DEFAULT_SIZE
from justimage.data.files import open_files
from justimage.data.images import Crop, Decode
from justimage.data.source import ImageError, Source
from justimage.data.store import (
    HINT,
    INDEX,
    LABELS,
    PLAN,
    VERSION,
    ArrayEntry,
    Index,
    StorePlan,
    is_store,
    open_store,
    read_versioned,
    shard_name,
)  # fmt: skip
from justimage.pool import run_in_pool
from justimage.progress import Job, Progress
from justimage.strict_json import parse

LOCK = ".lock"
SHARD_BYTES, MIN_SHARDS, MIN_SHARD_IMAGES = 2**26, 32, 64
"""A shard has about this many bytes; those of a small set have fewer, so that several processes share the work."""
BLOCK = 16
"""Images between two reports of progress; statistics are computed of as many at a time."""


@dataclass(frozen=True)
class ShardNote(ArrayEntry):
    """A finished shard, until the index is made of the notes of all."""

    labels: tuple[int, ...]
    refused: tuple[tuple[str, str], ...]
    mean: tuple[float, ...]
    """of each channel"""
    squares: tuple[float, ...]
    """sum of the squared distances from it"""
    items: str
    """a hash of the images that can be summed over shards, whatever their size"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.labels) != self.count or min(self.labels, default=0) < -1 or max(self.labels, default=0) > 2**53:
            raise ValueError("its labels are not one class for each image")
        if not all(abs(value) < 1e300 for value in (*self.mean, *self.squares)):
            raise ValueError("its statistics are not finite")
        int(self.items, 16)


@dataclass(frozen=True)
class PrepareReport:
    """The images in a store, and those refused with their reasons; `verified`: the store was complete, and only verified."""

    count: int
    shape: tuple[int, int, int]
    dtype: str
    refused: list[tuple[str, str]]
    verified: bool


def prepare(
    source: str,
    store: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    upscale: bool = False,
    decode: Decode = "photo",
    shard_images: int | None = None,
    workers: int | None = None,
) -> Job[PrepareReport]:
    """Make the store of a source, resume making it, or verify it where it is complete: `report = finish(prepare(...))`.

    image_size and channels (by default 3): of the crop, for image files; arrays have their own. upscale and decode: as in
    `Crop`. workers: processes, by default one for each core; they change nothing that is written. Raises ValueError or
    OSError, in one line.
    """
    root = Path(store)
    for name, value in ("shard_images", shard_images), ("workers", workers), ("channels", channels):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be 1 or more")
    occupied = root.exists() and (not root.is_dir() or any(not p.name.startswith((".tmp-", LOCK)) for p in root.iterdir()))
    if occupied and not is_store(root):
        raise ValueError(f"{root} is not empty and holds no store; give another place")
    try:
        opened, plan = make_plan(source, image_size, channels, upscale, decode, shard_images)
    except FileNotFoundError:
        if not (root / INDEX).exists():
            raise
        return (yield from verify_store(root))  # a complete store does not need its source
    report = None
    if not (root / INDEX).exists():
        disk.mkdir(root)
        with disk.file_lock(root / LOCK):
            if not (root / INDEX).exists():  # nor made by another process meanwhile
                report = yield from make_store(opened, plan, root, workers)
    if report is None:
        check_same_plan(root, plan, open_store(root).index.plan)
        return (yield from verify_store(root))
    if not report.count:
        disk.remove(root)
        (name, reason), *_ = report.refused
        raise ValueError(f"none of the {len(report.refused)} images of {source} can be used; {name}: {reason}")
    remove_leftovers(root)
    return report


def make_plan(
    source: str,
    image_size: int | tuple[int, int] | None,
    channels: int | None,
    upscale: bool,
    decode: Decode,
    shard_images: int | None,
) -> tuple[Source, StorePlan]:
    """Open the source, and plan its store."""
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size and min(size) < 1:
        raise ValueError(f"image_size is {image_size}; it must be 1 or more")
    place = Path(source).expanduser()
    if is_store(place):
        raise ValueError(f"{source} is a store already")
    if source in BUILT_IN:
        if channels not in (None, 1):
            raise ValueError(f"the {source} have 1 channel, not {channels}")
        opened = BUILT_IN[source](size or DEFAULT_SIZE)
    elif place.suffix.lower() in SUFFIXES:
        opened = open_array_file(place)
        own_channels, *own_size = opened.shape
        if (size and list(size) != own_size) or (channels and channels != own_channels):
            raise ValueError(
                f"{source} has images of {format_shape(opened.shape)}, and arrays are not cropped; leave out the size"
            )
    elif size is None:
        raise ValueError("no image size is given, to which images are cropped; for instance --image-size 256")
    else:
        opened = open_files(source, Crop(size, 3 if channels is None else channels, upscale, decode))
    dtype = np.dtype(np.float32 if opened.floats else np.uint8)
    count, image = len(opened), int(np.prod(opened.shape)) * dtype.itemsize
    default = max(1, min(SHARD_BYTES // image, max(MIN_SHARD_IMAGES, -(-count // MIN_SHARDS))))
    plan = StorePlan(
        source, opened.fingerprint, count, opened.shape[1:], opened.shape[0], upscale, decode, dtype.name,
        shard_images or default,
    )  # fmt: skip
    return opened, plan


def format_shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def check_same_plan(root: Path, new: StorePlan, old: StorePlan) -> None:
    """ValueError where a store was made, or begun, from something else. The same data may lie elsewhere by now."""
    different = [
        f"{f.name} is {getattr(new, f.name)}, was {reprlib.repr(getattr(old, f.name))}"
        for f in fields(new)
        if f.name not in ("source", "fingerprint") and getattr(new, f.name) != getattr(old, f.name)
    ]
    if not different and new.fingerprint != old.fingerprint:
        different = [f"{new.source} is not the data it was begun with (files, sizes or classes changed)"]
    if different:
        raise ValueError(f"{root} was begun with other settings: {'; '.join(different)}. Use these, or another store")


def make_store(source: Source, plan: StorePlan, root: Path, workers: int | None) -> Job[PrepareReport]:
    """Make the shards that are missing, then the index."""
    if (root / PLAN).exists():
        check_same_plan(root, plan, read_plan(root))
    disk.write(root / PLAN, to_rows(asdict(plan)))
    for leftover in root.glob(".tmp-*"):  # of a crash
        disk.remove(leftover)
    todo = [k for k in range(plan.shards) if not is_complete(plan, root, k)]
    done = plan.count - sum(len(shard_range(plan, k)) for k in todo)
    yield Progress("preparing", done, plan.count)
    in_memory = isinstance(source, ArraySource) or (isinstance(source, ArrayFile) and not source.mapped)
    processes = 1 if in_memory else max(1, min(workers or os.cpu_count() or 1, len(todo)))
    for count in run_in_pool([partial(make_shard, source, plan, root)] * processes, todo, __name__):
        done += count
        yield Progress("preparing", done, plan.count)
    return publish(root, plan, source.class_names)


def shard_range(plan: StorePlan, k: int) -> range:
    """The images of the source that shard k is made from."""
    return range(k * plan.shard_images, min((k + 1) * plan.shard_images, plan.count))


def note_path(root: Path, k: int) -> Path:
    return (root / shard_name(k)).with_suffix(".json")


def is_complete(plan: StorePlan, root: Path, k: int) -> bool:
    """Whether shard k and its note exist. Both are published by a rename, the note last."""
    try:
        return (root / shard_name(k)).stat().st_size == read_note(plan, root, k).size
    except (FileNotFoundError, ValueError):  # not yet made, or damaged, and made again
        return False


def read_note(plan: StorePlan, root: Path, k: int) -> ShardNote:
    """Read the note of shard k; ValueError for one that does not fit the plan."""
    path, images = note_path(root, k), len(shard_range(plan, k))
    note = parse(disk.read_json(path), ShardNote, "note")
    if note.count + len(note.refused) != images or not len(note.mean) == len(note.squares) == plan.channels:
        raise ValueError(f"{path} is not a note on {images} images of {plan.channels} channels")
    return note


def read_plan(root: Path) -> StorePlan:
    """Read the plan of a store that was begun; ValueError, in one line, for one that is damaged or of another version."""
    values = read_versioned(root / PLAN)
    try:
        return parse(values, StorePlan, "plan")
    except ValueError as error:
        raise ValueError(f"{root / PLAN} is damaged ({error}); {HINT}") from error


def make_shard(source: Source, plan: StorePlan, root: Path, k: int) -> Iterator[int]:
    """Make shard k and its note; yields the number of images done since the last yield."""
    indices = shard_range(plan, k)
    images = np.empty((len(indices), *plan.shape), plan.dtype)
    labels: list[int] = []
    refused: list[tuple[str, str]] = []
    items = 0
    for done, i in enumerate(indices, 1):
        try:
            image, label = source[i]
            images[len(labels)] = image.numpy()
            labels.append(label)
            item = hashlib.sha256(f"{i} {label} ".encode() + images[len(labels) - 1].tobytes())
            items += int.from_bytes(item.digest())
        except ImageError as error:
            refused.append((error.name, " ".join(error.reason.split())))
        if done % BLOCK == 0:
            yield BLOCK
    images = images[: len(labels)]
    header = io.BytesIO()
    npy.write_array_header_1_0(header, npy.header_data_from_array_1_0(images))
    with disk.replacing(root / shard_name(k)) as aside:
        content = memoryview(images.reshape(-1).view(np.uint8))  # pyright: ignore[reportArgumentType]
        size, digest = disk.write_durable(aside, [header.getvalue(), content])
    mean, squares = moments(images)
    note = ShardNote(len(images), size, digest, tuple(labels), tuple(refused), mean, squares, f"{items % 2**256:064x}")
    disk.write(note_path(root, k), to_rows(asdict(note)))
    yield len(indices) % BLOCK


def moments(images: NDArray[Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean of each channel, and sum of the squared distances from it, in float64; a block at a time, to save memory."""
    blocks = [images[i : i + BLOCK] for i in range(0, len(images), BLOCK)]
    mean, squares = np.zeros(images.shape[1]), np.zeros(images.shape[1])
    for block in blocks:
        mean += block.sum((0, 2, 3), dtype=np.float64) / images[:, 0].size
    for block in blocks:
        squares += ((block - mean[:, None, None]) ** 2).sum((0, 2, 3))
    return tuple(mean.tolist()), tuple(squares.tolist())


def merge_moments(plan: StorePlan, notes: Sequence[ShardNote]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all shards, in their order (Chan, Golub and LeVeque 1979)."""
    count, mean, squares = 0, np.zeros(plan.channels), np.zeros(plan.channels)
    for note in notes:
        if n := note.count:
            apart = np.array(note.mean) - mean
            mean = mean + apart * (n / (count + n))
            squares = squares + np.array(note.squares) + apart**2 * (count * n / (count + n)) * np.prod(plan.image_size)
            count += n
    std = np.sqrt(squares / (max(count, 1) * np.prod(plan.image_size)))
    return tuple(mean.tolist()), tuple(std.tolist())


def publish(root: Path, plan: StorePlan, class_names: Sequence[str]) -> PrepareReport:
    """Write labels and index, where there are any images. The index is what makes a store."""
    notes = [read_note(plan, root, k) for k in range(plan.shards)]
    refused = [item for note in notes for item in note.refused]
    labels = np.array([label for note in notes for label in note.labels], dtype=np.int64)
    if not len(labels):
        return PrepareReport(0, plan.shape, plan.dtype, refused, verified=False)
    buffer = io.BytesIO()
    np.save(buffer, labels)
    content = buffer.getvalue()
    disk.write(root / LABELS, content)
    mean, std = merge_moments(plan, notes)
    items = sum(int(note.items, 16) for note in notes) % 2**256
    fingerprint = hashlib.sha256(json.dumps([items, len(labels), list(class_names)]).encode()).hexdigest()
    labels_entry = ArrayEntry(len(labels), len(content), hashlib.sha256(content).hexdigest())
    shards = tuple(ArrayEntry(note.count, note.size, note.sha256) for note in notes)
    index = Index(
        VERSION, len(labels), plan.shape, plan.dtype, tuple(class_names), fingerprint, mean, std, plan,  # pyright: ignore
        tuple(refused), labels_entry, shards,
    )  # fmt: skip
    values = asdict(index)
    disk.write(root / INDEX, to_rows(values | {"sha256": disk.self_checksum(values)}))
    return report_of(index, verified=False)


def report_of(index: Index, verified: bool) -> PrepareReport:
    return PrepareReport(index.count, index.shape, index.dtype, list(index.refused), verified)


def remove_leftovers(root: Path) -> None:
    """Remove the files of a complete store that only its making needed."""
    for leftover in [*root.glob("images-*.json"), *root.glob(PLAN), *root.glob(".tmp-*"), *root.glob(LOCK)]:
        disk.remove(leftover)


def verify_store(root: Path) -> Job[PrepareReport]:
    """Compare every shard of a complete store with its hash."""
    index, done = open_store(root).index, 0
    for k, shard in enumerate(index.shards):
        if disk.sha256(root / shard_name(k)) != shard.sha256:
            raise ValueError(f"{root / shard_name(k)} was changed: its SHA-256 is not the index's; {HINT}")
        done += shard.count
        yield Progress("verifying", done, index.count)
    remove_leftovers(root)
    return report_of(index, verified=True)


def to_rows(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=1).encode()
