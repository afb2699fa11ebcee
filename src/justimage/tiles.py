"""Images larger than a network's own: by overlapping tiles that agree.

At every step the network predicts each tile, and where tiles overlap the predictions are averaged, those near a tile's middle
counting most; so all tiles are denoised towards one image (MultiDiffusion, Bar-Tal et al. 2023). As x, v and eps follow
linearly from each other at given z and t, it does not matter which of them is averaged.
"""

from dataclasses import replace
from itertools import product
from math import ceil

import torch
from torch import Tensor, nn

from justimage.conditions import Condition, map_tensors
from justimage.diffusion import with_extras
from justimage.sampling import Denoiser

OVERLAP = 0.5
"""Share of a tile's side that the next one covers, too."""


def tiled(denoiser: Denoiser, size: tuple[int, int], align: int = 1) -> Denoiser:
    """A denoiser of images of another size (height, width), by tiles of its own, each beginning at a multiple of `align`.

    ValueError for a size smaller than its own.
    """
    channels, *own = denoiser.shape
    if size[0] < own[0] or size[1] < own[1]:
        raise ValueError(f"{size[1]} x {size[0]} is smaller than the model's {own[1]} x {own[0]}; tiles are for larger ones")
    if any((n - k) % align for n, k in zip(size, own, strict=True)):
        raise ValueError(f"{size[1]} x {size[0]} and the model's {own[1]} x {own[0]} must differ by multiples of {align}")
    return replace(denoiser, net=TiledNet(denoiser.net, size, (own[0], own[1]), align), shape=(channels, *size))


class TiledNet(nn.Module):
    """A network of larger images, (b, channels, *size): the weighted mean of its tiles. Conditions of that size are cut
    alike."""

    def __init__(self, net: nn.Module, size: tuple[int, int], tile: tuple[int, int], align: int = 1) -> None:
        super().__init__()
        self.net, self.size, self.tile = net, size, tile
        self.corners = list(product(starts(size[0], tile[0], align), starts(size[1], tile[1], align)))
        down, along = (torch.sin(torch.pi * (torch.arange(k) + 0.5) / k).square() + 1e-3 for k in tile)
        self.weights: Tensor
        self.register_buffer("weights", down[:, None] * along, persistent=False)

    def cut(self, x: Tensor, corner: tuple[int, int]) -> Tensor:
        """A tile of images."""
        return x[..., corner[0] : corner[0] + self.tile[0], corner[1] : corner[1] + self.tile[1]]

    def forward(self, z: Tensor, t: Tensor, y: Condition = None) -> Tensor:
        weights = self.weights.to(z.device)
        total, output = torch.zeros(self.size, device=z.device), torch.zeros_like(z, dtype=torch.float32)
        for corner in self.corners:
            condition = map_tensors(lambda tensor, corner=corner: self.cut(tensor, corner) if tensor.ndim == 4 else tensor, y)
            predicted, _ = with_extras(self.net(self.cut(z, corner), t, condition))
            self.cut(output, corner).add_(predicted.float() * weights)
            self.cut(total, corner).add_(weights)
        return (output / total).to(z.dtype)


def starts(length: int, tile: int, align: int) -> list[int]:
    """Where tiles begin, evenly, the last one at the end."""
    count = 1 + ceil((length - tile) / (tile * (1 - OVERLAP)))
    return [round(i * (length - tile) / max(count - 1, 1) / align) * align for i in range(count)]
