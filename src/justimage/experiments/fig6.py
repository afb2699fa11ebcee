"""Fig. 6: FID and IS against guidance, with and without the interval."""

from itertools import pairwise

from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table, better
from justimage.reproduction.plots import lines
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import TrainAndScore

WHOLE, PART = (0.0, 1.0), (0.1, 1.0)
INTERVALS = {WHOLE: "without interval", PART: "interval 0.1 to 1"}
METRICS = {"fid": "best FID", "inception_score": "IS there", "guidance": "guidance there"}
PAPER = {(PART, "fid"): 2.36, (PART, "inception_score"): 298.5}  # L/16, 600 epochs (Table 13)


def cells(s: Scale) -> list[Cell]:
    jobs = {i: [TrainAndScore(with_values(s.recipe("L/16", 600), interval=i), full_grid=True)] for i in INTERVALS}
    return [Cell(dict(interval=i), jobs[i], PAPER.get((i, metric)), metric) for i in INTERVALS for metric in METRICS]


def curve(table: Table, interval: tuple[float, float]) -> list[dict[str, float]]:
    """The points of an interval's curve, by guidance, of the average that is best there."""
    (result,) = table.results_of(table.cell(interval=interval, metric="fid"))
    return [point for point in result["curve"] if point["ema"] == result["ema"]]


def claims(table: Table) -> list[Claim]:
    inception_scores = [point["inception_score"] or 0.0 for point in curve(table, WHOLE)]
    fids = [[point["fid"] for point in curve(table, interval)] for interval in (WHOLE, PART)]
    rise, rise_part = (fid[-1] - min(fid) for fid in fids)
    best, best_part = (table.cell(interval=interval, metric="fid") for interval in (WHOLE, PART))
    few_steps = "with few steps the interval leaves out two of them"
    return [
        better("the best FID is better with the interval", table, best_part, best, few_steps),
        Claim(
            "to the strongest guidance FID rises less with the interval", rise_part < rise,
            f"by {rise_part:.3g}, without interval by {rise:.3g}",
        ),
        Claim(
            "without the interval IS rises with every step of guidance", all(b > a for a, b in pairwise(inception_scores)),
            ", ".join(f"{a:.4g}" for a in inception_scores),
            "IS is at most the number of classes, and so is nearly full with ten",
        ),
    ]  # fmt: skip


def figure(table: Table) -> bytes | None:
    def panel(key: str) -> list[tuple[str, list[float], list[float]]]:
        curves = {words: curve(table, interval) for interval, words in INTERVALS.items()}
        return [(words, [p["guidance"] for p in points], [p[key] for p in points]) for words, points in curves.items()]

    return lines([("guidance", "FID", panel("fid")), ("guidance", "IS", panel("inception_score"))])


EXPERIMENT = Experiment(
    title="FID and IS against guidance, with and without interval",
    expects="FID has a minimum over guidance; with the interval it is lower and wider. IS rises with guidance.",
    cells=cells, claims=claims, figure=figure,
    row="{interval}", column="{metric}", labels={"interval": INTERVALS, "metric": METRICS},
    notes="The points of the curves are of fewer images than the table's numbers: those with which guidance is searched.",
    minutes=2,
)  # fmt: skip
