"""Editing with any trained model, without training: what is known of an image is a linear measurement y = A x of it.

A network that predicts the clean image can be told: at every step the predicted x is projected onto the images that have this
measurement, x + A^+ (y - A x), the nearest of them (DDNM, Wang et al. 2023). Whatever the solver, it ends at such an image.
Going back and forth at every time lets the rest adapt to what is known (RePaint, Lugmayr et al. 2022). With no measurement an
image is varied: noise is added, and removed (SDEdit, Meng et al. 2022).

The way from noise to an image is an equation in time, which runs backwards, too: `to_noise` finds the noise of an image, and
`from_noise` its image, of the same or another class. Both stay where log(a / b) is at most MAX_LEVEL: at t = 1 the velocity is
infinite, so that the authors' clip there cannot be undone.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import exp

import torch
import torch.nn.functional as F
from torch import Tensor

from justimage import randomness
from justimage.conditions import Condition
from justimage.diffusion import convert
from justimage.measurements import Measurement, averages as averages, blur as blur, grey as grey, known_pixels as known_pixels
from justimage.sampling import Denoiser, GuidedVelocity, Sampling, eval_mode
from justimage.solvers import SOLVERS

MIN_LEVEL, MAX_LEVEL = -6.0, 2.0
"""log(a / b) at which an image is taken for noise alone, and for one without noise."""
ROUNDS = 50
"""Alternations between a measurement and the range of pixels at the end."""


class ProjectedVelocity(GuidedVelocity):
    """The velocity towards the predicted image that has the measurement y."""

    def __init__(self, measurement: Measurement, y: Tensor, *given: object, **options: object) -> None:
        super().__init__(*given, **options)  # pyright: ignore[reportArgumentType]
        self.measurement, self.y, self.drawn = measurement, y, 0

    def __call__(self, z: Tensor, t: float) -> tuple[Tensor, Tensor]:
        x = self.measurement.project(super().__call__(z, t)[1], self.y)
        return convert(x, "x", "v", z, self.denoiser.diffusion.coefficients(t, z), self.sampling.t_clip), x

    def noise(self, number: int) -> Tensor:
        """Another one at every call, as a solver that is called for one step counts from 0 each time."""
        self.drawn += 1
        return super().noise(self.drawn)


@torch.no_grad()
def complete(
    denoiser: Denoiser,
    measurement: Measurement,
    y: Tensor,
    condition: Condition,
    seeds: Sequence[int],
    sampling: Sampling,
    *,
    repeats: int = 1,
) -> Iterator[Tensor]:
    """Images x with the measurement y (b, ...), both as the network sees them, one for each of b seeds. repeats: how often each
    step is made, from noise renewed. Yields what x is predicted to be after each step, on the network's device; the last one is
    the result.
    """
    denoiser.check(condition, len(seeds), sampling)
    y, z, condition = (denoiser.place(given) for given in (y, noise_of_seeds(denoiser, seeds), condition))
    velocity, times = ProjectedVelocity(measurement, y, denoiser, condition, sampling, None, seeds), sampling.grid
    with eval_mode(denoiser.net):
        if repeats == 1:
            for point in SOLVERS[sampling.solver](velocity, z, times):
                z = point.z
                yield point.x
        for t, s in pairwise(times if repeats > 1 else []):
            for again in range(repeats):
                *_, end = SOLVERS[sampling.solver](velocity, z, (t, s))
                yield end.x
                (a, b), (a_s, b_s) = velocity.coefficients(t), velocity.coefficients(s)
                if again < repeats - 1 and s < 1:  # back to t: what noise it had more is drawn anew
                    left = a / a_s
                    z = left * end.z + max(b**2 - (left * b_s) ** 2, 0.0) ** 0.5 * velocity.noise(0)
                else:
                    z = end.z
                    break
    for _ in range(ROUNDS):  # pixels end at -1 and 1
        z = measurement.project(z.clamp(-1, 1), y)
    yield z


@torch.no_grad()
def vary(
    denoiser: Denoiser, x: Tensor, strength: float, condition: Condition, seeds: Sequence[int], sampling: Sampling
) -> Iterator[Tensor]:
    """Variations of images x (b, channels, height, width): as at t = 1 - strength, noise from b seeds added, and from there on
    sampled. Yields what x is predicted to be."""
    denoiser.check(condition, len(seeds), sampling)
    x, noise, condition = (denoiser.place(given) for given in (x, noise_of_seeds(denoiser, seeds), condition))
    start = 1 - strength
    times = [start, *sampling.grid[bisect_left(sampling.grid, start + 1e-6) :]]
    velocity = GuidedVelocity(denoiser, condition, sampling, None, seeds)
    a, b = velocity.coefficients(start)
    z = a * x + b * noise
    with eval_mode(denoiser.net):
        for point in SOLVERS[sampling.solver](velocity, z, times):
            z = point.z
            yield point.x
    yield z


def noise_of_seeds(denoiser: Denoiser, seeds: Sequence[int]) -> Tensor:
    """The noise from which images of seeds begin."""
    return torch.stack([randomness.image_noise(s, denoiser.shape) for s in seeds]) * denoiser.diffusion.noise_scale


# there and back ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def to_noise(denoiser: Denoiser, x: Tensor, condition: Condition, steps: int = 100) -> Tensor:
    """The noise (b, channels, height, width) from which `from_noise` comes to the images x, in as many passes as steps."""
    x, condition, times = denoiser.place(x), denoiser.place(condition), levels(denoiser, steps)
    velocity = GuidedVelocity(denoiser, condition, Sampling())
    with eval_mode(denoiser.net):
        *_, end = SOLVERS["dpm2"](velocity, x * velocity.coefficients(times[-1])[0], times[::-1])
    return end.z


@torch.no_grad()
def from_noise(denoiser: Denoiser, noise: Tensor, condition: Condition, steps: int = 100, guidance: float = 1.0) -> Tensor:
    """The images to which noise leads; of another class than they came from, images of that class with the same noise.
    guidance: towards that class; with another than 1 the way is not that of `to_noise`."""
    noise, condition, times = denoiser.place(noise), denoiser.place(condition), levels(denoiser, steps)
    velocity = GuidedVelocity(denoiser, condition, Sampling(guidance=guidance))
    with eval_mode(denoiser.net):
        *_, end = SOLVERS["dpm2"](velocity, noise, times)
    return end.z / velocity.coefficients(times[-1])[0]


def levels(denoiser: Denoiser, steps: int) -> list[float]:
    """Times from 0 on in equal steps of log(a / b), up to MAX_LEVEL; on the linear path a / b is t / (1 - t)."""
    if denoiser.diffusion.interpolant != "linear":
        raise ValueError(f"inversion needs the linear path; this model has the {denoiser.diffusion.interpolant} one")
    equal = [MIN_LEVEL + (MAX_LEVEL - MIN_LEVEL) * i / (steps - 1) for i in range(steps)]
    return [0.0, *(1 / (1 + exp(-level)) for level in equal)]


def between(first: Tensor, second: Tensor, count: int) -> Tensor:
    """Noise on the great circle from one to another, both ends included, (count, channels, height, width); on the straight line
    between noises of nearly the same direction."""
    angle = torch.acos(F.cosine_similarity(first.flatten(), second.flatten(), dim=0).clamp(-1, 1))
    shares = torch.linspace(0, 1, count, device=first.device).view(-1, *[1] * first.ndim)
    if torch.sin(angle) < 1e-3:
        return torch.lerp(first, second, shares)
    return (torch.sin((1 - shares) * angle) * first + torch.sin(shares * angle) * second) / torch.sin(angle)
