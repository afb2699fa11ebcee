"""From noise to images: classifier-free guidance, trajectories by a solver, and images from seeds.

A trajectory is a generator of points on the way from noise to data; the caller may watch, keep or stop. The sample stays
float32 whatever the network computes in.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf
from typing import Any

import torch
from torch import Tensor

from justimage.checks import check_choice, check_finite, check_range
from justimage.conditions import Condition, join, map_tensors, null_like
from justimage.diffusion import Diffusion, convert, with_extras
from justimage.normalization import Normalization
from justimage.randomness import image_noise
from justimage.sample_arguments import Integers, check_condition, check_noise, complete_arguments
from justimage.solvers import GRIDS, SOLVERS, Point


@dataclass(frozen=True)
class Sampling:
    """How images are sampled (Table 9, "sampling"). Raises ValueError for a value outside its range."""

    solver: str = "heun"
    """a name in SOLVERS: heun, euler, adams, dpm2, dpm3, unipc or sde"""
    steps: int = 50
    """steps of the solver"""
    times: str | tuple[float, ...] = "linear"
    """the grid of times: a name in GRIDS (linear, cosine, logsnr, shifted), or the times themselves, rising, 0 for noise and 1
    for the image"""
    guidance: float = 1.0
    """scale of classifier-free guidance; 1 for none"""
    interval: tuple[float, float] = (0.0, 1.0)
    """times between which guidance applies"""
    guidance_every: int = 1
    """evaluations between two of the unconditional prediction; between them its last difference is used again"""
    t_clip: float = 0.05
    """lower bound of denominators while sampling, in solvers that follow the velocity"""

    def __post_init__(self) -> None:
        if isinstance(self.times, Sequence) and not isinstance(self.times, str):
            object.__setattr__(self, "times", tuple(self.times))
        check_finite(self)
        if isinstance(self.times, tuple):
            if len(self.times) < 2 or not all(0 <= t < s <= 1 for t, s in pairwise(self.times)):
                raise ValueError(f"times are {self.times}; allowed: two or more rising numbers from 0 to 1")
            object.__setattr__(self, "steps", len(self.times) - 1)
        else:
            check_choice(self, times=GRIDS)
        check_choice(self, solver=SOLVERS)
        check_range(self, steps=(1, 100_000), t_clip=(0, 1), guidance=(-inf, inf), guidance_every=(1, inf))
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"interval is {low:g} {high:g}; allowed: 0 <= low <= high <= 1")

    @property
    def grid(self) -> list[float]:
        """The times of the steps, steps + 1 of them."""
        if isinstance(self.times, tuple):
            return list(self.times)
        return [GRIDS[self.times](i / self.steps) for i in range(self.steps + 1)]

    def guides(self, t: float) -> bool:
        """Whether guidance applies at t: where low < t < high (low = 0 includes t = 0)."""
        low, high = self.interval
        return self.guidance != 1 and (low < t < high or t == low == 0)

    @property
    def evaluations(self) -> int:
        """Evaluations of the velocity, each of which is one call of the network."""
        return count_cost(self).evaluations

    @property
    def passes(self) -> int:
        """Passes of the network that an image costs: two an evaluation with guidance, else one."""
        return count_cost(self).passes


def with_passes(sampling: Sampling, passes: int, solver: str = "unipc", times: str = "logsnr") -> Sampling:
    """The same guidance with at most so many passes of the network, in as many steps as fit, to the predicted image at the end;
    by default UniPC on the log-SNR grid (docs/sampling.md). ValueError where not even one step fits."""
    few = replace(sampling, solver=solver, times=times, t_clip=0.0)
    steps = bisect_right(range(1, passes + 1), passes, key=lambda n: replace(few, steps=n).passes)
    if not steps:
        raise ValueError(f"passes is {passes}; it must be {replace(few, steps=1).passes} or more with this guidance")
    return replace(few, steps=steps)


@dataclass(frozen=True)
class Denoiser:
    """A network and everything that is needed to sample from it.

    shape: of one image, (channels, height, width). classes: number of classes, 0 for none. Both default to the network's.
    """

    net: torch.nn.Module
    """net(z, t, condition) -> tensor like z"""
    diffusion: Diffusion = Diffusion()
    """how its output is interpreted"""
    normalization: Normalization = Normalization()
    """of its data"""
    sampling: Sampling = Sampling()
    """how images are sampled unless one says otherwise"""
    shape: tuple[int, ...] = ()
    classes: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape or getattr(self.net, "shape", ())))
        object.__setattr__(self, "classes", self.classes or getattr(self.net, "classes", 0))
        if not self.shape:
            raise ValueError("the shape of an image is not known: Denoiser(net, shape=(channels, height, width))")

    def check(self, condition: Condition, n: int, sampling: Sampling) -> None:
        """ValueError for a condition that does not fit the network, or n images."""
        check_condition(condition, n, self.classes, sampling.guidance, getattr(self.net, "told", None))

    def place(self, given: Condition) -> Any:
        """Noise, images or a condition, on the device of the network's parameters, if it has any."""
        parameter = next(self.net.parameters(), None)
        return given if parameter is None else map_tensors(lambda tensor: tensor.to(parameter.device), given)


def autocast_to(dtype: torch.dtype | None, device: torch.device) -> torch.autocast:
    """A block in which networks compute in `dtype` (autocast); float32 or None: in the type of their weights.

    Within one block the weights are cast once: blocks nested in it cast none.
    """
    plain = dtype in (None, torch.float32)
    return torch.autocast(device.type, torch.bfloat16 if plain else dtype, enabled=not plain)


@contextmanager
def eval_mode(net: torch.nn.Module) -> Iterator[None]:
    """Within the block the network is in evaluation mode; afterwards in the mode it was in."""
    training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(training)


class CountingVelocity:
    """A velocity of 0 that counts what a trajectory costs."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling, self.evaluations, self.guided, self.passes = sampling, 0, 0, 0

    def __call__(self, z: Tensor, t: float) -> tuple[Tensor, Tensor]:
        self.evaluations += 1
        self.passes += 1
        if self.sampling.guides(t):
            self.passes += self.guided % self.sampling.guidance_every == 0
            self.guided += 1
        return z, z

    def coefficients(self, t: float) -> tuple[float, float]:
        return t, 1 - t

    def noise(self, number: int) -> Tensor:
        return torch.zeros(())


def count_cost(sampling: Sampling) -> CountingVelocity:
    """What a trajectory costs: counted, on a velocity of 0."""
    velocity = CountingVelocity(sampling)
    for _ in SOLVERS[sampling.solver](velocity, torch.zeros(()), sampling.grid):
        pass
    return velocity


class GuidedVelocity:
    """The denoiser's velocity, with classifier-free guidance where `sampling.guides`.

    Guided: v = v_null + guidance (v_condition - v_null), both from one batch of twice the size; x likewise. Elsewhere, and with
    guidance 1, the network sees only the condition. With `guidance_every` above 1 some evaluations see only the condition, too,
    and add the last difference x_condition - x_null. dtype: what the network computes in, by default the type of its weights.
    seeds: of the images' noise, for stochastic solvers.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        condition: Condition,
        sampling: Sampling,
        dtype: torch.dtype | None = None,
        seeds: Sequence[int] = (),
    ) -> None:
        self.denoiser, self.condition, self.sampling, self.dtype, self.seeds = denoiser, condition, sampling, dtype, seeds
        self.guided, self.difference = 0, torch.zeros(())

    def evaluate(self, z: Tensor, t: float, condition: Condition) -> tuple[Tensor, Tensor]:
        with autocast_to(self.dtype, z.device):
            output, _ = with_extras(self.denoiser.net(z, torch.full(z.shape[:1], t, device=z.device), condition))
        return self.denoiser.diffusion.velocity(output.to(z.dtype), z, t, self.sampling.t_clip)

    def __call__(self, z: Tensor, t: float) -> tuple[Tensor, Tensor]:
        if not self.sampling.guides(t):
            return self.evaluate(z, t, self.condition)
        guidance, number = self.sampling.guidance, self.guided
        self.guided += 1
        if number % self.sampling.guidance_every:
            x = self.evaluate(z, t, self.condition)[1] + (guidance - 1) * self.difference
            return convert(x, "x", "v", z, self.denoiser.diffusion.coefficients(t, z), self.sampling.t_clip), x
        v, x = self.evaluate(torch.cat([z, z]), t, join(self.condition, null_like(self.condition)))
        (v, v_null), (x, x_null) = (q.unflatten(0, (2, -1)) for q in (v, x))
        self.difference = x - x_null
        return v_null + guidance * (v - v_null), x_null + guidance * (x - x_null)

    def coefficients(self, t: float) -> tuple[float, float]:
        a, b, _, _ = self.denoiser.diffusion.coefficients(t, torch.zeros((), dtype=torch.float64))
        return a.item(), b.item()

    def noise(self, number: int) -> Tensor:
        noise = torch.stack([image_noise(seed, self.denoiser.shape, number + 1) for seed in self.seeds])
        device = next(self.denoiser.net.parameters()).device
        return noise.to(device, non_blocking=True) * self.denoiser.diffusion.noise_scale


@torch.no_grad()
def trajectory(
    denoiser: Denoiser,
    noise: Tensor,
    condition: Condition = None,
    sampling: Sampling | None = None,
    dtype: torch.dtype | None = None,
    seeds: Sequence[int] | None = None,
) -> Iterator[Point]:
    """Every point on the way from noise to images.

    noise: (b, *shape), z at the first time, of standard deviation `denoiser.diffusion.noise_scale` (`sample` scales its noise
    itself). condition: b class numbers, NULL_CLASS (-1) for none, or what else the network takes. Both are taken to its
    device. seeds: b, of the noise that a stochastic solver adds on the way [0, 1, ...]. At t = 1 a point's x is its z, the
    image: floats around [-1, 1].
    """
    sampling = sampling or denoiser.sampling
    denoiser.check(condition, len(noise), sampling)
    noise, condition = denoiser.place(noise), denoiser.place(condition)
    velocity = GuidedVelocity(denoiser, condition, sampling, dtype, range(len(noise)) if seeds is None else seeds)
    for point in SOLVERS[sampling.solver](velocity, noise, sampling.grid):
        yield point if point.t < 1 else point._replace(x=point.z)


def sample_batches(
    denoiser: Denoiser,
    condition: Integers | Condition = None,
    seeds: Integers = None,
    sampling: Sampling | None = None,
    *,
    noise: Tensor | None = None,
    batch: int = 64,
    dtype: torch.dtype | None = None,
) -> Iterator[Tensor]:
    """`sample`, a batch at a time."""
    net, sampling = denoiser.net, sampling or denoiser.sampling
    condition, seeds, n = complete_arguments(condition, seeds, noise, batch)
    denoiser.check(condition, n, sampling)
    check_noise(noise, (n, *denoiser.shape))
    if sampling.grid[0] > 0 or sampling.grid[-1] < 1:
        raise ValueError(f"times are {sampling.grid[0]:g} to {sampling.grid[-1]:g}; from noise to images they must be 0 to 1")
    device = next(net.parameters()).device
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for start in range(0, n, batch):
        part = slice(start, start + batch)
        if noise is not None:
            z = noise[part].to(device, torch.promote_types(noise.dtype, torch.float32))
        else:
            z = torch.stack([image_noise(seed, denoiser.shape) for seed in seeds[part]]).to(device)
        z = z * denoiser.diffusion.noise_scale
        given = map_tensors(lambda tensor, part=part: tensor[part].to(device), condition)
        with eval_mode(net), autocast_to(dtype, device):
            for point in trajectory(denoiser, z, given, sampling, dtype, seeds[part]):
                z = point.z
        yield denoiser.normalization.denormalize(z).cpu()


def sample(
    denoiser: Denoiser,
    condition: Integers | Condition = None,
    seeds: Integers = None,
    sampling: Sampling | None = None,
    *,
    noise: Tensor | None = None,
    batch: int = 64,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Images (n, channels, height, width), on the CPU: uint8, or float32 in the units of the data where it was floats.

    condition: class numbers, one for all or one an image; a tensor or a dict of tensors for a network that takes them; None for
    "no class". seeds: image i depends on seeds[i] alone, whatever the others and their order (another batch size may round a
    pixel in some ten thousand differently); an integer s counts on from s. sampling: by default the denoiser's own. noise:
    standard normal numbers (n, *shape) instead of seeds. batch: images at a time. dtype: what the network computes in,
    torch.bfloat16 or torch.float32; by default bfloat16 on a GPU, float32 elsewhere. n is the longest of condition, seeds and
    noise. Raises ValueError for arguments that do not fit.
    """
    return torch.cat(list(sample_batches(denoiser, condition, seeds, sampling, noise=noise, batch=batch, dtype=dtype)))
