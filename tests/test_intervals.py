"""Intervals of ratios between cells: Student's, and right as often as they say; and the verdicts on claims by them."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from justimage.recipe import with_values
from justimage.reproduction import Cell, Experiment, Lab, Table, better
from justimage.reproduction.intervals import (
    Z_POWER,
    Z_SECOND,
    Interval,
    Residuals,
    deviate_unequally,
    geometric_mean,
    mean_interval,
    residuals,
    t_quantile,
)
from justimage.reproduction.scales import LAPTOP
from justimage.reproduction.toy_job import ToyJob
from justimage.reproduction.training_job import with_seeds


def test_quantiles_are_students() -> None:
    for freedom in range(1, 200):
        assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-3)
        assert t_quantile(freedom, Z_SECOND) == pytest.approx(stats.t.ppf(0.985, freedom), rel=1e-3)
        assert t_quantile(freedom, Z_POWER) == pytest.approx(stats.t.ppf(0.8, freedom), rel=0.01)


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
    needed = [noise.seeds_needed(effect) for effect in (0.5, 0.2, 0.1, 0.05, 0.025)]
    assert needed == sorted(n for n in needed if n) and needed[0] == 2 and needed[-1] and needed[-1] > 10
    assert noise.seeds_needed(1e-4) is None and noise.seeds_needed(-0.1) == needed[2]


def test_so_many_seeds_tell_the_effect_four_times_in_five() -> None:
    random, effect, trials = np.random.default_rng(3), 0.15, 4000
    seeds = Residuals(0.1, 2, 3).seeds_needed(effect)
    assert seeds
    a, b = random.normal(0, 0.1, (2, trials, seeds))
    told = stats.ttest_rel(a + effect, b, axis=1).pvalue < 0.05
    assert told.mean() == pytest.approx(0.8, abs=0.05)


def test_a_second_look_asks_for_more() -> None:
    lab, recipe = Lab(Path("nowhere"), replace(LAPTOP, seeds=3)), LAPTOP.recipe("B/16")
    cells = [Cell({"width": width}, with_seeds(with_values(recipe, width=width), 6)) for width in (64, 96)]
    once = Experiment("", "", lambda s: cells, lambda t: [], lambda t: None, "{width}", "FID")
    first, second = (Table(e, lab) for e in (once, replace(once, second_look=True)))
    for table in first, second:
        for cell, fids in zip(cells, ([1.0, 1.1, 0.9, 1.2, 1.0, 0.8], [1.1, 1.3, 0.9, 1.4, 1.2, 0.8]), strict=True):
            table.results.update({job.key(lab): {"fid": fid} for job, fid in zip(cell.jobs, fids, strict=True)})
    (_, value, high), wider = (table.ratio(*cells) for table in (first, second))
    assert value == wider.value and math.log(wider.high / value) / math.log(high / value) == pytest.approx(
        stats.t.ppf(0.985, 5) / stats.t.ppf(0.975, 5), rel=0.01
    )


def test_unequal_deviations_are_bartletts() -> None:
    random = np.random.default_rng(4)
    for scales in ([1, 1, 1], [1, 2, 4], [1, 10], [1, 1, 1, 3]):
        for seeds in (2, 3, 10):
            rows = [random.normal(0, scale, seeds).tolist() for scale in scales]
            assert deviate_unequally(rows) == (stats.bartlett(*rows).pvalue < 0.05)
    assert deviate_unequally([[1.0, 1.0], [1.0, 2.0]]) and not deviate_unequally([[1.0, 1.0], [2.0, 2.0]])
    assert not deviate_unequally([]) and not deviate_unequally([[1.0], [2.0]])


def test_one_number_says_nothing_of_a_mean() -> None:
    one = mean_interval([3.0])
    assert one.value == 3 and one.above(-1e9) is None and one.below(1e9) is None


def test_a_bound_within_the_interval_decides_nothing() -> None:
    interval = Interval(0.8, 0.9, 1.1)
    assert (interval.below(1.2), interval.below(1.0), interval.below(0.7)) == (True, None, False)
    assert (interval.above(0.7), interval.above(1.0), interval.above(1.2)) == (True, None, False)
    same = Interval(1.0, 1.0, 1.0)
    assert (same.below(1.0), same.above(1.0)) == (False, False)
    quotient = Interval(1.0, 2.0, 4.0).over(Interval(0.5, 1.0, 2.0))
    assert quotient.value == 2 and quotient.high == pytest.approx(2 * math.exp(math.log(2) * math.sqrt(2)))
    assert Interval(math.inf, math.inf, math.inf).over(same).value == math.inf


def test_a_difference_within_the_noise_is_no_verdict() -> None:
    """Which is that of differences between cells, seed by seed: what all have in common does not count."""
    lab = Lab(Path("nowhere"), LAPTOP)
    jobs = [[ToyJob(D, p) for D in (2, 8, 16)] for p in ("x", "v")]
    cells = [Cell({"name": name}, row) for name, row in zip("ab", jobs, strict=True)]
    table = Table(Experiment("", "", lambda s: cells, lambda t: [], lambda t: None, "{name}", "FID"), lab)

    def verdict(a: list[float], b: list[float]) -> str:
        for row, values in zip(jobs, (a, b), strict=True):
            table.results.update({job.key(lab): {"fid": v} for job, v in zip(row, values, strict=True)})
        return better("a is better", table, *cells).verdict

    assert verdict([1.0, 1.1, 0.9], [2.0, 2.1, 1.9]) == "holds"
    assert verdict([2.0, 2.1, 1.9], [1.0, 1.1, 0.9]) == "does not hold here"
    assert verdict([1.0, 2.0, 0.5], [1.2, 2.4, 0.6]) == "holds"  # each a sixth better
    assert verdict([1.0, 2.0, 0.5], [1.2, 1.8, 0.6]) == "inconclusive here"
    assert verdict([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]) == "does not hold here"


def test_two_pairs_decide_together_what_neither_does_alone() -> None:
    """Each pair differs by 14 % in the mean of three seeds, with a deviation of 8 %."""
    lab, names = Lab(Path("nowhere"), LAPTOP), ("B/16", "L/16")
    noise = {"B/16": (0.16, 0.0, -0.16), "L/16": (-0.16, 0.16, 0.0)}
    cells = {
        (name, added): Cell(
            {"name": name, "added": added},
            with_seeds(with_values(LAPTOP.recipe(name), aux_classifier=added), 3),
            {"B/16": 4.0, "L/16": 3.0}[name] * (0.8 if added else 1.0),
        )
        for name in names
        for added in (True, False)
    }
    table = Table(Experiment("", "", lambda s: [*cells.values()], lambda t: [], lambda t: None, "{name}", "{added}"), lab)
    for (name, added), cell in cells.items():
        fids = [math.exp((n - 0.28) / 2 if added else -n / 2) for n in noise[name]]
        table.results.update({job.key(lab): {"fid": fid} for job, fid in zip(cell.jobs, fids, strict=True)})
    pairs = [(cells[name, True], cells[name, False]) for name in names]
    alone, together = [better("alone", table, *pair) for pair in pairs], better("together", table, *zip(*pairs, strict=True))
    assert [c.holds for c in alone] == [None, None] and together.holds
    assert together.margin and together.margin.value == pytest.approx(math.exp(0.14))
    assert together.paper_margin == pytest.approx(1.25) and together.seeds and alone[0].seeds
    assert together.seeds < alone[0].seeds and "together 0.869" in together.evidence


def test_cells_of_several_and_of_fewer_seeds_are_compared_by_those_of_both() -> None:
    lab, recipe = Lab(Path("nowhere"), LAPTOP), LAPTOP.recipe("B/16")
    many, few = (Cell({"d": d}, with_seeds(with_values(recipe, bottleneck=d), n)) for d, n in ((8, 4), (16, 2)))
    table = Table(Experiment("", "", lambda s: [many, few], lambda t: [], lambda t: None, "{d}", "FID"), lab)
    for cell, fids in ((many, (1.0, 2.0, 50.0, 70.0)), (few, (2.0, 4.0))):
        table.results.update({job.key(lab): {"fid": fid} for job, fid in zip(cell.jobs, fids, strict=True)})
    assert table.ratio(few, many).value == pytest.approx(2.0) and table.difference(few, many).value == pytest.approx(1.5)


def test_what_samples_the_same_trainings_is_compared_by_its_own_noise() -> None:
    """With and without the interval: 5 % better with every seed, where trainings differ by more; and these count once."""
    lab, base = Lab(Path("nowhere"), LAPTOP), LAPTOP.recipe("B/16")
    recipes = {"interval": base, "none": with_values(base, interval=(0.0, 1.0)), "wide": with_values(base, width=96)}
    cells = [Cell({"name": name}, with_seeds(recipe, 3)) for name, recipe in recipes.items()]
    table = Table(Experiment("", "", lambda s: cells, lambda t: [], lambda t: None, "{name}", "FID"), lab)
    for cell, fids in zip(cells, ([1.0, 1.5, 0.8], [1.05, 1.575, 0.85], [1.1, 1.0, 1.2]), strict=True):
        table.results.update({job.key(lab): {"fid": fid} for job, fid in zip(cell.jobs, fids, strict=True)})
    interval, none, wide = cells
    assert better("the interval helps", table, interval, none).holds
    apart = better("the wider one is worse", table, interval, wide)
    between = table.noise_between(interval, wide, logarithms=True)
    assert apart.holds is None and between is not None and (between.cells, between.seeds) == (2, 3)


def test_trainings_that_deviate_unequally_are_compared_by_their_own_noise() -> None:
    """A quiet third would hide that what is compared is noisy."""
    lab, recipe = Lab(Path("nowhere"), LAPTOP), LAPTOP.recipe("B/16")
    cells = [Cell({"width": width}, with_seeds(with_values(recipe, width=width), 3)) for width in (64, 96, 128)]
    table = Table(Experiment("", "", lambda s: cells, lambda t: [], lambda t: None, "{width}", "FID"), lab)

    def between(*rows: tuple[float, float, float]) -> Residuals | None:
        for cell, fids in zip(cells, rows, strict=True):
            table.results.update({job.key(lab): {"fid": fid} for job, fid in zip(cell.jobs, fids, strict=True)})
        return table.noise_between(cells[0], cells[1], logarithms=False)

    noisy, quiet = (0.72, 0.85, 0.78), (0.896, 0.9, 0.901)
    alike, unlike = between(noisy, noisy, (0.8, 0.9, 0.78)), between(noisy, quiet, (0.88, 0.881, 0.886))
    assert alike and alike.cells == 3 and unlike == residuals([list(noisy), list(quiet)])
