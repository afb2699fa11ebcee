"""Solvers of dz/dt = v (Eq. 4): from noise to an image along a grid of times.

A solver is a generator: from a velocity, noise and rising times it yields the `Point` at every time. To add one, write a
function like `euler` and enter it in SOLVERS.

Solvers in v (euler, heun, adams) follow the velocity to the end: where 1 - t is clipped, some noise is left. Exponential
solvers (dpm2, dpm3, unipc, sde) extrapolate the predicted image x between two times, solve the rest exactly in
lambda = log(a / b), half the log-SNR, and end at the predicted image. At t = 0 and t = 1 lambda is infinite: steps from and
to there are of first order.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import cos, exp, expm1, inf, isinf, log, pi, sqrt, tanh
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Velocity(Protocol):
    """What a solver integrates."""

    def __call__(self, z: Tensor, t: float, /) -> tuple[Tensor, Tensor]:
        """dz/dt at z and t, and the clean image predicted from it, from one evaluation."""
        ...

    def coefficients(self, t: float) -> tuple[float, float]:
        """a and b of the path z = a x + b eps at t."""
        ...

    def noise(self, number: int) -> Tensor:
        """Noise like z, of the deviation of eps: as many independent ones as a stochastic solver asks for."""
        ...


class Point(NamedTuple):
    """A point of a trajectory: time, the noisy sample there, its velocity, and the clean image predicted from it.

    The last point has the velocity and the prediction that led to it.
    """

    t: float
    z: Tensor
    v: Tensor
    x: Tensor


Solver = Callable[[Velocity, Tensor, Sequence[float]], Iterator[Point]]


def euler(velocity: Velocity, z: Tensor, times: Sequence[float]) -> Iterator[Point]:
    """First order (Algorithm 2): one evaluation a step."""
    v = x = torch.zeros_like(z)
    for t, s in pairwise(times):
        v, x = velocity(z, t)
        yield Point(t, z, v, x)
        z = z + (s - t) * v
    yield Point(times[-1], z, v, x)


def heun(velocity: Velocity, z: Tensor, times: Sequence[float]) -> Iterator[Point]:
    """Second order: the mean of the velocities at both ends of a step."""
    v = x = torch.zeros_like(z)
    for t, s in pairwise(times):
        v, x = velocity(z, t)
        yield Point(t, z, v, x)
        if s < times[-1]:  # the last step is Euler: at t = 1 there is nothing to average with
            v = (v + velocity(z + (s - t) * v, s)[0]) / 2
        z = z + (s - t) * v
    yield Point(times[-1], z, v, x)


def adams(velocity: Velocity, z: Tensor, times: Sequence[float]) -> Iterator[Point]:
    """Second order, one evaluation a step: the line through this velocity and the last (Adams-Bashforth)."""
    before: tuple[float, Tensor] | None = None
    v = x = torch.zeros_like(z)
    for t, s in pairwise(times):
        v, x = velocity(z, t)
        yield Point(t, z, v, x)
        slope = (v - before[1]) / (t - before[0]) if before and s < times[-1] else 0.0
        before = t, v
        z = z + (s - t) * (v + (s - t) / 2 * slope)
    yield Point(times[-1], z, v, x)


# exponential solvers ----------------------------------------------------------------------------------------------------


class Predicted(NamedTuple):
    """The clean image predicted at some lambda."""

    level: float
    """lambda = log(a / b): -inf for noise, inf for data"""
    x: Tensor


def level(velocity: Velocity, t: float) -> float:
    """lambda = log(a / b), half the log-SNR; at t = 1 the cosine of the trigonometric path is not 0 in floating point."""
    a, b = velocity.coefficients(t)
    return -inf if t <= 0 else inf if t >= 1 else log(a / b)


def differences(history: Sequence[Predicted]) -> list[Tensor]:
    """First and second divided differences of predictions, newest first, by lambda; as many as there are finite ones for."""
    known = [p for p in history if not isinf(p.level)]
    first = [(p.x - q.x) / (p.level - q.level) for p, q in pairwise(known)]
    second = [(p - q) / (known[0].level - known[2].level) for p, q in pairwise(first[:2])]
    return first[:1] + second


def first_order(velocity: Velocity, z: Tensor, x: Tensor, t: float, s: float) -> Tensor:
    """z at s, exact for a prediction x that stays as it is (DDIM): of z only its share of noise is kept."""
    (a, b), (a_s, b_s) = velocity.coefficients(t), velocity.coefficients(s)
    return b_s / b * (z - a * x) + a_s * x


def multistep(velocity: Velocity, z: Tensor, times: Sequence[float], order: int) -> Iterator[Point]:
    """Exponential Adams-Bashforth: the polynomial through the latest predictions is integrated from t to s, weighted by
    e^lambda."""
    history: list[Predicted] = []
    v = x = torch.zeros_like(z)
    for t, s in pairwise(times):
        v, x = velocity(z, t)
        yield Point(t, z, v, x)
        history = [Predicted(level(velocity, t), x), *history][:order]
        z, h, (a, _) = first_order(velocity, z, x, t, s), level(velocity, s) - level(velocity, t), velocity.coefficients(s)
        if isinf(h):
            continue
        match differences(history):
            case [first]:  # with x'(lambda) from the middle of the step, as DPM-Solver++ has it
                z = z - a * expm1(-h) * h / 2 * first
            case [first, second]:
                slope = first + (history[0].level - history[1].level) * second  # of the parabola, at t
                z = z + a * (h + expm1(-h)) * slope + a * (h**2 - 2 * h - 2 * expm1(-h)) * second
    yield Point(times[-1], z, v, x)


def dpm2(velocity: Velocity, z: Tensor, times: Sequence[float]) -> Iterator[Point]:
    """DPM-Solver++ 2M (Lu et al. 2022): second order, one evaluation a step."""
    return multistep(velocity, z, times, 2)


def dpm3(velocity: Velocity, z: Tensor, times: Sequence[float]) -> Iterator[Point]:
    """DPM-Solver++ 3M: third order, one evaluation a step. The second difference counts whole here; the usual code takes half
    of it, which is second order."""
    return multistep(velocity, z, times, 3)


def unipc(velocity: Velocity, z: Tensor, times: Sequence[float]) -> Iterator[Point]:
    """UniPC (Zhao et al. 2023, B2): the steps of dpm2, each corrected by the prediction at its end, which the next one needs
    anyway. Its measured order is 3; one evaluation a step."""
    history: list[Predicted] = []
    step = None
    v = x = torch.zeros_like(z)
    for t, s in pairwise(times):
        v, x = velocity(z, t)
        if step:
            z = step.corrected(x)
        yield Point(t, z, v, x)
        history = [Predicted(level(velocity, t), x), *history][:2]
        h, a = level(velocity, s) - level(velocity, t), velocity.coefficients(s)[0]
        step = UniPCStep(first_order(velocity, z, x, t, s), a, h, history, [] if isinf(h) else differences(history))
        z = step.predicted()
    yield Point(times[-1], z, v, x)


class UniPCStep(NamedTuple):
    """A step of UniPC, from the point of the newest prediction in `history`."""

    start: Tensor
    """its end by first order"""
    a: float
    """the coefficient of x at its end"""
    h: float
    """its length in lambda"""
    history: Sequence[Predicted]
    slopes: Sequence[Tensor]

    def predicted(self) -> Tensor:
        """Its end, by extrapolation."""
        return self.start - self.a * expm1(-self.h) * self.h / 2 * self.slopes[0] if self.slopes else self.start

    def corrected(self, x: Tensor) -> Tensor:
        """Its end again, by interpolation between the predictions at both ends and the one before."""
        change = x - self.history[0].x
        if not self.slopes:
            return self.start - self.a * expm1(-self.h) / 2 * change
        h, before = self.h, self.history[1].level - self.history[0].level
        one = (h + expm1(-h)) / h  # what a slope of 1 / h and a curvature of 1 / h^2 contribute, exactly
        two = 2 * (h**2 / 2 - h - expm1(-h)) / h**2
        old = (one - two) / (1 - before / h)
        return self.start + self.a * (old * h * self.slopes[0] + (one - old) * change)


def sde(velocity: Velocity, z: Tensor, times: Sequence[float]) -> Iterator[Point]:
    """SDE-DPM-Solver++ 2M: in each step old noise is replaced by new, so that errors made before fade."""
    history: list[Predicted] = []
    v = x = torch.zeros_like(z)
    for number, (t, s) in enumerate(pairwise(times)):
        v, x = velocity(z, t)
        yield Point(t, z, v, x)
        history = [Predicted(level(velocity, t), x), *history][:2]
        h, (_, b), (a_s, b_s) = level(velocity, s) - level(velocity, t), velocity.coefficients(t), velocity.coefficients(s)
        new = -expm1(-2 * h)
        z = b_s / b * exp(-h) * z + a_s * new * x + b_s * sqrt(new) * velocity.noise(number)
        for slope in differences(history) if not isinf(h) else []:
            z = z + a_s * new * h / 2 * slope
    yield Point(times[-1], z, v, x)


SOLVERS: dict[str, Solver] = {
    "heun": heun, "euler": euler, "adams": adams, "dpm2": dpm2, "dpm3": dpm3, "unipc": unipc, "sde": sde,
}  # fmt: skip

GRIDS: dict[str, Callable[[float], float]] = {
    "linear": lambda u: u,
    "cosine": lambda u: (1 - cos(pi * u)) / 2,
    "logsnr": lambda u: 0.5 + tanh(5 * (u - 0.5)) / (2 * tanh(2.5)),
    "shifted": lambda u: u / (3 - 2 * u),
}
"""t of the share u of the steps: equal steps; short ones at both ends; equal in log(t / (1 - t)) from -5 to 5, stretched to 0
and 1; short ones where noise is large (Esser et al. 2024, a shift of 3)."""
