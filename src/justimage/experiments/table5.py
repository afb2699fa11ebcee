"""Table 5: larger images with patches in proportion, the same length of sequence."""

from justimage.reproduction import Cell, Claim, Experiment, Table
from justimage.reproduction.cost_job import CountCost
from justimage.reproduction.plots import tiles
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import TrainAndScore

METRICS = {"patch_dimension": "patch dim", "parameters_m": "params M", "gflops": "GFLOPs", "fid": "FID"}
PAPER = {  # in this order; FID-50K
    "B/16": (768, 131, 25, 4.37),
    "B/32": (3072, 133, 26, 4.64),
    "B/64": (12288, 141, 30, 4.82),
}


def cells(s: Scale) -> list[Cell]:
    recipes = {name: s.recipe(name) for name in PAPER}
    return [
        Cell(
            dict(network=name, size=recipes[name].model.size[0]),
            [TrainAndScore(recipes[name]) if metric == "fid" else CountCost(recipes[name])],
            paper,
            metric,
        )
        for name, row in PAPER.items()
        for metric, paper in zip(METRICS, row, strict=True)
    ]


def claims(table: Table) -> list[Claim]:
    flops, fid = (table(network="B/64", metric=metric) / table(network="B/16", metric=metric) for metric in ("gflops", "fid"))
    small = "in a small network the embedding of a patch is a large part"
    return [
        Claim("cost grows by less than half, patches sixteenfold", flops < 1.5, f"{flops:.2f} times the GFLOPs", small),
        Claim("the score stays as it is: less than 1.5 times the first", fid < 1.5, f"{fid:.2f} times the FID"),
    ]


EXPERIMENT = Experiment(
    title="resolutions with patches in proportion",
    expects="Patches of up to 12,288 numbers, at the same cost and nearly the same score.",
    cells=cells, claims=claims, figure=tiles,
    row="{network} at {size}", column="{metric}", labels={"metric": METRICS},
    notes="Ours are parameters and GFLOPs of this scale's networks.",
    minutes=3,
)  # fmt: skip
