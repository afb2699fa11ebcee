"""Making a store: every image decoded and cropped once, in parallel, so that a kill at any moment costs a shard at most.

A plan, written first, fixes the source and the settings. Shard k holds the images k n, ..., k n + n - 1 of the source,
without those refused, so that it does not depend on who makes it, or when. It is published by a rename, and after it a note
(`images-00000.json`) with its hash, labels, sums, and what was refused. The index is merged from the notes in their order
and published last; then plan and notes go.
"""

import hashlib
import io
import json
import os
import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from justimage import disk
from justimage.data.arrays import SUFFIXES, ArrayFile, digits, open_array_file
from justimage.data.files import open_files
from justimage.data.images import Crop, Decode
from justimage.data.store import (
    HINT,
    INDEX,
    INDEX_SCHEMA,
    LABELS,
    VERSION,
    all_of,
    is_count,
    is_finite,
    is_store,
    open_store,
    shard_name,
)  # fmt: skip
from justimage.pool import run_in_pool

PLAN = "plan.json"
SHARD_BYTES, FEWEST_SHARDS, FEWEST_IMAGES = 2**26, 32, 64
"""A shard has about this many bytes; those of a small set have fewer, so that several processes share the work."""
REPORTED = 16
"""Images between two words of a process on how far it is, and whose statistics are taken at a time."""

Progress = Callable[[int, int], object]


class RawSource(Protocol):
    """A source as it is prepared: each image by itself, with a reason where it is refused."""

    @property
    def names(self) -> Sequence[Any]: ...
    @property
    def labels(self) -> Sequence[int]: ...
    @property
    def class_names(self) -> Sequence[str]: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __len__(self) -> int: ...
    def pixels(self, index: int, /) -> NDArray[Any]: ...


@dataclass(frozen=True)
class StorePlan:
    """All that decides what a store holds."""

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

    def json(self) -> dict[str, Any]:
        return asdict(self) | {"image_size": list(self.image_size)}


@dataclass(frozen=True)
class PrepareReport:
    """What was done: images in the store, those refused with their reasons, and whether it only was verified."""

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
    progress: Progress = lambda done, total: None,
) -> PrepareReport:
    """Make the store of a source, or go on with it, or verify it where it is complete.

    image_size and channels (by default 3): of the crop, for image files; arrays have their own. upscale and decode:
    as in `Crop`. workers: processes, by default one a core; they change nothing that is written. progress is called with the
    number of images done and in all. Raises ValueError or OSError, in one line.
    """
    root = Path(store)
    for name, value in ("shard_images", shard_images), ("workers", workers), ("channels", channels):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be 1 or more")
    occupied = root.exists() and (not root.is_dir() or any(not p.name.startswith(".tmp-") for p in root.iterdir()))
    if occupied and not is_store(root):
        raise ValueError(f"{root} is not empty and holds no store; give another place")
    try:
        raw, plan = make_plan(source, image_size, channels, upscale, decode, shard_images)
    except FileNotFoundError:  # a complete store can do without its source
        if not (root / INDEX).exists():
            raise
        return verify(root, progress)
    with prepare_lock(root):
        if (root / INDEX).exists():
            opened = open_store(root)
            check_same_job(root, plan.json(), opened.index["made"])
            return verify(root, progress)
        if (root / PLAN).exists():
            check_same_job(root, plan.json(), read_plan(root))
        disk.write(root / PLAN, encode(plan.json()))
        for left in root.glob(".tmp-*"):  # by a crash
            disk.remove(left)
        todo = [k for k in range(plan.shards) if not is_complete(plan, root, k)]
        done = plan.count - sum(len(shard_range(plan, k)) for k in todo)
        progress(done, plan.count)
        several = not isinstance(raw, ArrayFile) or raw.mapped
        crew = min(workers or os.cpu_count() or 1, len(todo)) if several else 1
        for number in run_in_pool([partial(make_shard, raw, plan, root)] * max(crew, 1), todo, __name__):
            done += number
            progress(done, plan.count)
        return finish(root, plan, list(raw.class_names))


def make_plan(
    source: str,
    image_size: int | tuple[int, int] | None,
    channels: int | None,
    upscale: bool,
    decode: Decode,
    shard_images: int | None,
) -> tuple[RawSource, StorePlan]:
    """The source, opened, and the plan for it."""
    wanted = (image_size, image_size) if isinstance(image_size, int) else image_size
    if wanted and min(wanted) < 1:
        raise ValueError(f"image_size is {image_size}; it must be 1 or more")
    place = Path(source).expanduser()
    raw: RawSource
    if is_store(place):
        raise ValueError(f"{source} is a store already")
    if source == "digits" or place.suffix.lower() in SUFFIXES:
        raw = of_digits() if source == "digits" else open_array_file(place)
        _, height, width = raw.shape
        if (wanted or (height, width)) != (height, width) or (channels or raw.shape[0]) != raw.shape[0]:
            raise ValueError(
                f"{source} has images of {describe_plan(raw.shape)}, and arrays are not cropped; leave out the size"
            )
    elif wanted is None:
        raise ValueError("no image size is given, to which images are cropped; for instance --image-size 256")
    else:
        raw = open_files(source, Crop(wanted, 3 if channels is None else channels, upscale, decode))
    count, size = len(raw), int(np.prod(raw.shape)) * raw.dtype.itemsize
    default = max(1, min(SHARD_BYTES // size, max(FEWEST_IMAGES, -(-count // FEWEST_SHARDS))))
    plan = StorePlan(
        source, raw.fingerprint, count, raw.shape[1:], raw.shape[0], upscale, decode, raw.dtype.name, shard_images or default
    )  # fmt: skip
    return raw, plan


def of_digits() -> ArrayFile:
    d = digits()
    return ArrayFile(Path("digits"), d.images.numpy(), d.labels.tolist(), d.class_names, d.fingerprint, mapped=False)


def describe_plan(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def check_same_job(root: Path, new: dict[str, Any], old: dict[str, Any]) -> None:
    """ValueError where a store was made, or begun, from something else. The same data may lie elsewhere by now."""
    old = {"decode": "photo"} | old  # which was the only way once
    different = [
        f"{k} is {new[k]}, was {reprlib.repr(old.get(k))}"
        for k in new
        if k not in ("source", "fingerprint") and new[k] != old.get(k)
    ]
    if not different and new["fingerprint"] != old.get("fingerprint"):
        different = [f"{new['source']} is not the data it was begun with (files, sizes or classes changed)"]
    if different:
        raise ValueError(f"{root} was begun otherwise: {'; '.join(different)}. Use its values, or another store")


@contextmanager
def prepare_lock(root: Path) -> Iterator[None]:
    """Within the block no other process prepares this store; where it already does, ValueError. Ends with the process."""
    try:
        import fcntl
    except ImportError:  # not on this system
        disk.mkdir(root)
        yield
        return
    disk.mkdir(root)
    descriptor = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{root} is being prepared by another process; wait for it, or end it") from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def shard_range(plan: StorePlan, k: int) -> range:
    """The images of the source that shard k is made from."""
    return range(k * plan.shard_images, min((k + 1) * plan.shard_images, plan.count))


def note_path(root: Path, k: int) -> Path:
    return (root / shard_name(k)).with_suffix(".json")


def is_complete(plan: StorePlan, root: Path, k: int) -> bool:
    """Whether shard k and its note are there. Both were published by a rename, the note last."""
    try:
        return (root / shard_name(k)).stat().st_size == read_note(plan, root, k)["size"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # not yet made, or damaged, and made again
        return False


def read_note(plan: StorePlan, root: Path, k: int) -> dict[str, Any]:
    """The note of shard k; ValueError, KeyError or TypeError for one that is not of this plan."""
    note = disk.read_json(note_path(root, k))
    count, of = note["count"], len(shard_range(plan, k))
    right = (
        INDEX_SCHEMA["shards"]([note])
        and INDEX_SCHEMA["refused"](note["refused"])
        and all_of(is_count, note["labels"] if note["labels"] != [-1] * count else [])
        and all(all_of(is_finite, note[name]) and len(note[name]) == plan.channels for name in ("mean", "squares"))
        and count == len(note["labels"]) == of - len(note["refused"])
    )
    if not right:
        raise ValueError(f"{note_path(root, k)} is not a note on {of} images")
    return note


def read_plan(root: Path) -> dict[str, Any]:
    try:
        return disk.read_json(root / PLAN)
    except ValueError as error:
        raise ValueError(f"{root / PLAN} is damaged; {HINT}") from error


def make_shard(raw: RawSource, plan: StorePlan, root: Path, k: int) -> Iterator[int]:
    """Make shard k and its note; yields how many images it got through."""
    numbers = shard_range(plan, k)
    images = np.empty((len(numbers), *plan.shape), plan.dtype)
    labels: list[int] = []
    refused: list[tuple[str, str]] = []
    items = 0  # a hash of the set that can be summed over shards, whatever their size
    for passed, i in enumerate(numbers, 1):
        try:
            images[len(labels)] = raw.pixels(i)
            labels.append(raw.labels[i])
            item = hashlib.sha256(f"{i} {labels[-1]} ".encode() + images[len(labels) - 1].tobytes())
            items += int.from_bytes(item.digest())
        except ValueError as error:
            name = raw.names[i]
            refused.append((name if isinstance(name, str) else f"image {name}", " ".join(str(error).split())))
        if passed % REPORTED == 0:
            yield REPORTED
    images = images[: len(labels)]
    head = io.BytesIO()
    npy.write_array_header_1_0(head, npy.header_data_from_array_1_0(images))
    with disk.replacing(root / shard_name(k)) as aside:
        size, digest = disk.write_durable(aside, [head.getvalue(), memoryview(images.reshape(-1).view(np.uint8))])  # pyright: ignore
    mean, squares = moments(images)
    note = {
        "count": len(images), "size": size, "sha256": digest, "labels": labels, "refused": refused,
        "mean": mean, "squares": squares, "items": f"{items % 2**256:064x}",
    }  # fmt: skip
    disk.write(note_path(root, k), encode(note))
    yield len(numbers) % REPORTED


def moments(images: NDArray[Any]) -> tuple[list[float], list[float]]:
    """Mean of each channel, and sum of the squared distances from it, in float64; some images at a time, to save memory."""
    parts = [images[i : i + REPORTED] for i in range(0, len(images), REPORTED)]
    mean, squares = np.zeros(images.shape[1]), np.zeros(images.shape[1])
    for part in parts:
        mean += part.sum((0, 2, 3), dtype=np.float64) / images[:, 0].size
    for part in parts:
        squares += ((part - mean[:, None, None]) ** 2).sum((0, 2, 3))
    return mean.tolist(), squares.tolist()


def merge_moments(plan: StorePlan, notes: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over all shards, in their order (Chan, Golub and LeVeque 1979)."""
    count, mean, squares = 0, np.zeros(plan.channels), np.zeros(plan.channels)
    for note in notes:
        if n := note["count"]:
            apart = np.array(note["mean"]) - mean
            mean = mean + apart * (n / (count + n))
            squares = squares + np.array(note["squares"]) + apart**2 * (count * n / (count + n)) * np.prod(plan.image_size)
            count += n
    return mean.tolist(), np.sqrt(squares / (max(count, 1) * np.prod(plan.image_size))).tolist()


def finish(root: Path, plan: StorePlan, class_names: list[str]) -> PrepareReport:
    """Publish labels and index, then remove plan and notes. The index is what makes a store."""
    notes = [read_note(plan, root, k) for k in range(plan.shards)]
    refused = [item for note in notes for item in note["refused"]]
    labels = np.array([label for note in notes for label in note["labels"]], dtype=np.int64)
    if not len(labels):
        disk.remove(root)
        raise ValueError(f"none of the {plan.count} images of {plan.source} can be used; {refused[0][0]}: {refused[0][1]}")
    buffer = io.BytesIO()
    np.save(buffer, labels)
    disk.write(root / LABELS, buffer.getvalue())
    mean, deviation = merge_moments(plan, notes)
    items = sum(int(note["items"], 16) for note in notes) % 2**256
    index = {
        "version": VERSION,
        "count": len(labels),
        "shape": list(plan.shape),
        "dtype": plan.dtype,
        "class_names": class_names,
        "fingerprint": hashlib.sha256(json.dumps([items, len(labels), class_names]).encode()).hexdigest(),
        "mean": mean,
        "deviation": deviation,
        "made": plan.json(),
        "refused": refused,
        "labels": {"size": len(buffer.getvalue()), "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()},
        "shards": [{k: note[k] for k in ("count", "size", "sha256")} for note in notes],
    }
    disk.write(root / INDEX, encode(index | {"sha256": disk.self_checksum(index)}))
    clear(root)
    return PrepareReport(len(labels), plan.shape, plan.dtype, [tuple(item) for item in refused], verified=False)


def clear(root: Path) -> None:
    """Remove what only the making needed."""
    for left in [*root.glob("images-*.json"), *root.glob(PLAN), *root.glob(".tmp-*")]:
        disk.remove(left)


def verify(root: Path, progress: Progress) -> PrepareReport:
    """Compare every shard of a complete store with its hash."""
    index = open_store(root).index
    done = 0
    for k, shard in enumerate(index["shards"]):
        if disk.sha256(root / shard_name(k)) != shard["sha256"]:
            raise ValueError(f"{root / shard_name(k)} was changed: its SHA-256 is not the index's; {HINT}")
        done += shard["count"]
        progress(done, index["count"])
    clear(root)
    return PrepareReport(
        index["count"], tuple(index["shape"]), index["dtype"], [tuple(r) for r in index["refused"]], verified=True
    )


def encode(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts, indent=1).encode()
