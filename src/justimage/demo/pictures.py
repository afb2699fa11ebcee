"""Pictures that every demo shows of a run: the way from noise to images, and the course of the training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from justimage import disk, figures, randomness, sampling
from justimage.sampling import Denoiser

DENOISING_COLUMNS = 9


def denoising_figure(model: Denoiser, classes: Sequence[int]) -> Image.Image:
    """Images of some classes (-1 for none) on their way from noise: the sample above, and below it the clean image predicted
    from it."""
    device = next(model.net.parameters()).device
    noise = torch.stack([randomness.image_noise(1000 + i, model.shape) for i in range(len(classes))]).to(device)
    points = list(sampling.trajectory(model, noise * model.diffusion.noise_scale, torch.tensor(classes, device=device)))
    shown = [points[round(i * (len(points) - 1) / (DENOISING_COLUMNS - 1))] for i in range(DENOISING_COLUMNS)]
    rows = [row for i in range(len(classes)) for row in ([p.z[i] for p in shown], [p.x[i] for p in shown])]
    pixels = torch.stack([i for row in rows for i in row]).cpu()
    images = model.normalization.to_uint8(model.normalization.denormalize(pixels))
    return figures.image_grid(
        images, DENOISING_COLUMNS, top=[f"t = {p.t:.2f}" for p in shown], left=["sample", "x-pred."] * len(classes)
    )


def write_pictures(out: Path, model: Denoiser, classes: Sequence[int]) -> list[dict[str, Any]]:
    """Write denoising.png and training.png into `out`, of the run in out/run; returns the run's metrics."""
    disk.write(out / "denoising.png", figures.encode_png(denoising_figure(model, classes)))
    metrics = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    if course := figures.loss_curve(metrics, pick_previews(out / "run" / "samples")):
        disk.write(out / "training.png", course)
    return metrics


def pick_previews(folder: Path) -> list[tuple[str, Image.Image]]:
    """Up to four of a run's previews, evenly spaced."""
    files = sorted(folder.glob("*-grid.png"))
    chosen = files if len(files) <= 4 else [files[round(i * (len(files) - 1) / 3)] for i in range(4)]
    return [(f"after {int(f.name.split('-')[0]):,} images", Image.open(f)) for f in chosen]
