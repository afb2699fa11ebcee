"""Table 12: images made at one resolution, scaled, and scored at another, both ways (App. B.4)."""

from justimage.reproduction import Cell, Claim, Experiment, Table, at_least, at_most
from justimage.reproduction.plots import tiles
from justimage.reproduction.real_job import RealImages
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import TrainAndScore, with_seeds

PAPER = {"G/16": (1.82, 2.45), "G/32": (1.84, 1.78)}  # FID at 256 and at 512


def cells(s: Scale) -> list[Cell]:
    """The paper's table; and real images of both resolutions, for what scaling alone costs."""
    sizes = {name: s.recipe(name).model.size[0] for name in PAPER}

    def jobs(name: str, size: int) -> list[TrainAndScore]:
        return with_seeds(s.recipe(name, 600), s.seeds, resize=size, scored=s.fine_scoring)

    found = [
        Cell(dict(images=f"{name}'s, {sizes[name]}", scored=size), jobs(name, size), paper)
        for name, row in PAPER.items()
        for size, paper in zip(sizes.values(), row, strict=True)
    ]
    return found + [
        Cell(dict(images=f"real, {side}", scored=size), [RealImages(side, size, s.scoring.count)])
        for side in sizes.values()
        for size in sizes.values()
    ]


def claims(table: Table) -> list[Claim]:
    g16, g32, *_ = dict.fromkeys(cell.params["images"] for cell in table.cells)
    small, large = dict.fromkeys(cell.params["scored"] for cell in table.cells)
    expert, scaled = (table.cell(images=images, scored=small) for images in (g16, g32))
    scaled_up, expert_up = (table.cell(images=images, scored=large) for images in (g16, g32))
    bound, flat = "each size has its own training", table.on_laptop("digits, 8 x 8 at heart, have no detail to lose")
    return [
        at_most("scaled down, the larger model is within a fifth of the expert", table, scaled, expert, 1.2, bound),
        at_least("scaled up, the smaller model is worse than the expert by a fifth", table, scaled_up, expert_up, 1.2, flat),
    ]


EXPERIMENT = Experiment(
    title="trained at one resolution, scored at another",
    expects="Scaling down costs nearly nothing; scaling up loses the fine detail that only the other has learnt.",
    cells=cells, claims=claims, figure=tiles,
    row="{images}", column="FID at {scored}",
    notes="Scores of real images say what scaling alone costs. Without Inception the two columns are in the spaces of two "
    "classifiers: compare within a column.",
    minutes={"laptop": 3.5},
)  # fmt: skip
