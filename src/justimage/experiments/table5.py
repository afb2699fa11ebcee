"""Table 5: larger images with patches in proportion, the same length of sequence."""

from justimage.reproduction import Cell, Claim, Experiment, Table
from justimage.reproduction.cost_job import CountCost
from justimage.reproduction.plots import tiles_of
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import TrainAndScore

PAPER = {  # patch dimension, parameters in M, GFLOPs, FID-50K
    "B/16": (768, 131, 25, 4.37),
    "B/32": (3072, 133, 26, 4.64),
    "B/64": (12288, 141, 30, 4.82),
}
COUNTS = {"patch dim": "patch_dimension", "params M": "parameters_m", "GFLOPs": "gflops"}


def cells(s: Scale) -> list[Cell]:
    found = []
    for name, (*counts, fid) in PAPER.items():
        recipe = s.recipe(name)
        row = f"{name} at {recipe.model.size[0]}"
        found += [
            Cell(row, column, (CountCost(recipe),), paper, shows)
            for (column, shows), paper in zip(COUNTS.items(), counts, strict=True)
        ]
        found.append(Cell(row, "FID", (TrainAndScore(recipe),), fid))
    return found


def claims(table: Table) -> list[Claim]:
    first, *_, last = table.rows
    flops = table(last, "GFLOPs") / table(first, "GFLOPs")
    fid = table(last, "FID") / table(first, "FID")
    small = "in a small network the embedding of a patch is a large part"
    return [
        Claim("cost grows by less than half, patches sixteenfold", flops < 1.5, f"{flops:.2f} times the GFLOPs", small),
        Claim("the score stays as it is: less than 1.5 times the first", fid < 1.5, f"{fid:.2f} times the FID"),
    ]


EXPERIMENT = Experiment(
    title="resolutions with patches in proportion",
    expects="Patches of up to 12,288 numbers, at the same cost and nearly the same score.",
    cells=cells,
    claims=claims,
    figure=tiles_of("FID"),
    notes="Ours are parameters and GFLOPs of this scale's networks.",
    minutes=3,
)
