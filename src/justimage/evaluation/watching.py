"""A few samples of every average scored while training goes on: numbers in the metrics, for early stopping (App. A)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from justimage import sampling
from justimage.data import Source
from justimage.drawing import UNIT
from justimage.ema import name
from justimage.evaluation.reference import features_of, open_reference, statistics_of
from justimage.evaluation.scores import Gaussian, frechet
from justimage.features import Extractor, open_features
from justimage.recipe import Recipe
from justimage.training import State


@dataclass(frozen=True)
class Judge:
    """What scores a training: features, and what real images are in them."""

    extractor: Extractor
    real: Gaussian


def open_judge(
    recipe: Recipe, source: Source, device: torch.device, progress: Callable[[int, int], object] = lambda done, total: None
) -> Judge:
    """The judge that a recipe asks for; its real images are the training's own unless there is a reference.

    ValueError or OSError, in one line, for features or a reference that cannot be used.
    """
    wanted = recipe.upkeep
    if not wanted.evaluate_features:
        raise ValueError("--evaluate-every needs --evaluate-features: inception, or a file (justimage features train)")
    extractor = open_features(wanted.evaluate_features, device)
    if wanted.evaluate_reference:
        found = open_reference(wanted.evaluate_reference, extractor, recipe.crop, progress)
        return Judge(extractor, found.statistics)
    return Judge(extractor, statistics_of(features_of(source, extractor, recipe.crop.shape, progress), len(source)))


def scores(recipe: Recipe, state: State, judge: Judge, beat: Callable[[], object]) -> dict[str, float]:
    """The Frechet distance of evaluate_count images of every average: `fid` of the one that the recipe samples with, and
    `fid_NAME` of each. Every process draws its part; `beat` is called as it goes on."""
    usual = recipe.sampling.use_ema
    found = {name(v): distance(recipe, state, judge, v, beat) for v in dict.fromkeys([*recipe.training.ema, usual])}
    return {"fid": found[name(usual)]} | {f"fid_{n}": value for n, value in found.items()}


@torch.no_grad()
def distance(recipe: Recipe, state: State, judge: Judge, average: float, beat: Callable[[], object]) -> float:
    s, count, world = recipe.sampling, recipe.upkeep.evaluate_count, state.world
    dtype = torch.bfloat16 if recipe.training.precision == "bf16" else torch.float32
    number, total, products = (torch.zeros((), dtype=torch.float64) for _ in range(3))
    with state.ema.lend(average), torch.compiler.set_stance("force_eager"):
        for first in range(0, count, UNIT * world.size):  # as many passes in each process: they gather weights together
            start = first + world.rank * UNIT
            labels = [i % state.model.classes if state.model.classes else -1 for i in range(start, start + UNIT)]
            images = sampling.sample(
                state.model, labels, start, guidance=s.guidance, interval=s.interval, steps=s.steps, solver=s.solver,
                dtype=dtype, batch=UNIT,
            )  # fmt: skip
            x = judge.extractor.extract(images)[0][: max(count - start, 0)].double()
            number, total, products = number + len(x), total + x.sum(0), products + x.T @ x
            beat()
    n, total, products = (world.sum(q.to(world.device)).cpu() for q in (number, total, products))
    mean = total / n
    return frechet(Gaussian(mean, (products - n * torch.outer(mean, mean)) / (n - 1)), judge.real)
