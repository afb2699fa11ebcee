"""One-line errors for values out of range, shared by the dataclasses whose values a person chooses."""

from collections.abc import Collection
from dataclasses import fields
from math import inf, isfinite
from typing import Any


def check_finite(values: Any) -> None:
    """ValueError for a dataclass in which a float is infinite or not a number."""
    for f in fields(values):
        value = getattr(values, f.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not isfinite(number):
                raise ValueError(f"{f.name} is {value}; it must be finite")


def check_range(values: Any, **limits: tuple[float, float]) -> None:
    """ValueError for an attribute below or above its limits, name=(low, high); one that is None is not checked."""
    for name, (low, high) in limits.items():
        value = getattr(values, name)
        if value is not None and not low <= value <= high:
            allowed = f"it must be {low:g} or more" if high == inf else f"allowed: {low:g} to {high:g}"
            raise ValueError(f"{name} is {value}; {allowed}")


def check_choice(values: Any, **choices: Collection[str]) -> None:
    """ValueError for an attribute that is none of its choices."""
    for name, allowed in choices.items():
        if getattr(values, name) not in allowed:
            raise ValueError(f"{name} is {getattr(values, name)!r}; allowed: {', '.join(allowed)}")
