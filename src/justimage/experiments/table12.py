"""Table 12: images made at one resolution, scaled, and scored at another, both ways (App. B.4)."""

from justimage.reproduction import Cell, Claim, Experiment, Table, at_least, at_most
from justimage.reproduction.plots import tiles
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import with_seeds

PAPER = {"G/16": (1.82, 2.45), "G/32": (1.84, 1.78)}  # FID at 256 and at 512


def cells(s: Scale) -> list[Cell]:
    sizes = {name: s.recipe(name).model.size[0] for name in PAPER}
    return [
        Cell(dict(network=name, trained=sizes[name], scored=size), with_seeds(s.recipe(name, 600), s.seeds, resize=size), paper)
        for name, row in PAPER.items()
        for size, paper in zip(sizes.values(), row, strict=True)
    ]


def claims(table: Table) -> list[Claim]:
    small, large = dict.fromkeys(cell.params["scored"] for cell in table.cells)
    expert, scaled = (table.cell(network=name, scored=small) for name in PAPER)
    scaled_up, expert_up = (table.cell(network=name, scored=large) for name in PAPER)
    bound, flat = "each size has its own training", table.on_laptop("digits, 8 x 8 at heart, have no detail to lose")
    return [
        at_most("scaled down, the larger model is within a fifth of the expert", table, scaled, expert, 1.2, bound),
        at_least("scaled up, the smaller model is worse than the expert by a fifth", table, scaled_up, expert_up, 1.2, flat),
    ]


EXPERIMENT = Experiment(
    title="trained at one resolution, scored at another",
    expects="Scaling down costs nearly nothing; scaling up loses the fine detail that only the other has learnt.",
    cells=cells, claims=claims, figure=tiles,
    row="{network} trained at {trained}", column="FID at {scored}",
    notes="Without Inception the two columns are in the spaces of two classifiers: compare within a column.",
    minutes={"laptop": 3.5},
)  # fmt: skip
