"""Table 2: nine combinations of what is predicted and where the error is measured, on large and on small patches."""

from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table, at_least, with_bounds
from justimage.reproduction.plots import tiles
from justimage.reproduction.scales import Scale, baseline
from justimage.reproduction.training_job import with_seeds

SPACES = "x", "eps", "v"
PATCHES = {16: "(a) large patches", 4: "(b) small patches"}
PAPER = {  # FID-50K on ImageNet by patch and loss (rows), for each prediction: x, eps, v
    (16, "x"): (10.14, 379.21, 107.55), (16, "eps"): (10.45, 394.58, 126.88), (16, "v"): (8.62, 372.38, 96.53),
    (4, "x"): (5.76, 6.20, 6.12), (4, "eps"): (3.56, 4.02, 3.76), (4, "v"): (3.55, 3.63, 3.46),
}  # fmt: skip


def cells(s: Scale) -> list[Cell]:
    """Three seeds under the v-loss."""
    return [
        Cell(
            dict(patch=patch, loss=loss, prediction=p),
            with_seeds(
                with_values(baseline(s.recipe(f"B/{patch}")), prediction=p, loss_space=loss),
                3 if loss == "v" and s.name != "paper" else 1,
            ),
            paper,
        )
        for (patch, loss), row in PAPER.items()
        for p, paper in zip(SPACES, row, strict=True)
    ]


def claims(table: Table) -> list[Claim]:
    def least(cells: list[Cell]) -> Cell:
        return min(cells, key=table.number)

    def most(cells: list[Cell]) -> Cell:
        return max(cells, key=table.number)

    x, eps, v = (table.select(patch=16, prediction=p) for p in SPACES)
    small, large = table.select(patch=4), table.select(patch=16)
    wide, narrow = table.ratio(most(large), least(large)), table.ratio(most(small), least(small))
    closer = wide.over(narrow)
    better = "on large patches every x-prediction is better than every eps- and v-prediction, 3 times at least"
    evidence = f"{wide.value:.3g} on large patches, {narrow.value:.3g} on small ones: {with_bounds(closer)} times"
    return [
        at_least(better, table, least(eps + v), most(x), 3),
        Claim(
            "on small patches the nine lie closer together, worst over best, 3 times at least", closer.above(3), evidence,
            margin=closer.times(1 / 3),
        ),
    ]  # fmt: skip


EXPERIMENT = Experiment(
    title="nine combinations of prediction and loss, on large and on small patches",
    expects="Large patches (a): only x-prediction works, under any loss. Small patches (b): all nine work.",
    cells=cells, claims=claims, figure=tiles,
    row="{loss}-loss", column="{patch}: {prediction}-pred", labels={"patch": PATCHES},
    minutes={"laptop": 5},
)  # fmt: skip
