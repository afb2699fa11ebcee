"""The layers of a JiT: embeddings, attention, MLPs, norms, and the two kinds of positions."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from justimage.architectures import Architecture
from justimage.dropout import Dropout


class PatchEmbedding(nn.Module):
    """A patch to a token: linear, of rank d' where there is a bottleneck (Sec. 4.2, Fig. 4)."""

    def __init__(self, patch_dimension: int, bottleneck: int | None, width: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(patch_dimension, bottleneck, bias=False) if bottleneck else nn.Identity()
        self.expand = nn.Linear(bottleneck or patch_dimension, width)

    def forward(self, patches: Tensor) -> Tensor:
        return self.expand(self.reduce(patches))


class TimeEmbedding(nn.Module):
    """t in [0, 1], unscaled, as 128 cosines and sines, then a two-layer MLP. The angles are fp32 whatever the weights are."""

    def __init__(self, width: int, frequencies: int = 128) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.hidden = nn.Linear(2 * frequencies, width)
        self.out = nn.Linear(width, width)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        exponents = torch.arange(self.frequencies, device=t.device) / self.frequencies
        angles = t.float()[:, None] * torch.exp(-math.log(10000) * exponents)
        return self.out(F.silu(self.hidden(torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype))))


class Attention(nn.Module):
    """Multi-head self-attention with normalised, rotated queries and keys (Sec. 4.4)."""

    def __init__(self, a: Architecture, dropout: float) -> None:
        super().__init__()
        self.heads, self.rope = a.heads, a.rope
        self.attend: Callable[[Tensor, Tensor, Tensor], Tensor] = F.scaled_dot_product_attention
        self.rotate = rotate
        self.qkv = nn.Linear(a.width, 3 * a.width)
        self.q_norm = norm(a, a.width // a.heads) if a.qk_norm else nn.Identity()
        self.k_norm = norm(a, a.width // a.heads) if a.qk_norm else nn.Identity()
        self.out = nn.Linear(a.width, a.width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (b, heads, n, d)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rope:
            q, k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
        x = self.attend(q.to(v.dtype), k.to(v.dtype), v)
        return self.dropout(self.out(x.transpose(1, 2).flatten(2)))


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as two products and a softmax: eager it is slower than PyTorch's kernel for CPUs, compiled faster. A softmax
    spelled out, as `torch.softmax` between two products is taken for PyTorch's kernel and compiled with its checks."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    weights = (scores.float() - scores.amax(-1, keepdim=True).float()).exp()
    return (weights / weights.sum(-1, keepdim=True)).to(v.dtype) @ v


def use_plain_attention(net: nn.Module) -> None:
    """Let all attention layers of the network attend by `plain_attention`."""
    for layer in net.modules():
        if isinstance(layer, Attention):
            layer.attend = plain_attention


class SwiGLU(nn.Module):
    """Gated MLP of hidden width floor(4 width * 2/3)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        hidden = int(4 * width * 2 / 3)
        self.gate_and_up = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_and_up(x).chunk(2, dim=-1)
        return self.down(self.dropout(F.silu(gate) * up))


class GELU(nn.Module):
    """The original Transformer's MLP, 4 times as wide inside (footnote 5)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.dropout(F.gelu(self.up(x), approximate="tanh")))


class RMSNorm(nn.RMSNorm):
    """RMSNorm by the fused kernel, which needs input and weight of one type, also where autocast makes the input bf16: fp32 on
    a GPU, the input's type on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype if x.device.type == "cpu" else torch.float32
        return F.rms_norm(x.to(dtype), self.normalized_shape, self.weight.to(dtype), self.eps).to(x.dtype)


def norm(a: Architecture, width: int | None = None) -> nn.Module:
    return {"rms": RMSNorm, "layer": nn.LayerNorm}[a.norm](width or a.width, eps=1e-6)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair of neighbouring elements of x (b, heads, n, d) by its token's angles, as `rotations` returns them."""
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x * cos, swapped, sin)


def rotations(rows: int, columns: int, head_dimension: int) -> tuple[Tensor, Tensor]:
    """cos and sin of the 2-D rotary angles, (rows columns, d): half of a head turns with the row, half with the column.

    The first sine of each pair is negative, as in (x cos - y sin, y cos + x sin).
    """
    half = head_dimension // 2
    frequencies = 10000 ** (-torch.arange(0, half, 2, dtype=torch.float32) / half)
    row = (torch.arange(rows)[:, None] * frequencies).repeat_interleave(2, dim=-1)
    column = (torch.arange(columns)[:, None] * frequencies).repeat_interleave(2, dim=-1)
    angles = torch.cat([row[:, None].expand(-1, columns, -1), column[None].expand(rows, -1, -1)], dim=-1).flatten(0, 1)
    return angles.cos(), angles.sin() * torch.tensor([-1.0, 1.0]).repeat(half)


def sincos_positions(rows: int, columns: int, width: int) -> Tensor:
    """The fixed position of each patch, (1, rows columns, width): the column's sines and cosines, then the row's."""
    omega = 10000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    row = torch.arange(rows)[:, None] * omega
    column = torch.arange(columns)[:, None] * omega
    row = torch.cat([row.sin(), row.cos()], dim=-1).float()[:, None].expand(-1, columns, -1)
    column = torch.cat([column.sin(), column.cos()], dim=-1).float()[None].expand(rows, -1, -1)
    return torch.cat([column, row], dim=-1).flatten(0, 1)[None]
