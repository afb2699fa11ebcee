"""Linear measurements of images: y = A x, and the pseudo-inverse A^+, by which an image is made to have a measurement."""

from collections.abc import Callable
from dataclasses import dataclass
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Measurement:
    """A linear map of images (b, channels, height, width), and its pseudo-inverse."""

    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """The nearest images that have the measurement y."""
        return x + self.inverse(y - self.forward(x))


def known_pixels(mask: Tensor) -> Measurement:
    """The pixels where `mask`, (height, width) or like an image, is 1."""
    return Measurement(lambda x: x * mask.to(x.device), lambda y: y * mask.to(y.device))


def averages(factor: int) -> Measurement:
    """Each pixel of an image `factor` times smaller: the mean of a square."""
    return Measurement(
        lambda x: F.avg_pool2d(x, factor), lambda y: y.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    )


def grey(channels: int) -> Measurement:
    """The mean of the channels."""
    return Measurement(lambda x: x.mean(1, keepdim=True), lambda y: y.expand(-1, channels, -1, -1))


def blur(sigma: float, size: tuple[int, int], noise: float = 1e-3) -> Measurement:
    """A Gaussian blur of `sigma` pixels of images (height, width), across their borders to the other side. Its inverse leaves
    out frequencies that the blur leaves less than `noise` of."""
    down, along = torch.fft.fftfreq(size[0])[:, None], torch.fft.rfftfreq(size[1])[None, :]
    kept = torch.exp(-2 * (pi * sigma) ** 2 * (down**2 + along**2))
    inverted = torch.where(kept > noise, 1 / kept, 0)

    def filtered(images: Tensor, factor: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(images) * factor.to(images.device), s=size)

    return Measurement(lambda x: filtered(x, kept), lambda y: filtered(y, inverted))
