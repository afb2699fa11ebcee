"""A network made fast for sampling, from outside: weights cast once, or the whole of it compiled. The network does not know."""

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from justimage.conditions import map_tensors
from justimage.diffusion import with_extras
from justimage.layers import Attention, SwiGLU, use_plain_attention
from justimage.sampling import Denoiser
from justimage.transformer import Block, JiT

ROWS = 1024
"""Tokens that a CPU's matrix products have enough of: more at a time are no faster (docs/performance.md)."""


def cast_weights(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast, in place, the weights that autocast to `dtype` would cast at every call, those of linear maps.

    Under autocast the network then computes the same to the bit, with half of the memory; without, no more.
    """
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            layer.to(dtype)
    return net


class CompiledNetwork(nn.Module):
    """A network with a copy in `dtype`, compiled for each batch size that it meets. It returns no extras.

    It equals the network to the rounding of dtype. On a CPU a large batch is cut into equal ones of about `ROWS` tokens. Where
    no compiler works it warns, once, and computes as the network does.
    """

    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.plain = net
        fast = copy.deepcopy(net).to(dtype).eval().requires_grad_(False)
        self.on_cpu = next(fast.parameters()).device.type == "cpu"
        self.most = ROWS // math.prod(net.architecture.grid) or 1 if self.on_cpu and isinstance(net, JiT) else math.inf
        """images at a time"""
        for layer in fast.modules():
            layer.__dict__.pop("forward", None)  # a training's compiled block computes with the training's weights
        if self.on_cpu:
            suit_cpu(fast)
        self.compiled = torch.compile(fast, dynamic=False)
        self.works = True

    def forward(self, z: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        if self.works:
            try:
                return self.forward_compiled(z, t, condition)
            except Exception as error:  # of whatever compiler is there, or is not
                self.works = False
                reason = str(error).strip().partition("\n")[0][:200]
                warnings.warn(f"sampling uncompiled, as the compiler failed: {reason or type(error).__name__}", stacklevel=2)
        return with_extras(self.plain(z, t, condition))[0]

    def forward_compiled(self, z: Tensor, t: Tensor, condition: Any) -> Tensor:
        n = len(z)
        size = n if n <= self.most else math.ceil(n / math.ceil(n / self.most))
        outputs = []
        with frozen_weights(self.on_cpu), torch.autocast(z.device.type, enabled=False):
            for start in range(0, n, size):
                index = torch.arange(start, start + size, device=z.device).clamp(max=n - 1)  # the last batch is filled up
                some = map_tensors(lambda tensor, index=index: tensor[index], condition)
                outputs.append(with_extras(self.compiled(z[index], t[index], some))[0])
        return torch.cat(outputs)[:n]


@contextmanager
def frozen_weights(packed: bool) -> Iterator[None]:
    """Within the block what is compiled takes weights for constants: a CPU packs them for its matrix products."""
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

    with torch.no_grad(), inductor.patch(freezing=packed), dynamo.patch(recompile_limit=64):
        yield


@torch.no_grad()
def suit_cpu(net: nn.Module) -> None:
    """Rewrite a network's layers, in place, as a CPU's compiler makes most of them; they compute the same to rounding."""
    use_plain_attention(net)
    for layer in net.modules():
        if isinstance(layer, Block) and isinstance(layer.mlp, SwiGLU):
            layer.mlp = SplitSwiGLU(layer.mlp)
        elif isinstance(layer, JiT):
            separate_pairs(layer)


class SplitSwiGLU(nn.Module):
    """SwiGLU with a product for each half: the gate becomes a part of the products."""

    def __init__(self, mlp: SwiGLU) -> None:
        super().__init__()
        both, self.down = mlp.gate_and_up, mlp.down
        self.gate, self.up = (nn.Linear(both.in_features, both.out_features // 2) for _ in range(2))
        for half, weight, bias in zip((self.gate, self.up), both.weight.chunk(2), both.bias.chunk(2), strict=True):
            half.weight, half.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def separate_pairs(net: JiT) -> None:
    """Reorder the elements of queries and keys so that those of a rotated pair, neighbours before, are half a head apart: they
    are then rotated without shuffling, and their products are the same."""
    d = net.architecture.width // net.architecture.heads
    order = torch.cat([torch.arange(0, d, 2), torch.arange(1, d, 2)])
    net.cos, net.sin = net.cos[:, order], net.sin[:, order]
    for layer in net.modules():
        if isinstance(layer, Attention):
            layer.rotate = rotate_halves
            for parameter in layer.qkv.parameters():
                queries_and_keys = parameter.unflatten(0, (3, layer.heads, d))[:2]
                queries_and_keys.copy_(queries_and_keys[:, :, order])
            for parameter in (*layer.q_norm.parameters(), *layer.k_norm.parameters()):
                parameter.copy_(parameter[order])


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate`, where a pair's elements are half a head apart."""
    return x * cos + torch.cat(x.chunk(2, dim=-1)[::-1], dim=-1) * sin


def compile_denoiser(denoiser: Denoiser, dtype: torch.dtype = torch.bfloat16) -> Denoiser:
    """The same denoiser, faster: for many images, as compiling takes half a minute for each batch size (guidance has its own).

    It holds a copy of the weights in dtype, and on a CPU another for each batch size, packed.
    """
    return replace(denoiser, net=CompiledNetwork(denoiser.net, dtype), shape=denoiser.shape, classes=denoiser.classes)
