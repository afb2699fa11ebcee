"""Random numbers as functions of (seed, stream, position), so that no generator's state has to be saved.

The address (seed, stream, position) is hashed to 64 bits. Numbers for an image (order, flip, t, label drop, dropout keys) are
computed from the hash; large tensors (noise) come from PyTorch's generator seeded with it, on the device, NOISE_BLOCK images
at a time. The position of an image is the number of images seen before it, so a resumed, regrouped or redistributed training
draws what the uninterrupted one would have drawn (noise, on devices of one kind: PyTorch's generators differ between CPU and
GPU).

PyTorch's generator for CPUs uses 32 bits of its seed: among n images drawn there, about n^2 / 2^33 pairs have the same noise
(22 in 400,000; none among the seeds 0 to 49,999). CUDA's uses all 64.

The hash, in arithmetic modulo 2^64: h = mix(seed); h = mix(h ^ fnv(stream)); h = mix(h ^ p) for each position p in turn,
where mix is the finaliser of SplitMix64 after adding its increment, and fnv is FNV-1a of the stream's UTF-8 name.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

NOISE_BLOCK = 8
"""Images whose noise is drawn together; the noise of any batch is cut from whole blocks."""


def mix(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's step and finaliser (Steele, Lea and Flood 2014)."""
    h = h + np.uint64(0x9E3779B97F4A7C15)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def fnv(text: str) -> int:
    """FNV-1a, 64 bits."""
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return h


def keys(seed: int, stream: str, *positions: ArrayLike) -> NDArray[np.uint64]:
    """The hash of each address, at least one-dimensional; positions broadcast against each other."""
    h = mix(np.atleast_1d(np.uint64(seed % 2**64)))
    h = mix(h ^ np.uint64(fnv(stream)))
    for position in positions:
        h = mix(h ^ np.asarray(position).astype(np.uint64))
    return h


def key(seed: int, stream: str, *positions: int) -> int:
    """The hash of one address as a seed for PyTorch (63 bits)."""
    return int(keys(seed, stream, *positions)[0] >> np.uint64(1))


def uniform(seed: int, stream: str, *positions: ArrayLike) -> NDArray[np.float64]:
    """A number in (0, 1) for each address: the upper 53 bits of its hash."""
    return ((keys(seed, stream, *positions) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normal(seed: int, stream: str, *positions: ArrayLike) -> Tensor:
    """A standard normal number (float64) for each address: the inverse normal distribution function of `uniform`."""
    return torch.special.ndtri(torch.from_numpy(uniform(seed, stream, *positions)))


@lru_cache(maxsize=4)
def order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The order of an epoch, a permutation of range(count): the indices sorted by their hash."""
    return np.argsort(keys(seed, "order", epoch, np.arange(count)), kind="stable")


def subset(count: int, most: int) -> NDArray[np.int64]:
    """The indices, ascending, of `most` of `count` images drawn at random, the same each time; of all if there are no more.

    Every n-th image would not do: of a set whose classes take turns it may leave most of them out.
    """
    return np.sort(order(0, 0, count)[:most]) if count > most else np.arange(count)


def noise(seed: int, start: int, count: int, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise (count, *shape) for the images at positions start, start + 1, ..., drawn on the device."""
    first, last = start // NOISE_BLOCK, (start + count - 1) // NOISE_BLOCK
    generator = torch.Generator(device)
    blocks = []
    for block in range(first, last + 1):
        generator.manual_seed(key(seed, "noise", block))
        blocks.append(torch.randn(NOISE_BLOCK, *shape, generator=generator, device=device))
    joined = torch.cat(blocks) if len(blocks) > 1 else blocks[0]
    return joined[start - first * NOISE_BLOCK :][:count]


def image_noise(seed: int, shape: Sequence[int], number: int = 0) -> Tensor:
    """Standard normal noise for the image of a seed, drawn on the CPU, so that it is the same on every device. number: 0 for
    the noise that it begins with; 1, 2, ... for what a stochastic solver adds."""
    address = (number,) if number else ()
    return torch.randn(*shape, generator=torch.Generator().manual_seed(key(seed, "sample", *address)))
