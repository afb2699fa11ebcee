"""Table 13: FID, IS, precision and recall of the sizes."""

from justimage.reproduction import Cell, Claim, Experiment, Table, all_of, better, with_bounds
from justimage.reproduction.intervals import Interval
from justimage.reproduction.plots import tiles
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import with_seeds

METRICS = {"fid": "FID", "inception_score": "IS", "precision": "precision", "recall": "recall"}
PAPER = {  # ImageNet 256, 600 epochs
    "B/16": (3.66, 275.1, 0.82, 0.50),
    "L/16": (2.36, 298.5, 0.80, 0.59),
    "H/16": (1.86, 303.4, 0.78, 0.62),
    "G/16": (1.82, 292.6, 0.79, 0.62),
}


COMPARED = "B/16", "G/16"
"""The networks that claims compare."""


def cells(s: Scale) -> list[Cell]:
    """With several seeds, twice as many of what is compared: B's recall deviates much more than G's, so that only their own
    noise decides, of which three seeds know little."""
    seeds = {name: 2 * s.seeds if name in COMPARED and s.seeds > 1 else 1 for name in PAPER}
    return [
        Cell(dict(network=name), with_seeds(s.recipe(name, 600), seeds[name]), paper, metric)
        for name, row in PAPER.items()
        for metric, paper in zip(METRICS, row, strict=True)
    ]


def claims(table: Table) -> list[Claim]:
    def change(metric: str) -> tuple[Interval, str]:
        g, b = (table.cell(network=name, metric=metric) for name in ("G/16", "B/16"))
        found = table.difference(g, b)
        return found, f"B {table.number(b):.3g}, G {table.number(g):.3g}: by {with_bounds(found)}"

    (recall, by), (precision, by_there) = change("recall"), change("precision")
    g, b = (table.cell(network=name, metric="fid") for name in ("G/16", "B/16"))
    within = precision.above(-0.1), precision.below(0.1)
    return [
        better("FID is better with size", table, g, b),
        Claim("recall is better with size", recall.above(0), by),
        Claim("precision hardly changes (by less than 0.1)", all_of(within), by_there),
    ]


EXPERIMENT = Experiment(
    title="FID, IS, precision and recall of the sizes",
    expects="With size FID and recall improve, and precision stays where it is.",
    cells=cells, claims=claims, figure=tiles,
    row="{network}", column="{metric}", labels={"metric": METRICS},
    second_look=True,
    minutes={"laptop": 2.5, "overnight": 101},
)  # fmt: skip
