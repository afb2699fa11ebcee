"""Image files in a folder, an archive or a table: listed once, each decoded and cropped when it is read."""

import hashlib
import io
import os
import re
import stat
import struct
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from justimage.data import hf_table, tars
from justimage.data.images import FORMATS, MODES, Crop, decode
from justimage.data.source import ImageError, LabeledImages
from justimage.disk import printable

JUNK = re.compile(r"(?:^|/)(?:\.|(?:thumbs\.db|desktop\.ini|__macosx)(?:/|$))", re.IGNORECASE | re.ASCII)
"""Paths with a hidden component, or a file manager's leftovers; these are ignored."""
SPLITS = {"train", "training", "test", "val", "valid", "validation"}
MAX_FILE_BYTES = 2**28
"""Bytes of an image file above which it is refused unread."""


class ByteReader(Protocol):
    """The bytes of each numbered file."""

    threads: bool
    """whether threads may read at once"""

    def read_bytes(self, index: int) -> bytes: ...
    def file(self, index: int) -> Path:
        """The file on the disk that holds them."""
        ...


@dataclass
class Files(LabeledImages):
    """A source of image files, each decoded and cropped when it is read."""

    root: Path
    """the folder, the archive, or the table"""
    names: list[str]
    """path of each image below the folder, or in the archive"""
    sizes: list[int]
    """of each file, in bytes"""
    labels: list[int]
    class_names: list[str]
    contents: ByteReader
    crop: Crop
    fingerprint: str
    """of names, sizes in bytes, classes, and how files are decoded"""

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.crop.shape

    def __len__(self) -> int:
        return len(self.names)

    def file(self, index: int) -> Path:
        return self.contents.file(index)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            return torch.from_numpy(self.decode(index)), self.labels[index]
        except ValueError as error:
            name = self.names[index]
            raise ImageError(f"{printable(self.root / name)}: {error}", name, str(error)) from error

    def decode(self, index: int) -> np.ndarray:
        """One image (channels, height, width); ValueError, without its name, for one that cannot be used."""
        if self.sizes[index] > MAX_FILE_BYTES:
            raise ValueError(f"{self.sizes[index]:,} bytes; an image file has at most {MAX_FILE_BYTES:,}")
        try:
            content = self.contents.read_bytes(index)
        except OSError:  # of the disk, not of the image
            raise
        except Exception as error:  # a damaged archive
            raise ValueError(describe_error(error)) from error
        try:
            return decode(io.BytesIO(content), self.crop)
        except Exception as error:  # Pillow raises many kinds for a damaged file
            reason = describe_error(error)
            raise ValueError("not a readable image" if "cannot identify" in reason else reason) from error


def describe_error(error: Exception) -> str:
    return printable(str(error).split("\n")[0] or type(error).__name__)


@dataclass
class FolderReader:
    """Reads the files below a folder."""

    root: Path
    names: list[str]
    threads = True

    def file(self, index: int) -> Path:
        return self.root / self.names[index]

    def read_bytes(self, index: int) -> bytes:
        return self.file(index).read_bytes()


@dataclass
class ZipReader:
    """Reads the members of a zip archive."""

    archive: Path
    names: list[str]
    opened: dict[int, zipfile.ZipFile] = field(default_factory=dict, repr=False)
    """the opened archive by process: a shared one would share its file position"""
    threads = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"opened": {}}  # worker processes open the archive themselves

    def file(self, index: int) -> Path:
        return self.archive

    def read_bytes(self, index: int) -> bytes:
        process = os.getpid()
        if process not in self.opened:
            self.opened[process] = zipfile.ZipFile(self.archive)
        entry = self.opened[process].getinfo(self.names[index])
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack a block to any size
            raise ValueError(f"it is compressed by method {entry.compress_type}; allowed: stored and deflated")
        with self.opened[process].open(entry) as file:
            content = file.read(entry.file_size)  # a member may unpack to more than it claims
        if len(content) < entry.file_size:
            raise ValueError("the archive ends within it")
        return content


def open_files(path: str, crop: Crop) -> Files:
    """Open the image files at `path`: a folder, a zip archive, `archive.zip/a/folder/in/it`, tar shards or a table of images.

    Each sub-folder is a class; without sub-folders there are no classes. A folder of splits stands for its `train`. An image
    smaller than the crop raises ImageError when read, unless the crop upscales. Raises ValueError or OSError, in one line,
    for a path that is missing, or holds no images or other files among them.
    """
    if crop.channels not in MODES:
        raise ValueError(f"channels is {crop.channels}; image files have {', '.join(map(str, MODES))}")
    given = Path(path).expanduser()
    if shards := tars.shards_at(given):
        return open_tars(path, shards, crop)
    if hf_table.is_hf_table(given):
        return open_hf_table(given, crop)
    root, inside = split_archive(given)
    found = list_archive(root) if root.is_file() else list_folder(root)
    names = [n for n in sorted(found) if n.startswith(inside) and not JUNK.search(n[len(inside) :])]
    if not names:
        raise ValueError(f"{path} holds no images; allowed kinds: {' '.join(sorted(FORMATS))}")
    prefix = inside + class_root(n[len(inside) :] for n in names)
    names = [n for n in names if n.startswith(prefix)]
    others = [n for n in names if n[n.rfind(".") :].lower() not in FORMATS]
    if others:
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        raise ValueError(
            f"{printable(root / others[0])}{more} is not an image; remove it, or begin its name with a dot to have it ignored, "
            "or justimage prepare, which leaves out and lists what it cannot read"
        )
    labels, class_names = classes_by_folder(names, prefix, root)
    sizes = [found[n] for n in names]
    contents = ZipReader(root, names) if root.is_file() else FolderReader(root, names)
    digest = fingerprint_of(crop, class_names, [n[len(prefix) :] for n in names], sizes)
    return Files(root, names, sizes, labels, class_names, contents, crop, digest)


def open_tars(path: str, shards: list[Path], crop: Crop) -> Files:
    """Open the images in tar shards, with the classes that members beside them give, or else by folder."""
    members = [m for m in tars.list_images(shards) if not JUNK.search(m.name)]
    if not members:
        raise ValueError(f"{path} holds no images; allowed kinds: {' '.join(sorted(FORMATS))}")
    labelled = [m for m in members if m.label is not None]
    if labelled and len(labelled) < len(members):
        without = next(m for m in members if m.label is None)
        raise ValueError(f"{shards[without.shard]}: {without.name} has no class (.cls), but other images have one")
    if labelled:
        labels = [m.label for m in members if m.label is not None]
        class_names = [str(i) for i in range(max(labels) + 1)]
    else:
        prefix = class_root(m.name for m in members)
        members = [m for m in members if m.name.startswith(prefix)]
        labels, class_names = classes_by_folder([m.name for m in members], prefix, Path(path))
    single = len(shards) == 1
    names = [m.name if single else f"{shards[m.shard].name}/{m.name}" for m in members]
    sizes = [m.size for m in members]
    digest = fingerprint_of(crop, [*class_names, *map(str, labels)], names, sizes)
    root = shards[0] if single else shards[0].parent
    return Files(root, names, sizes, labels, class_names, tars.TarReader(shards, members), crop, digest)


def open_hf_table(root: Path, crop: Crop) -> Files:
    """Open the images of a table that Hugging Face `datasets` saved."""
    contents = hf_table.HFTable(root)
    labels, class_names = contents.labels()
    listed = {name: size for name, size in sorted(list_folder(root).items()) if not Path(name).name.startswith("cache-")}
    digest = fingerprint_of(crop, [*class_names, *map(str, labels)], list(listed), list(listed.values()))
    names = [f"row {i}" for i in range(len(labels))]
    return Files(root, names, [0] * len(names), labels, class_names, contents, crop, digest)


def fingerprint_of(crop: Crop, classes: Sequence[str], names: Sequence[str], sizes: Sequence[int]) -> str:
    """Hash names, sizes and classes of files, and how they are decoded: the same files decoded differently are other images."""
    decoded = [] if crop.decode == "photo" else [crop.decode]
    text = "\n".join([*decoded, *classes, *(f"{n} {s}" for n, s in zip(names, sizes, strict=True))])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def classes_by_folder(names: Sequence[str], prefix: str, root: Path) -> tuple[list[int], list[str]]:
    """The class of each file by its folder below `prefix`, and the classes' names."""
    folders = [n[len(prefix) :].rpartition("/")[0].partition("/")[0] for n in names]
    class_names = sorted(set(folders) - {""})
    if class_names and "" in folders:
        raise ValueError(
            f"{printable(root / names[folders.index('')])} lies beside class folders; give it a class, or use one flat folder"
        )
    number = {name: i for i, name in enumerate(class_names)} | {"": -1}
    return [number[f] for f in folders], class_names


def split_archive(path: Path) -> tuple[Path, str]:
    """Split a path into a folder or archive, and the folder within the archive ("" or "a/b/")."""
    for root in [path, *path.parents]:
        if root.is_file():
            if not zipfile.is_zipfile(root):
                raise ValueError(f"{root} is neither a folder nor a zip or tar archive of images")
            inside = path.relative_to(root).as_posix()
            return root, "" if inside == "." else inside + "/"
        if root == path and root.is_dir():
            return root, ""
    raise FileNotFoundError(f"{path} does not exist; data is a folder, a .zip, a .tar, a store, or digits")


def list_archive(archive: Path) -> dict[str, int]:
    """Path within the archive and size in bytes of every file."""
    try:
        with zipfile.ZipFile(archive) as opened:
            found = {entry.filename: entry.file_size for entry in opened.infolist() if not entry.is_dir()}
        for name in found:
            tars.check_member_name(name)
        return found
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, OverflowError, struct.error) as error:
        raise ValueError(f"{archive} is a damaged zip archive: {describe_error(error)}") from error


def list_folder(folder: Path) -> dict[str, int]:
    """Path below the folder and size in bytes of every regular file; links are followed, cycles of links are not."""
    found: dict[str, int] = {}
    visited: set[str] = set()
    left = [""]
    while left:
        below = left.pop()
        place = os.path.join(folder, below)  # noqa: PTH118 (a Path for each of a million files takes longer than the disk)
        if (real := os.path.realpath(place)) in visited:  # a link to a folder above
            continue
        visited.add(real)
        folders = []
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(f"{below}{entry.name}/")
                elif stat.S_ISREG((status := entry.stat()).st_mode):
                    found[below + entry.name] = status.st_size
        left += sorted(folders, reverse=True)
    return found


def class_root(names: Iterable[str]) -> str:
    """The folder ("" or "a/b/") that holds the class folders: below single folders, and in `train` among splits."""
    folders, prefix = {n.rpartition("/")[0] for n in names}, ""
    while True:
        tops = {f.partition("/")[0] for f in folders}
        top = tops.pop() if len(tops) == 1 else next((t for t in ("train", "training") if t in tops and tops <= SPLITS), "")
        if not top:
            return prefix
        prefix += top + "/"
        folders = {f.partition("/")[2] for f in folders if f.partition("/")[0] == top}
