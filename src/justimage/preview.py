"""Previews of a training: samples from the same seeds every time, and real images denoised in one step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from justimage import figures, randomness, sampling
from justimage.conditions import NULL_CLASS, map_tensors, null_like, text_of, with_entry
from justimage.data import Source, conditions_of
from justimage.normalization import to_uint8
from justimage.recipe import Recipe
from justimage.sampling import Denoiser, Sampling
from justimage.tasks import open_task
from justimage.training import TrainState

BATCH = {"cpu": 8}
"""Images sampled at a time, where a batch takes long."""
SHOWN = 8
"""Real images that are denoised, or whose conditions samples have."""
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
    chosen = [i * len(source) // SHOWN for i in range(SHOWN)]
    clean = torch.stack([source[i][0] for i in chosen])
    columns, names, condition = conditions_shown(recipe, source, chosen, denoiser.normalization.normalize(clean))
    told = condition["image"][:columns] if recipe.model.image_channels else None
    with state.ema.lend(r.sample_ema), torch.compiler.set_stance("force_eager"):  # other shapes would be compiled again
        batches = []
        size = BATCH.get(state.world.device.type, 64)
        for batch in sampling.sample_batches(denoiser, condition, 0, recipe.sampling, batch=size, dtype=dtype):
            batches.append(batch)
            progress(sum(map(len, batches)))
        noisy, predicted = denoise_once(denoiser, clean.to(state.world.device), source, chosen, dtype)
    to_show = denoiser.normalization.to_uint8
    images, clean = to_show(torch.cat(batches)), to_show(clean)
    grid = images if told is None else torch.cat([figures.as_image(told, denoiser.shape[0]), images, clean])
    denoised = figures.denoising_grid(clean, noisy.cpu(), predicted.cpu(), PREVIEW_TIME, recipe.diffusion.prediction)
    return figures.image_grid(grid, columns, top=names), denoised, images


def conditions_shown(recipe: Recipe, source: Source, chosen: list[int], x: Tensor) -> tuple[int, list[str], Any]:
    """Columns of a preview, their names, and the conditions of its samples: classes, or those of the chosen images x."""
    r, count, classes = recipe.training, recipe.logging.preview_count, recipe.model.classes or 0
    if source.has_class_numbers and not r.task:
        columns = min(count, classes or SHOWN, 10)
        shown = [i * (classes // columns) for i in range(columns)]
        names = [recipe.class_names[c] for c in shown] if recipe.class_names else []
        return columns, names, torch.tensor([shown[i % columns] if classes else NULL_CLASS for i in range(count)])
    condition = conditions_at(source, classes, chosen)
    if r.task:
        condition = with_entry(condition, "image", open_task(r.task, recipe.shape).make(x, r.seed, chosen))
    rows = 1 if recipe.model.image_channels else max(count // len(chosen), 1)
    words = recipe.model.text_length and not recipe.model.text_features
    names = [text_of(text) for text in condition["text"]] if words else []
    return len(chosen), names, map_tensors(lambda tensor: tensor.repeat(rows, *[1] * (tensor.ndim - 1)), condition)


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
