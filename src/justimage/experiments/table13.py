"""Table 13: FID, IS, precision and recall of the sizes."""

from justimage.reproduction import Cell, Claim, Experiment, Table
from justimage.reproduction.plots import tiles
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import TrainAndScore

METRICS = {"fid": "FID", "inception_score": "IS", "precision": "precision", "recall": "recall"}
PAPER = {  # ImageNet 256, 600 epochs
    "B/16": (3.66, 275.1, 0.82, 0.50),
    "L/16": (2.36, 298.5, 0.80, 0.59),
    "H/16": (1.86, 303.4, 0.78, 0.62),
    "G/16": (1.82, 292.6, 0.79, 0.62),
}


def cells(s: Scale) -> list[Cell]:
    return [
        Cell(dict(network=name), [TrainAndScore(s.recipe(name, 600))], paper, metric)
        for name, row in PAPER.items()
        for metric, paper in zip(METRICS, row, strict=True)
    ]


def claims(table: Table) -> list[Claim]:
    def both(metric: str) -> tuple[float, float, str]:
        small, large = table(network="B/16", metric=metric), table(network="G/16", metric=metric)
        return small, large, f"B {small:.3g}, G {large:.3g}"

    fid, recall, precision = both("fid"), both("recall"), both("precision")
    return [
        Claim("FID is better with size", fid[1] < fid[0], fid[2]),
        Claim("recall is better with size", recall[1] > recall[0], recall[2]),
        Claim("precision hardly changes (by less than 0.1)", abs(precision[1] - precision[0]) < 0.1, precision[2]),
    ]


EXPERIMENT = Experiment(
    title="FID, IS, precision and recall of the sizes",
    expects="With size FID and recall improve, and precision stays where it is.",
    cells=cells, claims=claims, figure=tiles,
    row="{network}", column="{metric}", labels={"metric": METRICS},
    minutes=6,
)  # fmt: skip
