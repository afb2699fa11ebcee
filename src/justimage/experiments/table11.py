"""Table 11: an additional classification loss (App. B.3)."""

from justimage.laboratory import Cell, Claim, Experiment, Table, smaller
from justimage.laboratory.scales import Scale
from justimage.laboratory.sheets import tiles
from justimage.laboratory.trained import Trained
from justimage.recipe import changed

PAPER = {"v-loss only": (4.37, 2.79), "with classification loss": (4.14, 2.50)}  # FID-50K, with interval


def cells(s: Scale) -> list[Cell]:
    """lambda = 100 is for a squared error summed over the paper's images; here it is in proportion to their numbers."""
    found = []
    for row, papers in PAPER.items():
        for name, paper in zip(("B/16", "L/16"), papers, strict=True):
            r = s.recipe(name)
            numbers = r.network.channels * r.network.size[0] * r.network.size[1]
            weight = 100.0 if s.name == "paper" else 100 * numbers / (3 * 256 * 256)
            extra = {} if row == "v-loss only" else dict(classifier=True, classification=weight)
            found.append(Cell(row, name, (Trained(changed(r, **extra)),), paper))
    return found


def claims(table: Table) -> list[Claim]:
    without, with_loss = table.rows
    return [
        smaller(f"{name}: the classification loss improves the score", table(with_loss, name), table(without, name))
        for name in table.columns
    ]


EXPERIMENT = Experiment(
    title="with and without the classification loss",
    expects="A classification loss in the middle of the network improves the score a little.",
    cells=cells,
    claims=claims,
    picture=tiles,
    notes="lambda is the paper's 100 in proportion to the numbers of an image, whose squared errors are summed.",
)
