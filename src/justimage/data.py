"""Images at any position: `data[position] -> (image, label)`, with no state, in any order.

A source (digits, a folder, a zip archive) numbers its images; a `Stream` turns that into an endless shuffled sequence
whose every position is a function of the seed. Images are uint8, (channels, height, width).
"""

import hashlib
import io
import os
import signal
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from justimage import randomness

FORMATS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jpe", ".jfif"}
PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
LITTER = {"thumbs.db", "desktop.ini", "__macosx"}
SPLITS = {"train", "training", "test", "val", "valid", "validation"}
MEMORY = 2**30
"""Bytes of decoded images up to which a source is read into memory once, instead of decoded again each epoch."""


class Source(Protocol):
    """Numbered images with labels; `fingerprint` changes when the set does."""

    @property
    def class_names(self) -> list[str]: ...
    @property
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


@dataclass(frozen=True)
class Arrays:
    """A source in memory: images (n, channels, height, width) uint8, labels (n,), and the classes' names (empty for none)."""

    images: Tensor
    labels: Tensor
    class_names: list[str]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def digits(size: tuple[int, int] = (32, 32)) -> Arrays:
    """The 1,797 handwritten digits that scikit-learn carries (8 x 8, 16 levels of grey), enlarged (bicubic)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("the digits need scikit-learn: pip install 'justimage[demo]'") from error
    pixels, labels = load_digits(return_X_y=True)
    small = np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(d).resize((size[1], size[0]), Image.Resampling.BICUBIC)) for d in small])
    fingerprint = hashlib.sha256(small.tobytes() + labels.astype(np.int64).tobytes()).hexdigest()
    return Arrays(torch.from_numpy(images)[:, None], torch.from_numpy(labels), [str(i) for i in range(10)], fingerprint)


@dataclass
class Files:
    """A source of image files in a folder or a zip archive: each is decoded, and cropped to `size`, when asked for."""

    root: Path
    """the folder, or the archive"""
    names: list[str]
    """path of each image below the folder, or in the archive"""
    labels: list[int]
    class_names: list[str]
    size: tuple[int, int]
    channels: int
    enlarge: bool
    fingerprint: str
    """of names, sizes in bytes, and classes"""
    archive: dict[int, zipfile.ZipFile] = field(default_factory=dict, repr=False)
    """the opened archive, one a process: a shared one would share its file position"""

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"archive": {}}  # an opened file is not passed on to worker processes

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        name = self.names[index]
        try:
            pixels = decode(io.BytesIO(self.read(name)), self.size, self.channels, self.enlarge)
        except Exception as error:  # Pillow raises many kinds for a damaged file
            reason = str(error).split("\n")[0]
            reason = "not a readable image" if "cannot identify" in reason else reason
            raise ValueError(f"{self.root / name}: {reason}") from error
        return torch.from_numpy(pixels), self.labels[index]

    def read(self, name: str) -> bytes:
        if self.root.is_dir():
            return (self.root / name).read_bytes()
        return self.opened().read(name)

    def opened(self) -> zipfile.ZipFile:
        process = os.getpid()
        if process not in self.archive:
            self.archive[process] = zipfile.ZipFile(self.root)
        return self.archive[process]


def open_source(path: str, size: tuple[int, int], channels: int, enlarge: bool = False) -> Source:
    """The images at `path`: "digits"; a folder; a zip archive; or `archive.zip/a/folder/in/it`.

    One sub-folder a class, or no sub-folders for no classes. A folder of splits stands for its `train`. Images smaller than
    `size` are an error when read, unless `enlarge`. Raises ValueError or
    OSError, in one line, for a path that is missing or holds no images, or something else among them.
    """
    if path == "digits":
        if channels != 1:
            raise ValueError(f"the digits have 1 channel; the recipe asks for {channels}")
        return digits(size)
    if channels not in MODES:
        raise ValueError(f"channels is {channels}; image files have {', '.join(map(str, MODES))}")
    root, inside = split_archive(Path(path).expanduser())
    sizes = list_archive(root) if root.is_file() else list_folder(root)
    names = sorted(sizes)
    names = [n for n in names if n.startswith(inside) and not is_litter(n[len(inside) :])]
    if not names:
        raise ValueError(f"{path} holds no images; allowed kinds: {' '.join(sorted(FORMATS))}")
    prefix = inside + descend([n[len(inside) :].split("/") for n in names])
    names = [n for n in names if n.startswith(prefix)]
    strangers = [n for n in names if Path(n).suffix.lower() not in FORMATS]
    if strangers:
        more = f" (and {len(strangers) - 1} more)" if len(strangers) > 1 else ""
        raise ValueError(
            f"{root / strangers[0]}{more} is not an image; remove it, or begin its name with a dot to have it ignored"
        )
    folders = [n[len(prefix) :].rpartition("/")[0].partition("/")[0] for n in names]
    class_names = sorted(set(folders) - {""})
    if class_names and "" in folders:
        raise ValueError(
            f"{root / names[folders.index('')]} lies beside class folders; give it a class, or use one flat folder"
        )
    number = {name: i for i, name in enumerate(class_names)} | {"": -1}
    labels = [number[f] for f in folders]
    text = "\n".join([*class_names, *(f"{n[len(prefix) :]} {sizes[n]}" for n in names)])
    return Files(root, names, labels, class_names, size, channels, enlarge, hashlib.sha256(text.encode()).hexdigest())


def split_archive(path: Path) -> tuple[Path, str]:
    """A folder or archive, and the folder in the archive ("" or "a/b/") that the path goes on to name."""
    for root in [path, *path.parents]:
        if root.is_file():
            if not zipfile.is_zipfile(root):
                raise ValueError(f"{root} is neither a folder nor a zip archive of images")
            inside = path.relative_to(root).as_posix()
            return root, "" if inside == "." else inside + "/"
        if root == path and root.is_dir():
            return root, ""
    raise FileNotFoundError(f"{path} does not exist; data is a folder, a .zip, or digits")


def list_archive(archive: Path) -> dict[str, int]:
    """Path in the archive and size in bytes of every file."""
    try:
        with zipfile.ZipFile(archive) as opened:
            return {entry.filename: entry.file_size for entry in opened.infolist() if not entry.is_dir()}
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive} is a damaged zip archive: {error}") from error


def list_folder(folder: Path) -> dict[str, int]:
    """Path below the folder and size in bytes of every file."""
    found, visited = {}, set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in visited:  # a link to a folder above
            folders.clear()
            continue
        visited.add(real)
        below = Path(place).relative_to(folder)
        found |= {(below / n).as_posix(): (folder / below / n).stat().st_size for n in names}
    return found


def is_litter(name: str) -> bool:
    """Whether a path is hidden, or left behind by a file manager."""
    return any(part.startswith(".") or part.lower() in LITTER for part in name.split("/"))


def descend(names: list[list[str]]) -> str:
    """The folder ("" or "a/b/") that holds the classes: past folders that stand alone, and into `train` among splits."""
    prefix = ""
    while True:
        tops = {parts[0] if len(parts) > 1 else "" for parts in names}
        into = tops.pop() if len(tops) == 1 else next((t for t in ("train", "training") if t in tops and tops <= SPLITS), "")
        if not into:
            return prefix
        prefix += into + "/"
        names = [parts[1:] for parts in names if parts[0] == into]


def decode(file: io.BytesIO, size: tuple[int, int], channels: int, enlarge: bool = True) -> np.ndarray:
    """An image file as (channels, height, width) uint8: upright, in the wanted channels, cropped at its centre.

    ValueError for an image smaller than `size`, unless it may be enlarged.
    """
    image = ImageOps.exif_transpose(Image.open(file, formats=PILLOW_FORMATS))
    if not enlarge and (image.height < size[0] or image.width < size[1]):
        raise ValueError(
            f"{image.width} x {image.height} pixels, smaller than the model's {size[1]} x {size[0]} (allowed with --enlarge)"
        )
    image = center_crop(in_mode(image, MODES[channels]), size)
    return np.ascontiguousarray(np.atleast_3d(np.array(image)).transpose(2, 0, 1))


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Any picture in mode L, RGB or RGBA: 16 bits become 8, and what is transparent shows white unless RGBA is wanted."""
    if image.mode == "F":
        raise ValueError("pixels are floats; allowed: 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        pixels = np.asarray(image).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("pixels have more than 16 bits; allowed: 8 or 16")
        image = Image.fromarray((pixels / 257).round().astype(np.uint8))
    if mode != "RGBA" and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def center_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The largest centred part of the wanted shape, scaled to (height, width) as in ADM and the authors' code.

    Halved with a box filter while both sides are at least twice the target, then bicubic, also upwards.
    """
    height, width = size
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def in_memory(source: Source, progress: Callable[[int], None] | None = None) -> Source:
    """The source decoded once into memory, if that takes at most MEMORY bytes; otherwise the source itself.

    A damaged image is found here, before anything is trained. progress is called with the number decoded so far.
    """
    if isinstance(source, Arrays) or len(source) * source[0][0].numel() > MEMORY:
        return source
    images = torch.empty(len(source), *source[0][0].shape, dtype=torch.uint8)
    labels = torch.empty(len(source), dtype=torch.int64)

    def load(index: int) -> None:
        images[index], labels[index] = source[index]

    with ThreadPoolExecutor(1 if is_archive(source) else os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(load, range(len(source))), 1):
            if progress:
                progress(done)
    return Arrays(images, labels, source.class_names, source.fingerprint)


def is_archive(source: Source) -> bool:
    """Whether images come from one opened archive, which threads cannot share."""
    return isinstance(source, Files) and source.root.is_file()


@dataclass(frozen=True)
class Stream:
    """The endless training sequence: epoch after epoch of a source, each in its own order, flipped at random if asked.

    stream[position] -> (image, label), a function of (seed, position) alone.
    """

    source: Source
    seed: int
    flip: bool

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        images, labels = self.batch(position, 1)
        return images[0], int(labels[0])

    def batch(self, start: int, size: int) -> tuple[Tensor, Tensor]:
        """The images (size, channels, height, width) and labels (size,) at positions start, start + 1, ..."""
        count = len(self.source)
        positions = range(start, start + size)
        indices = [int(randomness.order(self.seed, p // count, count)[p % count]) for p in positions]
        if isinstance(self.source, Arrays):
            images, labels = self.source.images[indices], self.source.labels[indices]
        else:
            images, labels = zip(*(self.source[i] for i in indices), strict=True)
            images, labels = torch.stack(images), torch.tensor(labels)
        if self.flip:
            turned = torch.from_numpy(randomness.uniform(self.seed, "flip", positions) < 0.5)
            images = torch.where(turned[:, None, None, None], images.flip(-1), images)
        return images, labels


@dataclass(frozen=True)
class Batches(Dataset[tuple[Tensor, Tensor] | Exception]):
    """Whole batches of a stream by the position of their first image. A bad image is handed over, to be raised where it is
    read: raised in a worker process it would arrive wrapped in a foreign traceback."""

    stream: Stream
    size: int

    def __getitem__(self, start: int) -> tuple[Tensor, Tensor] | Exception:
        try:
            return self.stream.batch(start, self.size)
        except (ValueError, OSError) as error:
            return error


def undisturbed(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM to the process that trains, which ends its workers after the step in hand."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def batches(
    stream: Stream, starts: Iterable[int], size: int, workers: int = 0, pinned: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (size, channels, height, width) and labels (size,) of the `size` positions from each of `starts` on, in order.

    Worker processes prepare them ahead (a source in memory needs none), in pinned memory for a GPU.
    """
    workers = 0 if isinstance(stream.source, Arrays) else workers
    ahead = Batches(stream, size)
    loader = DataLoader(
        ahead, batch_size=None, sampler=starts, num_workers=workers, pin_memory=pinned, worker_init_fn=undisturbed
    )  # fmt: skip
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        yield batch
