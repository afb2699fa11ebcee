"""From noise to images: solvers of dz/dt = v (Eq. 4), classifier-free guidance, and uint8 images from seeds.

A solver is a generator of states; whoever iterates it may watch, keep or stop. The state stays float32 whatever the
network computes in.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from justimage import randomness
from justimage.process import Model

Velocity = Callable[[Tensor, float], Tensor]
"""velocity(z, t) -> dz/dt, like z; t is a Python float."""
SolverName = Literal["heun", "euler"]


class State(NamedTuple):
    """Time, the sample there, and its velocity there (after the last step: the velocity that led to it)."""

    t: float
    z: Tensor
    v: Tensor


def euler(velocity: Velocity, z: Tensor, times: Sequence[float]) -> Iterator[State]:
    """First order (Algorithm 2): one evaluation a step. Yields the state at every one of `times`."""
    v = torch.zeros_like(z)
    for t, s in pairwise(times):
        v = velocity(z, t)
        yield State(t, z, v)
        z = z + (s - t) * v
    yield State(times[-1], z, v)


def heun(velocity: Velocity, z: Tensor, times: Sequence[float]) -> Iterator[State]:
    """Second order: the mean of the velocities at both ends of a step. Yields the state at every one of `times`."""
    v = torch.zeros_like(z)
    for t, s in pairwise(times):
        v = velocity(z, t)
        yield State(t, z, v)
        if s < times[-1]:  # the last step is Euler: at t = 1 there is nothing to average with
            v = (v + velocity(z + (s - t) * v, s)) / 2
        z = z + (s - t) * v
    yield State(times[-1], z, v)


SOLVERS: dict[str, Callable[[Velocity, Tensor, Sequence[float]], Iterator[State]]] = {"heun": heun, "euler": euler}


def velocity(
    model: Model,
    y: Tensor,
    guidance: float = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
    dtype: torch.dtype | None = None,
) -> Velocity:
    """The model's velocity for classes y (b,), with classifier-free guidance where low < t < high (low = 0 includes t = 0).

    Guided: v = v_none + guidance (v_class - v_none), both from one batch of twice the size. Elsewhere, and with guidance 1,
    the network sees only the classes. dtype: what the network computes in (autocast), by default what its weights are.
    """
    low, high = interval
    nobody = torch.full_like(y, -1)

    def evaluate(z: Tensor, t: float, y: Tensor) -> Tensor:
        with torch.autocast(z.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            output = model.net(z, torch.full(z.shape[:1], t, device=z.device), y)
        return model.process.velocity(output.to(z.dtype), z, t)

    def at(z: Tensor, t: float) -> Tensor:
        if guidance == 1 or not (low < t < high or t == low == 0):
            return evaluate(z, t, y)
        v, v_none = evaluate(torch.cat([z, z]), t, torch.cat([y, nobody])).chunk(2)
        return v_none + guidance * (v - v_none)

    return at


class Point(NamedTuple):
    """A moment of generation: time, the noisy sample, and the clean image predicted from it."""

    t: float
    z: Tensor
    x: Tensor


@torch.no_grad()
def trajectory(
    model: Model,
    noise: Tensor,
    y: Tensor,
    *,
    guidance: float = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
    steps: int = 50,
    solver: SolverName = "heun",
    dtype: torch.dtype | None = None,
) -> Iterator[Point]:
    """Every moment of generation from noise (b, *shape) of standard deviation `noise_scale`, at linear times 0 to 1.

    y: (b,) classes, -1 for none. The last point's x is the image, a float around [-1, 1].
    """
    times = [i / steps for i in range(steps + 1)]
    for t, z, v in SOLVERS[solver](velocity(model, y, guidance, interval, dtype), noise, times):
        yield Point(t, z, model.process.ahead(v, z, t))


def check(model: Model, y: Tensor, guidance: float, interval: tuple[float, float], steps: int, solver: str) -> None:
    """ValueError for settings with which this model cannot sample."""
    if solver not in SOLVERS:
        raise ValueError(f"no solver is called {solver!r}; allowed: {', '.join(SOLVERS)}")
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be 1 or more")
    if not 0 <= interval[0] <= interval[1] <= 1:
        raise ValueError(f"interval is {interval[0]:g} {interval[1]:g}; allowed: 0 <= low <= high <= 1")
    if len(y) and not (int(y.min()) >= -1 and int(y.max()) < model.classes):
        wrong = next(int(c) for c in y if not -1 <= c < model.classes)
        allowed = f"0 to {model.classes - 1}, or -1 for no class" if model.classes else "none (it has no classes)"
        raise ValueError(f"class {wrong} is not one of this model's; allowed: {allowed}")
    if guidance != 1 and not model.classes:
        raise ValueError(f"guidance is {guidance:g}, but this model has no classes to guide towards; leave it at 1")


def sample(
    model: Model,
    classes: int | Sequence[int] | None = None,
    seeds: int | Sequence[int] | None = None,
    *,
    noise: Tensor | None = None,
    guidance: float = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
    steps: int = 50,
    solver: SolverName = "heun",
    batch: int = 64,
    dtype: torch.dtype | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Images (n, channels, height, width), uint8, on the CPU.

    classes: one for all, one an image, or None for "no class". seeds: image i is drawn from seeds[i] whatever the batch and
    the order; an integer s counts on from s. noise: (n, *shape) standard normal numbers instead of seeds. n is the longest
    of these. progress is called with the number of images finished so far. Raises ValueError for settings that do not fit.
    """
    listed = [len(q) for q in (classes, seeds, noise) if q is not None and not isinstance(q, int)]
    n = max(listed, default=1)
    if any(length not in (1, n) for length in listed) or n < 1:
        raise ValueError(f"classes, seeds and noise give {', '.join(map(str, listed))} images; they must agree")
    y = torch.as_tensor(-1 if classes is None else classes).reshape(-1).expand(n)
    check(model, y, guidance, interval, steps, solver)
    first = 0 if seeds is None else seeds
    each_seed = range(first, first + n) if isinstance(first, int) else first
    if noise is None and len(each_seed) != n:
        raise ValueError(f"there is one seed for {n} images; give one each, or an integer to count from")
    if noise is not None and tuple(noise.shape) != (n, *model.shape):
        raise ValueError(f"noise is {tuple(noise.shape)}; it must be {(n, *model.shape)}")
    device = next(model.net.parameters()).device
    training = model.net.training
    model.net.eval()
    images = []
    try:
        for start in range(0, n, batch):
            part = slice(start, min(start + batch, n))
            if noise is not None:
                z = noise[part]
            else:
                z = torch.stack([randomness.image_noise(seed, model.shape) for seed in each_seed[part]])
            z = z.to(device) * model.process.noise_scale
            settings = dict(guidance=guidance, interval=interval, steps=steps, solver=solver, dtype=dtype)
            for point in trajectory(model, z, y[part].to(device), **settings):  # pyright: ignore[reportArgumentType]
                z = point.z
            images.append(to_uint8(z).cpu())
            if progress:
                progress(part.stop)
    finally:
        model.net.train(training)
    return torch.cat(images)


def to_uint8(x: Tensor) -> Tensor:
    """Floats in [-1, 1] to the nearest of 256 levels; what lies outside is clipped."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """uint8 levels to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1
