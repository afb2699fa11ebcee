"""The arguments of `sample`, as a person gives them: completed to one condition and one seed an image, or refused in one
line."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from justimage.conditions import NULL_CLASS, Condition, class_numbers, map_tensors

Integers = int | Sequence[int] | Tensor | np.ndarray | None
"""Whole numbers, or one for all."""


def to_list(numbers: Integers, what: str) -> list[int] | int | None:
    """Whole numbers from a list, an array or a tensor; one number stays one."""
    try:
        plain = None if numbers is None else torch.as_tensor(numbers)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{what} must be whole numbers; they are {numbers!r}") from error
    if plain is not None and (plain.is_floating_point() or plain.ndim > 1 or not plain.numel()):
        raise ValueError(f"{what} must be one or more whole numbers; they are {numbers!r}")
    return None if plain is None else plain.tolist()


def is_condition(value: Any) -> bool:
    """Whether a value is a condition already, rather than class numbers in some form."""
    return isinstance(value, dict) or (isinstance(value, Tensor) and (value.is_floating_point() or value.ndim > 1))


def complete_arguments(
    condition: Integers | Condition, seeds: Integers, noise: Tensor | None, batch: int
) -> tuple[Condition, Sequence[int], int]:
    """A condition and a seed for each of n images, and n: the longest of condition, seeds and noise."""
    each_class = None if is_condition(condition) else to_list(condition, "classes")  # pyright: ignore[reportArgumentType]
    each_seed = to_list(seeds, "seeds")
    tensors = list(condition.values()) if isinstance(condition, dict) else [condition] if is_condition(condition) else []
    lengths = [len(q) for q in (*tensors, each_class, each_seed, noise) if q is not None and not isinstance(q, int)]
    n = max(lengths, default=1)
    if any(length not in (1, n) for length in lengths) or n < 1:
        raise ValueError(f"classes, seeds and noise give {', '.join(map(str, lengths))} images; they must agree")
    if isinstance(each_seed, int) or each_seed is None:
        each_seed = range(each_seed or 0, (each_seed or 0) + n)
    if len(each_seed) != n:
        raise ValueError(f"there is one seed for {n} images; give one each, or an integer to count from")
    if batch < 1:
        raise ValueError(f"batch is {batch}; it must be 1 or more")
    if not is_condition(condition):
        condition = torch.as_tensor(NULL_CLASS if each_class is None else each_class).reshape(-1)
    return map_tensors(lambda tensor: tensor.expand(n, *tensor.shape[1:]), condition), each_seed, n


def check_noise(noise: Tensor | None, shape: tuple[int, ...]) -> None:
    if noise is not None and tuple(noise.shape) != shape:
        raise ValueError(f"noise is {tuple(noise.shape)}; it must be {shape}")


def check_condition(condition: Condition, n: int, classes: int, guidance: float, told: Sequence[str] | None = None) -> None:
    """ValueError for a condition of another number of images, for classes that a model does not have, for entries that it is
    not told (told: those it may have, if that is known), and for guidance where there is nothing to guide towards."""
    if told is not None and isinstance(condition, dict) and (unknown := [name for name in condition if name not in told]):
        raise ValueError(f"the condition has {unknown[0]!r}; allowed for this model: {', '.join(told)}")
    tensors = condition.values() if isinstance(condition, dict) else [] if condition is None else [condition]
    for tensor in tensors:
        if len(tensor) != n:
            raise ValueError(f"the condition is of {len(tensor)} images; there are {n}")
    y = class_numbers(condition)
    if y is not None and (wrong := [c for c in y.tolist() if not NULL_CLASS <= c < classes]):
        allowed = f"0 to {classes - 1}, or -1 for no class" if classes else "none (it has no classes)"
        raise ValueError(f"class {wrong[0]} is not one of this model's; allowed: {allowed}")
    plain = condition is None or (isinstance(condition, Tensor) and y is not None)
    if guidance != 1 and not classes and plain:
        raise ValueError(f"guidance is {guidance:g}, but this model has no classes to guide towards; leave it at 1")
