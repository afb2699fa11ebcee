"""Fig. 2: a plane curve buried in D dimensions; x-, eps- and v-prediction by the same small network, under the v-loss."""

import numpy as np
import torch

from justimage.reproduction import Cell, Claim, Experiment, Table
from justimage.reproduction.plots import Cloud, clouds
from justimage.reproduction.scales import Scale
from justimage.reproduction.tables import format_number
from justimage.reproduction.toy_job import OUTER, POINTS, blur_distances, curve, toy

DIMENSIONS = 2, 8, 16, 512
PREDICTIONS = "x", "eps", "v"
WAYS = {"to the curve": "curve", "from the curve": "coverage"}
"""Mean distances: of samples to it, and of places spread over it to the nearest sample."""
WIDTH = 2 * OUTER
BLUR = 0.01 * WIDTH
"""Deviation of the noise that true points bear before they look like more than a line."""


def cells(s: Scale) -> list[Cell]:
    """The same at every scale; distances in all D dimensions."""
    return [
        Cell(f"D = {D}", f"{p}-pred: {way}", (toy(D, p),), None, shows)
        for D in DIMENSIONS
        for p in PREDICTIONS
        for way, shows in WAYS.items()
    ]


def both(table: Table, D: int, p: str) -> tuple[float, float]:
    near, covered = (table(f"D = {D}", f"{p}-pred: {way}") for way in WAYS)
    return near, covered


def claims(table: Table) -> list[Claim]:
    bound, last = blur_distances(BLUR), DIMENSIONS[-1]

    def found(D: int, p: str) -> bool:
        return all(distance < blur for distance, blur in zip(both(table, D, p), bound, strict=True))

    def claim(D: int, what: str, holds: bool, *predictions: str) -> Claim:
        pairs = [
            f"{p}: {format_number(near)} to it, {format_number(far)} from it"
            for p in predictions
            for near, far in [both(table, D, p)]
        ]
        return Claim(f"D = {D}: {what}", holds, "; ".join(pairs))

    return [
        claim(2, "all three find the curve", all(found(2, p) for p in PREDICTIONS), *PREDICTIONS),
        *(claim(D, "x-prediction finds the curve", found(D, "x"), "x") for D in DIMENSIONS[1:]),
        *(claim(16, f"{p}-prediction struggles: it does not find it", not found(16, p), p) for p in ("eps", "v")),
        *(
            claim(last, f"{p}-prediction fails, farther off than the curve is wide", both(table, last, p)[0] > WIDTH, p)
            for p in ("eps", "v")
        ),
    ]


def picture(table: Table) -> bytes | None:
    def panel(D: int, p: str) -> Cloud:
        near, covered = both(table, D, p)
        with np.load(table.lab.result_dir(toy(D, p)) / "points.npz") as arrays:
            return f"{p}-pred: to {format_number(near)}, from {format_number(covered)}", arrays["points"]

    truth = "truth", curve(torch.rand(POINTS, generator=torch.Generator().manual_seed(0))).numpy()
    rows = {f"D = {D}": [truth, *(panel(D, p) for p in PREDICTIONS)] for D in DIMENSIONS}
    return clouds(rows, curve(torch.linspace(0, 1, 1000)).numpy(), 1.3 * OUTER)


EXPERIMENT = Experiment(
    title="a plane curve in D dimensions, learnt by a network 256 wide",
    expects="At D = 2 all find the curve; with D only x does. At D = 512, wider than the network, eps and v fail.",
    cells=cells,
    claims=claims,
    figure=picture,
    notes="Mean distances of 2,000 samples to the curve, and from places all over it to the nearest sample. The curve is found "
    "where both are less than those of true points that noise of 1 % of its width has blurred: 0.0314 and 0.012. The picture "
    "shows samples projected back by the matrix that buried the curve, which no network was told.",
    minutes=6,
)
