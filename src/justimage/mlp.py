"""The toy network of Fig. 2: a ReLU MLP on plain vectors, with the signature of every network here."""

from itertools import pairwise

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """`net(z, t, condition)`: (b, dimension, ...) vectors and (b,) times -> a tensor like z; the condition is ignored (Sec.
    3.3).

    depth linear layers of hidden size width; the time enters as one more input.
    """

    classes = 0

    def __init__(self, dimension: int, width: int = 256, depth: int = 5) -> None:
        super().__init__()
        self.shape = (dimension,)
        sizes = [dimension + 1, *[width] * (depth - 1), dimension]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))

    def forward(self, z: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        *hidden, last = self.layers
        x = torch.cat([z.flatten(1), t[:, None]], dim=-1)
        for layer in hidden:
            x = layer(x).relu()
        return last(x).view_as(z)
