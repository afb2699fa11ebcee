"""JiT, "just image Transformers": a plain Vision Transformer on large patches of raw pixels (Sec. 4.1, Fig. 3).

An image is cut into patches; each patch is one token. Tokens get a position, pass a stack of Transformer blocks that are
conditioned on the time and the class (adaLN-Zero, and class tokens in front of the sequence), and each token is mapped back
to its patch of pixels. The network knows nothing of noise schedules, losses or devices: it is `net(z, t, y)`.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from justimage.architectures import Architecture, architecture
from justimage.conditions import AUGMENTATION_NUMBERS, NULL_CLASS, Condition
from justimage.layers import (
    GELU,
    Attention,
    PatchEmbedding,
    SwiGLU,
    TimeEmbedding,
    modulate,
    norm,
    rotations,
    sincos_positions,
)  # fmt: skip
from justimage.text import TextEncoder


class JiT(nn.Module):
    """`net(z, t, y)`: (b, channels, height, width) images, (b,) times in [0, 1] and (b,) classes -> a tensor like z.

    Class -1, like the class numbered `classes`, is "no class"; y = None is "no class" for all. A dict tells it more: "classes"
    (b,), "image" (b, image_channels, height, width), "vector" (b, vector), "text" (b, text_length). With an auxiliary
    classifier (App. B.3) it returns (tensor like z, {"logits": (b, classes)}). Made from an `Architecture`, or a name and what
    to change: `JiT("B/16", classes=10)`.
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
        if a.vector:
            self.embed_vector = nn.Linear(a.vector, a.width)
        if a.text_length:
            self.text = TextEncoder(a)
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
        self.register_buffer("cos", torch.empty(a.context + tokens, a.width // a.heads), persistent=False)
        self.register_buffer("sin", torch.empty(a.context + tokens, a.width // a.heads), persistent=False)
        if not self.class_table.weight.is_meta:  # there, the code that allocates them initialises them
            self.init_weights()

    @classmethod
    def from_pretrained(cls, source: str) -> "JiT":
        """A trained network, in evaluation mode, from what `justimage.load` takes: a run, a file, or hf://organisation/name."""
        from justimage.checkpoint import load

        return load(source).net  # pyright: ignore[reportReturnType]

    @property
    def told(self) -> list[str]:
        """The entries that a condition of this network may have."""
        a = self.architecture
        there = dict(classes=True, image=a.image_channels, vector=a.vector, text=a.text_length, augmentation=a.augmented)
        return [name for name, has in there.items() if has]

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
        if self.architecture.text_length:
            self.text.init_weights()
        zero = [*(block.modulation for block in self.blocks), self.head.modulation, self.head.linear]
        if self.architecture.augmented:
            zero.append(self.augmentation)
        if self.architecture.image_channels:
            zero.append(self.embed_image.expand)
        if self.architecture.vector:
            zero.append(self.embed_vector)
        for linear in zero:
            nn.init.zeros_(linear.weight)  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def init_tables(self) -> None:
        """The tables that are computed, not learned: positions, and the angles of rotation."""
        a = self.architecture
        cos, sin = rotations(*a.grid, a.width // a.heads)
        self.positions.copy_(sincos_positions(*a.grid, a.width))
        self.cos.copy_(F.pad(cos, (0, 0, a.context, 0), value=1.0))
        self.sin.copy_(F.pad(sin, (0, 0, a.context, 0), value=0.0))

    def forward(self, z: Tensor, t: Tensor, y: Condition = None) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        a = self.architecture
        told = y if isinstance(y, dict) else {} if y is None else {"classes": y}
        dtype = self.class_table.weight.dtype
        time, (label, context) = self.time(t, dtype), self.embed_label(told, z.shape[0])
        if "augmentation" in told:
            time = time + self.augmentation(told["augmentation"].to(dtype))
        both = F.silu(time + label)
        c = F.silu(time) if a.aux_classifier else both  # what modulates the blocks; a classifier must not see the class
        extras = {}

        x = self.embed(self.patches(z)) + self.positions.to(dtype)  # (b, patches, width)
        if a.image_channels:
            image = told.get("image")
            image = z.new_zeros(z.shape[0], a.image_channels, *a.size) if image is None else image
            x = x + self.embed_image(self.patches(image))
        cos, sin = self.cos[a.context :].to(dtype), self.sin[a.context :].to(dtype)
        for i, block in enumerate(self.blocks):
            if i == a.context_start:
                c = both
                if a.aux_classifier:
                    extras["logits"] = self.classifier(x.mean(1))
                x = torch.cat([*context, x], dim=1)
                cos, sin = self.cos.to(dtype), self.sin.to(dtype)
            x = block(x, c, cos, sin)
        x = self.head(x[:, a.context :], c)
        output = F.pixel_shuffle(x.transpose(1, 2).unflatten(2, a.grid), a.patch_size)
        return (output, extras) if extras else output

    def patches(self, images: Tensor) -> Tensor:
        """Images as patches, (b, patches, channels p p)."""
        return (
            F.pixel_unshuffle(images.to(self.class_table.weight.dtype), self.architecture.patch_size).flatten(2).transpose(1, 2)
        )

    def embed_label(self, told: dict[str, Tensor], n: int) -> tuple[Tensor, list[Tensor]]:
        """The part of the modulation beside the time, (n, width), and the tokens in front of the patches: of class, vector and
        text. What is not told is "none"."""
        a, table = self.architecture, self.class_table.weight
        none = torch.full((n, 1), NULL_CLASS, device=table.device)
        y, vector, text = (told.get(name) for name in ("classes", "vector", "text"))
        y = none[:, 0] if y is None else y
        label, context = self.class_table(torch.where(y < 0, self.classes, y)), []
        if a.vector:
            vector = table.new_zeros(n, a.vector) if vector is None else vector
            label = label + self.embed_vector(vector.to(table.dtype))
        if a.text_length:  # the first angles are 0: tokens in front are not rotated
            if text is None:
                features = (n, a.text_length, a.text_features)
                text = table.new_zeros(features) if a.text_features else none.expand(-1, a.text_length)
            words = self.text(text, *(angles[: a.text_length].to(table.dtype) for angles in (self.cos, self.sin)))
            label, context = label + words.mean(1), [words]
        if a.context_tokens:
            context = [label[:, None] + self.context_positions.to(table.dtype), *context]
        return label, context


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
