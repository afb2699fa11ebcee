"""A grid of times fitted to a model: few steps that end where many would."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from justimage import randomness
from justimage.generate import ImageGenerator, SampleJob
from justimage.progress import Job, Progress
from justimage.sampling import Sampling, autocast_to, trajectory

IMAGES = 32
"""Trajectories that a grid is fitted to."""
FIRST_SEED = 2**40
"""Seed of the first of them, far from those of images that are scored."""
MOVES = 0.4, 0.2, 0.1, 0.05
"""Distances in logit(t) by which a time is moved, one after the other."""
ROUNDS = 3
"""Times that each distance is tried at most, on all times in turn."""


def fit_times(generator: ImageGenerator, job: SampleJob) -> Job[Sampling]:
    """The job's sampling with its times moved, one at a time, wherever its images come nearer to those of 50 Heun steps from
    the same noise, in mean squared error; it costs as many passes, or fewer."""
    denoiser, start = generator.denoiser(job.ema), job.sampling
    classes = torch.tensor([job.label(i) for i in range(IMAGES)], device=generator.device)
    noise = torch.stack([randomness.image_noise(FIRST_SEED + i, denoiser.shape) for i in range(IMAGES)])
    noise = noise.to(generator.device) * denoiser.diffusion.noise_scale

    def images(sampling: Sampling) -> Tensor:
        parts = []
        with autocast_to(generator.dtype, generator.device):
            for z, y in zip(noise.split(job.batch), classes.split(job.batch), strict=True):
                *_, last = trajectory(denoiser, z, y, sampling, generator.dtype)
                parts.append(last.z)
        return torch.cat(parts)

    title = f"fitting times, {start.passes} passes"
    yield Progress(title)
    target = images(replace(start, solver="heun", steps=50, times="linear", t_clip=0.0))

    def error(sampling: Sampling) -> float:
        return (images(sampling) - target).square().mean().item()

    best = replace(start, times=tuple(start.grid))
    least = error(best)
    for distance in MOVES:
        for _ in range(ROUNDS):
            before = least
            for i in range(1, best.steps):
                for move in distance, -distance:
                    yield Progress(title)
                    moved = with_time_moved(best, i, move)
                    if moved and moved.passes <= start.passes and (found := error(moved)) < least:
                        best, least = moved, found
                        break
            if least == before:
                break
    return best


def with_time_moved(sampling: Sampling, i: int, move: float) -> Sampling | None:
    """The i-th time moved by so much in logit(t); None where it would pass its neighbour."""
    times = sampling.grid
    t = 1 / (1 + math.exp(-math.log(times[i] / (1 - times[i])) - move))
    if not times[i - 1] < t < times[i + 1]:
        return None
    return replace(sampling, times=(*times[:i], t, *times[i + 1 :]))
