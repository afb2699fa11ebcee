"""Modules that torch.export can trace: a network without extras, and a sampler with all steps of its solver."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from justimage.conditions import Condition, map_tensors
from justimage.diffusion import with_extras
from justimage.sampling import Denoiser, GuidedVelocity, Sampling
from justimage.solvers import SOLVERS


class BareNetwork(nn.Module):
    """A network without its extras."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return with_extras(self.net(z, t, condition))[0]


class UnrolledVelocity(GuidedVelocity):
    """A velocity that knows the path's coefficients as numbers: while tracing, a tensor has no value to read."""

    path: Mapping[float, tuple[float, float]]

    def coefficients(self, t: float) -> tuple[float, float]:
        return self.path[t]


class UnrolledSampler(nn.Module):
    """Standard normal noise (b, *shape) and a condition to the images that `sample` makes of them."""

    def __init__(self, model: Denoiser, sampling: Sampling) -> None:
        super().__init__()
        self.net, self.model, self.sampling = model.net, model, sampling
        velocity = GuidedVelocity(model, None, sampling)
        self.path = {t: velocity.coefficients(t) for t in sampling.grid}

    def forward(self, noise: Tensor, condition: Condition) -> Tensor:
        velocity = UnrolledVelocity(self.model, condition, self.sampling)
        velocity.path = self.path
        *_, last = SOLVERS[self.sampling.solver](velocity, noise * self.model.diffusion.noise_scale, self.sampling.grid)
        return self.model.normalization.denormalize(last.z)


def batch_sizes(example: tuple[Any, ...]) -> tuple[Any, ...]:
    """Which sizes of these arguments are any number: the first of each tensor, the batch."""
    batch = torch.export.Dim("batch")
    return tuple(map_tensors(lambda _: {0: batch}, argument) for argument in example)  # pyright: ignore[reportArgumentType]
