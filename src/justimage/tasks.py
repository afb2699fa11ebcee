"""Tasks made from the images themselves: a network that is told a grey, small, blurred, noisy or cut image, or its edges, draws
the whole one (Saharia et al. 2022, "Palette").

A task is a word, with a number where it needs one: colour, upscale:4, deblur:1.5, denoise:0.2, inpaint, edges. What it tells
about an image is a function of the seed and the image's position in the training, so that a training resumes exactly.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from justimage import randomness
from justimage.measurements import averages, blur, grey

Make = Callable[[Tensor, int, Sequence[int]], Tensor]
"""make(x, seed, positions) -> an image (b, channels, height, width) about x (b, ...), at these positions."""
BRUSH = 0.08
"""Half the width of a stroke, in sides of an image."""


@dataclass(frozen=True)
class Task:
    """A task for images of a shape."""

    channels: int
    """of the image that is told"""
    make: Make
    given: Callable[[Tensor], Tensor] | None
    """what is told of an image that is already grey, small, blurred or noisy; None where the image does not say enough"""
    simplest: Callable[[Tensor], Tensor]
    """an answer that needs no network, of what is told"""
    factor: int = 1
    """how much smaller an image is that is given"""


def open_task(word: str, shape: tuple[int, int, int]) -> Task:
    """A task by its word, for images (channels, height, width); ValueError, in one line, for one that there is not."""
    name, _, number = word.partition(":")
    channels, *size = shape
    if name not in NUMBERS:
        near = difflib.get_close_matches(name, NUMBERS, n=1)
        hint = f"perhaps {near[0]}" if near else f"there are {', '.join(NUMBERS)}"
        raise ValueError(f"no task is called {name!r}; {hint}")
    needs = NUMBERS[name]
    try:
        value = float(number) if number else None
    except ValueError:
        value = None
    if (needs is None) != (number == "") or (needs and (value is None or not needs[0] <= value <= needs[1])):
        allowed = f"{name}:NUMBER, of {needs[0]:g} to {needs[1]:g}" if needs else name
        raise ValueError(f"task is {word!r}; allowed: {allowed}")
    match name:
        case "colour":
            if channels != 3:
                raise ValueError(f"task colour needs images of 3 channels; these have {channels}")
            return Task(1, lambda x, *_: grey(channels).forward(x), grey(channels).forward, grey(channels).inverse)
        case "upscale":
            factor = int(value or 0)
            if factor != value or size[0] % factor or size[1] % factor:
                raise ValueError(f"task is {word!r}; its number must divide {size[1]} x {size[0]}")
            known = averages(factor)

            def interpolated(told: Tensor) -> Tensor:
                return F.interpolate(known.forward(told), size=size, mode="bicubic").clamp(-1, 1)

            return Task(channels, lambda x, *_: known.inverse(known.forward(x)), known.inverse, interpolated, factor)
        case "deblur":
            known = blur(value or 0.0, (size[0], size[1]))
            return Task(channels, lambda x, *_: known.forward(x), unchanged, unchanged)
        case "denoise":
            level = value or 0.0
            return Task(channels, lambda x, seed, at: x + level * noise_like(x, seed, at), unchanged, unchanged)
        case "inpaint":
            return Task(channels + 1, cut, None, lambda told: told[:, :channels])
        case _:
            return Task(1, lambda x, *_: edges(x), edges, lambda told: told.expand(-1, channels, -1, -1))


NUMBERS: dict[str, tuple[float, float] | None] = {
    "colour": None, "upscale": (2, 64), "deblur": (0.1, 100), "denoise": (0.001, 10), "inpaint": None, "edges": None,
}  # fmt: skip
"""The tasks, and the least and the largest number of those that have one."""


def unchanged(x: Tensor) -> Tensor:
    return x


def noise_like(x: Tensor, seed: int, positions: Sequence[int]) -> Tensor:
    """Standard normal noise of its own at each position."""
    generators = (torch.Generator().manual_seed(randomness.key(seed, "task", position)) for position in positions)
    return torch.stack([torch.randn(x.shape[1:], generator=generator) for generator in generators]).to(x)


def cut(x: Tensor, seed: int, positions: Sequence[int]) -> Tensor:
    """Images with a part left out, and a channel that is 1 where they are known."""
    mask = known_parts(seed, positions, (x.shape[2], x.shape[3])).to(x)
    return torch.cat([x * mask, mask], 1)


def known_parts(seed: int, positions: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Masks (b, 1, height, width), 1 where an image is known: of half the images a box is cut out, of the others a stroke."""

    def number(what: str, low: float, high: float) -> Tensor:
        drawn = randomness.uniform(seed, f"task {what}", list(positions))
        return torch.from_numpy(low + (high - low) * drawn).float().view(-1, 1, 1)

    y = ((torch.arange(size[0]) + 0.5) / size[0])[None, :, None]
    x = ((torch.arange(size[1]) + 0.5) / size[1])[None, None, :]
    x0, y0, x1, y1 = (number(f"place {i}", 0.0, 1.0) for i in range(4))
    half_width, half_height = number("width", 0.1, 0.3), number("height", 0.1, 0.3)
    box = ((x - 0.2 - 0.6 * x0).abs() < half_width) & ((y - 0.2 - 0.6 * y0).abs() < half_height)
    across, along = x1 - x0, y1 - y0
    nearest = (((x - x0) * across + (y - y0) * along) / (across**2 + along**2 + 1e-6)).clamp(0, 1)
    stroke = ((x - x0 - nearest * across) ** 2 + (y - y0 - nearest * along) ** 2).sqrt() < BRUSH
    cut_out = torch.where(number("kind", 0.0, 1.0) < 0.5, box, stroke)
    return 1 - cut_out[:, None].float()


def edges(x: Tensor) -> Tensor:
    """The steepness of the mean of the channels (Sobel), (b, 1, height, width)."""
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=x.device, dtype=x.dtype)
    padded = F.pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    slopes = F.conv2d(padded, torch.stack([sobel, sobel.T])[:, None] / 4)
    return slopes.square().sum(1, keepdim=True).sqrt()
