"""Fig. 6 with guidance left out near the image, where t is above 0.8, instead of near noise.

    justimage reproduce examples/early_guidance.py --scale overnight

The paper leaves guidance out where t is below 0.1. On textured digits that does not help, and FID and IS become worse with
strong guidance. If it is at the end that guidance harms, then with none there FID rises less, and IS does not fall.
"""

from itertools import pairwise
from statistics import fmean

from justimage.experiments.fig6 import WHOLE, curves
from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table, all_of, with_bounds
from justimage.reproduction.intervals import mean_interval
from justimage.reproduction.plots import lines
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import with_seeds

EARLY = 0.0, 0.8
INTERVALS = {WHOLE: "at all times", EARLY: "while t is below 0.8"}
METRICS = {"fid": "best FID", "inception_score": "IS there", "guidance": "guidance there"}


def cells(s: Scale) -> list[Cell]:
    """The trainings are Fig. 6's."""
    jobs = {i: with_seeds(with_values(s.recipe("L/16", 600), interval=i), s.seeds, full_grid=True) for i in INTERVALS}
    return [Cell(dict(interval=i), jobs[i], None, metric) for i in INTERVALS for metric in METRICS]


def claims(table: Table) -> list[Claim]:
    whole, early = ([fid[-1] - min(fid) for fid in curves(table, interval, "fid")] for interval in INTERVALS)
    less = mean_interval([part - all_times for all_times, part in zip(whole, early, strict=True)])
    scores = curves(table, EARLY, "inception_score")
    steps = [mean_interval(list(step)) for step in zip(*([b - a for a, b in pairwise(score)] for score in scores), strict=True)]
    means = ", ".join(f"{fmean(score):.4g}" for score in zip(*scores, strict=True))
    return [
        Claim(
            "to the strongest guidance FID rises less", less.below(0),
            f"by {fmean(early):.3g}, at all times by {fmean(whole):.3g}; the difference {with_bounds(less)}",
        ),
        Claim("IS rises with every step of guidance", all_of([step.above(0) for step in steps]), means),
    ]  # fmt: skip


def figure(table: Table) -> bytes | None:
    def panel(key: str) -> list[tuple[str, list[float], list[float]]]:
        guidance = curves(table, WHOLE, "guidance")[0]
        means = {words: curves(table, interval, key) for interval, words in INTERVALS.items()}
        return [(words, guidance, [fmean(seeds) for seeds in zip(*found, strict=True)]) for words, found in means.items()]

    return lines([("guidance", "FID", panel("fid")), ("guidance", "IS", panel("inception_score"))])


EXPERIMENT = Experiment(
    title="FID and IS with guidance left out near the image",
    expects="FID rises less with guidance, and IS does not fall.",
    cells=cells, claims=claims, figure=figure,
    row="guidance {interval}", column="{metric}", labels={"interval": INTERVALS, "metric": METRICS},
)  # fmt: skip
