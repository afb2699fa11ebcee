"""Recipes as JSON, read back with every name and type checked, and compared with the one that a run was begun with."""

import reprlib
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from justimage.recipe.sections import Recipe
from justimage.strict_json import parse as parse

VERSION = 2
"""Of a recipe's JSON."""
LATER = {"origin", "anew", "condition", "told"}
"""Entries that this version had not from its beginning."""


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
        if missing := {f.name for f in fields(Recipe)} - values.keys() - LATER:
            raise ValueError(f"recipe lacks {', '.join(sorted(missing))}")
    return parse(values, Recipe, "recipe")


def incompatibilities(new: Recipe, old: Recipe) -> list[str]:
    """How a recipe differs from the one that a run was begun with, where that would change the training so far."""
    free = {
        "data",
        "condition",
        "sampling",
        "parallelism",
        "logging",
        "checkpoint",
        "evaluation",
        "class_names",
        "training.sample_ema",
        "origin",
        "anew",
    }
    if new.training.budget and old.training.budget:  # the length follows
        free.add("training.total_images")
    if new.training.lr_schedule == "constant":  # else another length changes the rates so far
        free |= {"training.budget", "training.total_images"}
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
