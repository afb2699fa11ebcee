"""A recipe: everything that determines what a training computes, as plain data (Table 9), and presets.

A preset is a value, returned by `preset(name)`; `with_values(recipe, name=value)` changes single values. A recipe is stored as
JSON with every run and every file of weights. All amounts of training are counted in images.
"""

from justimage.recipe.presets import PRESETS, fine_tuned, for_budget, for_images, for_store, paper_recipe, preset, resized
from justimage.recipe.sections import (
    IMAGENET,
    Checkpointing,
    Logging,
    OnlineEvaluation,
    Parallelism,
    Recipe,
    Training,
    normalization_of,
    with_values,
)  # fmt: skip
from justimage.recipe.serialization import from_json, incompatibilities, parse, to_json

__all__ = [
    "IMAGENET", "PRESETS", "Checkpointing", "Logging", "OnlineEvaluation", "Parallelism", "Recipe", "Training", "fine_tuned",
    "for_budget", "for_images", "for_store", "from_json", "incompatibilities", "normalization_of", "paper_recipe", "parse",
    "preset", "resized", "to_json", "with_values",
]  # fmt: skip
