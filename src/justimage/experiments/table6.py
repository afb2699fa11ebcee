"""Table 6: four sizes at two resolutions, for 200 epochs and for 600."""

from justimage.reproduction import Cell, Claim, Experiment, Table, better
from justimage.reproduction.plots import by_row
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import with_seeds

SIZES = "B", "L", "H", "G"
CLAIMED = "B", "L", "G"
"""Sizes that claims compare; the other is trained once."""
PAPER = {  # FID-50K by patch and epochs, of B, L, H, G
    (16, 200): (4.37, 2.79, 2.29, 2.15),
    (16, 600): (3.66, 2.36, 1.86, 1.82),
    (32, 200): (4.64, 3.06, 2.51, 2.11),
    (32, 600): (4.02, 2.53, 1.94, 1.78),
}


def cells(s: Scale) -> list[Cell]:
    """Where a scale trains equally long for 600 epochs, they have no column."""
    lengths = {200, 600} if s.name == "paper" or s.images[600] != s.images[200] else {200}
    seeds = {size: s.seeds if size in CLAIMED else 1 for size in SIZES}
    return [
        Cell(dict(size=size, patch=patch, epochs=epochs), with_seeds(s.recipe(f"{size}/{patch}", epochs), seeds[size]), paper)
        for (patch, epochs), row in PAPER.items()
        if epochs in lengths
        for size, paper in zip(SIZES, row, strict=True)
    ]


def claims(table: Table) -> list[Claim]:
    found, why = [], table.on_laptop("a small set is learnt by the smallest; the larger ones have no more to gain")
    for patch, epochs in PAPER:
        if column := table.select(patch=patch, epochs=epochs):
            title, (b, large, _, g) = table.column(column[0]), column
            found.append(better(f"{title}: L is better than B", table, large, b, why))
            found.append(better(f"{title}: G is better than L", table, g, large, why))
    return found


EXPERIMENT = Experiment(
    title="sizes B, L, H, G at two resolutions",
    expects="Better with size, at both resolutions.",
    cells=cells, claims=claims, figure=by_row,
    row="{size}", column="/{patch}, {epochs} epochs",
    minutes={"laptop": 6, "overnight": 122},
)  # fmt: skip
