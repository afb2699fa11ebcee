"""What the experiments of the paper are made of: works, the cells of a table that show them, and claims about them.

A work is done once, by whoever needs it first, and kept; two tables that share a training share it on the disk. An
experiment (a file in experiments/) says which works its table shows, beside the paper's numbers, and what the table claims.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple, Protocol

from justimage.generate import short_hash
from justimage.reproduction.scales import Scale

Result = dict[str, Any]
"""What a work found, as JSON."""


@dataclass(frozen=True)
class Talk:
    """How a work speaks while it is done."""

    tell: Callable[[str, float], object] = lambda what, done: None
    """what is being done, and the fraction of the work that is"""
    stop: Callable[[], bool] = lambda: False
    """whether to end early, with `Stopped`"""


@dataclass(frozen=True)
class Lab:
    """Where works are done, and with what."""

    root: Path
    scale: Scale
    device: str = "cpu"
    fingerprint: str = ""
    """of the images, and of whatever else scores come from"""

    @property
    def environment_key(self) -> list[str]:
        """What makes a work another one: other images, or a kind of device that rounds otherwise. A cluster has its own."""
        paper = self.scale.name == "paper"
        return [self.scale.data] if paper else [self.fingerprint, self.device.partition(":")[0]]

    def result_dir(self, work: "Job") -> Path:
        """The folder with what a work found."""
        return self.root / "works" / work.key(self)


class Job(Protocol):
    """Something that is done once and kept."""

    def group(self, lab: Lab) -> str:
        """Works of one group use the same files, and are done one after the other."""
        ...

    @property
    def title(self) -> str: ...

    def key(self, lab: Lab) -> str:
        """A short hash of everything that decides the result."""
        ...

    def do(self, lab: Lab, talk: Talk) -> Result:
        """Do it, going on where it was left; may leave pictures in lab.kept(self). Raises `Stopped` when asked to."""
        ...


@dataclass(frozen=True)
class Cell:
    """One number of a table."""

    row: str
    column: str
    jobs: tuple[Job, ...]
    """the same with different seeds"""
    paper: float | None = None
    """the paper's number"""
    shows: str = "fid"
    """which of a result's entries it is"""


class Claim(NamedTuple):
    """What a table is said to show, and whether ours does."""

    sentence: str
    holds: bool | None
    """None where the difference is within the noise"""
    evidence: str
    why: str = ""
    """why it may not hold at a small scale"""

    @property
    def verdict(self) -> str:
        return {True: "holds", False: "does not hold here", None: "cannot be told here"}[self.holds]


@dataclass(frozen=True)
class Table:
    """The cells of an experiment, with what was found."""

    cells: Sequence[Cell]
    lab: Lab
    results: dict[str, Result] = field(default_factory=dict)
    """by the work's identity"""

    @property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(cell.column for cell in self.cells))

    def cell(self, row: str, column: str) -> Cell | None:
        return next((c for c in self.cells if (c.row, c.column) == (row, column)), None)

    def found(self, cell: Cell) -> list[Result]:
        """The results that a cell shows, one a seed."""
        return [self.results[work.key(self.lab)] for work in cell.jobs]

    def values(self, row: str, column: str) -> list[float]:
        """The numbers of a cell, one a seed; infinite for a training that diverged, not a number where a result has none."""
        cell = self.cell(row, column)
        assert cell is not None, (row, column)
        nothing = [math.inf if "diverged" in result else math.nan for result in self.found(cell)]
        found = [result.get(cell.shows) for result in self.found(cell)]
        return [instead if value is None else value for value, instead in zip(found, nothing, strict=True)]

    def noise(self, row: str, column: str) -> float:
        """The deviation of a cell's number: over seeds where there are several, else over other samples."""
        cell = self.cell(row, column)
        assert cell is not None, (row, column)
        if len(cell.jobs) > 1:
            return stdev(self.values(row, column)) / math.sqrt(len(cell.jobs))
        return self.found(cell)[0].get("deviations", {}).get(cell.shows) or 0.0

    def __call__(self, row: str, column: str) -> float:
        """The number of a cell, the mean over its seeds."""
        return mean(self.values(row, column))

    def select(self, keep: Callable[[Cell], bool]) -> dict[tuple[str, str], float]:
        """The numbers of some cells, by row and column."""
        return {(c.row, c.column): self(c.row, c.column) for c in self.cells if keep(c)}


def at_least(sentence: str, larger: float, smaller: float, factor: float, why: str = "") -> Claim:
    """The claim that one number is so many times another."""
    ratio = larger / smaller if smaller else math.inf
    return Claim(sentence, ratio >= factor, f"{larger:.3g} against {smaller:.3g}: {ratio:.3g} times", why)


def better(sentence: str, table: Table, less: tuple[str, str], more: tuple[str, str], why: str = "") -> Claim:
    """The claim that one cell's number is smaller than another's; it cannot be told within two deviations of the difference."""
    a, b, noise = table(*less), table(*more), 2 * math.hypot(table.noise(*less), table.noise(*more))
    words = f"{a:.3g} against {b:.3g}" + (f", two deviations are {noise:.2g}" if noise else "")
    return Claim(sentence, None if noise and abs(a - b) < noise else a < b, words, why)


def hash_of(*facts: Any) -> str:
    """An identity from what decides a result."""
    return short_hash(list(facts))


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper."""

    title: str
    expects: str
    """what it should show"""
    cells: Callable[[Scale], list[Cell]]
    claims: Callable[[Table], list[Claim]]
    figure: Callable[[Table], bytes | None]
    """a PNG made for people; None where that needs matplotlib, which is not installed"""
    notes: str = ""
    """what is not as in the paper, and other things to know"""
    minutes: float = 0.0
    """on a laptop, alone, as measured (docs/reproduce.md)"""
