"""A job that trains nothing: the numbers of a recipe, and the cost of its network."""

from dataclasses import dataclass

from justimage import progress, recipe as recipes
from justimage.cost import cost
from justimage.progress import Progress
from justimage.recipe import IMAGENET, Recipe
from justimage.reproduction import Lab, Result, hash_of


@dataclass(frozen=True)
class CountCost:
    """Every number of a recipe by its own name; parameters in millions, multiply-adds of a forward pass in 10^9."""

    recipe: Recipe

    def group(self, lab: Lab) -> str:
        return hash_of("cost", recipes.to_json(self.recipe))

    @property
    def title(self) -> str:
        return f"counting, {self.recipe.model.width} wide at {self.recipe.model.size[0]}"

    def key(self, lab: Lab) -> str:
        return self.group(lab)

    def run(self, lab: Lab) -> progress.Job[Result]:
        yield Progress("counting")
        r = self.recipe
        network = cost(r.model)
        numbers = {k: v for section in (r.model, r.diffusion, r.training, r.sampling) for k, v in vars(section).items()}
        tuples = {"beta": r.training.betas, "ema": r.training.ema}
        numbered = {f"{name}_{i}": v for name, values in tuples.items() for i, v in enumerate(values, 1)}
        return {
            **numbers,
            **numbered,
            "parameters_m": network.parameters / 1e6,
            "gflops": network.multiply_adds / 1e9,
            "patch_dimension": network.patch_dimension,
            "epochs": r.training.total_images / IMAGENET,
            "warmup_epochs": r.training.warmup / IMAGENET,
            "interval_from": r.sampling.interval[0],
            "interval_to": r.sampling.interval[1],
        }
