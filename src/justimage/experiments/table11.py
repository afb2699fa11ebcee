"""Table 11: an additional classification loss (App. B.3)."""

from justimage.recipe import Recipe, with_values
from justimage.reproduction import Cell, Claim, Experiment, Table, better
from justimage.reproduction.plots import tiles
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import with_seeds

NETWORKS = "B/16", "L/16"
LOSSES = {False: "v-loss only", True: "with classification loss"}
PAPER = {False: (4.37, 2.79), True: (4.14, 2.50)}  # FID-50K, with interval


def with_class_loss(r: Recipe, paper: bool) -> Recipe:
    """Add the loss. Its squared errors are summed over an image's numbers: lambda = 100, and a bound on the gradient, are for
    the paper's images, and here in proportion."""
    numbers = r.model.channels * r.model.size[0] * r.model.size[1]
    bound = r.training.gradient_clip
    weight = 100.0 if paper else 100 * numbers / (3 * 256 * 256)
    return with_values(r, aux_classifier=True, class_loss_weight=weight, gradient_clip=bound and bound * numbers)


def cells(s: Scale) -> list[Cell]:
    def recipe(name: str, class_loss: bool) -> Recipe:
        return with_class_loss(s.recipe(name), s.name == "paper") if class_loss else s.recipe(name)

    return [
        Cell(dict(class_loss=class_loss, network=name), with_seeds(recipe(name, class_loss), s.seeds), paper)
        for class_loss, row in PAPER.items()
        for name, paper in zip(NETWORKS, row, strict=True)
    ]


def claims(table: Table) -> list[Claim]:
    why = "the gain is small in the paper, too: 5 to 10 %"
    without, with_loss = (table.select(class_loss=loss) for loss in LOSSES)
    return [better("the classification loss improves the scores of B/16 and L/16, in the mean", table, with_loss, without, why)]


EXPERIMENT = Experiment(
    title="with and without the classification loss",
    expects="A classification loss in the middle of the network improves the score a little.",
    cells=cells, claims=claims, figure=tiles,
    row="{class_loss}", column="{network}", labels={"class_loss": LOSSES},
    notes="lambda is the paper's 100 in proportion to the numbers of an image, whose squared errors are summed.",
    second_look=True,
    minutes={"laptop": 1.5},
)  # fmt: skip
