"""Fig. 4: the dimension d' of the bottleneck in the patch embedding."""

from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table, at_most, better
from justimage.reproduction.plots import by_row
from justimage.reproduction.scales import Scale, baseline
from justimage.reproduction.training_job import with_seeds

FRACTIONS = 16 / 768, 32 / 768, 64 / 768, 128 / 768, 256 / 768, 512 / 768
"""d' in the paper, as fractions of the 768 numbers of its patches."""
CHOSEN = 3
"""The place of B's own, 128 (Table 9)."""


def cells(s: Scale) -> list[Cell]:
    base, patch = baseline(s.recipe("B/16")), s.patch_dimension("B/16")
    bottlenecks = [*dict.fromkeys(max(1, round(fraction * patch)) for fraction in FRACTIONS), None]
    paper = {bottlenecks[CHOSEN]: 7.48, None: 8.62}  # Tables 4 and 2
    seeds = {d: s.many_seeds if d in paper else s.seeds for d in bottlenecks}
    return [Cell(dict(bottleneck=d), with_seeds(with_values(base, bottleneck=d), seeds[d]), paper.get(d)) for d in bottlenecks]


def claims(table: Table) -> list[Claim]:
    narrowest, chosen, none = table.cells[0], table.cells[CHOSEN], table.cells[-1]
    return [
        better(f"a bottleneck of the paper's fraction ({table.row(chosen)}) is better than none", table, chosen, none),
        at_most("the narrowest causes no catastrophe: less than 3 times none's", table, narrowest, none, 3),
    ]


EXPERIMENT = Experiment(
    title="bottleneck in the patch embedding",
    expects="A low-rank embedding of large patches does no harm, and over a wide range it helps (by up to 1.3 in the paper).",
    cells=cells, claims=claims, figure=by_row,
    row="d' = {bottleneck}", column="x-pred", labels={"bottleneck": {None: "none"}},
    notes="The paper gives this as a curve; its two numbers here are those of Table 2 and of Table 4's second row.",
    second_look=True,
    minutes={"laptop": 1.5, "overnight": 85},
)  # fmt: skip
