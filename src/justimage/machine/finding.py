"""A finding: a line of the report on this machine."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

State = Literal["ok", "note", "missing"]
GB = 1e9


@dataclass(frozen=True)
class Finding:
    """A line of the report."""

    name: str
    state: State
    """ok; note, where something is slower or smaller than it could be; missing"""
    text: str
    advice: str = ""
    """what to do about it: a command, where there is one"""
    facts: dict[str, Any] = field(default_factory=dict)
    """the same for programs: JSON, in bytes"""


def reason(error: BaseException) -> str:
    """An error in one line of bounded length."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def shown(path: str | Path) -> str:
    """A path for a report that others will read: the home folder, and with it a name, is ~."""
    home = str(Path.home())
    return str(path).replace(home, "~", 1) if len(home) > 1 else str(path)
