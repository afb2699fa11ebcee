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

from justimage.chunks import single_threaded
from justimage.evaluation import scores
from justimage.evaluation.feature_sampler import FeatureSampler
from justimage.evaluation.scores import Score
from justimage.generate import SampleJob

LOW, HIGH, STEP = 1.0, 4.0, 0.1
"""The paper's candidates for the guidance."""
COARSE_STEP, COARSE_FRACTION = 5, 4
"""Steps of the grid between the first guidances looked at, and the part of the images (1 / SMALL) they are looked at with."""
PRUNE_FACTOR = 3.0
"""Deviations of the difference from which on an average is left."""


class Setting(NamedTuple):
    """What is searched over. `at`: the guidance as a number of steps of the grid."""

    ema: float
    interval: tuple[float, float]
    guidance_index: int


@dataclass(frozen=True)
class Trial:
    """What a setting gave with the first `count` images."""

    setting: Setting
    guidance: float
    count: int
    fid: Score
    inception_score: Score | None
    influence: Tensor = field(repr=False)
    """each image's influence on the FID (count,)"""


def check_grid(count: int, low: float, high: float, step: float) -> None:
    """ValueError for a grid of guidances, or a number of images, that cannot be searched."""
    if not step > 0 or not low <= high or not math.isfinite(low + high + step):
        raise ValueError(f"guidances {low:g} to {high:g} by {step:g}; low <= high and a step above 0 are needed")
    last = int((high - low) / step)
    if last > 1000:
        raise ValueError(f"guidances {low:g} to {high:g} by {step:g} are {last + 1}; at most 1001")
    if count < 2 * COARSE_FRACTION:
        raise ValueError(f"count is {count}; it must be {2 * COARSE_FRACTION} or more")


def fid_difference(a: Trial, b: Trial) -> Score:
    """How much larger a's FID is than b's, on the same noise and classes, with the deviation of that."""
    n = min(a.count, b.count)
    return Score(a.fid.value - b.fid.value, scores.standard_error(a.influence[:n] - b.influence[:n]))


@dataclass
class Search:
    """A search over guidance, averages and intervals; what was found so far is in `found` (by setting and count)."""

    sampler: FeatureSampler
    job: SampleJob
    count: int
    emas: Sequence[float]
    intervals: Sequence[tuple[float, float]]
    low: float = LOW
    high: float = HIGH
    step: float = STEP
    on_trial: Callable[["Search"], object] = lambda search: None
    """called when there is something new to show"""
    trials: dict[tuple[Setting, int], Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_grid(self.count, self.low, self.high, self.step)
        if not self.emas or not self.intervals:
            raise ValueError("there is no average, or no interval, to search over")

    @property
    def last_index(self) -> int:
        return int((self.high - self.low) / self.step + 1e-6)

    @property
    def coarse_count(self) -> int:
        """Images of a first look, in whole units."""
        unit = self.job.batch
        return min(self.count, max(-(-self.count // COARSE_FRACTION // unit) * unit, unit))

    def guidance(self, at: int) -> float:
        return round(self.low + at * self.step, 9)

    def evaluate(self, setting: Setting, count: int) -> Trial:
        """The score of a setting, drawn where it is not known."""
        key = setting, count
        if key not in self.trials:
            guidance = self.guidance(setting.guidance_index)
            chosen = replace(self.job.sampling, guidance=guidance, interval=setting.interval)
            job = replace(self.job, weights=self.sampler.generator.weights(setting.ema), ema=setting.ema, sampling=chosen)
            title = f"ema {setting.ema:g}, guidance {guidance:g}"
            drawn = self.sampler.features(job, count, title)
            with single_threaded():
                fid, moved = scores.fid(drawn["features"].split(scores.CHUNK), self.sampler.reference.statistics)
                answer = scores.inception_score(drawn["logits"]) if "logits" in drawn else None
            self.trials[key] = Trial(setting, guidance, count, fid, answer, moved)
            self.on_trial(self)
        return self.trials[key]

    def evaluate_full(self, setting: Setting) -> Trial:
        return self.evaluate(setting, self.count)

    def hill_climb(self, start: Trial, strides: Sequence[int]) -> Trial:
        """The best setting on the way down the grid of guidances, in strides that become shorter."""
        best = start
        for stride in strides:
            while True:
                beside = [
                    at
                    for at in (best.setting.guidance_index - stride, best.setting.guidance_index + stride)
                    if 0 <= at <= self.last_index
                ]
                next_best = min(
                    [best, *(self.evaluate_full(best.setting._replace(guidance_index=at)) for at in beside)], key=fid_value
                )
                if next_best is best:
                    break
                best = next_best
        return best

    def coarse_to_fine(self) -> Trial:
        """The best setting, by a fraction of the grid."""
        coarse = sorted({*range(0, self.last_index + 1, COARSE_STEP), self.last_index})
        curves = [(e, i) for e in self.emas for i in self.intervals]
        first = {c: min((self.evaluate(Setting(*c, at), self.coarse_count) for at in coarse), key=fid_value) for c in curves}
        best: Trial | None = None
        for curve in sorted(curves, key=lambda c: fid_value(first[c])):
            start = first[curve].setting if best is None else Setting(*curve, best.setting.guidance_index)
            here = self.evaluate_full(start)
            if best is None:
                best = self.hill_climb(here, (2, 1))
                continue
            worse = fid_difference(here, best)
            if worse.value <= PRUNE_FACTOR * worse.std:
                best = min(best, self.hill_climb(here, (1,)), key=fid_value)
        assert best is not None
        return best

    def full_grid(self) -> Trial:
        """The best setting of the whole grid (the paper's way)."""
        grid = [Setting(e, i, at) for e in self.emas for i in self.intervals for at in range(self.last_index + 1)]
        return min((self.evaluate_full(setting) for setting in grid), key=fid_value)

    @property
    def images_sampled(self) -> int:
        """Images that all settings looked at took, each counted once; unguided, the interval makes no difference."""
        most: dict[Any, int] = {}
        for (setting, count), found in self.trials.items():
            key = setting if found.guidance != 1 else (setting.ema, setting.guidance_index)
            most[key] = max(most.get(key, 0), self.job.n_chunks(count) * self.job.batch)
        return sum(most.values())

    @property
    def grid_images(self) -> int:
        """Images that the whole grid takes."""
        settings = len(self.emas) * (len(self.intervals) * (self.last_index + 1))
        return settings * self.job.n_chunks(self.count) * self.job.batch

    def curve(self, ema: float, interval: tuple[float, float], count: int) -> list[Trial]:
        """What was found of one average and interval with so many images, by guidance."""
        here = [f for (s, n), f in self.trials.items() if (s.ema, s.interval) == (ema, interval) and n == count]
        return sorted(here, key=lambda f: f.guidance)


def fid_value(found: Trial) -> float:
    return found.fid.value


def format_interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:g} to {interval[1]:g}"
