"""Options that say how images are drawn, shared by the commands that draw them."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from justimage.drawing import Precision
from justimage.recipe import Recipe
from justimage.sampling import SolverName


@dataclass(frozen=True)
class Drawn:
    """How images are drawn."""

    guidance: float | None = None
    """scale of classifier-free guidance, 1 for none [the recipe's]"""
    interval: tuple[float, float] | None = None
    """times between which guidance applies [the recipe's]"""
    solver: SolverName | None = None
    """second order or first [the recipe's]"""
    steps: int | None = None
    """of the solver [the recipe's]"""
    sampling_clip: float | None = None
    """least 1 - t that a velocity is divided by [the recipe's]"""
    ema: float | None = None
    """the average of the weights, 0 for the weights themselves [the recipe's]"""
    seed: int = 0
    """of the first image"""
    batch: int = 64
    """images drawn together"""
    precision: Precision | None = None
    """what the network computes in [bf16 on a GPU, fp32 on a CPU]"""
    device: str | None = None
    """cpu, cuda, cuda:1 [cuda if there is one]"""


def settings(o: Drawn, recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """The fields of a `Drawing`: what was asked for, else what the recipe says, else what suits the device."""
    names = "guidance", "interval", "solver", "steps"
    found = {n: getattr(recipe.sampling if getattr(o, n) is None else o, n) for n in names} | {"ema": o.ema}
    precision = o.precision or ("fp32" if device.type == "cpu" else "bf16")
    return found | {"sampling_clip": o.sampling_clip, "seed": o.seed, "unit": o.batch, "precision": precision}


def numbered(words: Sequence[str], recipe: Recipe) -> list[int]:
    """Classes given as numbers or names, as numbers."""
    total = recipe.network.classes or 0
    names = {name: i for i, name in enumerate(recipe.class_names)}
    numbers = []
    for word in words:
        if word in names:
            numbers.append(names[word])
        elif word == "-1":
            numbers.append(-1)
        elif any(name.isdigit() for name in names):
            raise ValueError(f"class {word!r} is not one of this model's, whose names are {', '.join(recipe.class_names)}")
        elif re.fullmatch(r"-?\d+", word) and -1 <= int(word) < total:
            numbers.append(int(word))
        else:
            near = [] if word.isdigit() else difflib.get_close_matches(word, names, n=1)
            allowed = f"0 to {total - 1}" if total else "-1 (it has no classes)"
            raise ValueError(
                f"class {word!r} is not one of this model's; allowed: {allowed}" + (f"; perhaps {near[0]}" if near else "")
            )
    return numbers
