"""Tar archives as WebDataset writes them: one pass over the headers lists every image, which is then read by its offset.

Nothing is extracted. The class of a member `key.jpg` is in `key.cls` (a number as text) or `key.json` (as "label" or "cls");
other members are ignored.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

from justimage.data.images import FORMATS
from justimage.disk import printable

COMPRESSED = re.compile(r"\.(tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst|lz4))$", re.IGNORECASE)
MAX_HEADER_BYTES = 2**20
"""Bytes of the largest extended header (long names), and of the largest member that gives a class."""
MAX_CLASSES = 10**6


class Member(NamedTuple):
    """An image in a shard: the shard's number, its name, where its bytes are, and its class, if another member gives one."""

    shard: int
    name: str
    offset: int
    size: int
    label: int | None


@dataclass
class TarReader:
    """Reads members by offset and size."""

    shards: list[Path]
    members: list[Member]
    threads = True

    def file(self, index: int) -> Path:
        return self.shards[self.members[index].shard]

    def read_bytes(self, index: int) -> bytes:
        member = self.members[index]
        with open(self.file(index), "rb") as file:
            file.seek(member.offset)
            content = file.read(member.size)
        if len(content) < member.size:
            raise ValueError("the archive ends within it")
        return content


def shards_at(path: Path) -> list[Path]:
    """The tar files at a path: itself, those in a folder, or those that a pattern matches; none where it is something else."""
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if not p.name.startswith("."))
        shards = [p for p in found if p.suffix.lower() == ".tar"]
        return [] if any(p.is_dir() or p.suffix.lower() in FORMATS for p in found) else shards
    if COMPRESSED.search(path.name):
        raise ValueError(f"{path} is compressed, so its members cannot be read by offset; unpack it to a plain .tar first")
    if path.suffix.lower() != ".tar":
        return []
    if path.exists():
        return [path]
    named = [Path(name) for name in expand_braces(str(path))]
    shards = [shard for name in named for shard in (sorted(name.parent.glob(name.name)) or [name])]
    if missing := [shard for shard in shards if not shard.is_file()]:
        raise FileNotFoundError(f"{missing[0]} does not exist")
    return shards


def expand_braces(pattern: str) -> list[str]:
    """Expand {0000..0009} and {a,b} as a shell does."""
    choices: list[list[str]] = []
    for piece in re.split(r"(\{[^{}]*\})", pattern):
        if numbers := re.fullmatch(r"\{(\d+)\.\.(\d+)\}", piece):
            first, last = int(numbers[1]), int(numbers[2])
            if not 0 <= last - first < 10**6:
                raise ValueError(f"{piece} in {pattern} stands for no shards, or too many")
            choices.append([str(n).zfill(len(numbers[1])) for n in range(first, last + 1)])
        elif piece.startswith("{") and piece.endswith("}"):
            choices.append(piece[1:-1].split(","))
        else:
            choices.append([piece])
    return ["".join(pieces) for pieces in product(*choices)]


class BoundedFile(io.RawIOBase):
    """A file of which at most MAX_HEADER_BYTES bytes are read at once, whatever a header claims."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        return self.file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


def list_images(shards: list[Path]) -> list[Member]:
    """Every image in the shards, in their order there."""
    return [member for number, shard in enumerate(shards) for member in list_shard(number, shard)]


def list_shard(number: int, shard: Path) -> Iterator[Member]:
    """The images in one shard; ValueError, in one line, for a shard that is damaged, or has a member outside of it."""
    images: list[tuple[str, int, int]] = []
    labels: dict[str, int] = {}
    end = shard.stat().st_size
    with open(shard, "rb") as file:
        try:
            for entry in iter_files(file):
                name = entry.name.removeprefix("./")
                path = PurePosixPath(name)
                check_member_name(name)
                if entry.offset_data + entry.size > end:
                    raise ValueError(f"it ends within {name}")
                suffix = path.suffix.lower()
                if suffix in FORMATS:
                    images.append((name, entry.offset_data, entry.size))
                elif suffix in (".cls", ".json") and entry.size <= MAX_HEADER_BYTES:
                    file.seek(entry.offset_data)
                    label = read_label(name, file.read(entry.size))
                    if label is not None:
                        labels[name[: -len(suffix)]] = label
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"{shard} is not a usable tar archive: {str(error).splitlines()[0]}") from error
    for name, offset, size in images:
        yield Member(number, name, offset, size, labels.get(stem(name), labels.get(first_stem(name))))


def check_member_name(name: str) -> None:
    """ValueError for a member name that is a path outside of its archive, here or on another system.

    Nothing is extracted; but such a name was packed with bad intent, or its folders are not separated by slashes.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise ValueError(f"it has a member {printable(name)!r}, outside of it (folders are separated by /)")


def iter_files(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """The regular files of an archive, one by one; links, devices and folders are ignored."""
    with tarfile.open(fileobj=cast("IO[bytes]", BoundedFile(file)), mode="r:") as archive:
        before = -1
        while entry := archive.next():
            if entry.offset <= before or entry.size < 0:
                raise tarfile.ReadError("its headers point backwards")
            before = entry.offset
            archive.members = []  # pyright: ignore[reportAttributeAccessIssue]
            if entry.isreg() and not entry.sparse:  # pyright: ignore[reportAttributeAccessIssue]
                yield entry


def stem(name: str) -> str:
    return name[: len(name) - len(PurePosixPath(name).suffix)]


def first_stem(name: str) -> str:
    """WebDataset's key: up to the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def read_label(name: str, content: bytes) -> int | None:
    """The class that a .cls or .json member gives; None for a .json without one."""
    if name.lower().endswith(".cls"):
        text = content.strip()
        if not re.fullmatch(rb"\d{1,7}", text) or int(text) >= MAX_CLASSES:
            raise ValueError(f"{name} is {text[:20]!r}; a class is a number from 0 to {MAX_CLASSES - 1}")
        return int(text)
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError):
        return None
    label = next((facts[k] for k in ("label", "cls") if k in facts), None) if isinstance(facts, dict) else None
    return label if type(label) is int and 0 <= label < MAX_CLASSES else None
