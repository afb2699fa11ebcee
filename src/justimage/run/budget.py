"""A training's length from a time: as many images as it sees in its budget, by the speed of a few steps."""

import time
from contextlib import closing
from typing import Any

import torch

from justimage import recipe as recipes, training
from justimage.data import Source
from justimage.diffusion import Diffusion
from justimage.distributed import World
from justimage.recipe import Recipe
from justimage.training import Loss

WARM_UP_STEPS = 2
"""Not counted: they compile, and allocate memory."""
MEASURED_SECONDS = 8.0
MIN_STEPS = 100
"""Fewer give an average of the weights that is still the first ones."""


def fit_length(
    recipe: Recipe, source: Source, world: World, earlier: Recipe | None, loss: Loss = Diffusion.loss, **given: Any
) -> Recipe:
    """The recipe with the total_images that its budget allows; ValueError for a budget too small for MIN_STEPS.

    earlier: the recipe of this run when it was begun. Its length belongs to its budget: the same budget is the same length,
    and another one is in proportion. given: the network and optimizer, as for `training.init_state`.
    """
    r, budget = recipe.training, recipe.training.budget
    if budget is None:
        return recipe
    if earlier and earlier.training.budget:
        images = earlier.training.total_images * (budget / earlier.training.budget)
    else:
        images = measure_speed(recipe, source, world, loss, **given) * budget
    steps = int(images / r.batch)
    if steps < MIN_STEPS:
        needed = budget * MIN_STEPS * r.batch / max(images, 1e-9)
        raise ValueError(
            f"budget is {budget:g} seconds, {steps} steps of {r.batch} images here; allowed: {MIN_STEPS} steps or more, "
            f"{needed:.0f} seconds"
        )
    return recipes.with_values(recipe, total_images=steps * r.batch)


def measure_speed(recipe: Recipe, source: Source, world: World, loss: Loss = Diffusion.loss, **given: Any) -> float:
    """Images/s over some seconds of this training, of which nothing is kept; equal in all processes."""
    if isinstance(given.get("net"), torch.nn.Module):
        raise ValueError("a budget trains some steps to measure them; give a function that makes the network, not the network")
    state = training.init_state(recipe, world, **given)
    endless = recipes.with_values(recipe, total_images=10**12, lr_schedule="constant")
    counted, began = 0, 0.0
    with closing(training.train(endless, source, state, loss=loss)) as steps:
        for number, _ in enumerate(steps, 1):
            now = time.perf_counter()
            if number <= WARM_UP_STEPS:
                began = now
                continue
            counted += recipe.training.batch
            if world.on_main(lambda now=now, began=began: now - began >= MEASURED_SECONDS):
                break
    return world.on_main(lambda: counted / (time.perf_counter() - began))
