"""Beyond the paper: the average's half-life and the length of training, against the best guidance."""

from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table
from justimage.reproduction.plots import lines
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import with_seeds

LENGTHS = 0.25, 0.5, 1.0
EMAS = {"gpu": (50_000.0, 200_000.0), "paper": (0.9996, 0.9998, 0.9999)}
ON_A_CPU = 500.0, 5_000.0
METRICS = {"fid": "FID", "guidance": "best guidance"}


def cells(s: Scale) -> list[Cell]:
    emas, base = EMAS.get(s.name, ON_A_CPU), s.recipe("B/16")
    lengths = [round(base.training.total_images * part) for part in LENGTHS]
    recipes = {images: with_values(base, total_images=images, ema=emas, sample_ema=emas[-1]) for images in lengths}
    return [
        Cell(dict(images=images, ema=ema), with_seeds(recipe, s.seeds, emas=(ema,)), None, metric)
        for images, recipe in recipes.items()
        for ema in emas
        for metric in METRICS
    ]


def claims(table: Table) -> list[Claim]:
    found = []
    for ema in EMAS.get(table.lab.scale.name, ON_A_CPU):
        best = [table.number(cell) for cell in table.select(ema=ema, metric="guidance")]
        sentence = f"ema {ema:g}: best guidance falls, or stays, with longer training"
        found.append(Claim(sentence, best[-1] <= best[0], ", ".join(f"{g:g}" for g in best)))
    return found


def figure(table: Table) -> bytes | None:
    def curve(ema: float, metric: str) -> tuple[str, list[float], list[float]]:
        cells = table.select(ema=ema, metric=metric)
        return f"ema {ema:g}", [cell.params["images"] for cell in cells], [table.number(cell) for cell in cells]

    emas = EMAS.get(table.lab.scale.name, ON_A_CPU)
    return lines([("images", words, [curve(ema, metric) for ema in emas]) for metric, words in METRICS.items()])


EXPERIMENT = Experiment(
    title="averages and length of training against the best guidance",
    expects="Networks trained for longer need less guidance.",
    cells=cells, claims=claims, figure=figure,
    row="{images:,} images", column="ema {ema:g}: {metric}", labels={"metric": METRICS},
    minutes={"laptop": 1},
)  # fmt: skip
