"""What a source is: numbered images with labels, at any position, in any order, with no state."""

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Source(Protocol):
    """Numbered images with labels, -1 for none; `fingerprint` changes when the set does.

    A source may have `gather(indices)` too, which `gather` below then calls.
    """

    @property
    def class_names(self) -> list[str]: ...
    @property
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


def gather(source: Source, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """The images (b, channels, height, width) and labels (b,) at some indices: all at once where the source can."""
    at_once: Any = getattr(source, "gather", None)
    if at_once:
        return at_once(indices)
    images, labels = zip(*(source[int(i)] for i in indices), strict=True)
    return torch.stack(images), torch.tensor(labels)
