"""Writing to disk so that a reader, or whoever starts again after a crash, finds the old file or the new one, whole."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place to write a file aside; on leaving, it becomes `path` whole. After an error or a crash `path` is what it was."""
    make(path.parent)
    aside = path.with_name(f".tmp-{path.name}")
    try:
        yield aside
        fsync(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    fsync(path.parent)


def write(path: Path, content: bytes) -> None:
    """Replace a file whole."""
    with replacing(path) as aside:
        aside.write_bytes(content)


def remove(path: Path) -> None:
    """Remove a file, or a folder and all in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def make(folder: Path) -> None:
    """Make a folder, and those above it, unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
