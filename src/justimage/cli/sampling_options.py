"""Options of sampling, shared by the commands that sample."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from justimage.distributed import preferred_precision
from justimage.generate import Precision
from justimage.recipe import Recipe
from justimage.sampling import Sampling, with_passes
from justimage.solvers import GRIDS


@dataclass(frozen=True)
class SamplingOptions:
    """How images are sampled."""

    guidance: float | None = None
    """scale of classifier-free guidance, 1 for none [the recipe's]"""
    interval: tuple[float, float] | None = None
    """times between which guidance applies [the recipe's]"""
    passes: int | None = None
    """passes of the network for an image: chooses solver, steps and times, say 12 (docs/sampling.md)"""
    solver: str | None = None
    """heun, euler, adams, dpm2, dpm3, unipc or sde [the recipe's]"""
    steps: int | None = None
    """steps of the solver [the recipe's]"""
    times: tuple[str, ...] | None = None
    """the grid of times: linear, cosine, logsnr, shifted, or the times themselves from 0 to 1 [the recipe's]"""
    guidance_every: int | None = None
    """evaluations between two passes without a class; 2 saves a fifth of the passes, at a cost in score [the recipe's]"""
    t_clip: float | None = None
    """lower bound of 1 - t where a velocity is divided by it [the recipe's]"""
    ema: float | None = None
    """the average of the weights, 0 for the weights themselves [the recipe's]"""
    seed: int = 0
    """of the first image"""
    batch: int = 64
    """images sampled together"""
    precision: Precision | None = None
    """what the network computes in [bf16 on a GPU, and on a CPU that has instructions for it; else fp32]"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps [cuda if there is one]"""
    compile: bool = False
    """compile the network, for many images: takes a minute, then B/16 in bf16 is 1.5 times as fast on a CPU
    (docs/performance.md)"""


def sampling_of(o: SamplingOptions, recipe: Recipe) -> Sampling:
    """How to sample: what was asked for, else what the recipe says."""
    names = "guidance", "interval", "guidance_every", "solver", "steps", "t_clip"
    asked = {name: getattr(o, name) for name in names if getattr(o, name) is not None}
    if o.times is not None:
        asked["times"] = o.times[0] if len(o.times) == 1 else tuple(map(number, o.times))
        if len(o.times) > 1 and o.steps not in (None, len(o.times) - 1):
            raise ValueError(f"--steps {o.steps} and {len(o.times)} --times, which are {len(o.times) - 1} steps: leave out one")
    if o.passes is None:
        return replace(recipe.sampling, **asked)
    if clashing := [name for name in ("solver", "steps", "times", "t_clip") if name in asked]:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in clashing)
        raise ValueError(f"--passes {o.passes} chooses solver, steps, times and clip itself; leave it out, or {options}")
    return with_passes(replace(recipe.sampling, **asked), o.passes)


def number(word: str) -> float:
    try:
        return float(word)
    except ValueError as error:
        raise ValueError(f"times has {word!r}; allowed: {', '.join(GRIDS)}, or numbers from 0 to 1") from error


def precision_of(o: SamplingOptions, device: torch.device) -> Precision:
    """The precision asked for, else the one that suits the device."""
    return o.precision or preferred_precision(device)


NAMES = 12
"""Names of classes in the message about one that there is not."""


def parse_classes(words: Sequence[str], recipe: Recipe) -> list[int]:
    """Classes given as numbers or names, as numbers."""
    total = recipe.model.classes or 0
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
            listed = f", or {', '.join(list(names)[:NAMES])}{', ...' if len(names) > NAMES else ''}" if names else ""
            allowed = f"0 to {total - 1}{listed}" if total else "-1 (it has no classes)"
            raise ValueError(
                f"class {word!r} is not one of this model's; allowed: {allowed}" + (f"; perhaps {near[0]}" if near else "")
            )
    return numbers
