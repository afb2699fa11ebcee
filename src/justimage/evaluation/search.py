"""The best guidance and average for a model (App. A, "EMA and CFG"): the paper's grid, or a cheaper way to the same place.

All settings are compared on the same noise and the same classes, so their differences are far more certain than their
scores. The cheap way: every average at a few guidances with a quarter of the images; from the best of these, steps down the
grid with all of them; then the other averages there, and down the grid from there where they are not clearly worse.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from justimage.chunks import single_threaded
from justimage.evaluation import scores
from justimage.evaluation.feature_sampler import FeatureSampler
from justimage.evaluation.scores import Score
from justimage.generate import SampleJob
from justimage.progress import Job

LOW, HIGH, STEP = 1.0, 4.0, 0.1
"""The paper's candidates for the guidance."""
COARSE_STEP, COARSE_FRACTION = 5, 4
"""Grid steps between the guidances tried first, and the divisor of the number of images they are tried with."""
PRUNE_FACTOR = 3.0
"""Standard deviations by which an average must be worse to be dropped from the search."""


Curve = tuple[float, tuple[float, float]]
"""An average and an interval, along which guidance varies."""


class Setting(NamedTuple):
    """A point of the search: average, interval, and guidance as an index of the grid."""

    ema: float
    interval: tuple[float, float]
    guidance_index: int


@dataclass(frozen=True)
class Trial:
    """The score of a setting with the first `count` images."""

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


class Scored(Protocol):
    """A score with each image's influence on it (count,)."""

    @property
    def fid(self) -> Score: ...

    @property
    def influence(self) -> Tensor: ...


def fid_difference(a: Scored, b: Scored) -> Score:
    """How much larger a's FID is than b's, on the same noise and classes, with the deviation of that."""
    n = min(len(a.influence), len(b.influence))
    return Score(a.fid.value - b.fid.value, scores.standard_error(a.influence[:n] - b.influence[:n]))


@dataclass
class Search:
    """A search over guidance, averages and intervals; `trials` holds the scores so far, by setting and count."""

    sampler: FeatureSampler
    job: SampleJob
    count: int
    emas: Sequence[float]
    intervals: Sequence[tuple[float, float]]
    low: float = LOW
    high: float = HIGH
    step: float = STEP
    on_trial: Callable[["Search"], object] = lambda search: None
    """called after each new trial"""
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
        """Images of a coarse trial, in whole chunks."""
        batch = self.job.batch
        return min(self.count, max(-(-self.count // COARSE_FRACTION // batch) * batch, batch))

    def guidance(self, at: int) -> float:
        return round(self.low + at * self.step, 9)

    def evaluate(self, setting: Setting, count: int | None = None) -> Job[Trial]:
        """The score of a setting with `count` images (all), sampled where it is not known."""
        key = setting, count or self.count
        if key not in self.trials:
            guidance = self.guidance(setting.guidance_index)
            sampling = replace(self.job.sampling, guidance=guidance, interval=setting.interval)
            job = replace(
                self.job, weights_hash=self.sampler.generator.weights_hash(setting.ema), ema=setting.ema, sampling=sampling
            )
            samples = yield from self.sampler.features(job, key[1], f"ema {setting.ema:g}, guidance {guidance:g}")
            with single_threaded():
                fid, influence = scores.fid(samples["features"].split(scores.CHUNK), self.sampler.reference.statistics)
                inception_score = scores.inception_score(samples["logits"]) if "logits" in samples else None
            self.trials[key] = Trial(setting, guidance, key[1], fid, inception_score, influence)
            self.on_trial(self)
        return self.trials[key]

    def best_of(self, settings: Iterable[Setting], count: int | None = None) -> Job[Trial]:
        """The best of some settings."""
        trials = []
        for setting in settings:
            trials.append((yield from self.evaluate(setting, count)))
        return min(trials, key=fid_value)

    def hill_climb(self, start: Trial, strides: Sequence[int]) -> Job[Trial]:
        """The best setting downhill from `start` on the grid of guidances, in strides that become shorter."""
        best = start
        for stride in strides:
            while True:
                at = best.setting.guidance_index
                beside = [at for at in (at - stride, at + stride) if 0 <= at <= self.last_index]
                settings = [best.setting, *(best.setting._replace(guidance_index=at) for at in beside)]
                next_best = yield from self.best_of(settings)
                if next_best is best:
                    break
                best = next_best
        return best

    def coarse_to_fine(self) -> Job[Trial]:
        """The best setting, by a fraction of the grid."""
        coarse = sorted({*range(0, self.last_index + 1, COARSE_STEP), self.last_index})
        first: dict[Curve, Trial] = {}
        for curve in product(self.emas, self.intervals):
            first[curve] = yield from self.best_of([Setting(*curve, at) for at in coarse], self.coarse_count)
        best: Trial | None = None
        for curve in sorted(first, key=lambda c: fid_value(first[c])):
            start = first[curve].setting if best is None else Setting(*curve, best.setting.guidance_index)
            here = yield from self.evaluate(start)
            if best is None:
                best = yield from self.hill_climb(here, (2, 1))
                continue
            worse = fid_difference(here, best)
            if worse.value <= PRUNE_FACTOR * worse.std:
                climbed = yield from self.hill_climb(here, (1,))
                best = min(best, climbed, key=fid_value)
        assert best is not None
        return best

    def full_grid(self) -> Job[Trial]:
        """The best setting of the whole grid (the paper's way)."""
        return (yield from self.best_of(Setting(*s) for s in product(self.emas, self.intervals, range(self.last_index + 1))))

    @property
    def images_sampled(self) -> int:
        """Images sampled for all trials, each counted once; unguided, the interval makes no difference."""
        most: dict[Any, int] = {}
        for (setting, count), found in self.trials.items():
            key = setting if found.guidance != 1 else (setting.ema, setting.guidance_index)
            most[key] = max(most.get(key, 0), self.job.n_chunks(count) * self.job.batch)
        return sum(most.values())

    @property
    def grid_images(self) -> int:
        """Images of the whole grid."""
        settings = len(self.emas) * (len(self.intervals) * (self.last_index + 1))
        return settings * self.job.n_chunks(self.count) * self.job.batch

    def curve(self, ema: float, interval: tuple[float, float], count: int) -> list[Trial]:
        """Trials of one average and interval with `count` images, by guidance."""
        here = [f for (s, n), f in self.trials.items() if (s.ema, s.interval) == (ema, interval) and n == count]
        return sorted(here, key=lambda f: f.guidance)


def fid_value(found: Trial) -> float:
    return found.fid.value


def format_interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:g} to {interval[1]:g}"
