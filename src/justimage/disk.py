"""Every change to a file system, durable and atomic: after a crash a file is whole or absent.

Each change is announced to `observe` just before it happens. Tests replace it to kill the process, to tear a write in two or to
raise "no space left" at any one of them (tests/test_crash.py).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

JSON_LIMIT, JSON_VALUES = 256 * 2**20, 2**24
"""Bytes and values of the largest JSON file that is read: three bytes of it can become a list of a hundred in memory."""
WINDOWS = os.name == "nt"


def observe(operation: str, path: Path, content: bytes | memoryview = b"") -> None:
    """Do nothing; called before each change: make, write (with the content), sync, rename, remove."""


def mkdir(folder: Path) -> None:
    """Create a folder and its parents, unless it exists."""
    if not folder.is_dir():
        observe("make", folder)
        folder.mkdir(parents=True, exist_ok=True)


def write_durable(path: Path, blocks: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write a file block by block and flush it to the disk; return its size and the SHA-256 of the blocks in memory."""
    size, digest = 0, hashlib.sha256()
    with open(path, "wb", buffering=0) as file:
        for block in blocks:
            size += len(block)
            digest.update(block)
            write_all(file, path, block)
    sync(path)
    return size, digest.hexdigest()


def write_all(file: BinaryIO, path: Path, content: bytes | memoryview) -> None:
    """Write all of the content to an unbuffered file: after a partial write, the rest is written or raises the disk's error."""
    observe("write", path, content)
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, would survive a power cut."""
    observe("sync", path)
    if WINDOWS and path.is_dir():  # which has no call for it
        return
    descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(path: Path, target: Path) -> None:
    """Move a file or folder to its final name, atomically and durably."""
    observe("rename", target)
    path.replace(target)
    sync(target.parent)


def remove(path: Path) -> None:
    """Remove a file, or a folder and its content. A crash half-way leaves only a name that is never read (.tmp-)."""
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
def replacing(path: Path, prefix: str = "") -> Iterator[Path]:
    """Yield a temporary path to write to, which becomes `path` on leaving. After an error or a crash `path` is as before.

    prefix: of the temporary name, unique to the writer where several may write the same file.
    """
    mkdir(path.parent)
    aside = path.with_name(f".tmp-{prefix}{path.name}")
    remove(aside)  # left by a crash, or a link that somebody put there
    try:
        yield aside
        sync(aside)
        rename(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write(path: Path, content: bytes, prefix: str = "") -> None:
    """Replace a file atomically: readers see the old content or the new, also after a crash."""
    with replacing(path, prefix) as aside:
        write_durable(aside, [content])


def append(path: Path, content: bytes) -> None:
    """Append a line to a log. A line torn by a crash stays on a line by itself."""
    with open(path, "ab+", buffering=0) as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                content = b"\n" + content
        write_all(file, path, content)


def check_writable(place: Path) -> None:
    """Raise OSError, before hours of work, where a file or folder cannot be written at `place`."""
    parent = next(p for p in place.absolute().parents if p.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"{place} cannot be written: {parent} is a file")
    if not os.access(parent, os.W_OK) or (place.exists() and not os.access(place, os.W_OK)):
        raise PermissionError(f"{place} cannot be written: no permission in {parent}")


def file_lock(path: Path) -> BinaryIO:
    """Lock a file, without waiting, until it is closed or the process ends; BlockingIOError where another process holds it.

    The file stays. The lock is the process's: forked workers do not inherit it, so it ends with the process that took it,
    however that ends. On a file system without locks nothing is locked.
    """
    if path.is_symlink():
        raise ValueError(f"{path} is a link; remove it")
    file = open(path, "ab")  # noqa: SIM115
    try:
        if WINDOWS:
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise BlockingIOError(f"{path.parent} is in use by another process; wait for it, or end it") from error
    except (ImportError, OSError):  # without locks
        pass
    return file


def cache_dir(name: str) -> Path:
    """A folder of the cache: in $JUSTIMAGE_CACHE, by default in the user's cache folder."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "justimage"
    return Path(os.environ.get("JUSTIMAGE_CACHE") or usual) / name


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def self_checksum(entries: dict[str, Any]) -> str:
    """The SHA-256 of a JSON object without its entry "sha256", where this checksum is stored."""
    body = {k: v for k, v in entries.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; ValueError, in one line, for anything else."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file")
    if path.stat().st_size > JSON_LIMIT:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; at most {JSON_LIMIT} are read")
    return json_object(path.read_bytes(), str(path))


def json_object(content: bytes, where: str) -> dict[str, Any]:
    """Decode a JSON object of bounded size; ValueError, in one line, for anything else."""
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
    """A name from an untrusted file, for a message: one line of bounded length, without control characters."""
    text = str(name)
    text = text if len(text) <= most else f"{text[:most]}..."
    return text if text.isprintable() else repr(text)
