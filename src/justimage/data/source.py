"""The protocol of a source: numbered images with conditions, readable in any order, without state; and any dataset as one."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from justimage.conditions import NULL_CLASS, Condition
from justimage.data.images import MODES
from justimage.disk import printable

FINGERPRINT_ITEMS = 16
"""Items of a dataset, spread over it, whose content goes into its fingerprint."""


class Source(Protocol):
    """Numbered images, uint8 or float32, all of one shape, each with a condition: a class number, NULL_CLASS for none."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        ...

    @property
    def floats(self) -> bool:
        """Whether images are float32, rather than uint8 pixels."""
        ...

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation of each channel of floats; None where they are unknown."""
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
        """A hash that changes when the images or their classes do."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Any]:
        """An image (channels, height, width) and its condition; ValueError or OSError, in one line, where it cannot be read."""
        ...

    def batch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Any]:
        """The images (b, channels, height, width) and conditions of b indices."""
        ...


class LabeledImages:
    """Base of the sources whose conditions are class numbers: pixels, read one by one, unless they say otherwise."""

    floats = False
    statistics = None
    has_class_numbers = True

    def batch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        images, labels = zip(*(self[int(i)] for i in indices), strict=True)  # pyright: ignore[reportIndexIssue]
        return torch.stack(images), torch.tensor(labels)


class ImageError(ValueError):
    """An image that cannot be used: ImageError(message, name, reason), the name being the image's within its source."""

    def __str__(self) -> str:
        return self.args[0]

    @property
    def name(self) -> str:
        return self.args[1]

    @property
    def reason(self) -> str:
        return self.args[2]


# datasets from outside -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DatasetSource:
    """A dataset as a source; see `as_source`."""

    data: Any
    first: tuple[Tensor, Any]
    """item 0, which all others must be like"""
    class_names: list[str]
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None
    fingerprint: str

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.first[0].shape)  # pyright: ignore[reportReturnType]

    @property
    def floats(self) -> bool:
        return self.first[0].is_floating_point()

    @property
    def has_class_numbers(self) -> bool:
        return isinstance(self.first[1], int)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        item = read_item(self.data, index)
        if form(item) != form(self.first):
            raise ValueError(f"data[{index}] is {describe(item)}, but data[0] is {describe(self.first)}; all must be alike")
        if self.class_names and not NULL_CLASS <= item[1] < len(self.class_names):
            raise ValueError(f"data[{index}] has class {item[1]}; there are {len(self.class_names)} class names")
        return item

    def batch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Any]:
        images, conditions = default_collate([self[int(i)] for i in indices])
        return images, conditions


def as_source(data: Any) -> Source:
    """Data as a source: itself where it is one, else any `data[i] -> (image, condition)` with a length.

    Images are (channels, height, width), tensors or arrays, uint8 or floats in [-1, 1]; or Pillow's (L, RGB, RGBA). With
    data.statistics, (means, standard deviations) of the channels, floats have any scale. Conditions are class numbers,
    tensors, dicts of tensors, or None; arrays and floats become tensors. Class numbers are named by data.class_names, or
    data.classes as in torchvision. Items must be alike in shape and type. A run resumes only with data of the same
    fingerprint: data.fingerprint where there is one, else a hash of some items, or, where these change from one reading to
    the next (random augmentation), of their shapes. ValueError, in one line, for anything else.
    """
    if all(hasattr(data, name) for name in ("batch", "fingerprint", "shape", "has_class_numbers")):
        return data
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__") or not len(data):
        raise ValueError(f"data is a {type(data).__name__}; it must have a length above 0, and data[i] -> (image, condition)")
    first = read_item(data, 0)
    names = class_names_of(data) if isinstance(first[1], int) else []
    source = DatasetSource(data, first, names, statistics_of(data, len(first[0])), "")
    given = getattr(data, "fingerprint", None)
    return replace(source, fingerprint=given if isinstance(given, str) and given else hash_items(source))


def class_names_of(data: Any) -> list[str]:
    """data.class_names, or data.classes; none where it has neither."""
    found = next((names for n in ("class_names", "classes") if (names := getattr(data, n, None)) is not None), [])
    if isinstance(found, str) or not isinstance(found, Iterable):
        raise ValueError(f"the class names of data are {printable(found, 100)}; they must be a list, by class number")
    return [str(name) for name in found]


def statistics_of(data: Any, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """data.statistics, checked; None where there are none."""
    given = getattr(data, "statistics", None)
    if given is None:
        return None
    try:
        mean, std = (tuple(map(float, values)) for values in given)
    except (TypeError, ValueError):
        mean, std = (), ()
    if not len(mean) == len(std) == channels:
        raise ValueError(f"data.statistics must be (means, standard deviations), {channels} numbers each, one for each channel")
    return mean, std


def read_item(data: Any, index: int) -> tuple[Tensor, Any]:
    """data[index] as a tensor and a class number, a tensor or a dict of tensors; ValueError, in one line, for anything else."""
    try:
        item = data[index]
    except OSError:  # names its file
        raise
    except Exception as error:  # of somebody's code: every process must learn of it, and training must end in order
        reason = printable(" ".join(str(error).split()) or "no reason given")
        raise ValueError(f"data[{index}] raised {type(error).__name__}: {reason}") from error
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise ValueError(f"data[{index}] must be (image, condition), None for no condition; it is {describe(item)}")
    image, condition = item
    if isinstance(image, Image.Image) and image.mode in MODES.values():
        image = np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)
    image = to_tensor(image)
    if image is None or image.ndim != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise ValueError(
            f"data[{index}] has {describe(item[0])} for an image; it must be (channels, height, width), uint8 or floats"
        )
    if condition is None:
        return image, NULL_CLASS
    tensors = {n: to_condition(v) for n, v in condition.items()} if isinstance(condition, dict) else to_condition(condition)
    if tensors is None or (isinstance(tensors, dict) and (not tensors or any(v is None for v in tensors.values()))):
        allowed = "a class number, a tensor, a dict of tensors, None"
        raise ValueError(f"data[{index}] has {describe(condition)} for a condition; allowed: {allowed}")
    if isinstance(tensors, Tensor) and not tensors.ndim and not tensors.is_floating_point():
        return image, int(tensors)
    return image, tensors


def to_tensor(value: Any) -> Tensor | None:
    """Numbers as a tensor, floats as float32; None for what holds no numbers."""
    if isinstance(value, np.ndarray | np.generic):
        value = torch.from_numpy(np.array(value)) if value.dtype.isnative and value.dtype.kind in "biuf" else None
    elif isinstance(value, bool | int | float):
        value = torch.tensor(value)
    if not isinstance(value, Tensor) or value.is_complex():
        return None
    value = value.detach().cpu()
    return value.float() if value.is_floating_point() else value


def to_condition(value: Any) -> Tensor | None:
    """`to_tensor`, integers as int64, of which NULL_CLASS is one."""
    tensor = to_tensor(value)
    return tensor if tensor is None or tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.long()


def form(value: Any) -> Any:
    """Return what items must have in common: shapes and types, not values."""
    if isinstance(value, tuple):
        return tuple(map(form, value))
    if isinstance(value, dict):
        return {name: form(v) for name, v in value.items()}
    return (value.dtype, value.shape) if isinstance(value, Tensor | np.ndarray) else type(value)


def describe(value: Any) -> str:
    """The form of a value, for a message."""
    if isinstance(value, tuple):
        return f"({', '.join(map(describe, value))})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{printable(name, 50)}: {describe(v)}' for name, v in value.items())}}}"
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor | np.ndarray) else f"a {type(value).__name__}"


def digest_of_items(source: Source) -> str:
    """A hash of the content of some items: images and conditions."""
    found = hashlib.sha256()
    for i in np.unique(np.linspace(0, len(source) - 1, FINGERPRINT_ITEMS).astype(np.int64)):
        image, condition = source[int(i)]
        for tensor in (image, *(condition.values() if isinstance(condition, dict) else [condition])):
            found.update(torch.as_tensor(tensor).numpy().tobytes())
    return found.hexdigest()


def hash_items(source: DatasetSource) -> str:
    """A fingerprint from some items; from their shapes alone where they are not the same when read again."""
    content = digest_of_items(source)
    known = content if content == digest_of_items(source) else describe(source.first)
    return hashlib.sha256(repr((len(source), source.class_names, known)).encode()).hexdigest()


def conditions_of(source: Source, classes: int, indices: Sequence[int]) -> Condition:
    """Conditions to sample with: the classes in turn, or the conditions of the source's images at the indices."""
    if source.has_class_numbers:
        return torch.tensor([i % classes if classes else NULL_CLASS for i in indices])
    return default_collate([source[i % len(source)][1] for i in indices])
