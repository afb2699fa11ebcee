"""Table 6: four sizes at two resolutions, for 200 epochs and for 600."""

from itertools import pairwise

from justimage.reproduction import Cell, Claim, Experiment, Table, better
from justimage.reproduction.plots import by_row
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import TrainAndScore

PAPER = {  # FID-50K by patch: after 200 epochs and after 600, of B, L, H, G
    16: {200: (4.37, 2.79, 2.29, 2.15), 600: (3.66, 2.36, 1.86, 1.82)},
    32: {200: (4.64, 3.06, 2.51, 2.11), 600: (4.02, 2.53, 1.94, 1.78)},
}


def cells(s: Scale) -> list[Cell]:
    """Where a scale trains equally long for 600 epochs, its only column is that of 200."""
    lengths = [200, 600] if s.name == "paper" or s.images[600] != s.images[200] else [200]
    return [
        Cell(size, f"/{patch}, {epochs} epochs", (TrainAndScore(s.recipe(f"{size}/{patch}", epochs)),), paper)
        for patch, columns in PAPER.items()
        for epochs in lengths
        for size, paper in zip("BLHG", columns[epochs], strict=True)
    ]


def claims(table: Table) -> list[Claim]:
    found, why = [], "a small set is learnt by the smallest; the larger ones have no more to gain"
    for column in table.columns:
        curve = [table(size, column) for size in table.rows]
        words = ", ".join(f"{size} {fid:.3g}" for size, fid in zip(table.rows, curve, strict=True))
        falling = all(after < before for before, after in pairwise(curve))
        found.append(Claim(f"{column}: every larger size is better", falling, words, why))
        found.append(better(f"{column}: G is better than B", table, ("G", column), ("B", column), why))
    return found


EXPERIMENT = Experiment(
    title="sizes B, L, H, G at two resolutions",
    expects="Better with size, at both resolutions.",
    cells=cells,
    claims=claims,
    figure=by_row(),
    minutes=10,
)
