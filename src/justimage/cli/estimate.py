"""What a training takes on this device: time and memory, told before its first step and again when some were measured; and,
where it takes days, what would fit."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from justimage import cost, plan, recipe as recipes, tuning
from justimage.recipe import Recipe
from justimage.run import Run

LONG_TRAINING = 24 * 3600
"""Seconds of training from which on it is said what would fit."""
OVERNIGHT = 8 * 3600
WARM = 4
"""The part of a batch from which on they are measured: the first ones compile, and take new memory."""
ENOUGH = 2, 15.0
"""Parts of a batch and seconds from which a speed is told."""
SMALLER = "folder-128", "folder-64", "folder-32"
GPU = "rtx4090"


@dataclass
class Estimate:
    """The time that a run still needs, by its speed."""

    run: Run
    began: tuple[float, float] | None = None
    """time and images at the beginning of the first part that is measured"""
    parts: int = 0
    told: bool = False
    warned: bool = False

    def before(self) -> Iterator[str]:
        """How it is computed; where that was measured, how long it takes by a block's time."""
        run, t, world = self.run, self.run.tuning, self.run.world
        part = run.recipe.training.batch // (t.grad_accumulation * world.size)
        parts = f", {t.grad_accumulation} parts of {part} images a step" if t.grad_accumulation > 1 else ""
        chosen = tuning.variant_name(t.precision, t.compile)
        timed = ", ".join(f"{way} {speed:.2g}" for way, speed in t.images_per_second.items())
        why = f" (images/s of the ways that were timed: {timed})" if len(t.images_per_second) > 1 else ""
        needed = tuning.estimate_memory(run.recipe, world, part)
        there = cost.memory_available(world.device)
        yield f"computed in {chosen}{parts}{why}; about {needed / 1e9:.2g} of {there / 1e9:.3g} GB for its tensors"
        if needed > there:
            yield "warning: that is more memory than there is; --activation-checkpointing or a smaller network takes less"
        if chosen in t.images_per_second:
            yield from self.tell(t.images_per_second[chosen] * world.size, "by the time of one block")

    def moved(self, images: float) -> Iterator[str]:
        """The same once, when enough was measured: called as each part of a batch begins, so many images being done."""
        now, self.parts = time.perf_counter(), self.parts + 1
        if self.parts == WARM:
            self.began = now, images
        elif self.began and not self.told and self.parts >= WARM + ENOUGH[0] and now - self.began[0] >= ENOUGH[1]:
            self.told = True
            done = images - self.began[1]
            yield from self.tell(done / (now - self.began[0]), f"over {done:,.0f} images")

    def tell(self, speed: float, how: str) -> Iterator[str]:
        """speed: images/s."""
        left = self.run.recipe.training.total_images - self.run.state.images_seen
        seconds = left / speed
        if self.told and seconds < 60:
            return
        yield f"measured {how}: {speed:.3g} images/s, so {left:,} images take about {format_time(seconds)}"
        if seconds >= LONG_TRAINING and not self.warned:
            self.warned = True
            yield f"warning: that is long. {'; '.join(suggest_smaller(self.run.recipe, speed))}"


def suggest_smaller(recipe: Recipe, speed: float) -> Iterator[str]:
    """Other trainings, with the time that they take: fewer images, a smaller network, a GPU."""
    fewer = f"{speed * OVERNIGHT:.1g}"
    yield f"In a night, {format_time(OVERNIGHT)}, this device trains on {int(float(fewer)):,} images (--images {int(float(fewer))})"
    operations = cost.training_flops(recipe.model)
    for name in SMALLER:
        other = recipes.preset(name)
        share = cost.training_flops(other.model) / operations
        if share < 0.7:
            yield f"--preset {name} takes about {format_time(recipe.training.total_images / speed * share)} for as many"
            break
    with suppress(ValueError):
        there = plan.plan(replace(recipe, training=replace(recipe.training, precision="auto")), 1, GPU)
        if there.fits:
            yield f"one {GPU} takes about {format_time(there.days * 86400)} for this (justimage plan --kind {GPU}; not measured)"


def format_time(seconds: float) -> str:
    """A time for a person: 40 seconds, 12 minutes, 7.5 hours, 3.2 days."""
    for unit, length in ("days", 86400), ("hours", 3600), ("minutes", 60):
        if seconds >= 2 * length:
            return f"{seconds / length:.2g} {unit}" if seconds < 10 * length else f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
