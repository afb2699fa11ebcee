"""Fig. 6: FID and IS against guidance, with and without the interval."""

from itertools import pairwise

from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table, better
from justimage.reproduction.plots import lines
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import TrainAndScore

INTERVALS = {"without interval": (0.0, 1.0), "interval 0.1 to 1": (0.1, 1.0)}
SHOWN = {"best FID": "fid", "IS there": "inception_score", "guidance there": "guidance"}
PAPER = {("interval 0.1 to 1", "best FID"): 2.36, ("interval 0.1 to 1", "IS there"): 298.5}  # L/16, 600 epochs (Table 13)


def cells(s: Scale) -> list[Cell]:
    return [
        Cell(
            row,
            column,
            (TrainAndScore(with_values(s.recipe("L/16", 600), interval=interval), full_grid=True),),
            PAPER.get((row, column)),
            shows,
        )
        for row, interval in INTERVALS.items()
        for column, shows in SHOWN.items()
    ]


def curves(table: Table) -> dict[str, list[dict[str, float]]]:
    """The points of each row, by guidance, of the average that is best there."""
    best = {row: table.found(cell)[0] for row in table.rows if (cell := table.cell(row, "best FID"))}
    return {row: [p for p in found["curve"] if p["ema"] == found["ema"]] for row, found in best.items()}


def claims(table: Table) -> list[Claim]:
    whole, part = curves(table).values()
    answers = [p["inception_score"] or 0.0 for p in whole]
    rises = [curve[-1]["fid"] - min(p["fid"] for p in curve) for curve in (whole, part)]
    cells = ("interval 0.1 to 1", "best FID"), ("without interval", "best FID")
    return [
        better("the best FID is better with the interval", table, *cells, "with few steps the interval leaves out two of them"),
        Claim(
            "to the strongest guidance FID rises less with the interval", rises[1] < rises[0],
            f"by {rises[1]:.3g}, without interval by {rises[0]:.3g}",
        ),
        Claim(
            "without the interval IS rises with every step of guidance", all(b > a for a, b in pairwise(answers)),
            ", ".join(f"{a:.4g}" for a in answers), "IS is at most the number of classes, and so is nearly full with ten",
        ),
    ]  # fmt: skip


def picture(table: Table) -> bytes | None:
    both = curves(table)
    guidance = {row: [p["guidance"] for p in curve] for row, curve in both.items()}
    return lines(
        [
            ("guidance", label, [(row, guidance[row], [p[what] for p in curve]) for row, curve in both.items()])
            for what, label in {"fid": "FID", "inception_score": "IS"}.items()
        ]
    )


EXPERIMENT = Experiment(
    title="FID and IS against guidance, with and without interval",
    expects="FID has a minimum over guidance; with the interval it is lower and wider. IS rises with guidance.",
    cells=cells,
    claims=claims,
    figure=picture,
    notes="The points of the curves are of fewer images than the table's numbers: those with which guidance is searched.",
    minutes=2,
)
