"""Everything that determines a JiT's weights (Table 9): its sizes, and what it is told beside the noisy image and the time."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from justimage.checks import check_range


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
    vector: int = 0
    """numbers that it is told, condition {"vector": (b, numbers)}; set by training"""
    text_length: int = 0
    """bytes of a text that it is told, condition {"text": (b, bytes)}; set by training"""
    text_features: int = 0
    """of an encoder's tokens, which are told instead of bytes, {"text": (b, text_length, features)}; 0 for bytes"""
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
        check_range(self, **dict.fromkeys(("image_channels", "vector", "text_length", "text_features"), (0, math.inf)))
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
    def context(self) -> int:
        """Tokens in front of the patches: of the class, and of a text."""
        return self.context_tokens + self.text_length

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
