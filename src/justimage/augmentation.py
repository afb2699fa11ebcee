"""Augmentation that does not leak (Karras et al. 2022, App. F.2): images are scaled, turned, stretched and moved at random, and
the network is told how. Told nothing, as in sampling, it draws images as they are.

Each of the four is done with a probability, independently: scaled by 2^(0.2 n), turned by any angle, stretched by 2^(0.2 n)
along one axis and shrunk along the other, moved by n / 8 of a side along each axis; n is normal. Beyond its border an image is
mirrored. What is told are six numbers, 0 for nothing: n of the scale and of the stretch, the angle's cosine less 1 and its
sine, n of the moves to the right and down.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from justimage import randomness

SCALE, MOVE = 0.2, 1 / 8


def augment(x: Tensor, seed: int, position: int, probability: float) -> tuple[Tensor, Tensor]:
    """Images (b, channels, height, width) at position, position + 1, ..., augmented, and what was done (b, 6)."""
    positions = range(position, position + len(x))

    def each(what: str, number: Tensor, nothing: float = 0.0) -> Tensor:
        done = torch.from_numpy(randomness.uniform(seed, f"augment {what}", positions) < probability)
        return torch.where(done, number, nothing)

    def normal(what: str) -> Tensor:
        return randomness.normal(seed, f"augment {what} by", positions)

    scale, stretch = each("scale", normal("scale")), each("stretch", normal("stretch"))
    angle = each("turn", 2 * torch.pi * torch.from_numpy(randomness.uniform(seed, "augment turn by", positions)))
    right, down = each("move", normal("right")), each("move", normal("down"))
    told = torch.stack([scale, stretch, angle.cos() - 1, angle.sin(), right, down], 1)

    # from a place in the new image to the one in the old, in halves of a side
    height, width = x.shape[-2:]
    across, along = 2 ** (-SCALE * (scale + stretch)), 2 ** (-SCALE * (scale - stretch))
    c, s = angle.cos(), angle.sin()
    matrix = torch.stack(
        [
            torch.stack([across * c, across * s * height / width, -2 * MOVE * right], 1),
            torch.stack([-along * s * width / height, along * c, -2 * MOVE * down], 1),
        ],
        1,
    )
    changed = (told != 0).any(1).to(x.device)
    grid = F.affine_grid(matrix.float().to(x.device), list(x.shape), align_corners=False)
    moved = F.grid_sample(x.float(), grid, "bicubic", "reflection", align_corners=False)
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    moved = torch.minimum(torch.maximum(moved, low), high)  # bicubic overshoots
    return torch.where(changed.view(-1, 1, 1, 1), moved.to(x.dtype), x), told.float().to(x.device)
