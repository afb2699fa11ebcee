"""Fig. 2: points along a plane curve in D dimensions; x-, eps- and v-prediction by the same network, under the v-loss."""

import numpy as np
import torch

from justimage.reproduction import Cell, Claim, Experiment, Table
from justimage.reproduction.plots import Cloud, clouds
from justimage.reproduction.scales import Scale
from justimage.reproduction.tables import format_number
from justimage.reproduction.toy_job import OUTER, POINTS, ToyJob, spiral, true_distances, true_points

DIMENSIONS = 2, 8, 16, 512
PREDICTIONS = "x", "eps", "v"
DISTANCES = {"curve": "to the curve", "coverage": "from the curve"}
"""Mean distances: from samples to the curve, and from places spread over it to the nearest sample."""
WIDTH = 2 * OUTER
ALIKE = 1.5
"""Distances that differ by less than this factor are alike."""


def cells(s: Scale) -> list[Cell]:
    """The same at every scale; distances in all D dimensions."""
    return [
        Cell(dict(D=D, prediction=p), [ToyJob(D, p)], None, metric)
        for D in DIMENSIONS
        for p in PREDICTIONS
        for metric in DISTANCES
    ]


def both(table: Table, D: int, p: str) -> tuple[float, float]:
    return table(D=D, prediction=p, metric="curve"), table(D=D, prediction=p, metric="coverage")


def claims(table: Table) -> list[Claim]:
    last = DIMENSIONS[-1]

    def right(D: int, *predictions: str) -> bool:
        """Whether their distances and those of the data are alike, either way."""
        ways = zip(true_distances(), *(both(table, D, p) for p in predictions), strict=True)
        return all(max(way) < ALIKE * min(way) for way in ways)

    def claim(D: int, sentence: str, holds: bool, *predictions: str) -> Claim:
        pairs = {p: map(format_number, both(table, D, p)) for p in predictions}
        evidence = "; ".join("{}: {} to it, {} from it".format(p, *pair) for p, pair in pairs.items())
        return Claim(f"D = {D}: {sentence}", holds, evidence)

    return [
        claim(2, "all three are right, and alike", right(2, *PREDICTIONS), *PREDICTIONS),
        *(claim(D, "x-prediction is right", right(D, "x"), "x") for D in DIMENSIONS[1:]),
        *(claim(16, f"{p}-prediction struggles: it is not right", not right(16, p), p) for p in ("eps", "v")),
        *(
            claim(last, f"{p}-prediction fails, farther off than the curve is wide", both(table, last, p)[0] > WIDTH, p)
            for p in ("eps", "v")
        ),
    ]


def figure(table: Table) -> bytes | None:
    def panel(D: int, p: str) -> Cloud:
        near, covered = map(format_number, both(table, D, p))
        (job,) = table.cell(D=D, prediction=p, metric="curve").jobs
        with np.load(table.lab.result_dir(job) / "points.npz") as arrays:
            return f"{p}-pred: to {near}, from {covered}", arrays["points"]

    truth = "data: to {}, from {}".format(*map(format_number, true_distances())), true_points(POINTS).numpy()
    rows = {f"D = {D}": [truth, *(panel(D, p) for p in PREDICTIONS)] for D in DIMENSIONS}
    return clouds(rows, spiral(torch.linspace(0, 1, 1000)).numpy(), 1.3 * OUTER)


EXPERIMENT = Experiment(
    title="a plane curve in D dimensions, learnt by a network 256 wide",
    expects="At D = 2 all are right; with D only x is. At D = 512, wider than the network, eps and v fail.",
    cells=cells, claims=claims, figure=figure,
    row="D = {D}", column="{prediction}-pred: {metric}", labels={"metric": DISTANCES},
    notes="Mean distances of 2,000 samples to the curve, and from places all over it to the nearest sample. A prediction is "
    "right where both are within 1.5 times of those of 2,000 points of the data: 0.0643 and 0.0173. The picture shows samples "
    "projected back by the matrix that buried the curve, which no network was given.",
    minutes={"laptop": 7},
)  # fmt: skip
