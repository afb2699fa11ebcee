"""Time and memory of a training on this device: before its first step, again when some were measured; and, where it takes
a CPU days, what would fit."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from justimage import cost, recipe as recipes, tuning
from justimage.plan import Request, plan
from justimage.recipe import Recipe
from justimage.run import Run

LONG_TRAINING = 24 * 3600
"""Seconds of training on a CPU above which the output says what would fit."""
OVERNIGHT = 8 * 3600
WARM_UP = 4
"""Number of the microbatch from which on time is measured: the first ones compile, and allocate memory."""
MIN_MICROBATCHES, MIN_SECONDS = 2, 15.0
"""Measured before a speed is reported."""
SMALLER_PRESETS = "folder-128", "folder-64", "folder-32"
GPU = "rtx4090"


@dataclass
class Estimate:
    """The time that a run still needs, by its speed."""

    run: Run
    began: tuple[float, float] | None = None
    """time and images at the beginning of the first measured microbatch"""
    microbatches: int = 0
    reported: bool = False
    warned: bool = False

    def before(self) -> Iterator[str]:
        """How the training is computed and its memory; and its time, where a block was timed."""
        run, t, world = self.run, self.run.tuning, self.run.world
        size = run.recipe.training.batch // (t.grad_accumulation * world.size)
        microbatches = f", {t.grad_accumulation} microbatches of {size} images per step" if t.grad_accumulation > 1 else ""
        variant = tuning.variant_name(t.precision, t.compile)
        timed = ", ".join(f"{name} {speed:.2g}" for name, speed in t.images_per_second.items())
        why = f" (images/s measured: {timed})" if len(t.images_per_second) > 1 else ""
        needed = tuning.estimate_memory(run.recipe, world, size)
        available = cost.memory_available(world.device)
        yield f"computed in {variant}{microbatches}{why}; about {needed / 1e9:.2g} of {available / 1e9:.3g} GB for tensors"
        if needed > available:
            yield "warning: that is more memory than available; --activation-checkpointing or a smaller network takes less"
        if variant in t.images_per_second:
            yield from self.report(t.images_per_second[variant] * world.size, "by the time of one block")

    def update(self, images: float) -> Iterator[str]:
        """The time left, once, when enough was measured; call it as each microbatch begins, with the images done before it."""
        now, self.microbatches = time.perf_counter(), self.microbatches + 1
        if self.microbatches == WARM_UP:
            self.began = now, images
        elif self.began and not self.reported and self.microbatches >= WARM_UP + MIN_MICROBATCHES:
            seconds, done = now - self.began[0], images - self.began[1]
            if seconds >= MIN_SECONDS:
                self.reported = True
                yield from self.report(done / seconds, f"over {done:,.0f} images")

    def report(self, images_per_second: float, how: str) -> Iterator[str]:
        """The time left at a speed; a short one only before training, which has a progress bar."""
        left = self.run.recipe.training.total_images - self.run.state.images_seen
        seconds = left / images_per_second
        if self.reported and seconds < 60:
            return
        yield f"measured {how}: {images_per_second:.3g} images/s, so {left:,} images take about {format_time(seconds)}"
        if seconds >= LONG_TRAINING and not self.warned and self.run.world.device.type == "cpu":
            self.warned = True
            yield f"warning: that is long. {'; '.join(suggest_smaller(self.run.recipe, images_per_second))}"


def suggest_smaller(recipe: Recipe, images_per_second: float) -> Iterator[str]:
    """Other trainings and their times: fewer images, a smaller network, a GPU."""
    fewer = int(float(f"{images_per_second * OVERNIGHT:.1g}"))
    yield f"In a night, {format_time(OVERNIGHT)}, this device trains on {fewer:,} images (--total-images {fewer})"
    flops = cost.training_flops(recipe.model)
    for name in SMALLER_PRESETS:
        share = cost.training_flops(recipes.preset(name).model) / flops
        if share < 0.7:
            time_left = format_time(recipe.training.total_images / images_per_second * share)
            yield f"--preset {name} takes about {time_left} for as many"
            break
    with suppress(ValueError):
        planned = plan(Request(recipes.with_values(recipe, precision="auto"), 1, GPU))
        if planned.fits:
            time_left = format_time(planned.days * 86400)
            yield f"one {GPU} takes about {time_left} for this (justimage plan --gpu-type {GPU}; not measured)"


def format_time(seconds: float) -> str:
    """A time with its unit: 40 seconds, 12 minutes, 7.5 hours, 3.2 days."""
    for unit, length in ("days", 86400), ("hours", 3600), ("minutes", 60):
        if seconds >= 2 * length:
            return f"{seconds / length:.2g} {unit}" if seconds < 10 * length else f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
