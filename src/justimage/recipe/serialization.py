"""Recipes as JSON, read back with every name and type checked, and compared with the one that a run was begun with."""

import difflib
import reprlib
import types
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from justimage.recipe.sections import Recipe

VERSION = 2
"""Of a recipe's JSON."""


def to_json(recipe: Recipe) -> dict[str, Any]:
    return {"version": VERSION} | asdict(recipe)


def from_json(values: Any) -> Recipe:
    """A recipe from its JSON; ValueError says which entry is wrong, or that another version wrote it."""
    if isinstance(values, dict):
        version = values.get("version", 1)
        if version != VERSION:
            written = f"the recipe is of version {reprlib.repr(version)}; this justimage reads version {VERSION}"
            raise ValueError(f"{written}: train again with it, or use the justimage that wrote it")
        values = {name: value for name, value in values.items() if name != "version"}
    return parse(values, Recipe, "recipe")


def parse(values: Any, kind: Any, place: str) -> Any:
    """A value of some type from its JSON. Every name and type is checked; ValueError says which one is wrong."""
    if is_dataclass(kind):
        if not isinstance(values, dict):
            raise ValueError(f"{place} is {reprlib.repr(values)}; it must be an object")
        hints = get_type_hints(kind)
        if place == "recipe" and (missing := hints.keys() - values.keys()):
            raise ValueError(f"{place} lacks {', '.join(sorted(missing))}")
        for name in values:
            if name not in hints:
                near = difflib.get_close_matches(name[:100], hints, n=1)
                raise ValueError(
                    f"{place} has an unknown entry {reprlib.repr(name)}" + (f"; perhaps {near[0]}" if near else "")
                )
        return kind(**{n: parse(v, hints[n], f"{place}.{n}") for n, v in values.items()})  # pyright: ignore[reportCallIssue]
    if get_origin(kind) in (Union, types.UnionType):
        for option in get_args(kind):
            try:
                return parse(values, option, place)
            except ValueError:
                continue
    elif get_origin(kind) is tuple and isinstance(values, list | tuple):
        inner = get_args(kind)
        inner = [inner[0]] * len(values) if inner[-1] is ... else inner
        if len(inner) == len(values):
            return tuple(parse(v, k, place) for v, k in zip(values, inner, strict=True))
    elif get_origin(kind) is Literal and values in get_args(kind):
        return values
    elif kind is float and isinstance(values, int | float) and not isinstance(values, bool):
        with suppress(OverflowError):
            return float(values)
    elif isinstance(kind, type) and type(values) is kind:
        return values
    raise ValueError(f"{place} is {reprlib.repr(values)}, which is not allowed there")


def incompatibilities(new: Recipe, old: Recipe) -> list[str]:
    """How a recipe differs from the one that a run was begun with, where that would change the training so far."""
    free = {"data", "sampling", "parallelism", "logging", "checkpoint", "evaluation", "class_names", "training.sample_ema"}
    if new.training.lr_schedule == "constant":
        free.add("training.total_images")
    if new.training.precision == "auto":
        free.add("training.precision")

    def compare(a: Any, b: Any, place: str) -> Iterator[str]:
        for f in fields(a):
            here = f"{place}{f.name}"
            if here in free:
                continue
            if is_dataclass(getattr(a, f.name)):
                yield from compare(getattr(a, f.name), getattr(b, f.name), f"{here}.")
            elif getattr(a, f.name) != getattr(b, f.name):
                yield f"{f.name} is {getattr(a, f.name)}, was {getattr(b, f.name)}"

    return list(compare(new, old, ""))
