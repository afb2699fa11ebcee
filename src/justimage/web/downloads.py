"""Files that the page offers to download, in a folder of its own that goes when the page does."""

import os
import secrets
import tempfile
from pathlib import Path

from justimage import disk

KEPT = 400
"""Folders of downloads that are kept, the newest."""


class Downloads:
    """A folder that only this page writes: downloads as they are made, and what Gradio takes in and serves."""

    def __init__(self) -> None:
        self.held = tempfile.TemporaryDirectory(prefix="justimage-play-", ignore_cleanup_errors=True)
        self.root = Path(self.held.name)
        disk.mkdir(self.root / "made")
        disk.mkdir(self.root / "served")
        os.environ["GRADIO_TEMP_DIR"] = str(self.root / "served")

    def folder(self) -> Path:
        """A new folder for the files of one answer; the oldest go where there are too many."""
        made = sorted((self.root / "made").iterdir(), key=lambda place: place.stat().st_mtime)
        for old in made[: max(0, len(made) - KEPT)]:
            disk.remove(old)
        place = self.root / "made" / secrets.token_hex(8)
        disk.mkdir(place)
        return place

    def write(self, path: Path, content: bytes) -> Path:
        disk.write(path, content)
        return path
