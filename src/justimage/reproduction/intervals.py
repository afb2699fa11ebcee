"""Intervals of ratios and differences between cells, and how many seeds a claim takes.

Scores of networks that differ in one setting are compared seed by seed: the same seed gives the same order of images, the same
t and noise in training, and the same noise to sample from. A ratio is compared in logarithms.
"""

import math
from statistics import fmean, stdev, variance
from typing import NamedTuple

import torch

T_QUANTILES = 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306
"""The 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom."""
T_SECOND = 21.205, 5.643, 3.896, 3.298, 3.003, 2.829, 2.715, 2.634
"""The 98.5 % quantiles."""
Z = 1.959964
"""That of the normal distribution."""
Z_SECOND = 2.170090
"""The 98.5 % quantile, for a second look at claims of which a first one decided nothing."""
Z_POWER = 0.841621
"""The 80 % quantile of the normal distribution: with so many seeds an effect is told four times in five."""
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


def t_quantile(freedom: int, z: float = Z) -> float:
    """A quantile of Student's t, that of the normal distribution given: the 97.5 % and the 98.5 % to 0.1 %; to 1 % the 80 %."""
    exact = {Z: T_QUANTILES, Z_SECOND: T_SECOND}.get(z, ())
    if freedom <= len(exact):
        return exact[freedom - 1]
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))  # Abramowitz and Stegun 26.7.5


def mean_interval(numbers: list[float], z: float = Z) -> Interval:
    """The mean of independent numbers; that of one number may be anything."""
    mean = fmean(numbers)
    error = t_quantile(len(numbers) - 1, z) * stdev(numbers) / math.sqrt(len(numbers)) if len(numbers) > 1 else math.inf
    return Interval(mean - error, mean, mean + error)


class Residuals(NamedTuple):
    """The remainder of the numbers of some cells, by seed, without the effects of cell and seed."""

    deviation: float
    cells: int
    seeds: int

    @property
    def freedom(self) -> int:
        return (self.cells - 1) * (self.seeds - 1)

    def error(self, seeds: int, z: float = Z) -> float:
        """Half the interval of the difference between the means of two cells over so many seeds, the same of both."""
        return t_quantile(self.freedom, z) * self.deviation * math.sqrt(2 / seeds)

    def seeds_needed(self, effect: float, z: float = Z) -> int | None:
        """The fewest seeds that tell an effect four times in five; None beyond MAX_SEEDS."""

        def least(n: int) -> float:
            then = self._replace(seeds=n)
            return then.error(n, z) + t_quantile(then.freedom, Z_POWER) * self.deviation * math.sqrt(2 / n)

        return next((n for n in range(2, MAX_SEEDS + 1) if least(n) <= abs(effect)), None)


def residuals(rows: list[list[float]]) -> Residuals | None:
    """Of equally many numbers in each row, a row a cell and a column a seed; None for fewer than two cells or seeds."""
    if len(rows) < 2 or len(rows[0]) < 2:
        return None
    columns = [fmean(column) for column in zip(*rows, strict=True)]
    mean, found = fmean(columns), Residuals(0.0, len(rows), len(columns))
    squares = sum((v - fmean(row) - c + mean) ** 2 for row in rows for v, c in zip(row, columns, strict=True))
    return found._replace(deviation=math.sqrt(squares / found.freedom))


def deviate_unequally(rows: list[list[float]]) -> bool:
    """Whether Bartlett's test, at 5 %, says that rows of equally many numbers do not have one deviation."""
    if len(rows) < 2 or len(rows[0]) < 2:
        return False
    k, freedom, variances = len(rows), len(rows[0]) - 1, [variance(row) for row in rows]
    if not all(variances):
        return any(variances)
    statistic = freedom * (k * math.log(fmean(variances)) - sum(map(math.log, variances)))
    chi2 = torch.tensor([(k - 1) / 2, statistic / (1 + (k + 1) / (3 * k * freedom)) / 2], dtype=torch.float64)
    return bool(torch.special.gammaincc(*chi2) < 0.05)
