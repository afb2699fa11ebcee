"""Table 10: pre-conditioned predictions (EDM's, and a linear one) against x-prediction, under the three losses."""

from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table, at_least
from justimage.reproduction.plots import tiles
from justimage.reproduction.scales import Scale, baseline
from justimage.reproduction.training_job import TrainAndScore

PREDICTIONS = {"x": "x-pred", "edm": "EDM-style", "linear": "linear"}
PAPER = {"x": (10.14, 28.94, 39.50), "eps": (10.45, 72.05, 67.56), "v": (8.62, 35.49, 46.25)}  # FID-50K by loss


def cells(s: Scale) -> list[Cell]:
    base = baseline(s.recipe("B/16"))
    return [
        Cell(dict(loss=loss, prediction=p), [TrainAndScore(with_values(base, prediction=p, loss_space=loss))], paper)
        for loss, row in PAPER.items()
        for p, paper in zip(PREDICTIONS, row, strict=True)
    ]


def claims(table: Table) -> list[Claim]:
    found = []
    for loss in PAPER:
        x, *others = (table.cell(loss=loss, prediction=p) for p in PREDICTIONS)
        sentence = f"{loss}-loss: x-prediction is better than both pre-conditioned ones, twice"
        found.append(at_least(sentence, table, min(others, key=table.number), x, 2))
    return found


EXPERIMENT = Experiment(
    title="pre-conditioners against x-prediction",
    expects="A pre-conditioner that mixes z into the output fails on large patches, though less than eps- or v-prediction.",
    cells=cells, claims=claims, figure=tiles,
    row="{loss}-loss", column="{prediction}", labels={"prediction": PREDICTIONS},
    minutes={"laptop": 1.5},
)  # fmt: skip
