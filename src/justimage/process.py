"""The diffusion process: x, eps, v, the noisy z between them, and what a network's output means.

Clean data x and noise eps are joined by a path z = a(t) x + b(t) eps (Eq. 1) that runs from noise at t = 0 to data at
t = 1; its speed is v = a'(t) x + b'(t) eps (Eq. 2). Given z and t, any one of x, eps and v determines the other two
(Eq. 5). So what a network predicts and where its error is measured are two independent choices (Table 1), and whatever
it predicts, it can be read as the velocity that a solver integrates (Eq. 4). The equations are worked out in
docs/method.md.

A network is any function `net(z, t, y) -> tensor like z`; this file reads its output and never looks inside.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from math import isfinite, pi
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Space = Literal["x", "eps", "v"]
Prediction = Literal["x", "eps", "v", "edm", "linear"]
PathName = Literal["linear", "trigonometric"]


class Path(NamedTuple):
    """The coefficients of z = a x + b eps at some t, and their time-derivatives."""

    a: Tensor
    b: Tensor
    da: Tensor
    db: Tensor


def linear(t: Tensor) -> Path:
    """z = t x + (1 - t) eps (Eq. 1)."""
    return Path(t, 1 - t, torch.ones_like(t), -torch.ones_like(t))


def trigonometric(t: Tensor) -> Path:
    """z = sin(pi t / 2) x + cos(pi t / 2) eps: a^2 + b^2 = 1, so the variance is preserved (footnote 1)."""
    a, b = torch.sin(pi / 2 * t), torch.cos(pi / 2 * t)
    return Path(a, b, pi / 2 * b, -pi / 2 * a)


PATHS: dict[str, Callable[[Tensor], Path]] = {"linear": linear, "trigonometric": trigonometric}


def convert(q: Tensor, source: Space, target: Space, z: Tensor, path: Path, clip: float = 0.0) -> Tensor:
    """Table 1: the quantity `target` at z, when the quantity `source` is q.

    q, z: (b, ...); the path's coefficients broadcast to them. Denominators a and b are kept at `clip` or above
    (Sec. 4.3). w = a'b - ab' is 1 on the linear path, where these lines are the paper's.
    """
    a, b, da, db = path
    w = da * b - a * db
    # fmt: off
    match source, target:
        case "x",   "eps": return (z - a * q)       / b.clamp(min=clip)
        case "x",   "v":   return (w * q + db * z)  / b.clamp(min=clip)
        case "eps", "x":   return (z - b * q)       / a.clamp(min=clip)
        case "eps", "v":   return (da * z - w * q)  / a.clamp(min=clip)
        case "v",   "x":   return (b * q - db * z)  / w
        case "v",   "eps": return (da * z - a * q)  / w
        case _:            return q
    # fmt: on


def finite(numbers: Any) -> None:
    """ValueError for a dataclass in which a float is infinite or not a number."""
    for f in fields(numbers):
        value = getattr(numbers, f.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not isfinite(number):
                raise ValueError(f"{f.name} is {value}; it must be finite")


@dataclass(frozen=True)
class Process:
    """A formulation: what the network predicts, where its error is measured, and how t and noise are drawn (Table 9).

    Times t are (b,) tensors or Python floats in [0, 1]; x, eps, z and outputs are (b, ...) floats, data in [-1, 1].
    Raises ValueError for a value outside its range.
    """

    prediction: Prediction = "x"
    """what the network outputs: x, eps or v; or a pre-conditioned x, "edm" or "linear" (App. B.2)"""
    loss: Space = "v"
    """the space in which the squared error is taken (Table 1, rows)"""
    path: PathName = "linear"
    """the schedule a, b of z = a x + b eps"""
    mu: float = -0.8
    """mean of logit(t); lower means noisier (Table 3)"""
    sigma: float = 0.8
    """standard deviation of logit(t)"""
    noise_scale: float = 1.0
    """standard deviation of eps; image size / 256 in the paper"""
    clip: float = 0.05
    """lower bound of denominators in training (Sec. 4.3)"""
    sampling_clip: float = 0.05
    """lower bound of denominators in sampling"""
    label_drop: float = 0.1
    """probability that a training label becomes "no class", for guidance"""
    classification: float = 0.0
    """lambda of the classification loss (App. B.3; the paper tries 100); 0 for none"""

    def __post_init__(self) -> None:
        finite(self)
        for name, kind in ("prediction", Prediction), ("loss", Space), ("path", PathName):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(get_args(kind))}")
        for name, low, high in (
            ("sigma", 0.0, float("inf")),
            ("noise_scale", 1e-6, float("inf")),
            ("clip", 0.0, 1.0),
            ("sampling_clip", 0.0, 1.0),
            ("label_drop", 0.0, 1.0),
            ("classification", 0.0, float("inf")),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: {low:g} to {high:g}")

    def time(self, normal: Tensor) -> Tensor:
        """t in (0, 1) with logit(t) ~ N(mu, sigma^2), from standard normal numbers (App. A, "Time distribution")."""
        return torch.sigmoid(self.mu + self.sigma * normal)

    def at(self, t: Tensor | float, like: Tensor) -> Path:
        """The path's coefficients at t, shaped to broadcast over `like`."""
        time = torch.as_tensor(t, dtype=like.dtype)
        return PATHS[self.path](time.reshape(-1, *[1] * (like.ndim - 1)) if time.ndim else time)

    def noisy(self, x: Tensor, eps: Tensor, t: Tensor | float) -> Tensor:
        """z between data and noise (Eq. 1)."""
        a, b, _, _ = self.at(t, x)
        return a * x + b * eps

    def read(self, output: Tensor, z: Tensor, path: Path) -> tuple[Space, Tensor]:
        """The network's output as one of x, eps, v: pre-conditioned outputs become x (Eq. 7)."""
        if self.prediction == "edm":
            c_skip, c_out = edm(path, self.noise_scale)
        elif self.prediction == "linear":
            c_skip, c_out = path.a, path.b
        else:
            return self.prediction, output
        return "x", c_skip * z + c_out * output

    def error(self, output: Tensor, x: Tensor, eps: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """Squared error of the output in the loss space, elementwise like x (Table 1; Eq. 6 is x, v).

        The truth passes through the same conversion as the prediction, so the clip reweights and never moves the target.
        """
        path = self.at(t, z)
        space, q = self.read(output, z, path)
        truth = {"x": x, "eps": eps, "v": path.da * x + path.db * eps}[space]

        def in_loss_space(value: Tensor) -> Tensor:
            return convert(value, space, self.loss, z, path, self.clip)

        return (in_loss_space(q) - in_loss_space(truth)) ** 2

    def objective(self, net: Callable[..., Tensor], x: Tensor, y: Tensor, t: Tensor, eps: Tensor, drop: Tensor) -> Tensor:
        """One training objective per image, (b,) (Algorithm 1): a mean over elements.

        y: (b,) class numbers; drop: (b,) booleans, where True the network is told "no class" (y = -1). With a
        classification loss (App. B.3) the squared error is summed instead and lambda times the cross-entropy is added;
        the classifier is never told the class, so dropped labels count too.
        """
        z = self.noisy(x, eps, t)
        told = torch.where(drop, -1, y)
        if not self.classification:
            return self.error(net(z, t, told).float(), x, eps, z, t).flatten(1).mean(1)
        output, logits = net(z, t, told, classify=True)
        cross_entropy = F.cross_entropy(logits.float(), y, reduction="none")
        return self.error(output.float(), x, eps, z, t).flatten(1).sum(1) + self.classification * cross_entropy

    def velocity(self, output: Tensor, z: Tensor, t: Tensor | float) -> Tensor:
        """dz/dt that the output stands for (Table 1, row 3), with the sampling clip."""
        path = self.at(t, z)
        space, q = self.read(output, z, path)
        return convert(q, space, "v", z, path, self.sampling_clip)

    def denoised(self, output: Tensor, z: Tensor, t: Tensor | float) -> Tensor:
        """The clean image that the output stands for (Table 1, row 1)."""
        path = self.at(t, z)
        space, q = self.read(output, z, path)
        return convert(q, space, "x", z, path, self.sampling_clip)

    def behind(self, v: Tensor, z: Tensor, t: Tensor | float) -> Tensor:
        """The clean image that stands behind a velocity: `velocity` undone, clip and all. Guidance commutes with it."""
        a, b, da, db = path = self.at(t, z)
        w = da * b - a * db
        if self.prediction == "v":
            return convert(v, "v", "x", z, path)
        if self.prediction == "eps":
            eps = (da * z - a.clamp(min=self.sampling_clip) * v) / w
            return convert(eps, "eps", "x", z, path, self.sampling_clip)
        return (b.clamp(min=self.sampling_clip) * v - db * z) / w


def edm(path: Path, noise_scale: float = 1.0, sigma_data: float = 0.5) -> tuple[Tensor, Tensor]:
    """EDM's c_skip and c_out with sigma_t = b / a (App. B.2), multiplied out so that t = 0 divides nothing by zero."""
    a, b = path.a * sigma_data, path.b * noise_scale
    return sigma_data * a / (a**2 + b**2), sigma_data * b / torch.sqrt(a**2 + b**2)


def to_uint8(x: Tensor) -> Tensor:
    """Floats in [-1, 1] to the nearest of 256 levels; what lies outside is clipped."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """uint8 levels to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


@lru_cache(maxsize=64)
def per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """One fp32 number a channel, (channels, 1, 1), copied to a device once: the device need not be waited for again."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


@dataclass(frozen=True)
class Units:
    """How numbers outside, (..., channels, height, width), stand for the process's floats x.

    Without statistics numbers outside are uint8 pixels, x = p / 127.5 - 1. With them they are floats in the data's own units,
    standardised per channel: x = (value - mean) / (2 deviation). The 2 gives x the deviation 0.5, about that of images
    in [-1, 1], so that the noise schedule, the noise scale and EDM's sigma_data = 0.5 mean what they mean there.
    """

    mean: tuple[float, ...] = ()
    """of each channel"""
    deviation: tuple[float, ...] = ()
    """standard deviation of each channel"""

    def __post_init__(self) -> None:
        finite(self)
        if len(self.mean) != len(self.deviation) or any(d < 0 for d in self.deviation):
            raise ValueError("units need one mean and one deviation, at least 0, for each channel")

    def statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and twice the deviation, to broadcast over images; 0 for what only rounding sets apart from constant."""
        twice = tuple(2 * d if d > 1e-7 * abs(m) else 0.0 for m, d in zip(self.mean, self.deviation, strict=True))
        return per_channel(self.mean, like.device), per_channel(twice, like.device)

    def inside(self, images: Tensor) -> Tensor:
        """Numbers outside as float32 x; a constant channel is 0."""
        if not self.mean:
            return from_uint8(images)
        mean, scale = self.statistics(images)
        return (images - mean) / torch.where(scale > 0, scale, 1.0)

    def outside(self, x: Tensor) -> Tensor:
        """x as numbers outside: uint8, rounded and clipped, or float32 in the data's units; a constant channel is its mean."""
        if not self.mean:
            return to_uint8(x)
        mean, scale = self.statistics(x)
        return x.float() * scale + mean

    def visible(self, images: Tensor) -> Tensor:
        """Numbers outside as uint8 for pictures: of floats, two deviations either way of the mean."""
        return to_uint8(self.inside(images)) if self.mean else images


@dataclass(frozen=True)
class Model:
    """A network, the process that says how to read it, and the units of its data: all that sampling needs.

    net: `net(z, t, y)` with `net.shape`, the shape of one image (channels, height, width), and `net.classes`.
    """

    net: torch.nn.Module
    process: Process
    units: Units = Units()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.net.shape  # pyright: ignore[reportReturnType]

    @property
    def classes(self) -> int:
        return self.net.classes  # pyright: ignore[reportReturnType]
