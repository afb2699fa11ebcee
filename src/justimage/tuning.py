"""Tuning to a device: precision, compiled blocks or not, and microbatches, chosen before the first step of a run.

On a GPU precision and compiler need no measuring: bfloat16 where the GPU has it, and compiled blocks where Triton is there. On
a CPU either can be slower than plain fp32, so that a block is timed, forwards and backwards, in each way. A batch is cut into
the fewest equal parts of which one fits into the device's memory. The choice is kept with the run, so that a run resumed on
such a device computes the same to the bit.
"""

import importlib.util
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from justimage import cost
from justimage.architectures import Architecture
from justimage.distributed import World, preferred_precision
from justimage.dropout import dropout_layers, set_dropout_keys
from justimage.layers import use_plain_attention
from justimage.recipe import Recipe, with_values
from justimage.transformer import Block

SIMPLER_TOLERANCE = 1.05
"""A simpler way to compute is preferred while it takes at most this times as long as the fastest."""
MIN_SECONDS_TO_COMPILE = 60
"""Seconds of training below which a CPU's compiler, which takes some 20 seconds and halves a step, is not tried."""
PROBE_FLOPS = 3e10
"""Floating-point operations of one timed pass through a block: a fraction of a second."""
MEMORY_SHARE = {"cpu": 0.5, "cuda": 0.9}
"""Of a device's memory, what a training may take; a CPU's is for other programs, too."""
MAX_ACTIVATIONS = {"cpu": 4e9}
"""Bytes of activations: a CPU, which is busy with a few images, gains nothing by more at a time, and its bar stands still."""

EVERYTHING_OPEN: dict[str, Any] = {"precision": "auto", "compile": True, "grad_accumulation": None}


@dataclass(frozen=True)
class Tuning:
    """How a training is computed on some device, and what was measured to choose it."""

    device: str
    processes: int
    precision: str
    compile: bool
    grad_accumulation: int
    images_per_second: dict[str, float]
    """images/s by way of computing, as a block's time tells; empty where nothing had to be measured"""
    asked: dict[str, Any] = field(default_factory=EVERYTHING_OPEN.copy)
    """what the recipe asked for"""

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe with everything chosen."""
        machine = replace(recipe.parallelism, compile=self.compile, grad_accumulation=self.grad_accumulation)
        return replace(recipe, training=replace(recipe.training, precision=self.precision), parallelism=machine)

    def matches(self, recipe: Recipe, world: World) -> bool:
        """Whether it was made for such a device, leaves everything that the recipe says as it is, and fits into memory."""
        r, m = recipe.training, recipe.parallelism
        fits = m.grad_accumulation == self.grad_accumulation or (
            m.grad_accumulation is None and self.grad_accumulation >= microbatches(self.apply(recipe), world)
        )
        return (
            (self.device, self.processes) == (world.device_name, world.size)
            and r.precision in ("auto", self.precision)
            and m.compile == self.asked["compile"]
            and r.batch % (self.grad_accumulation * world.size) == 0
            and fits
        )


def tune(
    recipe: Recipe, world: World, kept: dict[str, Any] | None = None, tell: Callable[[str], object] = lambda what: None
) -> tuple[Recipe, Tuning]:
    """A recipe in which nothing is left open, and why: as it was `kept` with a run where that suits, else chosen anew.

    All processes get what the first one chooses. `tell` is called with what is being measured.
    """
    found = from_event(kept or {})
    if found is None or not found.matches(recipe, world):
        found = Tuning(**world.on_main(lambda: asdict(choose_tuning(recipe, world, tell))))
    return found.apply(recipe), found


def from_event(kept: dict[str, Any]) -> Tuning | None:
    """Read a tuning from a run's events; None for anything else."""
    kinds = dict(device=str, processes=int, precision=str, compile=bool, grad_accumulation=int, images_per_second=dict)
    kinds, kept = kinds | dict(asked=dict), {"asked": EVERYTHING_OPEN} | kept  # which earlier runs did not keep
    if kept.keys() != kinds.keys() or any(type(kept[name]) is not kind for name, kind in kinds.items()):
        return None
    well_measured = all(type(speed) is float and math.isfinite(speed) for speed in kept["images_per_second"].values())
    asked = kept["asked"]
    well_asked = asked.keys() == EVERYTHING_OPEN.keys() and (
        asked["precision"] in ("auto", "fp32", "bf16")
        and type(asked["compile"]) is bool
        and type(asked["grad_accumulation"] or 1) is int
    )
    usable = well_measured and well_asked and kept["grad_accumulation"] > 0 and kept["precision"] in ("fp32", "bf16")
    return Tuning(**kept) if usable else None


def request_of(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says of what is chosen here."""
    m = recipe.parallelism
    return dict(precision=recipe.training.precision, compile=m.compile, grad_accumulation=m.grad_accumulation)


def as_asked(recipe: Recipe, kept: dict[str, Any] | None) -> Recipe:
    """The recipe of a run as it was asked for: what was chosen is for the device that it was chosen on."""
    found = from_event(kept) if kept and "asked" in kept else None
    return with_values(recipe, **found.asked) if found else recipe


def choose_tuning(recipe: Recipe, world: World, tell: Callable[[str], object]) -> Tuning:
    """Choose what the recipe leaves open."""
    r, m = recipe.training, recipe.parallelism
    precision, compiled, measured = r.precision, m.compile, {}
    if world.device.type == "cuda":
        precision = preferred_precision(world.device) if precision == "auto" else precision
        compiled = compiled and can_compile(world.device)
    elif world.device.type == "mps":  # best effort: never run on one
        precision, compiled = preferred_precision(world.device) if precision == "auto" else precision, False
    elif precision == "auto" or compiled:
        measured = measure(recipe, world, tell)
        fastest = max(measured.values())
        precision, compiled = next(
            way for way in variants(recipe) if measured.get(variant_name(*way), 0) >= fastest / SIMPLER_TOLERANCE
        )
    accumulate = m.grad_accumulation or microbatches(replace(recipe, training=replace(r, precision=precision)), world)
    return Tuning(world.device_name, world.size, precision, compiled, accumulate, measured, request_of(recipe))


def can_compile(gpu: torch.device) -> bool:
    """Whether blocks can be compiled for a GPU: with Triton, for a compute capability of 7 or more."""
    return importlib.util.find_spec("triton") is not None and torch.cuda.get_device_capability(gpu) >= (7, 0)


def variants(recipe: Recipe) -> Iterator[tuple[str, bool]]:
    """Precisions, and whether blocks are compiled, that the recipe leaves open; the simplest first."""
    precisions = ("fp32", "bf16") if recipe.training.precision == "auto" else (recipe.training.precision,)
    for compiled in (False, True) if recipe.parallelism.compile else (False,):
        for precision in precisions:
            yield precision, compiled


def variant_name(precision: str, compiled: bool) -> str:
    return f"{precision}, compiled" if compiled else precision


def measure(recipe: Recipe, world: World, tell: Callable[[str], object]) -> dict[str, float]:
    """Images/s of each way to compute, as one block's time tells. Where training takes long enough, compiled blocks are tried,
    too, in the precision that the device has instructions for."""
    a, found = recipe.model, {}
    blocks = sum(cost.sequence_length(a, i) for i in range(a.depth)) / cost.sequence_length(a, a.depth - 1)
    for precision, compiled in variants(recipe):
        if compiled:
            fastest = max(found, key=lambda way: found[way])
            worth = (recipe.training.budget or recipe.training.total_images / found[fastest]) >= MIN_SECONDS_TO_COMPILE
            if not worth or (recipe.training.precision == "auto" and precision != preferred_precision(world.device)):
                continue
            tell(f"{fastest} makes {found[fastest]:.3g} images/s; now {precision} compiled, for some seconds")
        else:
            tell(precision)
        if seconds := time_block(a, precision == "bf16", compiled, world.device):
            found[variant_name(precision, compiled)] = round(1 / (seconds * blocks), 3)
    return found


def time_block(a: Architecture, bf16: bool, compiled: bool, device: torch.device, passes: int = 3) -> float | None:
    """Seconds for one image to go through a block and back, the shortest of some passes; None where no compiler works."""
    tokens = cost.sequence_length(a, a.depth - 1)
    flops = 6 * tokens * (12 * a.width**2 + 2 * tokens * a.width)
    images = max(1, min(32, round(PROBE_FLOPS / flops)))
    with torch.random.fork_rng(devices=[]):
        block = Block(a, a.depth // 2).to(device)
        x = torch.randn(images, tokens, a.width, device=device, requires_grad=True)
    set_dropout_keys(block, torch.zeros(len(dropout_layers(block)), images, dtype=torch.int64, device=device))
    condition, angles = torch.ones(images, a.width, device=device), torch.ones(tokens, a.width // a.heads, device=device)
    if compiled and device.type == "cpu":
        use_plain_attention(block)  # as parallelize does
    call = torch.compile(block.forward, dynamic=False) if compiled else block.forward
    taken = []
    for _ in range(1 + passes):  # the first one warms up, or compiles
        began = time.perf_counter()
        try:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                out = call(x, condition, angles, angles)
            out.float().sum().backward()
            torch.empty(0, device=device).sum().item()  # a GPU is waited for
        except Exception:  # of whatever compiler is there, or is not
            if compiled:
                return None
            raise
        taken.append(time.perf_counter() - began)
    return min(taken[1:]) / images


def microbatches(recipe: Recipe, world: World) -> int:
    """The fewest equal parts of a process's images of which one fits into its device; as many as there are, if none does."""
    share, kind = max(recipe.training.batch // world.size, 1), world.device.type
    room = MEMORY_SHARE.get(kind, 0.5) * cost.memory_available(world.device) / (world.size if kind == "cpu" else 1)
    state = estimate_memory(recipe, world, 0)
    room = state + min(room - state, MAX_ACTIVATIONS.get(kind, math.inf))
    allowed = [n for n in range(1, share + 1) if share % n == 0]
    return next((n for n in allowed if estimate_memory(recipe, world, share // n) <= room), share)


def estimate_memory(recipe: Recipe, world: World, images: int) -> float:
    """Bytes that a training takes on a process's device, with so many images at a time."""
    a, bf16 = recipe.model, recipe.training.precision == "bf16"
    state, activations = cost.training_memory(a, images, len(recipe.training.ema), bf16)
    if recipe.parallelism.activation_checkpointing:  # one block, and the inputs of all
        inputs = 4 * a.width * images * sum(cost.sequence_length(a, i) for i in range(a.depth))
        activations = (
            inputs + cost.training_memory(replace(a, depth=1, context_start=0, aux_classifier=False), images, 0, bf16)[1]
        )
    activations += images * cost.image_memory(a)
    shards = world.shard_count(recipe.parallelism.parallel)
    if shards > 1:
        copies = cost.sharded_copies(a, accumulates=images < recipe.training.batch // world.size)
    else:  # weights cast; DDP's buckets
        copies = cost.cost(a).parameters * (2 * bf16 + 4 * (world.size > 1))
    return state / shards + copies + activations
