"""JiT, "just image Transformers": a plain Vision Transformer on large patches of raw pixels (Sec. 4.1, Fig. 3).

An image is cut into patches; each patch is one token. Tokens get a position, pass a stack of Transformer blocks that are
conditioned on the time and the class (adaLN-Zero, and class tokens in front of the sequence), and each token is mapped back
to its patch of pixels. The network knows nothing of noise schedules, losses or devices: it is `net(z, t, y)`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from justimage.checks import check_range
from justimage.conditions import AUGMENTATION_NUMBERS, NULL_CLASS, Condition
from justimage.dropout import Dropout


@dataclass(frozen=True)
class Architecture:
    """Everything that determines a JiT's weights (Table 9, "architecture"). The defaults are JiT-B/16 at 256 x 256.

    Raises ValueError where the numbers do not fit together.
    """

    image_size: int | tuple[int, int] = 256
    """side of the image in pixels, or height and width"""
    patch_size: int = 16
    """side of a patch; divides the image"""
    channels: int = 3
    """channels of the image"""
    classes: int | None = 1000
    """number of classes; 0 for none; None to take it from the data"""
    width: int = 768
    """size of a token"""
    depth: int = 12
    """number of blocks"""
    heads: int = 12
    """attention heads; width / heads is a multiple of 4"""
    bottleneck: int | None = 128
    """d' of the low-rank patch embedding (Fig. 4); None for a plain linear one"""
    context_tokens: int = 32
    """class tokens put in front of the patches (App. A); 0 for none"""
    context_start: int = 4
    """the block (from 0) before which they enter"""
    dropout: float = 0.0
    """rate in attention and MLP of the middle half of the blocks"""
    rope: bool = True
    """rotary positions in attention (Table 4)"""
    qk_norm: bool = True
    """normalised queries and keys (Table 4)"""
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    """the block's MLP (footnote 5)"""
    norm: Literal["rms", "layer"] = "rms"
    """the norm everywhere (footnote 5)"""
    aux_classifier: bool = False
    """a classification head where the class tokens would enter, no class known before it (App. B.3)"""
    image_channels: int = 0
    """channels of an image of the same size that it is told, condition {"classes": (b,), "image": (b, ...)}; set by training"""
    augmented: bool = False
    """told how an image was augmented: a condition may be {"classes": (b,), "augmentation": (b, 6)}; set by training"""

    def __post_init__(self) -> None:
        check_range(self, **dict.fromkeys(("patch_size", "channels", "width", "depth", "heads"), (1, math.inf)))
        height, width = self.size
        if height < 1 or width < 1 or height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"an image of {height} x {width} is not divisible by patch_size {self.patch_size}; "
                f"allowed sizes: multiples of {self.patch_size}, or another patch_size"
            )
        if self.width % self.heads or self.width // self.heads % 4:
            raise ValueError(f"width {self.width} over {self.heads} heads: each head's size must be a multiple of 4")
        check_range(self, classes=(0, math.inf), bottleneck=(1, math.inf), context_tokens=(0, math.inf))
        if not 0 <= self.context_start < self.depth:
            raise ValueError(f"context_start is {self.context_start}; allowed: 0 to {self.depth - 1}, the blocks")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; allowed: 0 up to, not including, 1")
        if self.aux_classifier and (self.classes == 0 or self.context_start == 0):
            raise ValueError("a classifier needs classes, and a context_start of 1 or more: it stands before that block")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.size[0] // self.patch_size, self.size[1] // self.patch_size

    @property
    def patch_dimension(self) -> int:
        """Numbers in one patch."""
        return self.channels * self.patch_size**2


SIZES: dict[str, dict[str, Any]] = {
    # ours, for small data and small machines; not in the paper
    "T": dict(depth=6, width=128, heads=4, bottleneck=32, context_tokens=4, context_start=2, dropout=0.0),
    "S": dict(depth=12, width=384, heads=6, bottleneck=64, context_tokens=16, context_start=4, dropout=0.0),
    # the paper's (Table 9)
    "B": dict(depth=12, width=768, heads=12, bottleneck=128, context_tokens=32, context_start=4, dropout=0.0),
    "L": dict(depth=24, width=1024, heads=16, bottleneck=128, context_tokens=32, context_start=8, dropout=0.0),
    "H": dict(depth=32, width=1280, heads=16, bottleneck=256, context_tokens=32, context_start=10, dropout=0.2),
    "G": dict(depth=40, width=1664, heads=16, bottleneck=256, context_tokens=32, context_start=10, dropout=0.2),
}


def architecture(name: str, **changes: Any) -> Architecture:
    """The architecture called e.g. "B/16": a size from SIZES and a patch size; an image of 16 x 16 patches unless changed."""
    size, _, patch = name.upper().partition("/")
    if size not in SIZES or not patch.isdigit():
        raise ValueError(f"no network is called {name!r}; a name is one of {', '.join(SIZES)}, a slash and a patch size: B/16")
    changes = {"image_size": 16 * int(patch), "patch_size": int(patch)} | SIZES[size] | changes
    return Architecture(**changes)


class JiT(nn.Module):
    """`net(z, t, y)`: (b, channels, height, width) images, (b,) times in [0, 1] and (b,) classes -> a tensor like z.

    Class -1, like the class numbered `classes`, is "no class"; y = None is "no class" for all. With an auxiliary classifier
    (App. B.3) it returns (tensor like z, {"logits": (b, classes)}). Made from an `Architecture`, or a name and what to change:
    `JiT("B/16", classes=10)`.
    """

    def __init__(self, design: Architecture | str = "B/16", **changes: Any) -> None:
        super().__init__()
        a = architecture(design, **changes) if isinstance(design, str) else replace(design, **changes)
        if a.classes is None:
            raise ValueError("classes is not known before the data is read; give a number (0 for none)")
        self.architecture = a
        self.classes: int = a.classes
        self.shape = (a.channels, *a.size)
        self.embed = PatchEmbedding(a.patch_dimension, a.bottleneck, a.width)
        self.time = TimeEmbedding(a.width)
        self.class_table = nn.Embedding(a.classes + 1, a.width)  # the last row is "no class"
        if a.image_channels:
            self.embed_image = PatchEmbedding(a.image_channels * a.patch_size**2, a.bottleneck, a.width)
        if a.augmented:
            self.augmentation = nn.Linear(AUGMENTATION_NUMBERS, a.width, bias=False)
        self.blocks = nn.ModuleList(Block(a, i) for i in range(a.depth))
        self.head = Head(a)
        if a.context_tokens:
            self.context_positions = nn.Parameter(torch.empty(1, a.context_tokens, a.width))
        if a.aux_classifier:
            self.classifier = nn.Linear(a.width, a.classes)
        self.positions: Tensor
        self.cos: Tensor
        self.sin: Tensor
        tokens = a.grid[0] * a.grid[1]
        self.register_buffer("positions", torch.empty(1, tokens, a.width), persistent=False)
        self.register_buffer("cos", torch.empty(a.context_tokens + tokens, a.width // a.heads), persistent=False)
        self.register_buffer("sin", torch.empty(a.context_tokens + tokens, a.width // a.heads), persistent=False)
        if not self.class_table.weight.is_meta:  # there, the code that allocates them initialises them
            self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """All weights, by the authors' initialisation: Xavier for linear maps, N(0, 0.02^2) for embeddings, zero for adaLN and
        the head; and the tables."""
        self.init_tables()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.RMSNorm | nn.LayerNorm):
                module.reset_parameters()
        embeddings = [self.class_table.weight, self.time.hidden.weight, self.time.out.weight]
        if self.architecture.context_tokens:
            embeddings.append(self.context_positions)
        for weight in embeddings:
            nn.init.normal_(weight, std=0.02)
        zero = [*(block.modulation for block in self.blocks), self.head.modulation, self.head.linear]
        if self.architecture.augmented:
            zero.append(self.augmentation)
        if self.architecture.image_channels:
            zero.append(self.embed_image.expand)
        for linear in zero:
            nn.init.zeros_(linear.weight)  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def init_tables(self) -> None:
        """The tables that are computed, not learned: positions, and the angles of rotation."""
        a = self.architecture
        cos, sin = rotations(*a.grid, a.width // a.heads)
        self.positions.copy_(sincos_positions(*a.grid, a.width))
        self.cos.copy_(F.pad(cos, (0, 0, a.context_tokens, 0), value=1.0))
        self.sin.copy_(F.pad(sin, (0, 0, a.context_tokens, 0), value=0.0))

    def forward(self, z: Tensor, t: Tensor, y: Condition = None) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        a = self.architecture
        conditions = y if isinstance(y, dict) else {"classes": y}
        y, told, image = (conditions.get(name) for name in ("classes", "augmentation", "image"))
        if y is None:
            y = torch.full(z.shape[:1], NULL_CLASS, device=z.device)
        dtype = self.class_table.weight.dtype
        label = self.class_table(torch.where(y < 0, self.classes, y))
        time = self.time(t, dtype)
        if told is not None:
            time = time + self.augmentation(told.to(dtype))
        both = F.silu(time + label)
        c = F.silu(time) if a.aux_classifier else both  # what modulates the blocks; a classifier must not see the class
        extras = {}

        x = F.pixel_unshuffle(z.to(dtype), a.patch_size).flatten(2).transpose(1, 2)  # (b, patches, c p q)
        x = self.embed(x) + self.positions.to(dtype)
        if image is not None:
            x = x + self.embed_image(F.pixel_unshuffle(image.to(dtype), a.patch_size).flatten(2).transpose(1, 2))
        cos, sin = self.cos[a.context_tokens :].to(dtype), self.sin[a.context_tokens :].to(dtype)
        for i, block in enumerate(self.blocks):
            if i == a.context_start:
                c = both
                if a.aux_classifier:
                    extras["logits"] = self.classifier(x.mean(1))
                if a.context_tokens:
                    x = torch.cat([label[:, None] + self.context_positions.to(dtype), x], dim=1)
                    cos, sin = self.cos.to(dtype), self.sin.to(dtype)
            x = block(x, c, cos, sin)
        x = self.head(x[:, a.context_tokens :], c)
        output = F.pixel_shuffle(x.transpose(1, 2).unflatten(2, a.grid), a.patch_size)
        return (output, extras) if extras else output


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


class Block(nn.Module):
    """A Transformer block whose norms and branches are modulated by the condition (adaLN-Zero: a new block does nothing)."""

    def __init__(self, a: Architecture, index: int) -> None:
        super().__init__()
        dropout = a.dropout if a.depth // 4 <= index < a.depth // 4 * 3 else 0.0
        self.norm1 = norm(a)
        self.attention = Attention(a, dropout)
        self.norm2 = norm(a)
        self.mlp = {"swiglu": SwiGLU, "gelu": GELU}[a.mlp](a.width, dropout)
        self.modulation = nn.Linear(a.width, 6 * a.width)

    def forward(self, x: Tensor, condition: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attention(modulate(self.norm1(x), shift1, scale1), cos, sin)
        x = x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))
        return x


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


class Head(nn.Module):
    """A token to the pixels of its patch: modulated norm and a linear map."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.norm = norm(a)
        self.modulation = nn.Linear(a.width, 2 * a.width)
        self.linear = nn.Linear(a.width, a.patch_dimension)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        return self.linear(modulate(self.norm(x), shift, scale))


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
    frequencies = 10000 ** (-torch.arange(0, half, 2) / half)
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
