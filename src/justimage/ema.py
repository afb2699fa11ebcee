"""Exponential moving averages (EMAs) of weights, several at once, and lending them to the network for sampling."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

REFERENCE_BATCH = 1024
"""Batch size for which the paper states its decays (App. A, "EMA and CFG")."""


def half_life(value: float) -> float:
    """The half-life in images of an EMA value: a decay below 1 (of a step of 1024 images), or a half-life itself."""
    if value <= 0 or value == 1:
        raise ValueError(f"ema is {value:g}; allowed: a decay between 0 and 1, or a half-life in images above 1")
    return value if value > 1 else -REFERENCE_BATCH * math.log(2) / math.log(value)


class EMA:
    """An average of the weights for each of `values`, a decay at batch 1024 or a half-life in images.

    An average starts as a copy of the weights. With ramp > 0, a half-life is at most ramp times the images seen, so that
    short trainings do not average over their beginning (0, as in the paper: always the full half-life). The weights are a
    network's, or this process's shards of them: an average is sharded alike.
    """

    def __init__(self, weights: Sequence[Tensor], values: Sequence[float], ramp: float = 0.0) -> None:
        self.weights, self.ramp = [w.detach() for w in weights], ramp
        self.half_lives = {ema_name(v): half_life(v) for v in values}
        self.averages = {n: [w.clone() for w in self.weights] for n in self.half_lives}

    @torch.no_grad()
    def update(self, batch: int, images_seen: int) -> None:
        """Update the averages after a step of `batch` images, which images_seen includes."""
        for n, average in self.averages.items():
            life = min(self.half_lives[n], self.ramp * images_seen) if self.ramp else self.half_lives[n]
            torch._foreach_lerp_(average, self.weights, 1 - 0.5 ** (batch / life))  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def lend(self, value: float) -> Iterator[None]:
        """Within the block the weights are those of an average (0: unchanged), and restored on leaving, also by an error."""
        average = self.averages[self.find(value)] if value else []
        swap(self.weights, average)
        try:
            yield
        finally:
            swap(self.weights, average)

    def find(self, value: float) -> str:
        """The name of the average of this value; ValueError, with the names there are, if there is none."""
        if ema_name(value) not in self.averages:
            raise ValueError(f"there is no ema {ema_name(value)}; this run has {', '.join(self.averages) or 'none'}")
        return ema_name(value)


def ema_name(value: float) -> str:
    """The name of an average in files and options: 0.9999, 20000."""
    return f"{value:.12g}"


@torch.no_grad()
def swap(weights: Sequence[Tensor], average: Sequence[Tensor]) -> None:
    """Exchange the values of two lists of tensors, one tensor at a time; with an empty average do nothing."""
    for w, a in zip(weights, average, strict=bool(average)):
        before = w.clone()
        w.copy_(a)
        a.copy_(before)
