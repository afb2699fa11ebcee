"""Beyond the paper: the average's half-life and the length of training, against the best guidance."""

from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table
from justimage.reproduction.plots import lines
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import TrainAndScore

LENGTHS = 0.25, 0.5, 1.0
EMAS = {"laptop": (500.0, 5_000.0), "gpu": (50_000.0, 200_000.0), "paper": (0.9996, 0.9998, 0.9999)}
SHOWN = {"FID": "fid", "best guidance": "guidance"}


def cells(s: Scale) -> list[Cell]:
    emas, base = EMAS[s.name], s.recipe("B/16")
    lengths = [round(base.training.total_images * part) for part in LENGTHS]
    return [
        Cell(
            f"{images:,} images",
            f"ema {ema:g}: {column}",
            (TrainAndScore(with_values(base, total_images=images, ema=emas, use_ema=emas[-1]), emas=(ema,)),),
            None,
            shows,
        )
        for images in lengths
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


def picture(table: Table) -> bytes | None:
    images = [int(row.split()[0].replace(",", "")) for row in table.rows]
    panels = []
    for shown in SHOWN:
        columns = [c for c in table.columns if c.endswith(shown)]
        panels.append(("images", shown, [(c.split(":")[0], images, [table(row, c) for row in table.rows]) for c in columns]))
    return lines(panels)


EXPERIMENT = Experiment(
    title="averages and length of training against the best guidance",
    expects="Networks trained for longer need less guidance.",
    cells=cells,
    claims=claims,
    figure=picture,
    minutes=2,
)
