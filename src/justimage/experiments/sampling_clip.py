"""Beyond the paper: the lower bound of 1 - t in sampling, against the score."""

import math

from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table
from justimage.reproduction.plots import tiles
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import TrainAndScore

CLIPS = 0.05, 0.04, 0.0


def cells(s: Scale) -> list[Cell]:
    return [
        Cell(dict(network=name, t_clip=clip), [TrainAndScore(with_values(s.recipe(name, 600), steps=50), sampling_t_clip=clip)])
        for name in (("B/16", "H/16") if s.name == "paper" else ("B/16",))
        for clip in CLIPS
    ]


def claims(table: Table) -> list[Claim]:
    found = []
    for name in dict.fromkeys(cell.params["network"] for cell in table.cells):
        cells = table.select(network=name)
        most, least = max(cells, key=table.number), min(cells, key=table.number)
        high, low, noise = table.number(most), table.number(least), math.hypot(table.noise(most), table.noise(least))
        evidence = ", ".join(f"{table.column(cell)}: {table.number(cell):.3g}" for cell in cells)
        holds = (high > 1.05 * low) and (high - low > 2 * noise or None)
        found.append(Claim(f"{name}: the clip of sampling changes FID, by 5 % or more", holds, evidence))
    return found


EXPERIMENT = Experiment(
    title="the clip of 1 - t in sampling",
    expects="With 50 steps the authors' 0.05 leaves some grain at the end of sampling, and FID changes with it.",
    cells=cells, claims=claims, figure=tiles,
    row="{network}", column="clip {t_clip}", labels={"t_clip": {0.0: "none"}},
    minutes=3,
)  # fmt: skip
