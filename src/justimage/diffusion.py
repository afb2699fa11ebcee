"""The diffusion process: x, eps, v, the noisy z between them, and what a network's output means.

Clean data x and noise eps are joined by a path z = a(t) x + b(t) eps (Eq. 1) that runs from noise at t = 0 to data at
t = 1; its speed is v = a'(t) x + b'(t) eps (Eq. 2). Given z and t, any one of x, eps and v determines the other two
(Eq. 5). So what a network predicts and where its error is measured are two independent choices (Table 1), and whatever
it predicts, it can be read as the velocity that a solver integrates (Eq. 4). The equations are worked out in
docs/method.md.

A network is any function `net(z, t, condition) -> tensor like z`; this file interprets its output and never looks inside.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, pi
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from justimage.checks import check_choice, check_finite, check_range
from justimage.conditions import Condition, class_numbers, drop

Space = Literal["x", "eps", "v"]
Prediction = Literal["x", "eps", "v", "edm", "linear"]
Interpolant = Literal["linear", "trigonometric"]


class Coefficients(NamedTuple):
    """The coefficients of z = a x + b eps at some t, and their time-derivatives."""

    a: Tensor
    b: Tensor
    da: Tensor
    db: Tensor


def linear(t: Tensor) -> Coefficients:
    """z = t x + (1 - t) eps (Eq. 1)."""
    return Coefficients(t, 1 - t, torch.ones_like(t), -torch.ones_like(t))


def trigonometric(t: Tensor) -> Coefficients:
    """z = sin(pi t / 2) x + cos(pi t / 2) eps: a^2 + b^2 = 1, so the variance is preserved (footnote 1)."""
    a, b = torch.sin(pi / 2 * t), torch.cos(pi / 2 * t)
    return Coefficients(a, b, pi / 2 * b, -pi / 2 * a)


INTERPOLANTS: dict[str, Callable[[Tensor], Coefficients]] = {"linear": linear, "trigonometric": trigonometric}


def convert(q: Tensor, source: Space, target: Space, z: Tensor, path: Coefficients, clip: float = 0.0) -> Tensor:
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


Net = Callable[[Tensor, Tensor, Any], Any]
"""net(z, t, condition) -> output like z, or (output, extras): a dict of tensors for auxiliary losses."""


class Batch(NamedTuple):
    """A batch of b images with its random numbers."""

    x: Tensor
    """clean images (b, ...)"""
    condition: Condition
    t: Tensor
    """times (b,)"""
    eps: Tensor
    """noise, like x, of deviation noise_scale"""
    dropped: Tensor
    """(b,) booleans: where the condition is replaced by the null condition"""


@dataclass(frozen=True)
class Diffusion:
    """A formulation: what the network predicts, where its error is measured, and how t and noise are drawn (Table 9).

    Times t are (b,) tensors or Python floats in [0, 1]; x, eps, z and outputs are (b, ...) floats, data in [-1, 1].
    Raises ValueError for a value outside its range.
    """

    prediction: Prediction = "x"
    """what the network outputs: x, eps or v; or a pre-conditioned x, "edm" or "linear" (App. B.2)"""
    loss_space: Space = "v"
    """the space in which the squared error is taken (Table 1, rows)"""
    interpolant: Interpolant = "linear"
    """the schedule a, b of z = a x + b eps"""
    mu: float = -0.8
    """mean of logit(t); lower means noisier (Table 3)"""
    sigma: float = 0.8
    """standard deviation of logit(t)"""
    noise_scale: float = 1.0
    """standard deviation of eps; image size / 256 in the paper"""
    t_clip: float = 0.05
    """lower bound of denominators in training (Sec. 4.3)"""
    label_drop: float = 0.1
    """probability that a training label becomes "no class", for guidance"""
    class_loss_weight: float = 0.0
    """lambda of the classification loss (App. B.3; the paper tries 100); 0 for none"""

    def __post_init__(self) -> None:
        check_finite(self)
        check_choice(self, prediction=get_args(Prediction), loss_space=get_args(Space), interpolant=INTERPOLANTS)
        check_range(self, sigma=(0, inf), noise_scale=(1e-6, inf), t_clip=(0, 1), label_drop=(0, 1), class_loss_weight=(0, inf))

    def sample_t(self, normal: Tensor) -> Tensor:
        """t in (0, 1) with logit(t) ~ N(mu, sigma^2), from standard normal numbers (App. A, "Time distribution")."""
        return torch.sigmoid(self.mu + self.sigma * normal)

    def coefficients(self, t: Tensor | float, like: Tensor) -> Coefficients:
        """The path's coefficients at t, shaped to broadcast over `like`."""
        time = torch.as_tensor(t, dtype=like.dtype)
        return INTERPOLANTS[self.interpolant](time.reshape(-1, *[1] * (like.ndim - 1)) if time.ndim else time)

    def add_noise(self, x: Tensor, eps: Tensor, t: Tensor | float) -> Tensor:
        """z between data and noise (Eq. 1)."""
        a, b, _, _ = self.coefficients(t, x)
        return a * x + b * eps

    def interpret(self, output: Tensor, z: Tensor, path: Coefficients) -> tuple[Space, Tensor]:
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
        path = self.coefficients(t, z)
        space, q = self.interpret(output, z, path)
        truth = {"x": x, "eps": eps, "v": path.da * x + path.db * eps}[space]

        def in_loss_space(value: Tensor) -> Tensor:
            return convert(value, space, self.loss_space, z, path, self.t_clip)

        return (in_loss_space(q) - in_loss_space(truth)) ** 2

    def loss(self, net: Net, batch: Batch) -> Tensor:
        """One training objective per image, (b,) (Algorithm 1): a mean over elements.

        With a classification loss (App. B.3) the squared error is summed instead, and lambda times the cross-entropy of the
        network's extra "logits" is added; the classifier never sees the class, so dropped labels count too.
        """
        x, condition, t, eps, dropped = batch
        z = self.add_noise(x, eps, t)
        output, extras = with_extras(net(z, t, drop(condition, dropped)))
        error = self.error(output.float(), x, eps, z, t).flatten(1)
        if not self.class_loss_weight:
            return error.mean(1)
        y = class_numbers(condition)
        if "logits" not in extras or y is None:
            raise ValueError("a classification loss needs class numbers, and a network that returns extra logits")
        return error.sum(1) + self.class_loss_weight * F.cross_entropy(extras["logits"].float(), y, reduction="none")

    def velocity(self, output: Tensor, z: Tensor, t: Tensor | float, t_clip: float = 0.05) -> tuple[Tensor, Tensor]:
        """The velocity dz/dt and the clean image x that an output stands for (Table 1), with the clip of sampling. Both of eps
        are quotients by a, which is 0 at t = 0, whatever the solver: there the clip is at least that of training."""
        c = self.coefficients(t, z)
        space, q = self.interpret(output, z, c)
        t_clip = max(t_clip, self.t_clip) if space == "eps" else t_clip
        return convert(q, space, "v", z, c, t_clip), convert(q, space, "x", z, c, t_clip)


def with_extras(output: Tensor | tuple[Tensor, dict[str, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return (output, extras) of what a network returned; most return no extras."""
    return output if isinstance(output, tuple) else (output, {})


def edm(path: Coefficients, noise_scale: float = 1.0, sigma_data: float = 0.5) -> tuple[Tensor, Tensor]:
    """EDM's c_skip and c_out with sigma_t = b / a (App. B.2), multiplied out so that t = 0 divides nothing by zero."""
    a, b = path.a * sigma_data, path.b * noise_scale
    return sigma_data * a / (a**2 + b**2), sigma_data * b / torch.sqrt(a**2 + b**2)
