"""Training (Algorithm 1): a generator of steps. Progress, pictures, files and stopping are the affair of whoever iterates.

What a step computes is a function of the recipe, the data and the state; every random number in it is addressed by the
number of images seen. So the state, saved and restored, goes on exactly; and however many processes share a batch, they draw
what one would have drawn. Of each step they exchange one row of numbers - loss, gradient norm, who wants to stop, who
failed - so that all decide the same in the same step.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from justimage import data, distributed, randomness
from justimage.data import Source
from justimage.distributed import Elsewhere, World, local
from justimage.ema import EMA
from justimage.process import Model, Process
from justimage.recipe import Recipe, Training
from justimage.transformer import dropouts, key_dropout


class NotFinite(ValueError):
    """A loss or gradient that is infinite or not a number. The state is as it was before the step."""


@dataclass
class State:
    """All that a training changes. Of a divided network, optimizer and averages hold this process's rows."""

    model: Model
    net: Callable[..., Any]
    """what to call in training: the model's network, or that network shared with other processes"""
    optimizer: torch.optim.Adam
    ema: EMA
    world: World
    images_seen: int = 0
    passed_over: list[int] = field(default_factory=list)
    """steps, by the images seen before them, that are left out: something in them was not finite"""


class Step(NamedTuple):
    """One update, done, by all processes: images seen after it, the batch's mean loss, the gradient's norm."""

    images_seen: int
    loss: float
    gradient_norm: float
    learning_rate: float
    waited: float = 0.0
    """seconds that this process waited for data"""
    stop: bool = False
    """whether some process was asked to stop: all see it at the same step"""


def begin(recipe: Recipe, world: World | None = None) -> State:
    """The state before the first step: weights from the recipe's seed, averages equal to them."""
    world = world or distributed.join()
    r, m = recipe.training, recipe.machine
    if r.batch % ((m.accumulate or 1) * world.size):
        parts = f"{m.accumulate} parts" if world.size == 1 else f"{world.size} processes, each in {m.accumulate or 1} parts"
        raise ValueError(f"a batch of {r.batch} cannot be divided evenly over {parts}; change --accumulate or their number")
    if m.deterministic:
        distributed.deterministic(world.device)
    bf16, unused = r.precision == "bf16", recipe.network.classifier and not recipe.process.classification
    with seeded(randomness.key(r.seed, "weights")):
        net, called = distributed.build(
            lambda: recipe.model().net, world, m.parallel, compile=m.compile, bf16=bf16, unused=unused,
            activation_checkpointing=m.activation_checkpointing,
        )  # fmt: skip
    model = Model(net, recipe.process, recipe.units)
    weights = [local(p) for p in net.parameters()]
    optimizer = torch.optim.Adam(weights, lr=r.learning_rate, betas=r.betas, fused=True)
    return State(model, called, optimizer, EMA(weights, r.ema, r.ema_ramp), world)


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


def parts_of(begin: int, batch: int, accumulate: int, rank: int, size: int) -> range:
    """Where in the sequence of images the parts begin that one of `size` processes computes of the batch at `begin`."""
    share = batch // (accumulate * size)
    return range(begin + rank * share, begin + batch, size * share)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block PyTorch's generator starts from the seed; afterwards it is where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def train(recipe: Recipe, source: Source, state: State, asked: Callable[[], bool] = lambda: False) -> Iterator[Step]:
    """Train from state.images_seen up to recipe.training.images, a whole batch a step; `state` is up to date at each yield.

    asked: whether this process was asked to stop; a step says whether any was. Raises NotFinite, and ValueError or OSError for
    data that cannot be read, in all processes at the same step and with the state as it was before it.
    """
    r, m, world, net, process = recipe.training, recipe.machine, state.world, state.model.net, state.model.process
    weights: list[Tensor] = state.optimizer.param_groups[0]["params"]
    accumulate = m.accumulate or 1
    share = r.batch // (accumulate * world.size)  # images that one process computes at a time
    stop = state.images_seen + math.ceil((r.images - state.images_seen) / r.batch) * r.batch
    begins = (begin for begin in range(state.images_seen, stop, r.batch) if begin not in state.passed_over)
    starts = (start for begin in begins for start in parts_of(begin, r.batch, accumulate, world.rank, world.size))
    stream = data.Stream(source, r.seed, r.flip)
    batches = data.batches(stream, starts, share, m.workers, pinned=world.device.type == "cuda")
    autocast = torch.autocast(world.device.type, torch.bfloat16, enabled=r.precision == "bf16")
    layers, shards = np.arange(len(dropouts(net)))[:, None], distributed.shards(net)

    while state.images_seen < stop:
        if state.images_seen in state.passed_over:
            state.images_seen += r.batch
            continue
        loss, waited, failure = torch.zeros((), device=world.device), 0.0, None
        images = labels = torch.empty(0)
        positions = parts_of(state.images_seen, r.batch, accumulate, world.rank, world.size)
        for position in positions:
            if failure is None:
                began = time.perf_counter()
                try:
                    images, labels = next(batches)
                except (ValueError, OSError) as error:  # go through the step with the others, then say so
                    failure, images, labels = error, torch.zeros(share, *state.model.shape), torch.zeros(share).long()
                waited += time.perf_counter() - began
            images, y = (q.to(world.device, non_blocking=True) for q in (images, labels))
            x, y = state.model.units.inside(images), y if recipe.network.classes else torch.full_like(y, -1)
            t, eps, drop = draw(process, r.seed, position, x)
            keys = randomness.keys(r.seed, "dropout", layers, np.arange(position, position + share)) >> np.uint64(32)
            key_dropout(net, torch.from_numpy(keys.astype(np.int64)).to(world.device, non_blocking=True))
            with distributed.accumulating(state.net, last=position == positions[-1]):
                with autocast:
                    part_loss = process.objective(state.net, x, y, t, eps, drop).mean() / accumulate
                part_loss.backward()
            loss += part_loss.detach()
        for w, p in zip(weights, net.parameters(), strict=True):
            w.grad = None if p.grad is None else local(p.grad)
        norm = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
        flags = (torch.full((), float(flag), device=world.device) for flag in (asked(), failure is not None))
        told = torch.stack([loss / world.size, norm**2 * shards / world.size if shards > 1 else norm / world.size, *flags])
        mean, total, stops, failures = world.sum(told).tolist()  # here the device is waited for, once a step
        total = math.sqrt(total) if shards > 1 else total
        net.zero_grad()
        if failures:
            raise failure or Elsewhere("another process could not read its data")
        if not (math.isfinite(mean) and math.isfinite(total)):
            raise NotFinite(f"the loss became {mean:g} (gradient norm {total:g}) after {state.images_seen} images")
        if r.gradient_clip and total > r.gradient_clip:
            torch._foreach_mul_([w.grad for w in weights if w.grad is not None], r.gradient_clip / total)  # pyright: ignore
        rate = learning_rate(r, state.images_seen)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.images_seen += r.batch
        state.ema.update(r.batch, state.images_seen)
        yield Step(state.images_seen, mean, total, rate, waited, stop=stops > 0)
