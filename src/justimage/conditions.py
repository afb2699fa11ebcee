"""Conditions: the inputs of a network besides the noisy image and the time.

A condition describes a batch of b images: class numbers (b,), a tensor (b, ...), or a dict of such tensors (an image-like map,
tokens, a vector, classes). None is a condition, too. The null condition is defined once, by `null_like`: training replaces some
conditions with it (label drop), and guidance extrapolates away from it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Condition = Tensor | dict[str, Tensor] | None
NULL_CLASS = -1
"""The class number, or token, that stands for none."""
AUGMENTATION = "augmentation"
"""The entry that says what was done to an image, rather than what is asked for: it is never dropped."""
AUGMENTATION_NUMBERS = 6
"""How many numbers it has (augmentation.py)."""


def map_tensors(function: Callable[..., Tensor], condition: Any, *others: Any) -> Any:
    """The function of each tensor of one or more conditions of the same form."""
    if condition is None:
        return None
    if isinstance(condition, dict):
        return {name: function(tensor, *(other[name] for other in others)) for name, tensor in condition.items()}
    return function(condition, *others)


def null_like(condition: Condition) -> Condition:
    """The condition that says nothing, in the form of another: NULL_CLASS for integers, 0 for floats, False for booleans."""

    def null(tensor: Tensor) -> Tensor:
        integers = not (tensor.is_floating_point() or tensor.dtype == torch.bool)
        return torch.full_like(tensor, NULL_CLASS if integers else 0)

    return map_tensors(null, condition)


def drop(condition: Condition, dropped: Tensor) -> Condition:
    """The condition with "nothing" for the images (b,) where `dropped` is True."""

    def choose(tensor: Tensor, null: Tensor) -> Tensor:
        return torch.where(dropped.view(-1, *[1] * (tensor.ndim - 1)), null, tensor)

    kept = {AUGMENTATION: condition[AUGMENTATION]} if isinstance(condition, dict) and AUGMENTATION in condition else {}
    chosen = map_tensors(choose, condition, null_like(condition))
    return chosen | kept if isinstance(chosen, dict) else chosen


def with_entry(condition: Condition, name: str, told: Tensor) -> dict[str, Tensor]:
    """A condition of classes, or a dict, with another entry."""
    known = condition if isinstance(condition, dict) else {} if condition is None else {"classes": condition}
    return known | {name: told}


def text_bytes(text: str, length: int) -> Tensor:
    """The UTF-8 bytes of a text, (length,), NULL_CLASS after its end; ValueError for a longer one."""
    found = text.encode()
    if len(found) > length:
        raise ValueError(f"a text of {len(found)} bytes is too long; allowed: up to {length}: {text[:40]!r}")
    return torch.tensor([*found, *[NULL_CLASS] * (length - len(found))])


def text_of(tokens: Tensor) -> str:
    """The text of bytes (length,)."""
    return bytes(tokens[tokens >= 0].tolist()).decode(errors="replace")


def join(first: Condition, second: Condition) -> Condition:
    """Two conditions of the same form as one of twice the batch."""
    return map_tensors(lambda a, b: torch.cat([a, b]), first, second)


def class_numbers(condition: Condition) -> Tensor | None:
    """The class numbers (b,) of a condition: itself, or its entry "classes"; None where there are none."""
    found = condition.get("classes") if isinstance(condition, dict) else condition
    return found if found is not None and found.ndim == 1 and not found.is_floating_point() else None
