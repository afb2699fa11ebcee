"""The best guidance and average for a model (App. A, "EMA and CFG"): the paper's grid, or a cheaper way to the same place.

All settings are compared on the same noise and the same classes, so their differences are far more certain than their
scores. The cheap way: every average at a few guidances with a quarter of the images; from the best of these, steps down the
grid with all of them; then the other averages there, and down the grid from there where they are not clearly worse.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor

from justimage.drawing import Drawing
from justimage.evaluation import scores
from justimage.evaluation.examiner import Examiner
from justimage.evaluation.scores import Score
from justimage.units import single_threaded

LOW, HIGH, STEP = 1.0, 4.0, 0.1
"""The paper's candidates for the guidance."""
COARSE, SMALL = 5, 4
"""Steps of the grid between the first guidances looked at, and the part of the images (1 / SMALL) they are looked at with."""
WORSE = 3.0
"""Deviations of the difference from which on an average is left."""


class Setting(NamedTuple):
    """What is searched over. `at`: the guidance as a number of steps of the grid."""

    ema: float
    interval: tuple[float, float]
    at: int


@dataclass(frozen=True)
class Found:
    """What a setting gave with the first `count` images."""

    setting: Setting
    guidance: float
    count: int
    fid: Score
    inception_score: Score | None
    moved: Tensor = field(repr=False)
    """each image's influence on the FID (count,)"""


def check_grid(count: int, low: float, high: float, step: float) -> None:
    """ValueError for a grid of guidances, or a number of images, that cannot be searched."""
    if not step > 0 or not low <= high or not math.isfinite(low + high + step):
        raise ValueError(f"guidances {low:g} to {high:g} by {step:g}; low <= high and a step above 0 are needed")
    last = int((high - low) / step)
    if last > 1000:
        raise ValueError(f"guidances {low:g} to {high:g} by {step:g} are {last + 1}; at most 1001")
    if count < 2 * SMALL:
        raise ValueError(f"count is {count}; it must be {2 * SMALL} or more")


def difference(a: Found, b: Found) -> Score:
    """How much larger a's FID is than b's, on the same noise and classes, with the deviation of that."""
    n = min(a.count, b.count)
    return Score(a.fid.value - b.fid.value, scores.deviation_of_mean(a.moved[:n] - b.moved[:n]))


@dataclass
class Search:
    """A search over guidance, averages and intervals; what was found so far is in `found` (by setting and count)."""

    examiner: Examiner
    job: Drawing
    count: int
    emas: Sequence[float]
    intervals: Sequence[tuple[float, float]]
    low: float = LOW
    high: float = HIGH
    step: float = STEP
    shown: Callable[["Search"], object] = lambda search: None
    """called when there is something new to show"""
    found: dict[tuple[Setting, int], Found] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_grid(self.count, self.low, self.high, self.step)
        if not self.emas or not self.intervals:
            raise ValueError("there is no average, or no interval, to search over")

    @property
    def last(self) -> int:
        return int((self.high - self.low) / self.step + 1e-6)

    @property
    def small(self) -> int:
        """Images of a first look, in whole units."""
        unit = self.job.unit
        return min(self.count, max(-(-self.count // SMALL // unit) * unit, unit))

    def guidance(self, at: int) -> float:
        return round(self.low + at * self.step, 9)

    def look(self, setting: Setting, count: int) -> Found:
        """The score of a setting, drawn where it is not known."""
        key = setting, count
        if key not in self.found:
            guidance = self.guidance(setting.at)
            job = replace(
                self.job, weights=self.examiner.artist.weights(setting.ema), ema=setting.ema, guidance=guidance,
                interval=setting.interval,
            )  # fmt: skip
            title = f"ema {setting.ema:g}, guidance {guidance:g}"
            drawn = self.examiner.features(job.without_idle_settings(), count, title)
            with single_threaded():
                fid, moved = scores.fid(drawn["features"].split(scores.CHUNK), self.examiner.reference.statistics)
                answer = scores.inception_score(drawn["logits"]) if "logits" in drawn else None
            self.found[key] = Found(setting, guidance, count, fid, answer, moved)
            self.shown(self)
        return self.found[key]

    def whole(self, setting: Setting) -> Found:
        return self.look(setting, self.count)

    def downhill(self, start: Found, strides: Sequence[int]) -> Found:
        """The best setting on the way down the grid of guidances, in strides that become shorter."""
        best = start
        for stride in strides:
            while True:
                beside = [at for at in (best.setting.at - stride, best.setting.at + stride) if 0 <= at <= self.last]
                next_best = min([best, *(self.whole(best.setting._replace(at=at)) for at in beside)], key=value)
                if next_best is best:
                    break
                best = next_best
        return best

    def cheap(self) -> Found:
        """The best setting, by a fraction of the grid."""
        coarse = sorted({*range(0, self.last + 1, COARSE), self.last})
        curves = [(e, i) for e in self.emas for i in self.intervals]
        first = {c: min((self.look(Setting(*c, at), self.small) for at in coarse), key=value) for c in curves}
        best: Found | None = None
        for curve in sorted(curves, key=lambda c: value(first[c])):
            start = first[curve].setting if best is None else Setting(*curve, best.setting.at)
            here = self.whole(start)
            if best is None:
                best = self.downhill(here, (2, 1))
                continue
            worse = difference(here, best)
            if worse.value <= WORSE * worse.deviation:
                best = min(best, self.downhill(here, (1,)), key=value)
        assert best is not None
        return best

    def full(self) -> Found:
        """The best setting of the whole grid (the paper's way)."""
        grid = [Setting(e, i, at) for e in self.emas for i in self.intervals for at in range(self.last + 1)]
        return min((self.whole(setting) for setting in grid), key=value)

    @property
    def drawn(self) -> int:
        """Images that all settings looked at took, each counted once; unguided, the interval makes no difference."""
        most: dict[Any, int] = {}
        for (setting, count), found in self.found.items():
            key = setting if found.guidance != 1 else (setting.ema, setting.at)
            most[key] = max(most.get(key, 0), self.job.units(count) * self.job.unit)
        return sum(most.values())

    @property
    def grid(self) -> int:
        """Images that the whole grid takes."""
        settings = len(self.emas) * (len(self.intervals) * (self.last + 1))
        return settings * self.job.units(self.count) * self.job.unit

    def curve(self, ema: float, interval: tuple[float, float], count: int) -> list[Found]:
        """What was found of one average and interval with so many images, by guidance."""
        here = [f for (s, n), f in self.found.items() if (s.ema, s.interval) == (ema, interval) and n == count]
        return sorted(here, key=lambda f: f.guidance)


def value(found: Found) -> float:
    return found.fid.value


def words(interval: tuple[float, float]) -> str:
    return f"{interval[0]:g} to {interval[1]:g}"
