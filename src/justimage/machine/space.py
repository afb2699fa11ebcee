"""Room to work in: memory, the disk of the cache, what data-loading processes share, and files that may be open."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from justimage import disk
from justimage.machine.finding import GB, Finding, shown

MEMINFO, SHARED = Path("/proc/meminfo"), Path("/dev/shm")
LITTLE_MEMORY, LITTLE_DISK, LITTLE_SHARED, FEW_FILES = 4 * GB, 5 * GB, 1 * GB, 1024


def memory() -> Iterator[Finding]:
    """The host's memory, or as much of it as a container allows."""
    import torch

    from justimage.cost import memory_available

    total, free = memory_available(torch.device("cpu")), memory_free()
    free = total if free is None else min(free, total)
    text, facts = f"{free / GB:.1f} of {total / GB:.1f} GB free", {"memory": total, "free": free}
    if free < LITTLE_MEMORY:
        yield Finding("memory", "note", text, "end other programs, or train with a small --batch and --workers 0", facts)
    else:
        yield Finding("memory", "ok", text, facts=facts)


def memory_free() -> int | None:
    """Bytes that programs could still take; None on a system that does not say."""
    with suppress(OSError):
        found = re.search(r"^MemAvailable:\s*(\d+) kB", MEMINFO.read_text(), re.MULTILINE)
        return 1024 * int(found[1]) if found else None
    return None


def cache() -> Iterator[Finding]:
    """The folder where what is downloaded or computed once is kept."""
    place = disk.cache_dir("").absolute()
    there = next(p for p in (place, *place.parents) if p.exists())
    free = shutil.disk_usage(there).free
    text, facts = f"{shown(place)}, {free / GB:.1f} GB free", {"free": free, "writable": True}
    elsewhere = "export JUSTIMAGE_CACHE=FOLDER, on a disk with more room"
    try:
        disk.check_writable(place / "new")
    except OSError:
        text = f"{shown(place)} cannot be written: pictures and models are made and fetched anew each time, or not at all"
        yield Finding(
            "cache", "note", text, "export JUSTIMAGE_CACHE=FOLDER, one that you may write", facts | {"writable": False}
        )
        return
    yield Finding("cache", "note", text, elsewhere, facts) if free < LITTLE_DISK else Finding("cache", "ok", text, facts=facts)


def shared_memory() -> Iterator[Finding]:
    """Shared memory, through which data-loading processes hand over images (Linux)."""
    if not SHARED.is_dir():
        return
    free = shutil.disk_usage(SHARED).free
    text, facts = f"{free / GB:.2f} GB free in {SHARED}", {"free": free}
    if free < LITTLE_SHARED:
        advice = "docker run --shm-size=8g, or train with --workers 0"
        yield Finding("shared memory", "note", f"{text}, little for data-loading processes", advice, facts)
    else:
        yield Finding("shared memory", "ok", text, facts=facts)


def file_limit() -> Iterator[Finding]:
    """How many files may be open, by which a store decides how many shards it keeps open."""
    if os.name == "nt":
        return
    import resource

    from justimage.data.store import max_open_shards

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = None if soft == resource.RLIM_INFINITY else soft
    text = f"{'any number' if number is None else f'{number:,}'} at a time; a store keeps {max_open_shards()} shards open"
    if number is not None and number < FEW_FILES:
        yield Finding("open files", "note", text, f"ulimit -n {FEW_FILES if hard < 0 else min(hard, 65536)}", {"limit": number})
    else:
        yield Finding("open files", "ok", text, facts={"limit": number})
