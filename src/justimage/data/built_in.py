"""The images that come with the package: scikit-learn's handwritten digits as they are, and composed on textures.

Of the second each image shows two handwritings of one digit at two places, in two sizes and tones, on one of ten fine
textures. A class is a digit on a texture, so there are a hundred. Strokes and textures cross the borders of patches, and are
finer than 32 x 32 pixels show. Image i is a function of i alone, drawn at any size.
"""

import hashlib
import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from justimage import randomness
from justimage.data.arrays import ArraySource

DEFAULT_SIZE = 32, 32
IMAGES = 10_000
SEED = 0
COPIES, DISTANCE, SIDE = 2, (0.22, 0.25), (0.42, 0.52)
"""Of the digits: how many there are, from the middle how far, and how large, in sides of an image."""
PERIODS, CONTRAST = 8, (0.05, 0.1)
"""Of the textures: periods across an image, and half the difference between light and dark."""
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


def bricks(a: Tensor, b: Tensor) -> Tensor:
    """Light joints between bricks four by two periods large, every other row shifted by half of one."""
    row, column = b / 2, a / 4 + ((b / 2).floor() % 2) / 2
    joint = torch.maximum((row % 1 - 0.5).abs() - 0.4, 2 * ((column % 1 - 0.5).abs() - 0.45))
    return 2 * (20 * joint).clamp(0, 1) - 1


def weave(a: Tensor, b: Tensor) -> Tensor:
    over = edge(a / 4) * edge(b / 4) > 0
    return torch.where(over, edge(a), edge(b))


TEXTURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plain": lambda a, b: ((a + b) / PERIODS).sin(),
    "rows": lambda a, b: edge(b),
    "columns": lambda a, b: edge(a),
    "rising": lambda a, b: edge((a + b) / 2),
    "falling": lambda a, b: edge((a - b) / 2),
    "checks": lambda a, b: edge(a / 2) * edge(b / 2),
    "dots": lambda a, b: (2 * ((2 * math.pi * a).cos() + (2 * math.pi * b).cos() - 0.5)).clamp(-1, 1),
    "waves": lambda a, b: edge(b + 0.4 * (2 * math.pi * a / 4).sin()),
    "bricks": bricks,
    "weave": weave,
}
"""Values in about [-1, 1] at coordinates in periods, (b, height, width) each."""


@lru_cache(maxsize=2)
def textured_digits(size: tuple[int, int]) -> ArraySource:
    """The IMAGES images of a size (height, width), with their hundred classes in turn: drawn in ten seconds at 64 x 64."""
    small = digits((8, 8))
    by_digit = [torch.nonzero(small.labels == d).flatten() for d in range(10)]
    labels = torch.arange(IMAGES) % (10 * len(TEXTURES))
    images = torch.empty(IMAGES, 1, *size, dtype=torch.uint8)
    for start in range(0, IMAGES, CHUNK):
        chunk = slice(start, start + CHUNK)
        images[chunk, 0] = draw_textured(np.arange(start, start + CHUNK), labels[chunk], small.images, by_digit, size)
    names = [f"{digit} on {texture}" for digit in range(10) for texture in TEXTURES]
    facts = [small.fingerprint, IMAGES, SEED, COPIES, DISTANCE, SIDE, PERIODS, CONTRAST, SUPERSAMPLING, names, size]
    return ArraySource(images, labels, names, hashlib.sha256(repr(facts).encode()).hexdigest())


def draw_textured(indices: np.ndarray, labels: Tensor, ink: Tensor, by_digit: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Images (b, height, width), uint8, of b indices and classes."""

    def random(what: str, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.from_numpy(low + (high - low) * randomness.uniform(SEED, what, indices)).float()[:, None, None]

    height, width = (SUPERSAMPLING * side for side in size)
    y = ((torch.arange(height) + 0.5) / height)[None, :, None]
    x = ((torch.arange(width) + 0.5) / width)[None, None, :]
    page = ground(x - 0.5, y - 0.5, labels % len(TEXTURES), random)
    direction, distance = random("direction", 0, 2 * math.pi), random("distance", *DISTANCE)
    for copy in range(COPIES):
        turn = direction + 2 * math.pi * copy / COPIES
        side = random(f"side {copy}", *SIDE)
        left = (x - 0.5 - distance * turn.cos()) / side
        top = (y - 0.5 - distance * turn.sin()) / side
        choice = random(f"handwriting {copy}").flatten()
        chosen = [
            by_digit[d][int(u * len(by_digit[d]))] for d, u in zip((labels // len(TEXTURES)).tolist(), choice, strict=True)
        ]
        places = torch.stack(torch.broadcast_tensors(2 * left, 2 * top), -1)
        blurred = F.grid_sample(ink[torch.stack(chosen)].float() / 255, places, "bicubic", "zeros", align_corners=False)[:, 0]
        covered = ((blurred - 0.3) / 0.3).clamp(0, 1)
        tone = torch.where(random(f"light {copy}") < 0.5, random(f"tone {copy}", 0.0, 0.08), random(f"tone {copy}", 0.92, 1.0))
        page = page + covered * (tone - page)
    pixels = F.avg_pool2d(page.clamp(0, 1)[:, None], SUPERSAMPLING)[:, 0]
    return (255 * pixels).round().to(torch.uint8)


def ground(x: Tensor, y: Tensor, textures: Tensor, random: Callable[..., Tensor]) -> Tensor:
    """Each image's texture, shifted, around a middle tone."""
    a = PERIODS * x + random("shift a", 0, PERIODS)
    b = PERIODS * y + random("shift b", 0, PERIODS)
    a, b = torch.broadcast_tensors(a, b)
    pattern = torch.empty_like(a)
    for number, texture in enumerate(TEXTURES.values()):
        chosen = textures == number
        pattern[chosen] = texture(a[chosen], b[chosen])
    return random("ground", 0.4, 0.6) + random("contrast", *CONTRAST) * pattern


BUILT_IN: dict[str, Callable[[tuple[int, int]], ArraySource]] = {"digits": digits, "textured-digits": textured_digits}
"""By the name that `--data` takes; grey, of any size (height, width)."""
