"""Fig. 2: a plane curve buried in D dimensions; x-, eps- and v-prediction by the same small network, under the v-loss."""

from typing import Any

import numpy as np
import torch

from justimage import pictures
from justimage.laboratory import Cell, Claim, Experiment, Table, at_least
from justimage.laboratory.scales import Scale
from justimage.laboratory.toy import Toy, curve, toy

DIMENSIONS = 2, 8, 16, 512
PREDICTIONS = "x", "eps", "v"
GOOD = 0.15
"""Mean distance to the curve, which is four units wide, below which samples are good."""


def cells(s: Scale) -> list[Cell]:
    """The same at every scale; distances to the curve, in all D dimensions, and of it what leads out of the plane."""
    return [
        Cell(f"D = {D}", f"{p}-pred: to the {what}", (toy(D, p),), None, what)
        for D in DIMENSIONS
        for p in PREDICTIONS
        for what in ("curve", "plane")
    ]


def claims(table: Table) -> list[Claim]:
    def far(D: int, p: str) -> float:
        return table(f"D = {D}", f"{p}-pred: to the curve")

    x = [far(D, "x") for D in DIMENSIONS]
    low = [far(2, p) for p in ("eps", "v")]
    return [
        Claim(f"x-prediction is good at every D (below {GOOD:g})", max(x) < GOOD, ", ".join(f"{d:.3f}" for d in x)),
        Claim(f"eps- and v-prediction are good at D = 2 (below {GOOD:g})", max(low) < GOOD, ", ".join(f"{d:.3f}" for d in low)),
        *(at_least(f"{p}-prediction fails at D = 512, 5 times as far at least", far(512, p), x[-1], 5) for p in ("eps", "v")),
    ]


def picture(table: Table) -> bytes | None:
    truth = curve(torch.linspace(0, 1, 1000)).numpy()

    def draw(figure: Any) -> None:
        panels = figure.subplots(len(DIMENSIONS), 4, squeeze=False)
        for row, D in zip(panels, DIMENSIONS, strict=True):
            row[0].scatter(*curve(torch.rand(2000)).T.numpy(), s=1, color="black")
            row[0].set_ylabel(f"D = {D}")
            row[0].set_title("truth", fontsize=9)
            for axes, p in zip(row[1:], PREDICTIONS, strict=True):
                work: Toy = toy(D, p)
                with np.load(table.lab.kept(work) / "points.npz") as arrays:
                    axes.plot(*truth.T, color="#cccccc", linewidth=0.8)
                    axes.scatter(*arrays["points"].T, s=1, color="#1f4e8c")
                far = table(f"D = {D}", f"{p}-pred: to the curve")
                axes.set_title(f"{p}-pred, distance {far:.2g}", fontsize=9)
            for axes in row:
                axes.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xticks=[], yticks=[], aspect="equal")

    return pictures.plotted(draw, (8, 8.4))


EXPERIMENT = Experiment(
    title="a plane curve in D dimensions, learnt by a network 256 wide",
    expects="With growing D only x-prediction still finds the curve; at D = 512, wider than the network, eps and v fail.",
    cells=cells,
    claims=claims,
    picture=picture,
    notes="Points are projected back by the matrix that buried the curve, which no network was told.",
    minutes=3,
)
