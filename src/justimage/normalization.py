"""How an image's own numbers stand for the floats around [-1, 1] that a diffusion works on."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from justimage.checks import check_finite


def to_uint8(x: Tensor) -> Tensor:
    """Floats in [-1, 1] to the nearest of 256 levels; values outside are clipped."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """uint8 levels to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


@lru_cache(maxsize=64)
def per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """One fp32 number a channel, (channels, 1, 1), copied to a device once: later calls do not wait for the device."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


@dataclass(frozen=True)
class Normalization:
    """Converts images (..., channels, height, width) to the diffusion's x and back.

    Without statistics images are uint8 pixels, x = p / 127.5 - 1. With them they are floats in the data's own units,
    standardised per channel: x = (value - mean) / (2 std). The 2 gives x the deviation 0.5, about that of images in [-1, 1], so
    that the noise schedule, the noise scale and EDM's sigma_data = 0.5 mean what they mean there.
    """

    mean: tuple[float, ...] = ()
    """of each channel"""
    std: tuple[float, ...] = ()
    """standard deviation of each channel"""

    def __post_init__(self) -> None:
        check_finite(self)
        if len(self.mean) != len(self.std) or any(d < 0 for d in self.std):
            raise ValueError("a normalization needs one mean and one std, at least 0, for each channel")

    def statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and twice the deviation, to broadcast over images; 0 for a channel that differs from a constant by rounding."""
        twice = tuple(2 * d if d > 1e-7 * abs(m) else 0.0 for m, d in zip(self.mean, self.std, strict=True))
        return per_channel(self.mean, like.device), per_channel(twice, like.device)

    def normalize(self, images: Tensor) -> Tensor:
        """Images to float32 x; a constant channel becomes 0."""
        if not self.mean:
            return from_uint8(images)
        mean, scale = self.statistics(images)
        return (images - mean) / torch.where(scale > 0, scale, 1.0)

    def denormalize(self, x: Tensor) -> Tensor:
        """x to images: uint8, rounded and clipped, or float32 in the data's units; a constant channel becomes its mean."""
        if not self.mean:
            return to_uint8(x)
        mean, scale = self.statistics(x)
        return x.float() * scale + mean

    def to_uint8(self, images: Tensor) -> Tensor:
        """Images as uint8, to be looked at: floats are shown from two deviations below the mean to two above."""
        return to_uint8(self.normalize(images)) if self.mean else images


def identity(channels: int) -> Normalization:
    """For floats that are in [-1, 1] already: x is the image."""
    return Normalization((0.0,) * channels, (0.5,) * channels)
