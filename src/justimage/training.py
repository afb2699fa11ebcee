"""Training (Algorithm 1): a generator of steps. Progress, pictures, files and stopping are left to the caller.

What a step computes is a function of the recipe, the data and the state; every random number in it is addressed by the number
of images seen. So the state, saved and restored, resumes exactly; and processes that share a batch draw what one process would
draw. After each step they exchange one row of numbers - loss, gradient norm, who wants to stop, who failed - so that all decide
alike.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from justimage import augmentation, data, distributed, parallelize, randomness
from justimage.conditions import AUGMENTATION, Condition, map_tensors, null_like, with_entry
from justimage.data import Source
from justimage.diffusion import Batch, Diffusion, Net
from justimage.distributed import RemoteError, World
from justimage.dropout import dropout_layers, set_dropout_keys
from justimage.ema import EMA
from justimage.parallelize import to_local
from justimage.recipe import Recipe, Training
from justimage.sampling import Denoiser
from justimage.tasks import open_task
from justimage.transformer import JiT

Loss = Callable[[Diffusion, Net, Batch], Tensor]
"""loss(diffusion, net, batch) -> one number an image, (b,); `Diffusion.loss` is one."""
MakeNet = Callable[[], torch.nn.Module] | torch.nn.Module
"""A network, or a function that makes one: its first weights then follow from the recipe's seed in every process alike."""
MakeOptimizer = Callable[[list[Any]], Optimizer]
"""From the network's parameters (under FSDP2 DTensors), or from groups of them, to an optimizer of them all; its learning rate
follows the recipe's."""
OPTIMIZERS: dict[str, Callable[[list[Any], Training], Optimizer]] = {
    "adam": lambda parameters, r: Adam(parameters, lr=r.learning_rate, betas=r.betas, fused=True)
}
"""The optimizers that a recipe names, from the parameters and its section `training`."""


class NonFiniteError(ValueError):
    """A loss or gradient that is infinite or not a number. The state is as it was before the step."""

    exit_code = 70


@dataclass
class TrainState:
    """Everything that training changes. Of a sharded network, optimizer and averages hold this process's rows."""

    denoiser: Denoiser
    forward: Net
    """what to call in training: the denoiser's network, or its wrapper that shares it with other processes"""
    optimizer: Optimizer
    ema: EMA
    world: World
    images_seen: int = 0
    skipped_steps: list[int] = field(default_factory=list)
    """steps, by the images seen before them, that are left out: something in them was not finite"""


class Step(NamedTuple):
    """One completed update of all processes: images seen after it, the batch's mean loss, the gradient's norm."""

    images_seen: int
    loss: float
    gradient_norm: float
    learning_rate: float
    data_seconds: float = 0.0
    """seconds that this process waited for data"""
    stop: bool = False
    """whether some process was asked to stop: all see it at the same step"""


def init_state(
    recipe: Recipe,
    world: World | None = None,
    net: MakeNet | None = None,
    optimizer: MakeOptimizer | None = None,
    initial: Mapping[str, Tensor] | None = None,
) -> TrainState:
    """The state before the first step: weights from the recipe's seed, or those of `initial`, and averages equal to them."""
    world = world or distributed.init()
    r, m = recipe.training, recipe.parallelism
    parts = m.grad_accumulation or 1
    if r.batch % (parts * world.size):
        shared = f"{parts} parts" if world.size == 1 else f"{world.size} processes, each in {parts} parts"
        raise ValueError(
            f"a batch of {r.batch} cannot be divided evenly over {shared}; change --grad-accumulation or their number"
        )
    if r.optimizer not in OPTIMIZERS and not optimizer:
        raise ValueError(f"no optimizer is called {r.optimizer!r}; allowed: {', '.join(OPTIMIZERS)}")
    if m.deterministic:
        parallelize.use_deterministic(world.device)
    make = (lambda: JiT(recipe.model)) if net is None else (lambda: net) if isinstance(net, torch.nn.Module) else net
    unused = net is not None or (recipe.model.aux_classifier and not recipe.diffusion.class_loss_weight)
    with seeded(randomness.key(r.seed, "weights")):
        made, forward = parallelize.build_network(
            make, world, m.parallel, compile=m.compile, bf16=r.precision == "bf16", unused=unused,
            activation_checkpointing=m.activation_checkpointing, deterministic=m.deterministic,
        )  # fmt: skip
    for name, weight in (initial or {}).items():
        mine = parallelize.local_shard(made.get_parameter(name), world)
        mine.tensor.copy_(weight[mine.start :][: mine.tensor.shape[0]])
    groups = parameter_groups(made, recipe)
    optim = optimizer(groups) if optimizer else OPTIMIZERS[r.optimizer](groups, r)
    ema = EMA([to_local(p) for p in made.parameters()], r.ema, r.ema_ramp)
    return TrainState(recipe.denoiser(made), forward, optim, ema, world)


def parameter_groups(net: torch.nn.Module, recipe: Recipe) -> list[Any]:
    """The trained parameters, for an optimizer; in two groups where those that `init` gave have a rate of their own."""
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    if recipe.training.init_rate == 1 or not recipe.origin:
        return [*trained.values()]
    anew = [p for name, p in trained.items() if name.partition(".")[0] in recipe.anew]
    given = [p for name, p in trained.items() if name.partition(".")[0] not in recipe.anew]
    return [{"params": given, "lr_scale": recipe.training.init_rate}, *([{"params": anew}] if anew else [])]


def learning_rate(training: Training, images_seen: int) -> float:
    """The rate of the step that begins after images_seen images: a linear warm-up, then constant or half a cosine to 0."""
    after = images_seen + training.batch
    if after < training.warmup:
        return training.learning_rate * after / training.warmup
    if training.lr_schedule == "constant":
        return training.learning_rate
    done = (after - training.warmup) / max(training.total_images - training.warmup, training.batch)
    return training.learning_rate * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def draw(diffusion: Diffusion, seed: int, position: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Times (b,), noise like x, and which conditions are dropped (b,), for the images x at position, position + 1, ..."""
    positions = range(position, position + len(x))
    t = diffusion.sample_t(randomness.normal(seed, "t", positions)).float()
    eps = randomness.noise(seed, position, len(x), x.shape[1:], x.device) * diffusion.noise_scale
    dropped = torch.from_numpy(randomness.uniform(seed, "drop", positions) < diffusion.label_drop)
    return t.to(x.device, non_blocking=True), eps, dropped.to(x.device, non_blocking=True)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block PyTorch's generator starts from the seed; afterwards it is where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def microbatch_starts(begin: int, batch: int, accumulate: int, rank: int, size: int) -> range:
    """Where in the sequence of images the microbatches begin that one of `size` processes computes of the batch at `begin`."""
    share = batch // (accumulate * size)
    return range(begin + rank * share, begin + batch, size * share)


def schedule(recipe: Recipe, state: TrainState) -> Iterator[tuple[int, range]]:
    """The remaining steps: images seen before each, and the positions of its microbatches in this process."""
    r, world = recipe.training, state.world
    for begin in range(state.images_seen, r.total_images, r.batch):
        if begin not in state.skipped_steps:
            yield begin, microbatch_starts(begin, r.batch, recipe.parallelism.grad_accumulation or 1, world.rank, world.size)


def train(
    recipe: Recipe,
    source: Source,
    state: TrainState,
    stop_requested: Callable[[], bool] = lambda: False,
    loss: Loss = Diffusion.loss,
) -> Generator[Step, None, None]:
    """Train from state.images_seen up to the recipe's total_images, a whole batch a step; `state` is up to date at each yield.

    stop_requested: whether this process was asked to stop; a step says whether any was. Raises NonFiniteError, and ValueError
    or OSError for data that cannot be read, in all processes at the same step and with the state as it was before it.
    """
    r, step = recipe.training, TrainStep(recipe, source, state, loss)
    for begin, starts in schedule(recipe, state):
        state.images_seen = begin
        step.begin()
        for start in starts:
            images, condition = step.fetch()
            step.backward(images, condition, start, last=start == starts[-1])
        mean_loss, gradient_norm, stop = step.reduce(stop_requested())
        rate = learning_rate(r, begin)
        step.update(rate, gradient_norm)
        yield Step(state.images_seen, mean_loss, gradient_norm, rate, step.data_seconds, stop)
    state.images_seen += math.ceil(max(r.total_images - state.images_seen, 0) / r.batch) * r.batch  # skipped ones at the end


class TrainStep:
    """The parts of a step: fetch and backward for each microbatch, then reduce, then update."""

    def __init__(self, recipe: Recipe, source: Source, state: TrainState, loss: Loss) -> None:
        r, world = recipe.training, state.world
        self.recipe, self.source, self.state, self.loss_function = recipe, source, state, loss
        self.accumulate = recipe.parallelism.grad_accumulation or 1
        self.size = r.batch // (self.accumulate * world.size)
        """images of a microbatch"""
        self.net = state.denoiser.net
        self.parameters = [p for p in self.net.parameters() if p.requires_grad]
        self.shards, self.layers = parallelize.shard_count(self.net), np.arange(len(dropout_layers(self.net)))[:, None]
        self.autocast = torch.autocast(world.device.type, torch.bfloat16, enabled=r.precision == "bf16")
        starts = (start for _, starts in schedule(recipe, state) for start in starts)
        indices = data.balanced(source) if r.balance_classes else None
        stream, pinned = data.Stream(source, r.seed, r.flip, indices), world.device.type == "cuda"
        self.batches = data.batches(stream, starts, self.size, recipe.parallelism.workers, pinned)
        self.task = open_task(r.task, recipe.shape) if r.task else None
        self.ignores_classes = source.has_class_numbers and not recipe.model.classes
        self.begin()

    def begin(self) -> None:
        """Nothing summed yet, nothing failed."""
        self.loss, self.data_seconds = torch.zeros((), device=self.state.world.device), 0.0
        self.failure: Exception | None = None

    def fetch(self) -> tuple[Tensor, Condition]:
        """The next microbatch, on the device. Where it cannot be read, zeros stand in: the step is finished with the other
        processes, whose collectives wait for this one, and then refused by all."""
        if self.failure is None:
            began = time.perf_counter()
            try:
                self.fetched = next(self.batches)
            except (ValueError, OSError) as error:
                self.failure = error
                zeros = torch.zeros(self.size, *self.source.shape)
                self.fetched = zeros, data.conditions_of(self.source, 0, [0] * self.size)
            self.data_seconds += time.perf_counter() - began
        images, condition = self.fetched
        device = self.state.world.device
        images = images.to(device, non_blocking=True)
        condition = map_tensors(lambda tensor: tensor.to(device, non_blocking=True), condition)
        return images, null_like(condition) if self.ignores_classes else condition

    def backward(self, images: Tensor, condition: Condition, position: int, last: bool) -> None:
        """Add the gradient of a microbatch: the mean loss of its images (Algorithm 1)."""
        denoiser, seed, device = self.state.denoiser, self.recipe.training.seed, self.state.world.device
        x = denoiser.normalization.normalize(images)
        if augment := self.recipe.training.augment:
            x, told = augmentation.augment(x, seed, position, augment)
            condition = with_entry(condition, AUGMENTATION, told)
        if self.task:
            condition = with_entry(condition, "image", self.task.make(x, seed, range(position, position + len(x))))
        t, eps, dropped = draw(denoiser.diffusion, seed, position, x)
        keys = randomness.keys(seed, "dropout", self.layers, np.arange(position, position + len(x))) >> np.uint64(32)
        set_dropout_keys(self.net, torch.from_numpy(keys.astype(np.int64)).to(device, non_blocking=True))
        with parallelize.no_sync_until(self.state.forward, last=last):
            with self.autocast:
                each = self.loss_function(denoiser.diffusion, self.state.forward, Batch(x, condition, t, eps, dropped))
                loss = each.mean() / self.accumulate
            loss.backward()
        self.loss += loss.detach()

    def gradients(self) -> list[Tensor]:
        """This process's gradients, or its rows of them."""
        return [to_local(p.grad) for p in self.parameters if p.grad is not None]

    def reduce(self, stop_requested: bool) -> tuple[float, float, bool]:
        """The batch's mean loss, its gradient's norm, and whether any process was asked to stop, equal in all processes.

        Raises what prevented the step, in all of them, with gradients cleared and the state as it was before.
        """
        world, shards, failure = self.state.world, self.shards, self.failure
        norm = torch.nn.utils.get_total_norm(self.gradients())
        flags = (torch.full((), float(flag), device=world.device) for flag in (stop_requested, failure is not None))
        # sharded: squared norms of rows add up, and size / shards processes hold each row; else all have the whole norm
        share = [self.loss / world.size, norm**2 * shards / world.size if shards > 1 else norm / world.size, *flags]
        loss, total, stops, failures = world.all_reduce(torch.stack(share)).tolist()  # the one wait for the device in a step
        total = math.sqrt(total) if shards > 1 else total
        if failures or not (math.isfinite(loss) and math.isfinite(total)):
            self.net.zero_grad()
            if failures:
                raise failure or RemoteError("another process could not read its data")
            raise NonFiniteError(f"the loss became {loss:g} (gradient norm {total:g}) after {self.state.images_seen} images")
        return loss, total, stops > 0

    def update(self, rate: float, gradient_norm: float) -> None:
        """Clip the gradient, step the optimizer and the averages, count the images."""
        r, state = self.recipe.training, self.state
        if r.gradient_clip and gradient_norm > r.gradient_clip:
            torch._foreach_mul_(self.gradients(), r.gradient_clip / gradient_norm)  # pyright: ignore[reportPrivateImportUsage]
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        state.optimizer.step()
        self.net.zero_grad()
        state.images_seen += r.batch
        state.ema.update(r.batch, state.images_seen)
