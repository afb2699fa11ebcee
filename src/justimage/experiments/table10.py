"""Table 10: pre-conditioned predictions (EDM's, and a linear one) against x-prediction, under the three losses."""

from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table
from justimage.reproduction.plots import tiles
from justimage.reproduction.scales import Scale, baseline
from justimage.reproduction.training_job import TrainAndScore

PREDICTIONS = {"x-pred": "x", "EDM-style": "edm", "linear": "linear"}
PAPER = {"x": (10.14, 28.94, 39.50), "eps": (10.45, 72.05, 67.56), "v": (8.62, 35.49, 46.25)}  # FID-50K by loss


def cells(s: Scale) -> list[Cell]:
    base = baseline(s.recipe("B/16"))
    return [
        Cell(f"{loss}-loss", column, (TrainAndScore(with_values(base, prediction=p, loss_space=loss)),), paper)
        for loss, row in PAPER.items()
        for (column, p), paper in zip(PREDICTIONS.items(), row, strict=True)
    ]


def claims(table: Table) -> list[Claim]:
    found = []
    for loss in table.rows:
        x, others = table(loss, "x-pred"), [table(loss, c) for c in table.columns[1:]]
        words = f"x {x:.3g}; EDM-style {others[0]:.3g}, linear {others[1]:.3g}"
        found.append(Claim(f"{loss}: x-prediction is better than both pre-conditioned ones, twice", 2 * x < min(others), words))
    return found


EXPERIMENT = Experiment(
    title="pre-conditioners against x-prediction",
    expects="A pre-conditioner that mixes z into the output fails on large patches, though less than eps- or v-prediction.",
    cells=cells,
    claims=claims,
    figure=tiles,
    minutes=3,
)
