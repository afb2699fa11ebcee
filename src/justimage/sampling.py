"""From noise to images: solvers of dz/dt = v (Eq. 4), classifier-free guidance, and images from seeds.

A solver is a generator of states; whoever iterates it may watch, keep or stop. The state stays float32 whatever the
network computes in.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
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


def computing_in(dtype: torch.dtype | None, device: torch.device) -> torch.autocast:
    """A block in which networks compute in `dtype` (autocast); float32 or None: in what their weights are.

    Within one block the weights are cast once, so that blocks within it cast none.
    """
    plain = dtype in (None, torch.float32)
    return torch.autocast(device.type, torch.bfloat16 if plain else dtype, enabled=not plain)


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
        with computing_in(dtype, z.device):
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
    """Every moment of generation, at linear times 0 to 1.

    noise: (b, *shape), of standard deviation `model.process.noise_scale` (z at t = 0; `sample` scales its noise itself).
    y: (b,) classes, -1 for none. The last point's x is the image, a float around [-1, 1].
    """
    check_settings(guidance, interval, steps, solver)
    check(model, y, guidance)
    times = [i / steps for i in range(steps + 1)]
    for t, z, v in SOLVERS[solver](velocity(model, y, guidance, interval, dtype), noise, times):
        yield Point(t, z, model.process.behind(v, z, t) if t < 1 else z)


def check_settings(guidance: float, interval: tuple[float, float], steps: int, solver: str) -> None:
    """ValueError for settings with which no model can sample."""
    if solver not in SOLVERS:
        raise ValueError(f"no solver is called {solver!r}; allowed: {', '.join(SOLVERS)}")
    if not 1 <= steps <= 100_000:
        raise ValueError(f"steps is {steps}; allowed: 1 to 100000")
    if not 0 <= interval[0] <= interval[1] <= 1:
        raise ValueError(f"interval is {interval[0]:g} {interval[1]:g}; allowed: 0 <= low <= high <= 1")
    if not math.isfinite(guidance):
        raise ValueError(f"guidance is {guidance}; it must be a number")


def check(model: Model, y: Tensor, guidance: float) -> None:
    """ValueError for classes or guidance that this model does not have."""
    if y.is_floating_point() or y.ndim != 1:
        raise ValueError(f"classes must be whole numbers in a row; they are {y.dtype} of shape {tuple(y.shape)}")
    wrong = [c for c in y.tolist() if not -1 <= c < model.classes]
    if wrong:
        allowed = f"0 to {model.classes - 1}, or -1 for no class" if model.classes else "none (it has no classes)"
        raise ValueError(f"class {wrong[0]} is not one of this model's; allowed: {allowed}")
    if guidance != 1 and not model.classes:
        raise ValueError(f"guidance is {guidance:g}, but this model has no classes to guide towards; leave it at 1")


Numbers = int | Sequence[int] | Tensor | np.ndarray | None


def listed(numbers: Numbers, what: str) -> list[int] | int | None:
    """Whole numbers from a list, an array or a tensor; one number stays one."""
    try:
        plain = None if numbers is None else torch.as_tensor(numbers)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{what} must be whole numbers; they are {numbers!r}") from error
    if plain is not None and (plain.is_floating_point() or plain.ndim > 1 or not plain.numel()):
        raise ValueError(f"{what} must be one or more whole numbers; they are {numbers!r}")
    return None if plain is None else plain.tolist()


@contextmanager
def evaluating(net: torch.nn.Module) -> Iterator[None]:
    """Within the block the network is in evaluation mode; afterwards in the mode in which it was."""
    training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(training)


def draw(
    model: Model,
    classes: Numbers = None,
    seeds: Numbers = None,
    *,
    noise: Tensor | None = None,
    guidance: float = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
    steps: int = 50,
    solver: SolverName = "heun",
    batch: int = 64,
    dtype: torch.dtype | None = None,
) -> Iterator[Tensor]:
    """`sample`, a batch at a time."""
    each_class, each_seed = listed(classes, "classes"), listed(seeds, "seeds")
    lengths = [len(q) for q in (each_class, each_seed, noise) if q is not None and not isinstance(q, int)]
    n = max(lengths, default=1)
    if any(length not in (1, n) for length in lengths) or n < 1:
        raise ValueError(f"classes, seeds and noise give {', '.join(map(str, lengths))} images; they must agree")
    if isinstance(each_seed, int) or each_seed is None:
        each_seed = range(each_seed or 0, (each_seed or 0) + n)
    if noise is None and len(each_seed) != n:
        raise ValueError(f"there is one seed for {n} images; give one each, or an integer to count from")
    if noise is not None and tuple(noise.shape) != (n, *model.shape):
        raise ValueError(f"noise is {tuple(noise.shape)}; it must be {(n, *model.shape)}")
    if batch < 1:
        raise ValueError(f"batch is {batch}; it must be 1 or more")
    y = torch.as_tensor(-1 if each_class is None else each_class).reshape(-1).expand(n)
    check_settings(guidance, interval, steps, solver)
    check(model, y, guidance)
    device = next(model.net.parameters()).device
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for start in range(0, n, batch):
        part = slice(start, start + batch)
        if noise is not None:
            z = noise[part].to(device, torch.promote_types(noise.dtype, torch.float32))
        else:
            z = torch.stack([randomness.image_noise(seed, model.shape) for seed in each_seed[part]]).to(device)
        z = z * model.process.noise_scale
        settings: dict[str, Any] = dict(guidance=guidance, interval=interval, steps=steps, solver=solver, dtype=dtype)
        with evaluating(model.net), computing_in(dtype, device):
            for point in trajectory(model, z, y[part].to(device), **settings):
                z = point.z
        yield model.units.outside(z).cpu()


def sample(model: Model, classes: Numbers = None, seeds: Numbers = None, **settings: Any) -> Tensor:
    """Images (n, channels, height, width), on the CPU: uint8, or float32 in the units of the data where it was floats.

    classes: one for all, one an image, or None for "no class". seeds: image i is drawn from seeds[i], whatever the others
    and their order (another batch size may round a pixel in some ten thousand differently); an integer s counts on from s.
    Further settings: noise=(n, *shape) standard normal numbers instead of seeds, guidance=1.0, interval=(0.0, 1.0),
    steps=50, solver="heun" or "euler", batch=64 images at a time, dtype=torch.bfloat16 or torch.float32 for the network to
    compute in (by default bfloat16 on a GPU, float32 elsewhere).
    n is the longest of classes, seeds and noise. Raises ValueError for settings that do not fit.
    """
    return torch.cat(list(draw(model, classes, seeds, **settings)))
