"""Experiments: the cells of a table, the jobs whose results the cells show, and the claims that the table makes.

A job is run once, for the first table that needs it, and its result is stored; tables that share a training share its folder.
An experiment (a file in experiments/) lists the cells of its table beside the paper's numbers, and checks the table's claims.
"""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, mean, stdev
from typing import Any, NamedTuple, Protocol, TypeVar

from justimage import progress
from justimage.generate import short_hash
from justimage.progress import Progress
from justimage.reproduction.intervals import Z_SECOND, Interval, Residuals, Z, deviate_unequally, geometric_mean, residuals
from justimage.reproduction.scales import Scale

T = TypeVar("T")
Item = TypeVar("Item")
Result = dict[str, Any]
"""The result of a job, as JSON."""


@dataclass(frozen=True)
class Lab:
    """Where jobs are run and stored, on which device and at which scale."""

    root: Path
    scale: Scale
    device: str = "cpu"
    fingerprint: str = ""
    """of the images, and of the files that scores are computed from"""

    @property
    def environment_key(self) -> list[str]:
        """Part of every job's key: the images, and the kind of device, as others round otherwise. At the paper's scale, trained
        on a cluster, only the data's name."""
        paper = self.scale.name == "paper"
        return [self.scale.data] if paper else [self.fingerprint, self.device.partition(":")[0]]

    def result_dir(self, job: "Job") -> Path:
        """The folder of a job's result.json, and of the samples that its figures show."""
        return self.root / "results" / job.key(self)

    def run_dir(self, job: "Job") -> Path:
        """The folder of a job's training."""
        return self.root / "runs" / job.group(self)


class Job(Protocol):
    """A computation that is done once and stored."""

    @property
    def title(self) -> str: ...

    def group(self, lab: Lab) -> str:
        """A short hash shared by jobs that use the same files, which run one after the other."""
        ...

    def key(self, lab: Lab) -> str:
        """A short hash of everything that decides the result."""
        ...

    def run(self, lab: Lab) -> progress.Job[Result]:
        """Compute the result, resuming where an earlier call stopped. Yields the fraction of the job that is done, of 1."""
        ...


@dataclass(frozen=True)
class Cell:
    """One number of a table, found by its parameters and its metric."""

    params: dict[str, Any]
    """the values that distinguish it from the other cells, by name"""
    jobs: Sequence[Job]
    """one, or the same with several seeds"""
    paper: float | None = None
    """the paper's number"""
    metric: str = "fid"
    """the entry of a result that it shows"""

    def matches(self, **where: Any) -> bool:
        """Whether it has these parameters; `metric` counts as one."""
        return where.items() <= (self.params | {"metric": self.metric}).items()


class Claim(NamedTuple):
    """A statement of the paper about a table, and whether it holds for our numbers."""

    sentence: str
    holds: bool | None
    """None where the bound is within the noise"""
    evidence: str
    why: str = ""
    """a reason why it may not hold at a small scale"""
    margin: Interval | None = None
    """how many times the number that it is about is on its side of the bound: above 1 it holds"""
    paper_margin: float | None = None
    """the same of the paper's numbers"""
    noise: Residuals | None = None
    """between the seeds of what is compared, in logarithms; None with one seed"""
    seeds: int | None = None
    """which tell the paper's effect four times in five; None where that is not known, or beyond 100"""

    @property
    def verdict(self) -> str:
        return {True: "holds", False: "does not hold here", None: "inconclusive here"}[self.holds]


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper."""

    title: str
    expects: str
    """what the paper leads one to expect, in a sentence"""
    cells: Callable[[Scale], list[Cell]]
    claims: Callable[["Table"], list[Claim]]
    figure: Callable[["Table"], bytes | None]
    """a PNG; None where that needs matplotlib, which is not installed"""
    row: str
    """the label of a cell's row, a format string of its parameters and metric: "mu = {mu:g}\""""
    column: str
    """the label of its column"""
    labels: dict[str, dict[Any, str]] = field(default_factory=dict)
    """how labels spell the values of a parameter, where not as they are: {"t_clip": {0.0: "none"}}"""
    second_look: bool = False
    """whether this is a second look, with more seeds or easier images, after a first one that decided nothing: the intervals of
    several seeds are of 97 % then, not of 95 %"""
    notes: str = ""
    """differences from the paper, and other remarks"""
    minutes: dict[str, float] = field(default_factory=dict)
    """by scale, on two idle CPU cores, as measured (docs/reproduce.md)"""


@dataclass(frozen=True)
class Table:
    """The cells of an experiment at a scale, with the results of their jobs."""

    experiment: Experiment
    lab: Lab
    results: dict[str, Result] = field(default_factory=dict)
    """by the job's key"""

    @cached_property
    def cells(self) -> list[Cell]:
        return self.experiment.cells(self.lab.scale)

    @cached_property
    def grid(self) -> dict[tuple[str, str], Cell]:
        """The cells by the labels of their row and column."""
        return {(self.row(cell), self.column(cell)): cell for cell in self.cells}

    def row(self, cell: Cell) -> str:
        return self.label(self.experiment.row, cell)

    def column(self, cell: Cell) -> str:
        return self.label(self.experiment.column, cell)

    def label(self, template: str, cell: Cell) -> str:
        """A format string filled in with a cell's parameters and metric."""
        values = cell.params | {"metric": cell.metric}
        return template.format(**{k: self.experiment.labels.get(k, {}).get(v, v) for k, v in values.items()})

    @property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(row for row, _ in self.grid))

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for _, column in self.grid))

    def select(self, **where: Any) -> list[Cell]:
        """The cells with these parameters: table.select(prediction="x", patch=16)."""
        return [cell for cell in self.cells if cell.matches(**where)]

    def cell(self, **where: Any) -> Cell:
        """The one cell with these parameters; ValueError where there is none, or more than one."""
        found = self.select(**where)
        if len(found) != 1:
            raise ValueError(f"{len(found)} cells have {where}; there must be one")
        return found[0]

    def __call__(self, **where: Any) -> float:
        """The number of the one cell with these parameters."""
        return self.number(self.cell(**where))

    def results_of(self, cell: Cell) -> list[Result]:
        """The results that a cell shows, one a seed."""
        return [self.results[job.key(self.lab)] for job in cell.jobs]

    def numbers(self, cell: Cell) -> list[float]:
        """The numbers of a cell, one a seed: infinite for a training that diverged, nan where a result has none."""
        found = [(result, result.get(cell.metric)) for result in self.results_of(cell)]
        return [value if value is not None else math.inf if "diverged" in result else math.nan for result, value in found]

    def number(self, cell: Cell) -> float:
        """The number of a cell, the mean over its seeds."""
        return mean(self.numbers(cell))

    def on_laptop(self, reason: str) -> str:
        """A reason why a claim may not hold, where it is one of the laptop's scale; `overnight` has what that lacks."""
        return f"{reason}; see --scale overnight" if self.lab.scale.name == "laptop" else ""

    def noise(self, cell: Cell) -> float:
        """The standard deviation of a cell's number: over seeds where there are several, else over other samples; nan where
        the training of a seed diverged."""
        if len(cell.jobs) > 1:
            numbers = self.numbers(cell)
            return stdev(numbers) / math.sqrt(len(numbers)) if all(map(math.isfinite, numbers)) else math.nan
        return self.results_of(cell)[0].get("deviations", {}).get(cell.metric) or 0.0

    def trainings(self, cell: Cell) -> tuple[str, ...]:
        return tuple(job.group(self.lab) for job in cell.jobs)

    def noise_between(self, a: Cell, b: Cell, logarithms: bool) -> Residuals | None:
        """The noise between seeds of a comparison of two cells; None where no two cells have several.

        It is that of all trainings with this metric and the most seeds, each once, of the same column where it has one there.
        It is that of the two cells alone, if they have several seeds in common, where both sample the same trainings, which
        differ less than others do, and where the trainings do not deviate alike (Bartlett's test).
        """
        cells = self.select(metric=a.metric)
        near = [cell for cell in cells if self.column(cell) == self.column(a)]
        once = {self.trainings(cell)[0]: cell for cell in (*reversed(cells), *near)}
        most = max(len(cell.jobs) for cell in once.values())
        pooled = [self.numbers(cell) for cell in once.values() if len(cell.jobs) == most]

        def scaled(rows: Sequence[list[float]]) -> list[list[float]]:
            if not logarithms:
                return list(rows)
            return [list(map(math.log, row)) for row in rows if all(0 < value < math.inf for value in row)]

        alone = residuals(scaled(self.common(a, b)))
        apart = self.trainings(a) != self.trainings(b) and not deviate_unequally(scaled(pooled))
        return residuals(scaled(pooled)) if apart or alone is None else alone

    @property
    def z(self) -> float:
        """The quantile of its intervals."""
        return Z_SECOND if self.experiment.second_look and self.lab.scale.seeds > 1 else Z

    def common(self, a: Cell, b: Cell) -> tuple[list[float], list[float]]:
        """The numbers of two cells, of the seeds that both have."""
        seeds = min(len(a.jobs), len(b.jobs))
        return self.numbers(a)[:seeds], self.numbers(b)[:seeds]

    def means(self, a: Cell, b: Cell) -> tuple[float, float]:
        """The geometric means of the numbers of two cells over the seeds of both."""
        x, y = (math.exp(fmean(map(math.log, n))) if min(n) > 0 else mean(n) for n in self.common(a, b))
        return x, y

    def difference(self, a: Cell, b: Cell) -> Interval:
        """The number of one cell less another's, over the seeds of both."""
        (x, y), between = self.common(a, b), self.noise_between(a, b, logarithms=False)
        value, own = mean(x) - mean(y), self.z * math.hypot(self.noise(a), self.noise(b))
        error = between.error(len(x), self.z) if between else own
        return Interval(value - error, value, value + error)

    def ratio(self, a: Cell, b: Cell) -> Interval:
        """The number of one cell over another's, both positive: of their geometric means over the seeds of both."""
        x, y = self.means(a, b)
        value = x / y if y else math.inf
        if not 0 < value < math.inf:
            return Interval(value, value, value)
        between = self.noise_between(a, b, logarithms=True)
        own = self.z * math.hypot(self.noise(a) / x, self.noise(b) / y)
        error = between.error(min(len(a.jobs), len(b.jobs)), self.z) if between else own
        return Interval(value * math.exp(-error), value, value * math.exp(error))


def with_bounds(interval: Interval) -> str:
    """The number, and its bounds where they are known and differ from it."""
    low, value, high = (f"{number:.3g}" for number in interval)
    return value + (f" ({low} to {high})" if -math.inf < interval.low < interval.high < math.inf else "")


def all_of(verdicts: Sequence[bool | None]) -> bool | None:
    """Whether all hold: not where one does not, and None where that is open."""
    return False if False in verdicts else None if None in verdicts else True


Cells = Cell | Sequence[Cell]
"""One cell; or several, each with its own among those that they are compared with. Their claim is about the geometric mean of
the ratios, which fewer seeds decide than each of them."""


def pairs_of(a: Cells, b: Cells) -> list[tuple[Cell, Cell]]:
    return list(zip(*([cells] if isinstance(cells, Cell) else cells for cells in (a, b)), strict=True))


def ratio_of(table: Table, a: Cells, b: Cells) -> Interval:
    """The numbers of some cells over those of others."""
    ratios = [table.ratio(*pair) for pair in pairs_of(a, b)]
    return geometric_mean(ratios) if len(ratios) > 1 else ratios[0]


def paper_ratio(a: Cells, b: Cells) -> float | None:
    """The same of the paper's numbers, of those cells that have one; None where none has."""
    logarithms = [math.log(x.paper / y.paper) for x, y in pairs_of(a, b) if x.paper and y.paper]
    return math.exp(fmean(logarithms)) if logarithms else None


def beyond(sentence: str, table: Table, more: Cells, less: Cells, factor: float, paper: float | None = None) -> Claim:
    """The claim that `factor` times a number is above another; inconclusive where the interval holds it. Without evidence."""
    ratio, pairs = paper or paper_ratio(more, less), pairs_of(more, less)
    margin, paper = ratio_of(table, more, less).times(factor), ratio and ratio * factor
    noise = table.noise_between(*pairs[0], logarithms=True)
    seeds = noise.seeds_needed(math.log(paper) * math.sqrt(len(pairs)), table.z) if noise and paper and paper > 1 else None
    return Claim(sentence, margin.above(1), "", "", margin, paper, noise, seeds)


def at_most(sentence: str, table: Table, cells: Cells, others: Cells, factor: float, why: str = "") -> Claim:
    """The claim that a number is less than `factor` times another; inconclusive where the interval holds it."""
    return beyond(sentence, table, others, cells, factor)._replace(evidence=numbers_of(table, cells, others), why=why)


def at_least(sentence: str, table: Table, larger: Cells, smaller: Cells, factor: float, why: str = "") -> Claim:
    """The claim that a number is at least `factor` times another; inconclusive where the interval holds it."""
    found = beyond(sentence, table, larger, smaller, 1 / factor)
    return found._replace(evidence=numbers_of(table, larger, smaller), why=why)


def better(sentence: str, table: Table, less: Cells, more: Cells, why: str = "", effect: float | None = None) -> Claim:
    """The claim that a number is below another; effect: how many times, in the paper, where its cells do not say it.

    It holds where the whole interval of their ratio is below 1. It does not hold where the interval leaves out half of the
    paper's effect (in logarithms) and all beyond it; or all below 1, where the paper has no numbers. Else it is inconclusive.
    """
    found = beyond(sentence, table, more, less, 1, effect)
    half = math.sqrt(found.paper_margin) if found.paper_margin and found.paper_margin > 1 else 1.0
    holds = found.holds or (False if found.margin and found.margin.high <= half else None)
    return found._replace(holds=holds, evidence=numbers_of(table, less, more, effect and 1 / effect), why=why)


def numbers_of(table: Table, a: Cells, b: Cells, paper: float | None = None) -> str:
    """Numbers and their ratio, beside the paper's, which is that of its cells where it is not given."""

    def beside(ratio: Interval, paper: float | None) -> str:
        return f"{with_bounds(ratio)} times" + (f", {paper:.3g} in the paper" if paper else "")

    pairs = pairs_of(a, b)
    each = [
        f"{x_mean:.3g} against {y_mean:.3g}: {beside(table.ratio(x, y), paper or paper_ratio(x, y))}"
        for x, y in pairs
        for x_mean, y_mean in [table.means(x, y)]
    ]
    return "; ".join(each + ([f"together {beside(ratio_of(table, a, b), paper_ratio(a, b))}"] if len(pairs) > 1 else []))


def hash_of(*facts: Any) -> str:
    """A short hash of everything that decides a result."""
    return short_hash(list(facts))


def map_progress(job: progress.Job[T], change: Callable[[Progress], Item]) -> Generator[Item, None, T]:
    """Run a job with its progress changed; returns its result."""
    with closing(job):
        while True:
            try:
                step = next(job)
            except StopIteration as end:
                return end.value
            yield change(step)
