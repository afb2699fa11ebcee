"""Intervals of ratios between cells: Student's, and right as often as they say."""

import math

import numpy as np
import pytest
from scipy import stats

from justimage.reproduction.intervals import Interval, geometric_mean, mean_interval, residuals, t_quantile


def test_quantiles_are_students() -> None:
    for freedom in range(1, 200):
        assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-3)


def test_of_two_cells_it_is_the_paired_test() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(1, 0.3, (2, 5))
    noise = residuals([a.tolist(), b.tolist()])
    assert noise is not None and noise.freedom == 4
    bounds = stats.ttest_rel(a, b).confidence_interval(0.95)
    middle, error = float((a - b).mean()), noise.error(5)
    assert (middle - error, middle + error) == pytest.approx((bounds.low, bounds.high), rel=1e-3)
    assert mean_interval((a - b).tolist()) == pytest.approx((bounds.low, middle, bounds.high), rel=1e-3)


@pytest.mark.parametrize(("cells", "seeds"), [(2, 3), (4, 3), (8, 2)])
def test_it_leaves_the_truth_out_one_time_in_twenty(cells: int, seeds: int) -> None:
    """Whatever all cells of a seed have in common."""
    random, missed, trials = np.random.default_rng(1), 0, 4000
    for _ in range(trials):
        values = random.normal(0, 0.1, (cells, seeds)) + random.normal(0, 1.0, seeds)
        noise = residuals(values.tolist())
        assert noise is not None
        missed += abs(values[0].mean() - values[1].mean()) > noise.error(seeds)
    assert missed / trials == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / trials))


def test_one_seed_or_one_cell_says_nothing_of_noise() -> None:
    assert residuals([]) is None and residuals([[1.0, 2.0]]) is None and residuals([[1.0], [2.0]]) is None


def test_the_mean_of_four_alike_is_known_twice_as_well() -> None:
    """In logarithms; of one it is that one, and of one that is infinite nothing is known."""
    one = Interval(0.8, 1.0, 1.25)
    assert geometric_mean([one]) == pytest.approx(one) and geometric_mean([one] * 4) == pytest.approx(
        [0.8**0.5, 1.0, 1.25**0.5]
    )
    assert geometric_mean([one, one.times(4)]).value == pytest.approx(2.0)
    unknown = geometric_mean([one, Interval(math.inf, math.inf, math.inf)])
    assert unknown.above(1) is None and unknown.below(1) is None
    assert one.times(2).inverse() == pytest.approx((0.4, 0.5, 0.625))


def test_a_smaller_effect_takes_more_seeds() -> None:
    noise = residuals(np.random.default_rng(2).normal(0, 0.05, (4, 3)).tolist())
    assert noise is not None
    needed = [noise.seeds_needed(effect) for effect in (0.5, 0.2, 0.1, 0.05, 0.02)]
    assert needed == sorted(n for n in needed if n) and needed[0] == 2 and needed[-1] and needed[-1] > 10
    assert noise.seeds_needed(1e-4) is None and noise.seeds_needed(-0.1) == needed[2]


def test_a_bound_within_the_interval_decides_nothing() -> None:
    interval = Interval(0.8, 0.9, 1.1)
    assert (interval.below(1.2), interval.below(1.0), interval.below(0.7)) == (True, None, False)
    assert (interval.above(0.7), interval.above(1.0), interval.above(1.2)) == (True, None, False)
    same = Interval(1.0, 1.0, 1.0)
    assert (same.below(1.0), same.above(1.0)) == (False, False)
    quotient = Interval(1.0, 2.0, 4.0).over(Interval(0.5, 1.0, 2.0))
    assert quotient.value == 2 and quotient.high == pytest.approx(2 * math.exp(math.log(2) * math.sqrt(2)))
    assert Interval(math.inf, math.inf, math.inf).over(same).value == math.inf
