"""A work of counting: what a recipe is in numbers, and what its network costs. Nothing is computed with it."""

from dataclasses import dataclass

from justimage import recipe as recipes
from justimage.cost import cost
from justimage.recipe import IMAGENET, Recipe
from justimage.reproduction import Lab, Result, Talk, hash_of


@dataclass(frozen=True)
class CountCost:
    """Every number of a recipe by its own name; parameters in millions, multiply-adds of a forward pass in G."""

    recipe: Recipe

    def group(self, lab: Lab) -> str:
        return hash_of("counted", recipes.to_json(self.recipe))

    @property
    def title(self) -> str:
        return f"counting, {self.recipe.model.width} wide at {self.recipe.model.size[0]}"

    def key(self, lab: Lab) -> str:
        return self.group(lab)

    def do(self, lab: Lab, talk: Talk) -> Result:
        r = self.recipe
        found = cost(r.model)
        numbers = {k: v for part in (r.model, r.diffusion, r.training, r.sampling) for k, v in vars(part).items()}
        several = {"beta": r.training.betas, "ema": r.training.ema}
        one_by_one = {f"{name}_{i}": v for name, row in several.items() for i, v in enumerate(row, 1)}
        return {
            **numbers,
            **one_by_one,
            "parameters_m": found.parameters / 1e6,
            "gflops": found.multiply_adds / 1e9,
            "patch_dimension": found.patch_dimension,
            "epochs": r.training.total_images / IMAGENET,
            "warmup_epochs": r.training.warmup / IMAGENET,
            "interval_from": r.sampling.interval[0],
            "interval_to": r.sampling.interval[1],
        }
