"""Fig. 6: FID and IS against guidance, with and without the interval."""

from itertools import pairwise
from statistics import fmean

from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table, all_of, better, with_bounds
from justimage.reproduction.intervals import mean_interval
from justimage.reproduction.plots import lines
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import with_seeds

WHOLE, PART = (0.0, 1.0), (0.1, 1.0)
INTERVALS = {WHOLE: "without interval", PART: "interval 0.1 to 1"}
METRICS = {"fid": "best FID", "inception_score": "IS there", "guidance": "guidance there"}
PAPER = {(PART, "fid"): 2.36, (PART, "inception_score"): 298.5}  # L/16, 600 epochs (Table 13)
EFFECT = 3.39 / 2.79
"""FID without the interval over that with it: L/16, 200 epochs (Table 4). The figure has no numbers."""


def cells(s: Scale) -> list[Cell]:
    jobs = {i: with_seeds(with_values(s.recipe("L/16", 600), interval=i), s.seeds, full_grid=True) for i in INTERVALS}
    return [Cell(dict(interval=i), jobs[i], PAPER.get((i, metric)), metric) for i in INTERVALS for metric in METRICS]


def curves(table: Table, interval: tuple[float, float], key: str) -> list[list[float]]:
    """Of each seed whose training did not diverge, the FID or the IS at every guidance, of the average that is best there."""
    results = [r for r in table.results_of(table.cell(interval=interval, metric="fid")) if "diverged" not in r]
    return [[point[key] or 0.0 for point in result["curve"] if point["ema"] == result["ema"]] for result in results]


def rises_less(table: Table, sentence: str, whole: tuple[float, float], part: tuple[float, float], words: str) -> Claim:
    """The claim that from its least to the strongest guidance FID rises less with one interval than with another."""
    rise, rise_part = ([fid[-1] - min(fid) for fid in curves(table, interval, "fid")] for interval in (whole, part))
    less = mean_interval([b - a for a, b in zip(rise, rise_part, strict=True)], table.z)
    evidence = f"by {fmean(rise_part):.3g}, {words} by {fmean(rise):.3g}; the difference {with_bounds(less)}"
    return Claim(sentence, less.below(0), evidence)


def always_rises(table: Table, sentence: str, interval: tuple[float, float], why: str = "") -> Claim:
    """The claim that IS rises with every step of guidance."""
    scores = curves(table, interval, "inception_score")
    changes = zip(*([b - a for a, b in pairwise(score)] for score in scores), strict=True)
    means = ", ".join(f"{fmean(score):.4g}" for score in zip(*scores, strict=True))
    return Claim(sentence, all_of([mean_interval(list(change), table.z).above(0) for change in changes]), means, why)


def claims(table: Table) -> list[Claim]:
    best, best_part = (table.cell(interval=interval, metric="fid") for interval in (WHOLE, PART))
    lower = better("the best FID is better with the interval", table, best_part, best, effect=EFFECT)
    if not curves(table, WHOLE, "fid"):
        return [lower]
    full = table.on_laptop("IS is at most the number of classes, and so is nearly full with ten")
    return [
        lower,
        rises_less(table, "to the strongest guidance FID rises less with the interval", WHOLE, PART, "without interval"),
        always_rises(table, "without the interval IS rises with every step of guidance", WHOLE, full),
    ]


def figure(table: Table) -> bytes | None:
    intervals = {cell.params["interval"]: table.row(cell) for cell in table.cells}

    def panel(key: str) -> list[tuple[str, list[float], list[float]]]:
        guidance, *_ = curves(table, WHOLE, "guidance") or [[]]
        means = {words: curves(table, interval, key) for interval, words in intervals.items()}
        return [(words, guidance, [fmean(seeds) for seeds in zip(*found, strict=True)]) for words, found in means.items()]

    return lines([("guidance", "FID", panel("fid")), ("guidance", "IS", panel("inception_score"))])


EXPERIMENT = Experiment(
    title="FID and IS against guidance, with and without interval",
    expects="FID has a minimum over guidance; with the interval it is lower and wider. IS rises with guidance.",
    cells=cells, claims=claims, figure=figure,
    row="{interval}", column="{metric}", labels={"interval": INTERVALS, "metric": METRICS},
    notes="The points of the curves are of fewer images than the table's numbers: those with which guidance is searched.",
    second_look=True,
    minutes={"laptop": 0.5, "overnight": 19},
)  # fmt: skip
