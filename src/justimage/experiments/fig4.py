"""Fig. 4: the dimension d' of the bottleneck in the patch embedding."""

from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table, better
from justimage.reproduction.plots import by_row
from justimage.reproduction.scales import Scale, baseline
from justimage.reproduction.training_job import TrainAndScore

FRACTIONS = 16 / 768, 32 / 768, 64 / 768, 128 / 768, 256 / 768, 512 / 768
"""d' in the paper, as fractions of the 768 numbers of its patches."""


def cells(s: Scale) -> list[Cell]:
    base, patch = baseline(s.recipe("B/16")), s.patch_dimension("B/16")
    bottlenecks = [*dict.fromkeys(max(1, round(fraction * patch)) for fraction in FRACTIONS), None]
    return [
        Cell(dict(bottleneck=d), [TrainAndScore(with_values(base, bottleneck=d))], None if d else 8.62) for d in bottlenecks
    ]


def claims(table: Table) -> list[Claim]:
    *bottlenecks, none = table.cells
    best, narrowest = min(bottlenecks, key=table.number), bottlenecks[0]
    fid, fid_none = table.number(narrowest), table.number(none)
    sizes = f"{table.row(narrowest)}: {fid:.3g}; none: {fid_none:.3g}"
    return [
        better(f"the best of the bottlenecks ({table.row(best)}) is better than none", table, best, none),
        Claim("the narrowest causes no catastrophe: less than 3 times none's", fid < 3 * fid_none, sizes),
    ]


EXPERIMENT = Experiment(
    title="bottleneck in the patch embedding",
    expects="A low-rank embedding of large patches does no harm, and over a wide range it helps (by up to 1.3 in the paper).",
    cells=cells, claims=claims, figure=by_row,
    row="d' = {bottleneck}", column="x-pred", labels={"bottleneck": {None: "none"}},
    notes="The paper gives this as a curve; its only number here is that of Table 2 for no bottleneck.",
    minutes=3,
)  # fmt: skip
