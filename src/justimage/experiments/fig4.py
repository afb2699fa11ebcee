"""Fig. 4: the dimension d' of the bottleneck in the patch embedding."""

from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table, better
from justimage.reproduction.plots import by_row
from justimage.reproduction.scales import Scale, baseline
from justimage.reproduction.training_job import TrainAndScore

OF_A_PATCH = 16 / 768, 32 / 768, 64 / 768, 128 / 768, 256 / 768, 512 / 768
"""d' in the paper, as parts of its patches' 768 numbers."""


def cells(s: Scale) -> list[Cell]:
    base, patch = baseline(s.recipe("B/16")), s.patch_dimension("B/16")
    bottlenecks = [*dict.fromkeys(max(1, round(part * patch)) for part in OF_A_PATCH), None]
    return [
        Cell(f"d' = {d}" if d else "none", "x-pred", (TrainAndScore(with_values(base, bottleneck=d)),), None if d else 8.62)
        for d in bottlenecks
    ]


def claims(table: Table) -> list[Claim]:
    found = {row: table(row, "x-pred") for row in table.rows}
    none, least = found.pop("none"), min(found, key=lambda row: found[row])
    first = next(iter(found))
    sizes = f"{first}: {found[first]:.3g}; none: {none:.3g}"
    return [
        better(f"the best of the bottlenecks ({least}) is better than none", table, (least, "x-pred"), ("none", "x-pred")),
        Claim("the narrowest causes no catastrophe: less than 3 times none's", found[first] < 3 * none, sizes),
    ]


EXPERIMENT = Experiment(
    title="bottleneck in the patch embedding",
    expects="A low-rank embedding of large patches does no harm, and over a wide range it helps (by up to 1.3 in the paper).",
    cells=cells,
    claims=claims,
    figure=by_row(),
    notes="The paper gives this as a curve; its only number here is that of Table 2 for no bottleneck.",
    minutes=3,
)
