"""Beyond the paper: the average's half-life and the length of training, against the best guidance."""

from dataclasses import replace

from justimage.laboratory import Cell, Claim, Experiment, Table
from justimage.laboratory.scales import Scale
from justimage.laboratory.sheets import by_row
from justimage.laboratory.trained import Trained
from justimage.recipe import Recipe, changed

LENGTHS = 0.25, 0.5, 1.0
EMAS = {"laptop": (500.0, 5_000.0), "gpu": (50_000.0, 200_000.0), "paper": (0.9996, 0.9998, 0.9999)}
SHOWN = {"FID": "fid", "best guidance": "guidance"}


def lasting(r: Recipe, part: float, emas: tuple[float, ...]) -> Recipe:
    """A part as long a training, with several averages."""
    training = replace(r.training, images=round(r.training.images * part), ema=emas)
    return changed(replace(r, training=training, sampling=replace(r.sampling, use_ema=emas[-1])))


def cells(s: Scale) -> list[Cell]:
    emas = EMAS[s.name]
    return [
        Cell(
            f"{lasting(s.recipe('B/16'), part, emas).training.images:,} images",
            f"ema {ema:g}: {column}",
            (Trained(lasting(s.recipe("B/16"), part, emas), emas=(ema,)),),
            None,
            shows,
        )
        for part in LENGTHS
        for ema in emas
        for column, shows in SHOWN.items()
    ]


def claims(table: Table) -> list[Claim]:
    found = []
    for column in [c for c in table.columns if "guidance" in c]:
        best = [table(row, column) for row in table.rows]
        words = ", ".join(f"{g:g}" for g in best)
        found.append(Claim(f"{column} falls, or stays, with longer training", best[-1] <= best[0], words))
    return found


EXPERIMENT = Experiment(
    title="averages and length of training against the best guidance",
    expects="Networks trained for longer need less guidance.",
    cells=cells,
    claims=claims,
    picture=by_row("FID, best guidance"),
)
