"""Files that the page offers to download, in a folder of its own that goes when the page does."""

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path
from threading import Lock

from justimage import disk

KEPT, KEPT_BYTES = 400, 2**29
"""Folders that are kept of what was made, and of what Gradio took in or serves; and their bytes; the newest of each."""


class Downloads:
    """A folder that only this page writes: downloads as they are made, and what Gradio takes in and serves."""

    def __init__(self) -> None:
        self.held = tempfile.TemporaryDirectory(prefix="justimage-play-", ignore_cleanup_errors=True)
        self.root, self.making = Path(self.held.name), Lock()
        disk.mkdir(self.root / "made")
        disk.mkdir(self.root / "served")
        os.environ["GRADIO_TEMP_DIR"] = str(self.root / "served")

    def folder(self) -> Path:
        """A new folder for the files of one answer; the oldest go where there are too many, or too large ones."""
        with self.making, suppress(FileNotFoundError):  # Gradio removes some, too
            for name in "made", "served":
                total = 0
                folders = sorted((self.root / name).iterdir(), key=lambda place: place.stat().st_mtime, reverse=True)
                for number, old in enumerate(folders):
                    total += sum(file.stat().st_size for file in old.rglob("*") if file.is_file())
                    if number and (number >= KEPT or total > KEPT_BYTES):
                        disk.remove(old)
        place = self.root / "made" / secrets.token_hex(8)
        disk.mkdir(place)
        return place

    def write(self, path: Path, content: bytes) -> Path:
        disk.write(path, content)
        return path
