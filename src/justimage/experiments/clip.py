"""Beyond the paper: the lower bound of 1 - t in sampling, against the score."""

import math

from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table
from justimage.reproduction.plots import tiles
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import TrainAndScore

CLIPS = {"0.05": 0.05, "0.04": 0.04, "none": 0.0}


def cells(s: Scale) -> list[Cell]:
    return [
        Cell(name, f"clip {words}", (TrainAndScore(with_values(s.recipe(name, 600), steps=50), sampling_t_clip=clip),))
        for name in (("B/16", "H/16") if s.name == "paper" else ("B/16",))
        for words, clip in CLIPS.items()
    ]


def claims(table: Table) -> list[Claim]:
    found = []
    for row in table.rows:
        fids = {column: table(row, column) for column in table.columns}
        most, least = max(fids, key=lambda c: fids[c]), min(fids, key=lambda c: fids[c])
        told = fids[most] - fids[least] > 2 * math.hypot(table.noise(row, most), table.noise(row, least))
        words = ", ".join(f"{column}: {fid:.3g}" for column, fid in fids.items())
        changes = fids[most] > 1.05 * fids[least]
        found.append(Claim(f"{row}: the clip of sampling changes FID, by 5 % or more", changes and (told or None), words))
    return found


EXPERIMENT = Experiment(
    title="the clip of 1 - t in sampling",
    expects="With 50 steps the authors' 0.05 leaves some grain at the end of sampling, and FID changes with it.",
    cells=cells,
    claims=claims,
    figure=tiles,
    minutes=3,
)
