"""Arrays of numbers as images: in memory, or in an .npy or .npz file.

Numbers are uint8 or floats of any scale, (n, channels, height, width); spectra and weather are images too.
"""

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from justimage.data.source import ImageError, LabeledImages
from justimage.disk import printable

SUFFIXES = (".npy", ".npz")
MAX_HEADER_BYTES = 2**16
MAX_UNPACKED_BYTES = 2**33
"""Bytes of a compressed array, which has to be unpacked into memory."""
MAX_RATIO = 200
"""Largest compression ratio of a large array: little but zeros is compressed further."""
LABEL_KEYS = ("labels", "label", "arr_1")


def refuse_unprepared(path: str) -> None:
    """ValueError for a file of arrays, which is not trained on as it is."""
    place = Path(path)
    if place.suffix.lower() in SUFFIXES:
        raise ValueError(
            f"arrays are prepared before they are trained on: justimage prepare {path} {place.with_suffix('')}-store"
        )


@dataclass(frozen=True)
class ArraySource(LabeledImages):
    """A source in memory: images (n, channels, height, width), labels (n,), and the classes' names (empty for none)."""

    images: Tensor
    labels: Tensor
    class_names: list[str]
    fingerprint: str

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.images.shape[1:])  # pyright: ignore[reportReturnType]

    @property
    def floats(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.images.is_floating_point()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def batch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        chosen = torch.from_numpy(indices)
        return self.images[chosen], self.labels[chosen]


@dataclass(frozen=True)
class ArrayFile(LabeledImages):
    """A source in an .npy or .npz file: images as uint8 or float32, with labels where the file has them."""

    path: Path
    numbers: NDArray[Any]
    """(n, channels, height, width), of the file's own type; mapped from the disk where it is not compressed"""
    labels: list[int]
    class_names: list[str]
    fingerprint: str
    """of shape, type and labels, and of the file's bytes at places spread over it"""
    mapped: bool
    """whether another process can open it at no cost"""

    def __len__(self) -> int:
        return len(self.numbers)

    def __reduce__(self) -> tuple[Callable[[Path], "ArrayFile"], tuple[Path]]:
        return open_array_file, (self.path,)  # a mapped array would be copied whole

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.numbers.shape[1:]  # pyright: ignore[reportReturnType]

    @property
    def floats(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.numbers.dtype != np.uint8

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with np.errstate(over="ignore"):
            image = self.numbers[index].astype(np.float32 if self.floats else np.uint8)
        if self.floats and not np.isfinite(image).all():
            reason = "has numbers that are not finite"
            raise ImageError(f"{self.path}: image {index} {reason}", f"image {index}", reason)
        return torch.from_numpy(image), self.labels[index]


def open_array_file(path: Path) -> ArrayFile:
    """Open an .npy or .npz file; ValueError, in one line, for one that is damaged or holds something else than images."""
    try:
        if path.suffix.lower() == ".npy":
            with open(path, "rb") as file:
                found, others, mapped = map_array(path, file, 0, path.stat().st_size), {}, True
        else:
            found, others, mapped = open_npz(path)
        numbers = channels_first(found)
        labels, class_names = parse_labels(others, len(numbers))
    except FileNotFoundError:
        raise
    except MemoryError as error:
        raise ValueError(f"{path}: its arrays do not fit into memory; save them as .npy, or with np.savez") from error
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, RuntimeError, OverflowError, zlib.error) as error:
        raise ValueError(f"{path}: {printable(' '.join(str(error).split()))}") from error
    digest = hashlib.sha256(repr((numbers.shape, str(numbers.dtype), labels, class_names)).encode())
    with open(path, "rb") as file:
        for place in np.linspace(0, max(path.stat().st_size - 4096, 0), 256).astype(np.int64):
            file.seek(int(place))
            digest.update(file.read(4096))
    return ArrayFile(path, numbers, labels, class_names, digest.hexdigest(), mapped)


class NpyHeader:
    """Shape, type, order and offset of an .npy array, checked before anything of the size it claims is allocated."""

    def __init__(self, start: bytes, total: int) -> None:
        """start: the first MAX_HEADER_BYTES bytes; total: bytes of the whole file, which must agree."""
        if not start.startswith(npy.MAGIC_PREFIX) or len(start) < 12:
            raise ValueError("not an .npy array")
        length = struct.unpack("<H", start[8:10])[0] if start[6] == 1 else struct.unpack("<I", start[8:12])[0]
        if length > MAX_HEADER_BYTES - 12 or start[6] not in (1, 2):
            raise ValueError("its header is not one of an array of numbers")
        buffer = io.BytesIO(start)
        version = npy.read_magic(buffer)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        self.shape: tuple[int, ...]
        try:
            self.shape, fortran, self.dtype = read(buffer)
        except Exception as error:  # of the parser that NumPy gives it to
            raise ValueError("its header is not one of an array of numbers") from error
        self.order: Literal["C", "F"] = "F" if fortran else "C"
        self.offset = buffer.tell()
        if self.dtype.hasobject:
            raise ValueError("it holds pickled objects, which are not read; save an array of numbers")
        count = 1
        for side in self.shape:
            count *= side
        if any(side < 0 for side in self.shape) or self.offset + count * self.dtype.itemsize != total:
            raise ValueError(f"its header says {self.shape} {self.dtype}, which is not what its {total:,} bytes hold")


def map_array(path: Path, file: Any, start: int, total: int) -> NDArray[Any]:
    """Map the array that begins at byte `start` of a file, where `file` is open."""
    header = NpyHeader(file.read(MAX_HEADER_BYTES)[:total], total)
    if 0 in header.shape:
        return np.empty(header.shape, header.dtype)
    return np.memmap(path, header.dtype, "r", start + header.offset, header.shape, header.order)


def open_npz(path: Path) -> tuple[NDArray[Any], dict[str, NDArray[Any]], bool]:
    """The array of images in an archive, the small arrays beside it by name, and whether the images are mapped."""
    with zipfile.ZipFile(path) as archive:
        headers = {}
        for entry in archive.infolist():
            if entry.filename.endswith(".npy"):
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"{entry.filename} is compressed by method {entry.compress_type}; allowed: deflated")
                with archive.open(entry) as file:
                    headers[entry.filename[:-4]] = NpyHeader(file.read(MAX_HEADER_BYTES), entry.file_size)
        images = [name for name, header in headers.items() if len(header.shape) in (3, 4)]
        if len(images) != 1:
            raise ValueError(f"it has {len(images)} arrays of 3 or 4 axes; exactly one is wanted, the images")
        small = [n for n in headers if n in (*LABEL_KEYS, "class_names") and len(headers[n].shape) == 1]
        others = {name: unpack(archive, name, headers[name]) for name in small}
        entry, header = archive.getinfo(images[0] + ".npy"), headers[images[0]]
        if entry.compress_type != zipfile.ZIP_STORED:
            return unpack(archive, images[0], header), others, False
    with open(path, "rb") as file:  # a stored member is an .npy file within the file
        file.seek(entry.header_offset)
        local = file.read(30)
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", local[26:30]))
        file.seek(start)
        return map_array(path, file, start, entry.file_size), others, True


def unpack(archive: zipfile.ZipFile, name: str, header: NpyHeader) -> NDArray[Any]:
    """Read an array of an archive into memory; ValueError for one that is too large, or compressed suspiciously well."""
    entry = archive.getinfo(name + ".npy")
    if entry.file_size > MAX_UNPACKED_BYTES:
        raise ValueError(f"{name} is compressed and has {entry.file_size / 1e9:.0f} GB; save it as .npy, or with np.savez")
    if entry.file_size > max(2**28, MAX_RATIO * entry.compress_size):
        raise ValueError(f"{name} is {entry.file_size:,} bytes in {entry.compress_size:,}; save it as .npy, or with np.savez")
    array = np.empty(header.shape, header.dtype, order=header.order)
    flat = array.reshape(-1, order="A").view(np.uint8).data
    with archive.open(entry) as file:
        file.read(header.offset)
        done = 0
        while done < len(flat):
            block = file.read(min(2**24, len(flat) - done))
            if not block:
                raise ValueError(f"{name} ends too early")
            flat[done : done + len(block)] = block
            done += len(block)
    return array


def channels_first(found: NDArray[Any]) -> NDArray[Any]:
    """View an array as (n, channels, height, width); ValueError for one that is no images."""
    if found.dtype != np.uint8 and found.dtype.kind != "f":
        raise ValueError(f"its numbers are {found.dtype}; allowed: uint8 and floats")
    if found.ndim not in (3, 4) or 0 in found.shape:
        raise ValueError(f"its shape is {found.shape}; allowed: (n, channels, height, width) or (n, height, width)")
    if found.ndim == 3:
        return found[:, None]
    last = found.dtype == np.uint8 and found.shape[3] in (1, 3, 4) and found.shape[1] not in (1, 3, 4)
    return found.transpose(0, 3, 1, 2) if last else found


def parse_labels(others: dict[str, NDArray[Any]], count: int) -> tuple[list[int], list[str]]:
    """Labels and class names from the small arrays beside the images."""
    name = next((n for n in LABEL_KEYS if n in others), None)
    if name is None:
        return [-1] * count, []
    labels, names = others[name], others.get("class_names")
    if labels.dtype.kind not in "iu" or len(labels) != count or (labels.min() if count else 0) < 0:
        raise ValueError(f"{name} must be one whole number from 0 for each of the {count} images")
    most = int(labels.max()) + 1
    if most > min(len(names) if names is not None else 10**6, 10**6):
        raise ValueError(f"{name} has class {most - 1}, but there are {len(names) if names is not None else 10**6} classes")
    return labels.tolist(), [str(i) for i in range(most)] if names is None else [str(n) for n in names]
