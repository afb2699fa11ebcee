"""Table 2: nine combinations of what is predicted and where the error is measured, on large and on small patches."""

from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table, at_least
from justimage.reproduction.plots import tiles
from justimage.reproduction.scales import Scale, baseline
from justimage.reproduction.training_job import seeds

SPACES = "x", "eps", "v"
SIDES = {"(a) large patches": "B/16", "(b) small patches": "B/4"}
PAPER = {  # FID-50K on ImageNet by loss (rows) and prediction (columns), each x, eps, v
    "(a) large patches": ((10.14, 379.21, 107.55), (10.45, 394.58, 126.88), (8.62, 372.38, 96.53)),
    "(b) small patches": ((5.76, 6.20, 6.12), (3.56, 4.02, 3.76), (3.55, 3.63, 3.46)),
}


def cells(s: Scale) -> list[Cell]:
    """Three seeds under the v-loss."""
    several = {"v": 1 if s.name == "paper" else 3}
    return [
        Cell(
            f"{loss}-loss",
            f"{side}: {p}-pred",
            seeds(with_values(baseline(s.recipe(name)), prediction=p, loss_space=loss), several.get(loss, 1)),
            PAPER[side][i][j],
        )
        for side, name in SIDES.items()
        for i, loss in enumerate(SPACES)
        for j, p in enumerate(SPACES)
    ]


def claims(table: Table) -> list[Claim]:
    x = table.select(lambda c: "(a)" in c.column and ": x-" in c.column)
    others = table.select(lambda c: "(a)" in c.column and ": x-" not in c.column)
    small = table.select(lambda c: "(b)" in c.column)
    wide, narrow = (max(n.values()) / min(n.values()) for n in (x | others, small))
    worst, best = max(x.values()), min(others.values())
    large = "on large patches every x-prediction is better than every eps- and v-prediction, 3 times at least"
    return [
        at_least(large, best, worst, 3),
        at_least("on small patches the nine lie much closer together: worst over best", wide, narrow, 3),
    ]


EXPERIMENT = Experiment(
    title="nine combinations of prediction and loss, on large and on small patches",
    expects="Large patches (a): only x-prediction works, under any loss. Small patches (b): all nine work.",
    cells=cells,
    claims=claims,
    figure=tiles,
    minutes=9,
)
