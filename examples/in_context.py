"""Table 4's in-context class tokens once more, where networks have learnt more: B/16, trained four times as long, ten seeds.

    justimage reproduce examples/in_context.py --scale overnight

Trained on 240,000 images, B/16's FID deviates by about 20 % from seed to seed, by how much of the classes has been learnt, and
three seeds cannot tell whether the tokens help. On 960,000, as in Table 5, three seeds deviated by 5 %.
"""

from justimage.experiments.table4 import PAPER, PART
from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table, better
from justimage.reproduction.plots import tiles
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import with_seeds

WITHOUT, WITH = "+ RoPE, qk-norm", "+ in-context tokens"


def cells(s: Scale) -> list[Cell]:
    """With the guidance interval, as Table 5, whose trainings of B/16 are among these."""
    found = []
    for step, values in ((WITHOUT, dict(context_tokens=0)), (WITH, dict())):
        recipe = with_values(s.recipe("B/16", long=True), **values, interval=PART)
        found.append(Cell(dict(step=step), with_seeds(recipe, s.many_seeds, scored=s.fine_scoring), PAPER[step][1]))
    return found


def claims(table: Table) -> list[Claim]:
    return [better("in-context class tokens help", table, table.cell(step=WITH), table.cell(step=WITHOUT))]


EXPERIMENT = Experiment(
    title="in-context class tokens in networks trained for longer",
    expects="They help.",
    cells=cells, claims=claims, figure=tiles,
    row="{step}", column="B/16, interval",
    notes="A second look: Table 4's three seeds of shorter trainings had decided nothing.",
    second_look=True,
)  # fmt: skip
