"""What a source is: numbered images with conditions, at any position, in any order, with no state; and anything made one."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import default_collate

from justimage.conditions import NULL_CLASS, Condition

FINGERPRINT_IMAGES = 16
"""Images of somebody's own data whose content tells it from other data."""


class Source(Protocol):
    """Numbered images, uint8 or float32, all of one shape, with a condition each: a class number, -1 for none."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: channels, height, width."""
        ...

    @property
    def floats(self) -> bool:
        """Whether images are floats, rather than uint8 pixels."""
        ...

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation of each channel of floats; None where they are not known."""
        ...

    @property
    def class_names(self) -> list[str]:
        """By class number; empty where there are no classes."""
        ...

    @property
    def has_class_numbers(self) -> bool:
        """Whether conditions are class numbers, rather than tensors or dicts of them."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the images or their classes do."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Any]: ...

    def batch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Any]:
        """The images (b, channels, height, width) and conditions of b indices."""
        ...


class Pixels:
    """What most sources have in common: pixels with class numbers, read one by one."""

    floats = False
    statistics = None
    has_class_numbers = True

    def batch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        images, labels = zip(*(self[int(i)] for i in indices), strict=True)  # pyright: ignore[reportIndexIssue]
        return torch.stack(images), torch.tensor(labels)


@dataclass(frozen=True)
class OwnData:
    """Somebody's own data as a source: any `data[i] -> (image, condition)` with a length.

    Images are tensors or arrays (channels, height, width), uint8 or floats in [-1, 1]; with data.statistics, (means, deviations)
    of each channel, floats of any scale. Conditions are class numbers, tensors, dicts of tensors, or None. Class numbers are named
    by data.class_names, or data.classes as torchvision has it.
    """

    data: Any
    first: tuple[Tensor, Any]
    fingerprint: str

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.first[0].shape)  # pyright: ignore[reportReturnType]

    @property
    def floats(self) -> bool:
        return self.first[0].is_floating_point()

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        found = getattr(self.data, "statistics", None)
        return found and tuple(tuple(map(float, values)) for values in found)  # pyright: ignore[reportReturnType]

    @property
    def class_names(self) -> list[str]:
        found = getattr(self.data, "class_names", None) or getattr(self.data, "classes", None) or []
        return [str(name) for name in found] if self.has_class_numbers else []

    @property
    def has_class_numbers(self) -> bool:
        return isinstance(self.first[1], int)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, condition = item_of(self.data, index)
        if image.shape != self.first[0].shape:
            raise ValueError(f"data[{index}] has an image of {tuple(image.shape)}; the first is {self.shape}")
        if self.class_names and not NULL_CLASS <= condition < len(self.class_names):
            raise ValueError(f"data[{index}] has class {condition}; there are {len(self.class_names)}")
        return image, condition

    def batch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Condition]:
        images, conditions = default_collate([self[int(i)] for i in indices])
        return images, conditions


def item_of(data: Any, index: int) -> tuple[Tensor, Any]:
    """An item as a tensor and a condition; ValueError for another kind of image."""
    item = data[index]
    try:
        image, condition = item
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"data[{index}] must be (image, condition), a condition being None where there is none ({error})"
        ) from error
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(image)
    if not isinstance(image, Tensor) or image.ndim != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
        found = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else f"a {type(image).__name__}"
        raise ValueError(f"data[{index}] has {found} for an image; it must be (channels, height, width), uint8 or floats")
    if condition is None:
        condition = NULL_CLASS
    number = isinstance(condition, int | np.integer) or (isinstance(condition, Tensor) and not condition.ndim)
    return image if image.dtype == torch.uint8 else image.float(), int(condition) if number else condition


def as_source(data: Any) -> Source:
    """Data as a source: itself where it is one."""
    if all(hasattr(data, name) for name in ("batch", "fingerprint", "shape", "has_class_numbers")):
        return data
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__") or not len(data):
        raise ValueError(f"data is a {type(data).__name__}; it must have a length above 0, and data[i] -> (image, condition)")
    source, digest = OwnData(data, item_of(data, 0), ""), hashlib.sha256(str(len(data)).encode())
    for i in np.unique(np.linspace(0, len(data) - 1, FINGERPRINT_IMAGES).astype(np.int64)):
        image, condition = source[int(i)]
        digest.update(image.contiguous().numpy().tobytes())
        for tensor in condition.values() if isinstance(condition, dict) else [condition]:
            digest.update(torch.as_tensor(tensor).contiguous().numpy().tobytes())
    return replace(source, fingerprint=digest.hexdigest())


def conditions_of(source: Source, classes: int, indices: Sequence[int]) -> Condition:
    """Conditions to sample with, for pictures and scores: the classes one after the other, or those of the data's images."""
    if source.has_class_numbers:
        return torch.tensor([i % classes if classes else NULL_CLASS for i in indices])
    return default_collate([source[i % len(source)][1] for i in indices])
