"""Fig. 7: the training loss of x-, v- and eps-prediction under the v-loss on the same batches, and what they denoise."""

from itertools import islice

from PIL import Image

from justimage import figures
from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table
from justimage.reproduction.plots import lines
from justimage.reproduction.scales import Scale, baseline
from justimage.reproduction.training_job import TrainAndScore

PREDICTIONS = "x", "v", "eps"
LAST = 0.2
"""Of the training, the part over which its loss is averaged."""


def cells(s: Scale) -> list[Cell]:
    base = baseline(s.recipe("B/16"))
    return [Cell(f"{p}-pred", "FID", (TrainAndScore(with_values(base, prediction=p)),)) for p in PREDICTIONS]


def losses(table: Table, row: str) -> list[list[float]]:
    cell = table.cell(row, "FID")
    assert cell is not None
    return table.found(cell)[0]["losses"]


def last(curve: list[list[float]]) -> float:
    """The mean loss at the end of a training."""
    seen, loss = zip(*curve, strict=True)
    return float(figures.running_mean(seen, loss, LAST * seen[-1])[-1])


def claims(table: Table) -> list[Claim]:
    x, v, eps = (last(losses(table, f"{p}-pred")) for p in PREDICTIONS)
    return [
        Claim("v-prediction's loss is 1.2 times x's at least (1.25 in the paper)", v >= 1.2 * x, f"{v / x:.3g} times"),
        Claim("eps-prediction's is twice x's at least (3 in the paper)", eps >= 2 * x, f"{eps / x:.3g} times"),
    ]


def picture(table: Table) -> bytes | None:
    curves = []
    for row in table.rows:
        seen, loss = zip(*losses(table, row), strict=True)
        curves.append((row, seen, figures.running_mean(seen, loss)))
    top = lines([("images seen", "v-loss, a pixel and channel", curves)], size=(10.8, 4), yscale="log")
    if top is None:
        return None
    sheets = []
    for cell in islice(table.cells, 2):  # x and v, as in the paper
        run = table.lab.root / table.found(cell)[0]["run"] / "samples"
        sheets.append(("", Image.open(max(run.glob("*-denoised.png")))))
    return figures.encode_png(figures.stack_below(top, sheets))


EXPERIMENT = Experiment(
    title="training loss and denoised images of the predictions",
    expects="Under the same loss, on the same batches, x-prediction reaches a lower loss, and its denoised images are clean.",
    cells=cells,
    claims=claims,
    figure=picture,
    notes="Below the curves: real images, noise added, and one step of denoising, by x-prediction and by v-prediction.",
    minutes=2,
)
