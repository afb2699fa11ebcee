"""Fig. 6 with guidance left out near the image, where t is above 0.8, instead of near noise.

    justimage reproduce examples/early_guidance.py --scale overnight

The paper leaves guidance out where t is below 0.1. On textured digits that does not help, and FID and IS become worse with
strong guidance. If it is at the end that guidance harms, then with none there FID rises less, and IS does not fall.
"""

from justimage.experiments.fig6 import METRICS, WHOLE, always_rises, figure, rises_less
from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import with_seeds

EARLY = 0.0, 0.8
INTERVALS = {WHOLE: "at all times", EARLY: "while t is below 0.8"}


def cells(s: Scale) -> list[Cell]:
    """The trainings are Fig. 6's."""
    jobs = {i: with_seeds(with_values(s.recipe("L/16", 600), interval=i), s.seeds, full_grid=True) for i in INTERVALS}
    return [Cell(dict(interval=i), jobs[i], None, metric) for i in INTERVALS for metric in METRICS]


def claims(table: Table) -> list[Claim]:
    return [
        rises_less(table, "to the strongest guidance FID rises less", WHOLE, EARLY, "at all times"),
        always_rises(table, "IS rises with every step of guidance", EARLY),
    ]


EXPERIMENT = Experiment(
    title="FID and IS with guidance left out near the image",
    expects="FID rises less with guidance, and IS does not fall.",
    cells=cells, claims=claims, figure=figure,
    row="guidance {interval}", column="{metric}", labels={"interval": INTERVALS, "metric": METRICS},
)  # fmt: skip
