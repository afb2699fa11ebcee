"""Weights as 8-bit integers: a quarter of the bytes of fp32, by rounding alone."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Int8Linear(nn.Module):
    """A linear map whose weights are 8-bit integers and a scale for each output: 127 levels on either side of zero. It
    computes in fp32."""

    levels: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = (linear.weight.abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        self.register_buffer("levels", (linear.weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        return self.levels.float() * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@torch.no_grad()
def with_int8_weights(net: nn.Module) -> nn.Module:
    """A copy of a network with an `Int8Linear` in place of each linear map."""
    net = copy.deepcopy(net)
    for name, layer in list(net.named_modules()):
        if isinstance(layer, nn.Linear):
            parent, _, attribute = name.rpartition(".")
            setattr(net.get_submodule(parent), attribute, Int8Linear(layer))
    return net
