"""The images that come with the package: scikit-learn's handwritten digits as they are, and composed on textures.

Of the second each image shows a handwritten digit in white, at some place and of some size, on one of ten dark patterns,
shifted at random. A class is a digit on a pattern, so there are a hundred. Strokes and patterns cross the borders of patches.
Image i is a function of i alone, drawn at any size.
"""

import hashlib
import math
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from justimage import disk, randomness
from justimage.data.arrays import ArraySource

DEFAULT_SIZE = 32, 32
IMAGES = 10_000
SEED = 0
DISTANCE, SIDE = (0.0, 0.12), (0.65, 0.8)
"""Of the digit: from the middle how far, and how large, in sides of an image."""
LIGHT = 0.3
"""Of the patterns, between black and this."""
PERIODS = ("fine", 9), ("coarse", 5)
"""Periods of a pattern across an image: not whole in a patch, so that neighbouring patches have to agree."""
SUPERSAMPLING = 2
"""Each pixel is the mean of so many squared."""
CHUNK = 100
"""Images drawn at a time."""


def digits(size: tuple[int, int] = DEFAULT_SIZE) -> ArraySource:
    """The 1,797 handwritten digits that scikit-learn carries (8 x 8, 16 levels of grey), enlarged (bicubic)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("the digits need scikit-learn: pip install 'justimage[demo]'") from error
    pixels, labels = load_digits(return_X_y=True)
    small = np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(d).resize((size[1], size[0]), Image.Resampling.BICUBIC)) for d in small])
    fingerprint = hashlib.sha256(small.tobytes() + labels.astype(np.int64).tobytes()).hexdigest()
    return ArraySource(torch.from_numpy(images)[:, None], torch.from_numpy(labels), [str(i) for i in range(10)], fingerprint)


def edge(phase: Tensor) -> Tensor:
    """A square wave of period 1 with short slopes, in [-1, 1]."""
    return (3 * (2 * math.pi * phase).sin()).clamp(-1, 1)


PATTERNS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rows": lambda a, b: edge(b),
    "columns": lambda a, b: edge(a),
    "rising": lambda a, b: edge((a + b) / 2),
    "falling": lambda a, b: edge((a - b) / 2),
    "checks": lambda a, b: edge(a / 2) * edge(b / 2),
}
"""Values in [-1, 1] at coordinates in periods, (b, height, width) each."""
GROUNDS = [(f"{size} {name}", periods, pattern) for size, periods in PERIODS for name, pattern in PATTERNS.items()]
"""The ten grounds: a name, periods across an image, a pattern."""


@lru_cache(maxsize=2)
def textured_digits(size: tuple[int, int]) -> ArraySource:
    """The IMAGES images of a size (height, width), with their hundred classes in turn: drawn in ten seconds at 64 x 64, then
    kept in the cache."""
    small = digits((8, 8))
    names = [f"{digit} on {name}" for digit in range(10) for name, _, _ in GROUNDS]
    facts = [small.fingerprint, IMAGES, SEED, DISTANCE, SIDE, LIGHT, PERIODS, SUPERSAMPLING, names, size]
    fingerprint = hashlib.sha256(repr(facts).encode()).hexdigest()
    labels = torch.arange(IMAGES) % (10 * len(GROUNDS))
    kept = disk.cache_dir("textured-digits") / f"{size[0]}x{size[1]}-{fingerprint[:16]}.safetensors"
    try:
        images = load_file(kept)["images"]
    except (OSError, SafetensorError):
        by_digit = [torch.nonzero(small.labels == d).flatten() for d in range(10)]
        chunks = torch.arange(IMAGES).split(CHUNK)
        drawn = [draw_textured(chunk.numpy(), labels[chunk], small.images, by_digit, size) for chunk in chunks]
        images = torch.cat(drawn)[:, None]
        with suppress(OSError):  # a cache that cannot be written
            disk.write(kept, save({"images": images}))
    return ArraySource(images, labels, names, fingerprint)


def draw_textured(indices: np.ndarray, labels: Tensor, ink: Tensor, by_digit: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Images (b, height, width), uint8, of b indices and classes."""

    def random(what: str, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.from_numpy(low + (high - low) * randomness.uniform(SEED, what, indices)).float()[:, None, None]

    height, width = (SUPERSAMPLING * side for side in size)
    y = ((torch.arange(height) + 0.5) / height - 0.5)[None, :, None]
    x = ((torch.arange(width) + 0.5) / width - 0.5)[None, None, :]
    direction, distance, side = random("direction", 0, 2 * math.pi), random("distance", *DISTANCE), random("side", *SIDE)
    left, top = (x - distance * direction.cos()) / side, (y - distance * direction.sin()) / side
    numbers = zip((labels // len(GROUNDS)).tolist(), random("handwriting").flatten().tolist(), strict=True)
    chosen = torch.stack([by_digit[digit][int(u * len(by_digit[digit]))] for digit, u in numbers])
    places = torch.stack(torch.broadcast_tensors(2 * left, 2 * top), -1)
    blurred = F.grid_sample(ink[chosen].float() / 255, places, "bicubic", "zeros", align_corners=False)[:, 0]
    page = ground(x, y, labels % len(GROUNDS), random)
    page = page + ((blurred - 0.3) / 0.3).clamp(0, 1) * (1 - page)
    pixels = F.avg_pool2d(page.clamp(0, 1)[:, None], SUPERSAMPLING)[:, 0]
    return (255 * pixels).round().to(torch.uint8)


def ground(x: Tensor, y: Tensor, grounds: Tensor, random: Callable[..., Tensor]) -> Tensor:
    """Each image's pattern, shifted."""
    page = torch.empty(torch.broadcast_shapes(x.shape, y.shape, (len(grounds), 1, 1)))
    for number, (_, periods, pattern) in enumerate(GROUNDS):
        chosen = grounds == number
        a, b = (periods * place + 2 * random(f"shift {axis}")[chosen] for axis, place in (("a", x), ("b", y)))
        page[chosen] = LIGHT * (1 + pattern(*torch.broadcast_tensors(a, b))) / 2
    return page


BUILT_IN: dict[str, Callable[[tuple[int, int]], ArraySource]] = {"digits": digits, "textured-digits": textured_digits}
"""By the name that `--data` takes; grey, of any size (height, width)."""
