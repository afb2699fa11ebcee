"""A run's logs, one JSON object a line: kept whole through crashes and full disks, and read for the best so far."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from justimage import disk


@dataclass
class Log:
    """A file of lines. What a full disk does not take is written with the next line."""

    file: Path
    pending: list[bytes] = field(default_factory=list)

    def add(self, line: dict[str, Any]) -> None:
        self.pending.append(json.dumps(line).encode() + b"\n")
        with suppress(OSError):
            self.flush()

    def flush(self) -> None:
        """Write what waits; OSError where that is impossible."""
        while self.pending:
            disk.append(self.file, self.pending[0])
            self.pending.pop(0)


def records(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log; one that a crash tore is passed over."""
    for line in file.read_bytes().splitlines() if file.exists() else []:
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                yield found


def last_saved(directory: Path) -> int | None:
    """Images seen at the last checkpoint that a run's events tell of."""
    saved = [e["images_seen"] for e in records(directory / "events.jsonl") if e.get("event") == "saved" and "images_seen" in e]
    return saved[-1] if saved else None


def forget_after(file: Path, images_seen: int) -> None:
    """Drop the lines of metrics that a crash left behind its last checkpoint: those steps are done again."""
    lines = list(records(file))
    kept = [line for line in lines if line.get("images_seen", images_seen + 1) <= images_seen]
    if len(kept) < len(lines):
        disk.write(file, "".join(json.dumps(line) + "\n" for line in kept).encode())


def watched(directory: Path, watch: str) -> list[tuple[int, float]]:
    """Images seen and the value of a watched number, wherever metrics.jsonl has it."""
    return [found for line in records(directory / "metrics.jsonl") for found in value_in(line, watch)]


def value_in(line: dict[str, Any], watch: str) -> list[tuple[int, float]]:
    """The watched number in one line, if it is there; of "-name" its negative, so that less is always better."""
    name, sign = watch.removeprefix("-"), -1 if watch.startswith("-") else 1
    return [(line["images_seen"], sign * float(line[name]))] if name in line and "images_seen" in line else []


def without_progress(values: Sequence[tuple[int, float]]) -> int:
    """Images since the best value; 0 where there is none."""
    if not values:
        return 0
    best = min(value for _, value in values)
    return values[-1][0] - next(seen for seen, value in values if value == best)


def best_of(checkpoints: Sequence[int], values: Sequence[tuple[int, float]]) -> int | None:
    """Of checkpoints, by their images seen, the one with the best value at its time: the last that was known by then."""
    known = {}
    for checkpoint in checkpoints:
        before = [value for seen, value in values if seen <= checkpoint]
        if before:
            known[checkpoint] = before[-1]
    return min(known, key=lambda c: known[c]) if known else None
