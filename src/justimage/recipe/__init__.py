"""A recipe: everything that decides what a training computes, as plain data. Table 9, and the presets.

A preset is a value, made by `preset(name)`; to change one thing, `dataclasses.replace` it, or `changed(recipe, name=value)`. A
recipe is stored as JSON with every run and every file of weights. All amounts of training are counted in images, the only
progress there is.
"""

from justimage.recipe.parts import IMAGENET, Machine, Recipe, Sampling, Training, Upkeep, changed
from justimage.recipe.presets import PRESETS, fitted, jit, preset, resized
from justimage.recipe.stored import contradictions, from_json, to_json

__all__ = [
    "IMAGENET", "PRESETS", "Machine", "Recipe", "Sampling", "Training", "Upkeep",
    "changed", "contradictions", "fitted", "from_json", "jit", "preset", "resized", "to_json",
]  # fmt: skip
