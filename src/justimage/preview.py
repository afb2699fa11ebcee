"""Previews of a training: samples from the same seeds every time, and real images denoised in one step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from justimage import figures, randomness, sampling
from justimage.conditions import null_like, with_entry
from justimage.data import Source, conditions_of
from justimage.normalization import to_uint8
from justimage.recipe import Recipe
from justimage.sampling import Denoiser, Sampling
from justimage.tasks import open_task
from justimage.training import TrainState

BATCH = {"cpu": 8}
"""Images sampled at a time, where a batch takes long."""
PREVIEW_TIME = 0.3
"""The fixed t at which previews show a denoised picture."""


def preview(
    recipe: Recipe, source: Source, state: TrainState, progress: Callable[[int], object] = lambda done: None
) -> tuple[Any, Any, Tensor]:
    """A grid of samples, a class a column where there are few, or, of a task, what is told of real images, answers, and these
    images; real images denoised in one step at PREVIEW_TIME; and the samples themselves, uint8.

    `progress` receives the number of samples so far.
    """
    denoiser, r = state.denoiser, recipe.training
    dtype = torch.bfloat16 if r.precision == "bf16" else torch.float32
    count, classes = recipe.logging.preview_count, denoiser.classes
    columns = min(count, classes or 8, 10)
    shown = [i * (classes // columns) for i in range(columns)]
    condition = conditions_of(source, 0, range(count))
    if classes and source.has_class_numbers:
        condition = torch.tensor([shown[i % columns] for i in range(count)])
    chosen = [i * len(source) // 8 for i in range(8)]
    clean = torch.stack([source[i][0] for i in chosen])
    told = None
    if r.task:
        columns, shown = len(chosen), []
        told = open_task(r.task, recipe.shape).make(denoiser.normalization.normalize(clean), r.seed, chosen)
        condition = with_entry(conditions_at(source, classes, chosen), "image", told)
    with state.ema.lend(r.sample_ema), torch.compiler.set_stance("force_eager"):  # other shapes would be compiled again
        batches = []
        size = BATCH.get(state.world.device.type, 64)
        for batch in sampling.sample_batches(denoiser, condition, 0, recipe.sampling, batch=size, dtype=dtype):
            batches.append(batch)
            progress(sum(map(len, batches)))
        noisy, predicted = denoise_once(denoiser, clean.to(state.world.device), source, chosen, dtype)
    to_show = denoiser.normalization.to_uint8
    images, clean = to_show(torch.cat(batches)), to_show(clean)
    grid = images
    if told is not None:
        given = denoiser.normalization.denormalize(told[:, : denoiser.shape[0]].expand(-1, denoiser.shape[0], -1, -1))
        grid = torch.cat([to_show(given), images, clean])
    names = [recipe.class_names[c] for c in shown] if recipe.class_names else []
    denoised = figures.denoising_grid(clean, noisy.cpu(), predicted.cpu(), PREVIEW_TIME, recipe.diffusion.prediction)
    return figures.image_grid(grid, columns, top=names), denoised, images


def conditions_at(source: Source, classes: int, indices: list[int]) -> Any:
    """The conditions of a source's images; no class where a model has none."""
    found = default_collate([source[i][1] for i in indices])
    return null_like(found) if source.has_class_numbers and not classes else found


@torch.no_grad()
def denoise_once(
    denoiser: Denoiser, clean: Tensor, source: Source, indices: list[int], dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Images with noise at PREVIEW_TIME, and the network's prediction of them without their classes; both uint8."""
    x = denoiser.normalization.normalize(clean)
    noise = torch.stack([randomness.image_noise(i, denoiser.shape) for i in range(len(x))]).to(x.device)
    z = denoiser.diffusion.add_noise(x, noise * denoiser.diffusion.noise_scale, PREVIEW_TIME)
    condition = conditions_of(source, 0, indices)
    condition = null_like(condition) if isinstance(condition, Tensor) else condition
    with sampling.eval_mode(denoiser.net):
        condition = sampling.map_tensors(lambda tensor: tensor.to(x.device), condition)
        _, predicted = sampling.GuidedVelocity(denoiser, condition, Sampling(), dtype)(z, PREVIEW_TIME)
    return to_uint8(z), to_uint8(predicted)
