"""Table 11: an additional classification loss (App. B.3)."""

from justimage.recipe import Recipe, with_values
from justimage.reproduction import Cell, Claim, Experiment, Table, better
from justimage.reproduction.plots import tiles
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import TrainAndScore

PAPER = {"v-loss only": (4.37, 2.79), "with classification loss": (4.14, 2.50)}  # FID-50K, with interval


def classifying(r: Recipe, paper: bool) -> Recipe:
    """With the loss. Its squared errors are summed over an image's numbers: lambda = 100, and a bound on the gradient, are for
    the paper's images, and here in proportion."""
    numbers = r.model.channels * r.model.size[0] * r.model.size[1]
    bound = r.training.gradient_clip
    weight = 100.0 if paper else 100 * numbers / (3 * 256 * 256)
    return with_values(r, aux_classifier=True, class_loss_weight=weight, gradient_clip=bound and bound * numbers)


def cells(s: Scale) -> list[Cell]:
    recipes = {name: s.recipe(name) for name in ("B/16", "L/16")}
    return [
        Cell(row, name, (TrainAndScore(classifying(r, s.name == "paper") if "with" in row else r),), paper)
        for row, papers in PAPER.items()
        for (name, r), paper in zip(recipes.items(), papers, strict=True)
    ]


def claims(table: Table) -> list[Claim]:
    without, with_loss = table.rows
    why = "the gain is small in the paper, too: 5 to 10 %"
    return [
        better(f"{name}: the classification loss improves the score", table, (with_loss, name), (without, name), why)
        for name in table.columns
    ]


EXPERIMENT = Experiment(
    title="with and without the classification loss",
    expects="A classification loss in the middle of the network improves the score a little.",
    cells=cells,
    claims=claims,
    figure=tiles,
    notes="lambda is the paper's 100 in proportion to the numbers of an image, whose squared errors are summed.",
    minutes=3,
)
