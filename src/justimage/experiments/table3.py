"""Table 3: shifting the noise level, by the mean mu of logit(t), for the three predictions."""

from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table, at_least, better
from justimage.reproduction.plots import by_row
from justimage.reproduction.scales import Scale, baseline
from justimage.reproduction.training_job import TrainAndScore

SPACES = "x", "eps", "v"
PAPER = {  # FID-50K, B/16 on ImageNet 256, by mu: x, eps, v
    0.0: (14.44, 464.25, 120.03),
    -0.4: (9.79, 372.91, 109.93),
    -0.8: (8.62, 372.36, 96.53),
    -1.2: (8.99, 355.25, 106.85),
}


def cells(s: Scale) -> list[Cell]:
    base = baseline(s.recipe("B/16"))
    return [
        Cell(dict(mu=mu, prediction=p), [TrainAndScore(with_values(base, prediction=p, mu=mu))], paper)
        for mu, row in PAPER.items()
        for p, paper in zip(SPACES, row, strict=True)
    ]


def claims(table: Table) -> list[Claim]:
    least = min(table.select(prediction="eps") + table.select(prediction="v"), key=table.number)
    worst = max(table.select(prediction="x"), key=table.number)
    chosen, none = (table.cell(mu=mu, prediction="x") for mu in (-0.8, 0.0))
    return [
        at_least("no shift remedies eps- or v-prediction: 3 times x's worst, at least", table, least, worst, 3),
        better("for x-prediction more noise (mu = -0.8) is better than mu = 0", table, chosen, none),
    ]


EXPERIMENT = Experiment(
    title="shift of the noise level for the three predictions",
    expects="An appropriate noise level helps x-prediction; none remedies eps- or v-prediction.",
    cells=cells, claims=claims, figure=by_row,
    row="mu = {mu:g}", column="{prediction}-pred",
    minutes={"laptop": 2},
)  # fmt: skip
