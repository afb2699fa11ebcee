"""The checkpoints of a run: list them, find the newest intact one, remove old ones."""

import re
from collections.abc import Callable, Collection
from pathlib import Path

from justimage import disk
from justimage.checkpoint.shards import CorruptCheckpoint, verify


class NoUsableCheckpoint(ValueError):
    """A run that cannot be used: no intact checkpoint where there was one, or no readable recipe."""

    exit_code = 78


def checkpoint_dir(run: Path, images_seen: int) -> Path:
    return run / "checkpoints" / f"{images_seen:09d}"


def list_checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, oldest first, intact or not."""
    folders = (p for p in (run / "checkpoints").glob("*") if re.fullmatch(r"\d+", p.name))
    return sorted(folders, key=lambda p: int(p.name))


def newest(
    run: Path,
    groups: Collection[str] | None = None,
    damaged: Callable[[Path, CorruptCheckpoint], object] = lambda folder, error: None,
) -> Path | None:
    """The newest checkpoint of a run that is intact (in some groups, or whole); None where there never was one.

    damaged: called with each newer one that is not intact. Raises NoUsableCheckpoint where none is intact.
    """
    damage = []
    for folder in reversed(list_checkpoints(run)):
        try:
            if folder.is_symlink():
                raise CorruptCheckpoint(f"{folder} is a link, not a folder")
            verify(folder, groups)
        except CorruptCheckpoint as error:
            damage.append(str(error))
            damaged(folder, error)
        else:
            return folder
    if damage or any((run / "checkpoints").glob(".bad-*")):
        raise NoUsableCheckpoint(f"{run} has no intact checkpoint: " + ("; ".join(damage) or "all were set aside as .bad-"))
    return None


def set_aside(folder: Path) -> None:
    """Rename a damaged checkpoint to a name that is never read, for inspection."""
    name, count = f".bad-{folder.name}", 1
    while folder.with_name(name).exists():
        count += 1
        name = f".bad-{folder.name}-{count}"
    disk.rename(folder, folder.with_name(name))


def prune(run: Path, keep: int, best: int | None = None) -> None:
    """Remove all but the newest `keep` checkpoints and the best one, and what a crash left half-written."""
    spared = {f"{best:09d}"} if best is not None else set()
    for folder in [*list_checkpoints(run)[:-keep], *(run / "checkpoints").glob(".tmp-*")]:
        if folder.name not in spared:
            disk.remove(folder)
