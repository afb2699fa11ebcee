"""Words as a condition: the bytes of a text, and a small Transformer that reads them, learnt along with the network."""

import torch
from torch import Tensor, nn

from justimage.architectures import Architecture
from justimage.layers import Attention, SwiGLU, norm

DEPTH = 2
"""Blocks of the Transformer."""


class TextEncoder(nn.Module):
    """Bytes (b, n), NULL_CLASS for none, or an encoder's tokens (b, n, features), to tokens (b, n, width)."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        embedding = nn.Linear(a.text_features, a.width) if a.text_features else nn.Embedding(257, a.width)
        self.table = embedding  # its last row is "no byte"
        self.positions = nn.Parameter(torch.empty(1, a.text_length, a.width))
        self.blocks = nn.ModuleList(TextBlock(a) for _ in range(DEPTH))
        self.norm = norm(a)

    @torch.no_grad()
    def init_weights(self) -> None:
        """N(0, 1) for bytes and positions, zero for what a block adds: at first each token is its byte and its place, rather
        than an average of all bytes."""
        nn.init.normal_(self.positions)
        if isinstance(self.table, nn.Embedding):
            nn.init.normal_(self.table.weight)
        for block in self.blocks:
            block.init_weights()  # pyright: ignore[reportCallIssue]

    def forward(self, text: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        text = text.to(self.table.weight.dtype) if text.is_floating_point() else torch.where(text < 0, 256, text)
        x = self.table(text) + self.positions.to(self.table.weight.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.norm(x)


class TextBlock(nn.Module):
    """A Transformer block without a condition."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.norm1 = norm(a)
        self.attention = Attention(a, 0.0)
        self.norm2 = norm(a)
        self.mlp = SwiGLU(a.width, 0.0)

    def init_weights(self) -> None:
        for linear in self.attention.out, self.mlp.down:
            nn.init.zeros_(linear.weight)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))
