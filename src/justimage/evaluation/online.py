"""Scores of a few samples of every average during training: numbers in the metrics, for early stopping (App. A)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from justimage import sampling
from justimage.conditions import Condition
from justimage.data import Source, conditions_of
from justimage.ema import ema_name
from justimage.evaluation.reference import cached_statistics, compute_features, open_reference
from justimage.evaluation.scores import Gaussian, frechet
from justimage.features import Extractor, open_features
from justimage.generate import BATCH
from justimage.given import OfImages
from justimage.progress import Job
from justimage.recipe import Recipe
from justimage.training import TrainState


@dataclass(frozen=True)
class OnlineFID:
    """Scores training by the Frechet distance in a feature space."""

    extractor: Extractor
    real: Gaussian


def open_online_fid(recipe: Recipe, source: Source, device: torch.device) -> Job[OnlineFID]:
    """The online FID that a recipe asks for; the real images are the training's own unless there is a reference.

    ValueError or OSError, in one line, for features or a reference that cannot be used.
    """
    section = recipe.evaluation
    if not section.features:
        raise ValueError("--evaluation.every needs --evaluation.features: inception, or a file (justimage feature-space train)")
    extractor = open_features(section.features, device)
    if section.reference:
        reference = yield from open_reference(section.reference, extractor, recipe.crop)
        return OnlineFID(extractor, reference.statistics)
    folder = yield from compute_features(source, extractor)
    return OnlineFID(extractor, cached_statistics(folder, len(source)))


def online_scores(
    recipe: Recipe, source: Source, state: TrainState, online_fid: OnlineFID, heartbeat: Callable[[], object]
) -> dict[str, float]:
    """The Frechet distance of some samples of every average: `fid` of the one that the recipe samples with, and `fid_NAME` of
    each. Every process samples its share; `heartbeat` is called meanwhile."""
    usual = recipe.training.sample_ema
    emas = dict.fromkeys([*recipe.training.ema, usual])
    found = {ema_name(v): distance(recipe, source, state, online_fid, v, heartbeat) for v in emas}
    return {"fid": found[ema_name(usual)]} | {f"fid_{n}": value for n, value in found.items()}


@torch.no_grad()
def distance(
    recipe: Recipe, source: Source, state: TrainState, online_fid: OnlineFID, ema: float, heartbeat: Callable[[], object]
) -> float:
    """The Frechet distance of samples of one average to the real images."""
    count, world = recipe.evaluation.count, state.world
    dtype = torch.bfloat16 if recipe.training.precision == "bf16" else torch.float32
    real = OfImages(source, recipe)

    def conditions(places: Sequence[int]) -> Condition:
        if recipe.training.task:
            return real.at(places)
        return conditions_of(source, state.denoiser.classes, places) if source.has_class_numbers else real.as_stored(places)

    number, total, products = (torch.zeros((), dtype=torch.float64) for _ in range(3))
    with state.ema.lend(ema), torch.compiler.set_stance("force_eager"):
        for first in range(0, count, BATCH * world.size):  # as many passes in each process: they gather weights together
            start = first + world.rank * BATCH
            places = range(start, start + BATCH)
            images = sampling.sample(state.denoiser, conditions(places), start, recipe.sampling, dtype=dtype, batch=BATCH)
            x = online_fid.extractor.extract(images)[0][: max(count - start, 0)].double()
            number, total, products = number + len(x), total + x.sum(0), products + x.T @ x
            heartbeat()
    n, total, products = (world.all_reduce(q.to(world.device)).cpu() for q in (number, total, products))
    mean = total / n
    return frechet(Gaussian(mean, (products - n * torch.outer(mean, mean)) / (n - 1)), online_fid.real)
