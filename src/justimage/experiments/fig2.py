"""Fig. 2: a plane curve buried in D dimensions; x-, eps- and v-prediction by the same small network, under the v-loss."""

import math

import numpy as np
import torch

from justimage.reproduction import Cell, Claim, Experiment, Table, at_least
from justimage.reproduction.plots import Cloud, clouds
from justimage.reproduction.scales import Scale
from justimage.reproduction.tables import format_number
from justimage.reproduction.toy_job import OUTER, POINTS, THICKNESS, ToyJob, around, blur_distances, spiral

DIMENSIONS = 2, 8, 16, 512
PREDICTIONS = "x", "eps", "v"
DISTANCES = {"curve": "to the curve", "coverage": "from the curve"}
"""Mean distances: from samples to the curve, and from places spread over it to the nearest sample."""
WIDTH = 2 * OUTER
BLUR = math.hypot(THICKNESS, 0.01 * WIDTH)
"""Deviation from the curve up to which it counts as found: the data's, and a hundredth of the curve's width."""
ALIKE, FAILS = 1.5, 5
"""Within how many times the three are at D = 2, and from how many times x's distance on a prediction fails."""


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
    bound, last = blur_distances(BLUR), DIMENSIONS[-1]

    def found(D: int, p: str) -> bool:
        return all(distance < blur for distance, blur in zip(both(table, D, p), bound, strict=True))

    def claim(D: int, sentence: str, holds: bool, *predictions: str) -> Claim:
        pairs = {p: map(format_number, both(table, D, p)) for p in predictions}
        evidence = "; ".join("{}: {} to it, {} from it".format(p, *pair) for p, pair in pairs.items())
        return Claim(f"D = {D}: {sentence}", holds, evidence)

    def apart(metric: str) -> float:
        distances = [table(D=2, prediction=p, metric=metric) for p in PREDICTIONS]
        return max(distances) / min(distances)

    def fails(p: str) -> Claim:
        its, of_x = (table.cell(D=last, prediction=q, metric="curve") for q in (p, "x"))
        return at_least(f"D = {last}: {p}-prediction fails, {FAILS} times as far off as x's at least", table, its, of_x, FAILS)

    def ordered(D: int) -> Claim:
        x, v, eps = (table(D=D, prediction=p, metric="curve") for p in ("x", "v", "eps"))
        return claim(D, "eps-prediction is farther off than v-prediction, and v than x", x < v < eps, *PREDICTIONS)

    alike = f"all three find the curve, within {ALIKE} times of each other both ways"
    return [
        claim(2, alike, all(found(2, p) for p in PREDICTIONS) and max(map(apart, DISTANCES)) < ALIKE, *PREDICTIONS),
        *(claim(D, "x-prediction finds the curve", found(D, "x"), "x") for D in DIMENSIONS[1:]),
        *map(ordered, DIMENSIONS[1:]),
        *(claim(16, f"{p}-prediction struggles: it does not find it", not found(16, p), p) for p in ("eps", "v")),
        *map(fails, ("eps", "v")),
    ]


def figure(table: Table) -> bytes | None:
    def panel(D: int, p: str) -> Cloud:
        near, covered = map(format_number, both(table, D, p))
        (job,) = table.cell(D=D, prediction=p, metric="curve").jobs
        with np.load(table.lab.result_dir(job) / "points.npz") as arrays:
            return f"{p}-pred: to {near}, from {covered}", arrays["points"]

    points = spiral(torch.rand(POINTS, generator=torch.Generator().manual_seed(0)))
    truth = "truth", around(points, THICKNESS).numpy()
    rows = {f"D = {D}": [truth, *(panel(D, p) for p in PREDICTIONS)] for D in DIMENSIONS}
    return clouds(rows, spiral(torch.linspace(0, 1, 1000)).numpy(), 1.3 * OUTER)


EXPERIMENT = Experiment(
    title="a plane curve in D dimensions, learnt by a network 256 wide",
    expects="At D = 2 all find the curve; with D only x does. At D = 512, wider than the network, eps and v fail.",
    cells=cells, claims=claims, figure=figure,
    row="D = {D}", column="{prediction}-pred: {metric}", labels={"metric": DISTANCES},
    notes="Mean distances of 2,000 samples to the curve, and from places all over it to the nearest sample; the data lies "
    "around the curve with a deviation of 0.03, 0.024 away in the mean. The curve is found where both distances are less than "
    "those of points with a deviation of 0.05: 0.0405 and 0.0137. The picture shows samples projected back by the matrix that "
    "buried the curve, which no network was given.",
    minutes={"laptop": 8},
)  # fmt: skip
