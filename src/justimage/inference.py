"""A network compiled for sampling: whole, a copy with its weights in the type it computes in. The network does not know."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from justimage.sampling import Denoiser
from justimage.transformer import Attention


class CompiledNetwork(nn.Module):
    """A copy of a network in `dtype`, compiled for each batch size that it meets.

    It equals the network to the rounding of dtype. Where no compiler works it warns, once, and computes uncompiled.
    """

    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).to(dtype).eval().requires_grad_(False)
        device = next(self.net.parameters()).device.type
        if device == "cpu":
            self.attend_by(plain_attention)
        options: dict[str, Any] = {"freezing": True} if device == "cpu" else {}  # weights are packed for matrix products
        self.compiled = torch.compile(self.net, dynamic=False, options=options)
        self.works = True

    def attend_by(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        for layer in self.net.modules():
            if isinstance(layer, Attention):
                layer.attend = function

    def forward(self, *inputs: Any) -> Any:
        if self.works:
            try:
                return self.compiled(*inputs)
            except Exception as error:  # of whatever compiler is there, or is not
                self.works = False
                self.attend_by(F.scaled_dot_product_attention)
                reason = str(error).strip().partition("\n")[0][:200]
                warnings.warn(f"sampling uncompiled, as the compiler failed: {reason or type(error).__name__}", stacklevel=2)
        return self.net(*inputs)


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as two products and a softmax: eager it is slower than PyTorch's kernel for CPUs, compiled faster."""
    return torch.softmax((q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5, dim=-1).to(v.dtype) @ v


def compile_denoiser(denoiser: Denoiser, dtype: torch.dtype = torch.bfloat16) -> Denoiser:
    """The same denoiser, faster: for many images, as compiling takes half a minute for each batch size (guidance has its own).

    It holds a copy of the weights in dtype.
    """
    return replace(denoiser, net=CompiledNetwork(denoiser.net, dtype), shape=denoiser.shape, classes=denoiser.classes)
