"""A run's logs, one JSON object a line: kept whole through crashes and full disks, and read for the best so far."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from justimage import disk

MAX_LOG_BYTES, MAX_LINE_BYTES = 2**28, 2**20
"""Bytes of a log, and of a line in it, beyond which it was not written here."""


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


def read_lines(file: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines of a log, as they stand there and as objects; what a crash tore, or is no object, is passed over."""
    if not file.exists():
        return
    if not file.is_file() or file.stat().st_size > MAX_LOG_BYTES:
        raise ValueError(f"{file} is not a log; remove it, or put it back (a log is a file of at most {MAX_LOG_BYTES} bytes)")
    with open(file, "rb") as opened:
        while line := opened.readline(MAX_LINE_BYTES):
            if not line.endswith(b"\n") and len(line) == MAX_LINE_BYTES:
                while (rest := opened.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
                continue
            with suppress(ValueError, RecursionError):
                found = json.loads(line)
                if isinstance(found, dict):
                    yield line, found


def records(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log, as objects."""
    return (found for _, found in read_lines(file))


def images_of(line: dict[str, Any]) -> int | None:
    """Images seen when a line was written; None where it does not say."""
    seen = line.get("images_seen")
    return seen if type(seen) is int and 0 <= seen < 2**53 else None


def finite_number(value: Any) -> float:
    """A measured number; not a number for what is none."""
    return float(value) if type(value) in (int, float) and abs(value) < 1e300 else math.nan


def last_saved(directory: Path) -> int | None:
    """Images seen at the last checkpoint that a run's events tell of."""
    last = None
    for event in records(directory / "events.jsonl"):
        if event.get("event") == "saved" and (seen := images_of(event)) is not None:
            last = seen
    return last


def last_value(directory: Path, key: str) -> dict[str, Any] | None:
    """Return the last object under a key in a run's events; None where there is none, or no log."""
    found = None
    with suppress(ValueError):
        for event in records(directory / "events.jsonl"):
            if isinstance(event.get(key), dict):
                found = event[key]
    return found


def seconds_of_run(directory: Path) -> float:
    """How long a run has worked, by its events, over all of its sittings; what a crash lost after an event is left out."""
    seconds, last = 0.0, math.nan
    for event in records(directory / "events.jsonl"):
        now, starts = finite_number(event.get("time")), event.get("event") in ("begun", "resumed")
        if not starts and math.isfinite(now - last):
            seconds += max(now - last, 0.0)
        last = now
    return seconds


def truncate_after(file: Path, images_seen: int) -> None:
    """Drop the lines of metrics that a crash left behind its last checkpoint: those steps are done again."""
    kept, dropped = bytearray(), False
    for line, found in read_lines(file):
        seen = images_of(found)
        if seen is None or seen > images_seen:
            dropped = True
        else:
            kept += line.rstrip() + b"\n"
    if dropped:
        disk.write(file, bytes(kept))


def monitored_values(directory: Path, name: str, mode: str) -> list[tuple[int, float]]:
    """Images seen and the value of a watched number, wherever metrics.jsonl has it."""
    return [found for line in records(directory / "metrics.jsonl") for found in monitored_value(line, name, mode)]


def monitored_value(line: dict[str, Any], name: str, mode: str) -> list[tuple[int, float]]:
    """Images seen and a number in one line, if it is there; its negative where larger is better (mode "max")."""
    sign = -1 if mode == "max" else 1
    seen, value = images_of(line), sign * finite_number(line.get(name))
    return [(seen, value)] if seen is not None and math.isfinite(value) else []


def images_since_best(values: Sequence[tuple[int, float]]) -> int:
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
