"""Exponential moving averages of a network's weights, several at once, and their loan to the network for sampling."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

REFERENCE_BATCH = 1024
"""Images a step for which the paper's decays are stated (App. A, "EMA and CFG")."""


def half_life(value: float) -> float:
    """Images after which a weight's share in the average has halved: of a decay (below 1, a step of 1024 images), or itself."""
    if value <= 0 or value == 1:
        raise ValueError(f"ema is {value:g}; allowed: a decay between 0 and 1, or a half-life in images above 1")
    return value if value > 1 else -REFERENCE_BATCH * math.log(2) / math.log(value)


class EMA:
    """One average of a network's trainable weights per value in `values`, each a decay at batch 1024 or a half-life in images.

    An average starts as a copy of the weights. With ramp > 0, a half-life is never longer than ramp times the images seen,
    so that short trainings do not average over their beginning (0, as in the paper: always the full half-life).
    """

    def __init__(self, net: nn.Module, values: Sequence[float], ramp: float = 0.0) -> None:
        self.ramp = ramp
        self.half_lives = {name(v): half_life(v) for v in values}
        self.averages = {n: [p.detach().clone() for p in net.parameters()] for n in self.half_lives}

    @torch.no_grad()
    def update(self, net: nn.Module, batch: int, images_seen: int) -> None:
        """Take in the weights after a step of `batch` images; images_seen counts this step's."""
        weights = [p.detach() for p in net.parameters()]
        for n, average in self.averages.items():
            life = min(self.half_lives[n], self.ramp * images_seen) if self.ramp else self.half_lives[n]
            torch._foreach_lerp_(average, weights, 1 - 0.5 ** (batch / life))  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def lend(self, net: nn.Module, value: float) -> Iterator[None]:
        """Within the block the network has an average's weights (0: its own); afterwards its own again, whatever happens."""
        average = self.averages[self.known(value)] if value else []
        swap(net, average)
        try:
            yield
        finally:
            swap(net, average)

    def known(self, value: float) -> str:
        """The name of an average; ValueError with the existing ones where there is none."""
        if name(value) not in self.averages:
            raise ValueError(f"there is no ema {name(value)}; this run has {', '.join(self.averages) or 'none'}")
        return name(value)


def name(value: float) -> str:
    """How an average is called in files and options: 0.9999, 20000."""
    return f"{value:.12g}"


def swap(net: nn.Module, average: list[Tensor]) -> None:
    """Exchange the network's weights with an average's, without copying; an empty average is no exchange."""
    for p, q in zip(net.parameters(), average, strict=bool(average)):
        p.data, q.data = q.data, p.data
