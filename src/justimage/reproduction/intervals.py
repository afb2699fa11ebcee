"""Intervals of ratios and differences between cells, and how many seeds a claim takes.

Scores of networks that differ in one setting are compared seed by seed: the same seed gives the same order of images, the same
t and noise in training, and the same noise to sample from. A ratio is compared in logarithms.
"""

import math
from statistics import fmean, stdev
from typing import NamedTuple

T_QUANTILES = 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306
"""The 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom."""
Z = 1.959964
"""That of the normal distribution."""
MAX_SEEDS = 100
"""Seeds beyond which no number is said."""


class Interval(NamedTuple):
    """A number, and the bounds between which it lies with 95 % confidence; all three alike where nothing is known of noise."""

    low: float
    value: float
    high: float

    def below(self, bound: float) -> bool | None:
        """Whether it is below a bound; None where the bound is within the interval."""
        return True if self.high < bound else False if self.low >= bound else None

    def above(self, bound: float) -> bool | None:
        """Whether it is above a bound; None where the bound is within the interval."""
        return True if self.low > bound else False if self.high <= bound else None

    def times(self, factor: float) -> "Interval":
        return Interval(*(factor * number for number in self))

    def inverse(self) -> "Interval":
        return Interval(*(1 / number if number else math.inf for number in reversed(self)))

    def over(self, other: "Interval") -> "Interval":
        """The quotient of two positive numbers with independent noise."""
        value = self.value / other.value if other.value else math.inf
        if not 0 < value < math.inf:
            return Interval(value, value, value)
        error = math.hypot(*(math.log(i.high / i.value) if i.value < math.inf else 0.0 for i in (self, other)))
        return Interval(value * math.exp(-error), value, value * math.exp(error))


def geometric_mean(intervals: list[Interval]) -> Interval:
    """Of positive numbers with independent noise."""
    values = [i.value for i in intervals]
    value = math.exp(fmean(map(math.log, values))) if 0 < min(values) <= max(values) < math.inf else math.nan
    error = math.hypot(*(math.log(i.high / i.value) for i in intervals)) / len(intervals) if math.isfinite(value) else 0.0
    return Interval(value * math.exp(-error), value, value * math.exp(error))


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, to 0.1 %."""
    if freedom <= len(T_QUANTILES):
        return T_QUANTILES[freedom - 1]
    terms = (Z**3 + Z) / 4, (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96, (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384
    return Z + sum(term / freedom**power for power, term in enumerate(terms, 1))  # Abramowitz and Stegun 26.7.5


def mean_interval(numbers: list[float]) -> Interval:
    """The mean of independent numbers; of one number nothing is known of its noise."""
    mean = fmean(numbers)
    error = t_quantile(len(numbers) - 1) * stdev(numbers) / math.sqrt(len(numbers)) if len(numbers) > 1 else 0.0
    return Interval(mean - error, mean, mean + error)


class Residuals(NamedTuple):
    """The remainder of the numbers of some cells, by seed, without the effects of cell and seed."""

    deviation: float
    cells: int
    seeds: int

    @property
    def freedom(self) -> int:
        return (self.cells - 1) * (self.seeds - 1)

    def error(self, seeds: int) -> float:
        """Half the 95 % interval of the difference between the means of two cells over so many seeds, the same of both."""
        return t_quantile(self.freedom) * self.deviation * math.sqrt(2 / seeds)

    def seeds_needed(self, effect: float) -> int | None:
        """The fewest seeds with which the interval of a difference is shorter, to each side, than an effect; None beyond
        MAX_SEEDS."""
        counts = range(2, MAX_SEEDS + 1)
        return next((n for n in counts if self._replace(seeds=n).error(n) < abs(effect)), None)


def residuals(rows: list[list[float]]) -> Residuals | None:
    """Of equally many numbers in each row, a row a cell and a column a seed; None for fewer than two cells or seeds."""
    if len(rows) < 2 or len(rows[0]) < 2:
        return None
    columns = [fmean(column) for column in zip(*rows, strict=True)]
    mean, found = fmean(columns), Residuals(0.0, len(rows), len(columns))
    squares = sum((v - fmean(row) - c + mean) ** 2 for row in rows for v, c in zip(row, columns, strict=True))
    return found._replace(deviation=math.sqrt(squares / found.freedom))
