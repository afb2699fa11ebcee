"""Table 12: images made at one resolution, scaled, and scored at another, both ways (App. B.4)."""

from justimage.reproduction import Cell, Claim, Experiment, Table
from justimage.reproduction.plots import tiles
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import TrainAndScore

PAPER = {"G/16": (1.82, 2.45), "G/32": (1.84, 1.78)}  # FID at 256 and at 512


def cells(s: Scale) -> list[Cell]:
    sides = [s.recipe(name).model.size[0] for name in PAPER]
    return [
        Cell(f"{name} trained at {own}", f"FID at {side}", (TrainAndScore(s.recipe(name, 600), resize=side),), paper)
        for (name, papers), own in zip(PAPER.items(), sides, strict=True)
        for side, paper in zip(sides, papers, strict=True)
    ]


def claims(table: Table) -> list[Claim]:
    (low, high), (small, large) = table.rows, table.columns
    down, up = table(high, small) / table(low, small), table(low, large) / table(high, large)
    bound, flat = "each size has its own training", "digits, 8 x 8 at heart, have no detail to lose"
    return [
        Claim("scaled down, the larger model is within a fifth of the expert", down < 1.2, f"{down:.2f} times", bound),
        Claim("scaled up, the smaller model is worse than the expert by a fifth", up > 1.2, f"{up:.2f} times", flat),
    ]


EXPERIMENT = Experiment(
    title="trained at one resolution, scored at another",
    expects="Scaling down costs nearly nothing; scaling up loses the fine detail that only the other has learnt.",
    cells=cells,
    claims=claims,
    figure=tiles,
    notes="Without Inception the two columns are in the spaces of two classifiers: compare within a column.",
    minutes=8,
)
