"""Dropout without a generator: masks are functions of keys, so that there is nothing to save, and any device draws the same."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASK_BLOCK = 2**23
"""Numbers whose masks dropout computes at a time in eager mode."""


class Dropout(nn.Module):
    """Dropout whose mask is a hash of an image's key and the element's index, so that there is no generator state to save.

    With keys set by `set_dropout_keys` an image's mask depends on them alone: not on its batch, the device, or recomputation
    (activation checkpointing). Without keys it is drawn from PyTorch's generator.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.keys: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        if self.keys is None:
            return F.dropout(x, self.rate)
        return torch.where(keep_mask(self.keys, x.shape[1:], self.rate), x / (1 - self.rate), 0.0)


def keep_mask(keys: Tensor, shape: Sequence[int], rate: float) -> Tensor:
    """Return the mask (b, *shape) of elements to keep: a hash of an image's key (b,) and the index, below 2^32, is at least
    rate * 2^32.

    A compiler fuses this into one pass. Eager mode hashes some images at a time: the 64-bit hashes of a whole batch would be
    many times as large as the activations.
    """
    # the first & keeps the compiler from merging the product into index arithmetic, which is int32 on a GPU
    places = (torch.arange(math.prod(shape), device=keys.device).view(*shape) & 0xFFFFFFFF) * 0x9E3779B1 & 0xFFFFFFFF
    some = len(keys) if torch.compiler.is_compiling() else max(1, MASK_BLOCK // places.numel())
    masks = [hash32(k.view(-1, *[1] * len(shape)) ^ places) >= round(rate * 2**32) for k in keys.split(some)]
    return torch.cat(masks) if len(masks) > 1 else masks[0]


def hash32(h: Tensor) -> Tensor:
    """Hash 32-bit numbers, held as int64 so that nothing overflows (two rounds of multiply and xor-shift). In int32, where
    products would wrap, the C++ that torch.compile generates for CPUs computes other numbers."""
    for _ in range(2):
        h = (h >> 16 ^ h) * 0x45D9F3B & 0xFFFFFFFF
    return h >> 16 ^ h


def dropout_layers(net: nn.Module) -> list[Dropout]:
    """Return the dropout layers of a network with a rate above 0, in order."""
    return [m for m in net.modules() if isinstance(m, Dropout) and m.rate]


def set_dropout_keys(net: nn.Module, keys: Tensor) -> None:
    """Fix the masks of the next pass: keys (layers, b), integers below 2^32, for the layers that `dropout_layers` lists."""
    for layer, its in zip(dropout_layers(net), keys, strict=True):
        layer.keys = its
