"""The one place that changes a disk. What is written here is whole or absent after a crash, and can be made to fail in tests.

Every change to a file system is announced to `observe` just before it happens. A test replaces it to kill the process, to
tear a write in two or to raise "no space left" at any one of them (tests/test_crash.py).
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

JSON_LIMIT, JSON_VALUES = 256 * 2**20, 2**24
"""Bytes of the largest JSON file that is read, and how much it may hold: three bytes can become a list of a hundred."""


def observe(operation: str, path: Path, content: bytes | memoryview = b"") -> None:
    """Called before each change: make, write (with the content), sync, rename, remove."""


def mkdir(folder: Path) -> None:
    """A folder, with those above it, where there is none."""
    if not folder.is_dir():
        observe("make", folder)
        folder.mkdir(parents=True, exist_ok=True)


def write_durable(path: Path, parts: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write a file in parts and flush it to the disk; its size and SHA-256, of what was in memory."""
    size, digest = 0, hashlib.sha256()
    with open(path, "wb", buffering=0) as file:
        for part in parts:
            size += len(part)
            digest.update(part)
            write_all(file, path, part)
    sync(path)
    return size, digest.hexdigest()


def write_all(file: BinaryIO, path: Path, content: bytes | memoryview) -> None:
    """Write to an unbuffered file all of the content; a disk that takes only a part of it is asked again, and then says why."""
    observe("write", path, content)
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, would survive a power cut."""
    observe("sync", path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(path: Path, target: Path) -> None:
    """Give a file or folder its final name, in one indivisible moment, and keep that through a power cut."""
    observe("rename", target)
    path.replace(target)
    sync(target.parent)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all in it; a crash in the midst of it leaves only a name that is never read."""
    if path.is_dir() and not path.is_symlink():
        aside = path if path.name.startswith(".tmp-") else path.with_name(f".tmp-gone-{path.name}")
        if aside != path:
            remove(aside)
            rename(path, aside)
        observe("remove", aside)
        shutil.rmtree(aside, ignore_errors=True)
    elif path.exists() or path.is_symlink():
        observe("remove", path)
        path.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path, by: str = "") -> Iterator[Path]:
    """A place to write a file aside; on leaving, it becomes `path` whole. After an error or a crash `path` is what it was.

    by: who writes, where several may write the same file.
    """
    mkdir(path.parent)
    aside = path.with_name(f".tmp-{by}{path.name}")
    remove(aside)  # by a crash, or a link that somebody else put there
    try:
        yield aside
        sync(aside)
        rename(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write(path: Path, content: bytes, by: str = "") -> None:
    """Replace a file whole: readers see the old one or the new one, after a crash too."""
    with replacing(path, by) as aside:
        write_durable(aside, [content])


def append(path: Path, content: bytes) -> None:
    """Add a line to a log. One that a crash tore stays, on a line of its own."""
    with open(path, "ab+", buffering=0) as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                content = b"\n" + content
        write_all(file, path, content)


def check_writable(place: Path) -> None:
    """OSError in one line now, rather than after the work, where a file or folder could not be written at `place`."""
    parent = next(p for p in place.absolute().parents if p.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"{place} cannot be written: {parent} is a file")
    if not os.access(parent, os.W_OK) or (place.exists() and not os.access(place, os.W_OK)):
        raise PermissionError(f"{place} cannot be written: no permission in {parent}")


def file_lock(path: Path) -> BinaryIO:
    """A lock file, held until the process ends; BlockingIOError where another process holds it."""
    file = open(path, "ab")  # noqa: SIM115
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if isinstance(error, BlockingIOError | PermissionError):
            raise BlockingIOError(f"{path.parent} is in use by another process") from error
        return open(path, "rb")  # a file system without locks
    return file


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def self_checksum(entries: dict[str, Any]) -> str:
    """The SHA-256 of a JSON object without its entry "sha256", which is where this is kept."""
    body = {k: v for k, v in entries.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ValueError, in one line, for anything else."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file")
    if path.stat().st_size > JSON_LIMIT:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; at most {JSON_LIMIT} are read")
    return json_object(path.read_bytes(), str(path))


def json_object(content: bytes, where: str) -> dict[str, Any]:
    """A JSON object of bounded size; ValueError, in one line, for anything else."""
    if sum(map(content.count, (b",", b"[", b"{"))) > JSON_VALUES:
        raise ValueError(f"{where} holds more than {JSON_VALUES} values")
    try:
        value = json.loads(content)
    except RecursionError as error:
        raise ValueError(f"{where} is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} holds no JSON object")
    return value


def printable(name: object, most: int = 500) -> str:
    """A name that comes from a file, for a message: in one line, without commands to a terminal, and not endless."""
    text = str(name)
    text = text if len(text) <= most else f"{text[:most]}..."
    return text if text.isprintable() else repr(text)
