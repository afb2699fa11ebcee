"""Previews of a training: samples from the same seeds every time, and real images denoised in one step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from justimage import pictures, randomness, sampling
from justimage.data import Source
from justimage.process import Model, to_uint8
from justimage.recipe import Recipe
from justimage.training import State

TOGETHER = {"cpu": 8}
"""Images drawn at a time, where a batch takes long."""
PREVIEW_TIME = 0.3
"""The fixed t at which previews show a denoised picture."""


def preview(
    recipe: Recipe, source: Source, state: State, drawn: Callable[[int], object] = lambda done: None
) -> tuple[Any, Any]:
    """A grid of samples, a class a column where there are few, and real images denoised in one step at PREVIEW_TIME.

    `drawn` is called with the number of samples so far.
    """
    model, s = state.model, recipe.sampling
    dtype = torch.bfloat16 if recipe.training.precision == "bf16" else torch.float32
    count, classes = recipe.upkeep.preview_count, model.classes
    columns = min(count, classes or 8, 10)
    shown = [i * (classes // columns) for i in range(columns)] if classes else [-1] * columns
    labels = [shown[i % columns] for i in range(count)]
    clean = torch.stack([source[i * len(source) // 8][0] for i in range(8)])
    with state.ema.lend(s.use_ema), torch.compiler.set_stance("force_eager"):  # other shapes would be compiled again
        batches = []
        for batch in sampling.draw(
            model, labels, 0, guidance=s.guidance, interval=s.interval, steps=s.steps, solver=s.solver, dtype=dtype,
            batch=TOGETHER.get(state.world.device.type, 64),
        ):  # fmt: skip
            batches.append(batch)
            drawn(sum(map(len, batches)))
        noisy, predicted = denoise(model, clean.to(state.world.device), PREVIEW_TIME, dtype)
    images, clean = model.units.visible(torch.cat(batches)), model.units.visible(clean)
    by = recipe.process.prediction
    names = [recipe.class_names[c] for c in shown] if recipe.class_names else []
    return pictures.grid(images, columns, top=names), pictures.denoising(clean, noisy.cpu(), predicted.cpu(), PREVIEW_TIME, by)


@torch.no_grad()
def denoise(model: Model, clean: Tensor, t: float, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Images with noise at t, and what the network, told no class, takes them for; both to be shown."""
    x = model.units.inside(clean)
    eps = torch.stack([randomness.image_noise(i, model.shape) for i in range(len(x))]).to(x.device) * model.process.noise_scale
    z = model.process.noisy(x, eps, t)
    nobody = torch.full(z.shape[:1], -1, device=z.device)
    with sampling.evaluating(model.net):
        v = sampling.velocity(model, nobody, dtype=dtype)(z, t)
    return to_uint8(z), to_uint8(model.process.behind(v, z, t))
