"""Fig. 7: the training loss of x-, v- and eps-prediction under the v-loss on the same batches, and images that they denoise."""

from PIL import Image

from justimage import figures
from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table
from justimage.reproduction.plots import lines
from justimage.reproduction.scales import Scale, baseline
from justimage.reproduction.training_job import TrainAndScore

PREDICTIONS = "x", "v", "eps"
LAST = 0.2
"""Fraction of the training, at its end, over which its loss is averaged."""


def cells(s: Scale) -> list[Cell]:
    base = baseline(s.recipe("B/16"))
    return [Cell(dict(prediction=p), [TrainAndScore(with_values(base, prediction=p))]) for p in PREDICTIONS]


def losses(table: Table, p: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Images seen, and the mean loss since the line before."""
    (result,) = table.results_of(table.cell(prediction=p))
    seen, loss = zip(*result["losses"], strict=True)
    return seen, loss


def last(table: Table, p: str) -> float:
    """The mean loss at the end of a training."""
    seen, loss = losses(table, p)
    return float(figures.running_mean(seen, loss, LAST * seen[-1])[-1])


def claims(table: Table) -> list[Claim]:
    x, v, eps = (last(table, p) for p in PREDICTIONS)
    return [
        Claim("v-prediction's loss is 1.2 times x's at least (1.25 in the paper)", v >= 1.2 * x, f"{v / x:.3g} times"),
        Claim("eps-prediction's is twice x's at least (3 in the paper)", eps >= 2 * x, f"{eps / x:.3g} times"),
    ]


def figure(table: Table) -> bytes | None:
    curves = {p: losses(table, p) for p in PREDICTIONS}
    means = [(f"{p}-pred", seen, figures.running_mean(seen, loss).tolist()) for p, (seen, loss) in curves.items()]
    top = lines([("images seen", "v-loss, a pixel and channel", means)], size=(10.8, 4), yscale="log")
    if top is None:
        return None
    sheets = []
    for p in ("x", "v"):  # as in the paper
        (result,) = table.results_of(table.cell(prediction=p))
        previews = table.lab.root / result["run"] / "samples"
        sheets.append(("", Image.open(max(previews.glob("*-denoised.png")))))
    return figures.encode_png(figures.stack_below(top, sheets))


EXPERIMENT = Experiment(
    title="training loss and denoised images of the predictions",
    expects="Under the same loss, on the same batches, x-prediction reaches a lower loss, and its denoised images are clean.",
    cells=cells, claims=claims, figure=figure,
    row="{prediction}-pred", column="FID",
    notes="Below the curves: real images, noise added, and one step of denoising, by x-prediction and by v-prediction.",
    minutes={"laptop": 0.5},
)  # fmt: skip
