"""Table 12: images made at one resolution, scaled, and scored at another, both ways (App. B.4)."""

from justimage.reproduction import Cell, Claim, Experiment, Table, at_least, at_most
from justimage.reproduction.plots import tiles
from justimage.reproduction.real_job import RealImages
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import with_seeds

PAPER = {"G/16": (1.82, 2.45), "G/32": (1.84, 1.78)}  # FID at 256 and at 512


def cells(s: Scale) -> list[Cell]:
    """The paper's table; with several seeds L's networks, too, which decide with G's, and twice as many where images are scaled
    down, whose claim is of the least effect; and real images of both resolutions, for what scaling alone costs."""
    sides, found = [s.recipe(name).model.size[0] for name in PAPER], []
    for size in "GL" if s.seeds > 1 else "G":
        for name, side in zip((f"{size}/16", f"{size}/32"), sides, strict=True):
            for scored, paper in zip(sides, PAPER.get(name, (None, None)), strict=True):
                seeds = 2 * s.seeds if s.seeds > 1 and scored == min(sides) else s.seeds
                jobs = with_seeds(s.recipe(name, 600), seeds, resize=scored, scored=s.fine_scoring)
                found.append(Cell(dict(images=f"{name}'s", side=side, scored=scored), jobs, paper))
    for side in sides:
        for scored in sides:
            found.append(Cell(dict(images="real", side=side, scored=scored), [RealImages(side, scored, s.scoring.count)]))
    return found


def claims(table: Table) -> list[Claim]:
    small, large = dict.fromkeys(cell.params["scored"] for cell in table.cells)
    generated = [cell for cell in table.cells if cell.params["images"] != "real"]

    def of(side: int, scored: int) -> list[Cell]:
        return [cell for cell in generated if cell.matches(side=side, scored=scored)]

    bound, flat = "each size has its own training", table.on_laptop("digits, 8 x 8 at heart, have no detail to lose")
    expert, scaled, scaled_up, expert_up = of(small, small), of(large, small), of(small, large), of(large, large)
    return [
        at_most("scaled down, the larger model is within a fifth of the expert", table, scaled, expert, 1.2, bound),
        at_least("scaled up, the smaller model is worse than the expert by a fifth", table, scaled_up, expert_up, 1.2, flat),
    ]


EXPERIMENT = Experiment(
    title="trained at one resolution, scored at another",
    expects="Scaling down costs nearly nothing; scaling up loses the fine detail that only the other has learnt.",
    cells=cells, claims=claims, figure=tiles,
    row="{images}, {side}", column="FID at {scored}",
    notes="Scores of real images say what scaling alone costs. Without Inception the two columns are in the spaces of two "
    "classifiers: compare within a column.",
    second_look=True,
    minutes={"laptop": 3.5},
)  # fmt: skip
