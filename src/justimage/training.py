"""Training (Algorithm 1): a generator of steps. Progress, pictures, files and stopping are the affair of whoever iterates.

What a step computes is a function of the recipe, the data and the state; every random number in it is addressed by the
number of images seen. So the state, saved and restored, goes on exactly.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from justimage import data, randomness
from justimage.data import Source
from justimage.ema import EMA
from justimage.process import Model, Process
from justimage.recipe import Recipe, Training


@dataclass
class State:
    """All that a training changes."""

    model: Model
    optimizer: torch.optim.Adam
    ema: EMA
    images_seen: int = 0


class Step(NamedTuple):
    """One update, done. Tensors stay on the device until somebody reads them."""

    images_seen: int
    loss: Tensor
    gradient_norm: Tensor
    learning_rate: float


def begin(recipe: Recipe, device: torch.device | str = "cpu") -> State:
    """The state before the first step: weights from the recipe's seed, averages equal to them."""
    with seeded(randomness.key(recipe.training.seed, "weights"), torch.device("cpu")):
        model = recipe.model()
    net = model.net.to(device).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe.training.learning_rate, betas=recipe.training.betas, fused=True)
    return State(model, optimizer, EMA(net, recipe.training.ema, recipe.training.ema_ramp))


def learning_rate(training: Training, images_seen: int) -> float:
    """The rate of the step that begins after images_seen images: a linear warm-up, then constant or half a cosine to 0."""
    after = images_seen + training.batch
    if after < training.warmup:
        return training.learning_rate * after / training.warmup
    if training.schedule == "constant":
        return training.learning_rate
    done = (after - training.warmup) / max(training.images - training.warmup, training.batch)
    return training.learning_rate * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def draw(process: Process, seed: int, position: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Times (b,), noise like x, and which labels are dropped (b,), for the images x at position, position + 1, ..."""
    positions = range(position, position + len(x))
    t = process.time(randomness.normal(seed, "t", positions)).float()
    eps = randomness.noise(seed, position, len(x), x.shape[1:], x.device) * process.noise_scale
    drop = torch.from_numpy(randomness.uniform(seed, "drop", positions) < process.label_drop)
    return t.to(x.device, non_blocking=True), eps, drop.to(x.device, non_blocking=True)


@contextmanager
def seeded(seed: int, device: torch.device, needed: bool = True) -> Iterator[None]:
    """Within the block PyTorch's generators start from the seed; afterwards they are where they were."""
    if not needed:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def train(recipe: Recipe, source: Source, state: State) -> Iterator[Step]:
    """Train from state.images_seen up to recipe.training.images, a whole batch a step; `state` is up to date at each yield."""
    r, net, process = recipe.training, state.model.net, state.model.process
    device = next(net.parameters()).device
    parameters = list(net.parameters())
    part = r.batch // r.accumulate
    stop = state.images_seen + math.ceil((r.images - state.images_seen) / r.batch) * r.batch
    stream = data.Stream(source, r.seed, r.flip)
    parts = data.batches(stream, state.images_seen, stop, part, recipe.upkeep.workers, pinned=device.type == "cuda")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=r.precision == "bf16")
    if r.compile:
        for block in net.blocks:  # pyright: ignore[reportGeneralTypeIssues]
            block.compile()

    while state.images_seen < stop:
        loss = torch.zeros((), device=device)
        for position in range(state.images_seen, state.images_seen + r.batch, part):
            images, labels = (q.to(device, non_blocking=True) for q in next(parts))
            x, y = state.model.units.inside(images), labels if recipe.network.classes else torch.full_like(labels, -1)
            t, eps, drop = draw(process, r.seed, position, x)
            with autocast, seeded(randomness.key(r.seed, "dropout", position), device, recipe.network.dropout > 0):
                part_loss = process.objective(net, x, y, t, eps, drop).mean() / r.accumulate
            part_loss.backward()
            loss += part_loss.detach()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if r.gradient_clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, r.gradient_clip, norm)
        rate = learning_rate(r, state.images_seen)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.images_seen += r.batch
        state.ema.update(net, r.batch, state.images_seen)
        yield Step(state.images_seen, loss, norm, rate)
