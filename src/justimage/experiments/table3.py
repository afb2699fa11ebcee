"""Table 3: shifting the noise level, by the mean mu of logit(t), for the three predictions."""

from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table, at_least
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
    x = {cell.params["mu"]: table.number(cell) for cell in table.select(prediction="x")}
    others = [table.number(cell) for p in ("eps", "v") for cell in table.select(prediction=p)]
    mu, fid = min(x.items(), key=lambda item: item[1])
    worst = max(x.values())
    evidence = f"best at mu = {mu:g}: {fid:.3g}; mu = 0: {x[0.0]:.3g}"
    return [
        at_least("no shift remedies eps- or v-prediction: 3 times x's worst, at least", min(others), worst, 3),
        Claim("for x-prediction more noise than mu = 0 is better", fid < x[0.0], evidence),
    ]


EXPERIMENT = Experiment(
    title="shift of the noise level for the three predictions",
    expects="An appropriate noise level helps x-prediction; none remedies eps- or v-prediction.",
    cells=cells, claims=claims, figure=by_row,
    row="mu = {mu:g}", column="{prediction}-pred",
    minutes=4,
)  # fmt: skip
