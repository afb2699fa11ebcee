"""Does precision tell a network's size, or how much it has learnt? B/16, trained a quarter, once and four times as long.

    justimage reproduce examples/longer.py --scale overnight

Table 13 of the paper has the same precision at every size; overnight ours rises with size. If a small network's precision rises
as much by longer training, it is not size that it tells.
"""

from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table, with_bounds
from justimage.reproduction.plots import tiles
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import with_seeds

METRICS = {"fid": "FID", "precision": "precision", "recall": "recall"}
LENGTHS = 0.25, 1, 4


def cells(s: Scale) -> list[Cell]:
    """The longest has one seed: it takes as long as all of the others."""
    trainings = [("B/16", times, s.seeds if times <= 1 else 1) for times in LENGTHS] + [("G/16", 1, s.seeds)]
    return [
        Cell(dict(network=name, times=times), with_seeds(with_values(r, total_images=int(times * total)), seeds), None, metric)
        for name, times, seeds in trainings
        for metric in METRICS
        for r, total in [(s.recipe(name, 600), s.images[600])]
    ]


def claims(table: Table) -> list[Claim]:
    longest, once = (table.cell(network="B/16", times=times, metric="precision") for times in (4, 1))
    change = table.difference(longest, once)
    evidence = f"{table.number(once):.3g}, {table.number(longest):.3g}: by {with_bounds(change)}"
    return [Claim("four times as long, B/16's precision is higher by more than 0.1", change.above(0.1), evidence)]


EXPERIMENT = Experiment(
    title="precision and the length of training",
    expects="Precision rises with training as it does with size.",
    cells=cells, claims=claims, figure=tiles,
    row="{network}, {times:g} times", column="{metric}", labels={"metric": METRICS},
)  # fmt: skip
