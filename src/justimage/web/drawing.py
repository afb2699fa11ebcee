"""A drawing: images from classes or words, seen on their way out of the noise.

A drawing is the job of the command that the page shows beside it: the same options, checked by the same functions, and one
batch of the same images, so that page, command and Python give the same bytes.
"""

import io
import json
import math
import shlex
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from justimage import __version__, figures
from justimage.cli.sample import (
    SampleOptions,
    class_name,
    classes_and_count,
    given_conditions,
    has_instead,
    make_job,
    picture_of,
)
from justimage.conditions import map_tensors
from justimage.editing import noise_of_seeds
from justimage.generate import ImageGenerator, SampleJob
from justimage.given import Given
from justimage.sampling import trajectory
from justimage.solvers import GRIDS, SOLVERS
from justimage.web.models import Models
from justimage.web.show import finite, pixels, whole

MAX_STEPS, MAX_SEED, MAX_PROMPT = 500, 2**53 - 1, 1000
FRAME_SECONDS = 0.08
"""Between two frames, at least: a browser shows no more."""
IN_VELOCITY = "heun", "euler", "adams"
RECIPES, BY_PASSES = "the model's own", "by passes"
"""Solvers to choose on the page, beside those by name."""


@dataclass(frozen=True)
class Drawing:
    """A job, and the model that does it."""

    name: str
    """of the model"""
    options: SampleOptions
    generator: ImageGenerator
    job: SampleJob
    given: Given | None
    count: int

    @property
    def title(self) -> str:
        names = dict.fromkeys(self.label(i) for i in range(self.count))
        return f"{', '.join(name or 'no class' for name in names)[:80]}, seed {self.options.seed}"

    def label(self, index: int) -> str:
        """The words or the class of an image."""
        prompt = self.options.prompt
        return prompt[index % len(prompt)] if prompt else class_name(self.job.label(index), self.generator.recipe)

    def command(self, files: bool = True) -> str:
        """The command that gives the same; files: with where it writes."""
        o, s = self.options, self.job.sampling
        told = [*(["--prompt", *o.prompt] if o.prompt else []), *(["--numbers", *o.numbers] if o.numbers else [])]
        chosen = o.classes or self.classes_not_all()
        classes = ["--classes", *chosen] if chosen else []
        how = ["--solver", s.solver, "--steps", str(s.steps), "--times", s.times] if isinstance(s.times, str) else [
            "--solver", s.solver, "--times", *map(repr, s.times)
        ]  # fmt: skip
        how += ["--t-clip", f"{s.t_clip!r}"] if s.t_clip != self.generator.recipe.sampling.t_clip else []
        every = ["--guidance-every", str(s.guidance_every)] if s.guidance_every != 1 else []
        words = ["justimage", "sample", "--from", self.name, *told, *classes, "--count", str(self.count), "--seed", str(o.seed)]
        words += ["--guidance", repr(s.guidance), "--interval", *map(repr, s.interval), *every, *how]
        words += ["--ema", repr(self.job.ema), "--precision", self.job.precision, "--device", self.generator.device.type]
        return shlex.join([*words, *(["--out", "grid.png", "--folder", "images"] if files else [])])

    def classes_not_all(self) -> list[str]:
        """The classes drawn, where none was chosen and the model has more: a command that writes files draws all."""
        r = self.generator.recipe
        shown = [] if self.given or len(self.job.classes) == r.model.classes else [c for c in self.job.classes if c >= 0]
        return [class_name(c, r) for c in shown]

    def python(self) -> str:
        """The same in Python; empty where it is told more than classes."""
        if self.given:
            return ""
        dtype = f"torch.{'bfloat16' if self.job.precision == 'bf16' else 'float32'}"
        classes = [self.job.label(i) for i in range(self.count)]
        first, device = self.options.seed, self.generator.device.type
        return (
            "import justimage, torch\n\n"
            f"model = justimage.load({self.name!r}, {self.job.ema!r}, {device!r}, dtype={dtype})\n"
            f"sampling = justimage.{self.job.sampling!r}\n"
            f"images = justimage.sample(model, {classes}, range({first}, {first + self.count}), sampling, dtype={dtype})"
        )

    def text(self, index: int | None = None) -> dict[str, str]:
        """The entries inside a PNG of all images, or of one of them."""
        one = {} if index is None else {"image": index, "seed": self.options.seed + index, "of": self.label(index)}
        settings = self.job.describe() | {"count": self.count} | one
        return {"Software": f"justimage {__version__}", "Command": self.command(), "Settings": json.dumps(settings)}


class Frame(NamedTuple):
    """A moment of a drawing."""

    t: float
    step: int
    steps: int
    z: Tensor
    """the noisy samples (n, channels, height, width), uint8"""
    x: Tensor
    """the images predicted from them; at the end the images themselves"""


def plan_drawing(
    models: Models,
    name: str,
    classes: Any = (),
    count: Any = 4,
    seed: Any = 0,
    guidance: Any = None,
    interval: Any = None,
    solver: Any = RECIPES,
    steps: Any = None,
    times: Any = None,
    passes: Any = None,
    ema: Any = None,
    prompt: Any = "",
    numbers: Any = "",
) -> Drawing:
    """A drawing from what a browser sent; ValueError in one line for whatever cannot be drawn."""
    generator = models.generator(name)
    if generator.recipe.model.image_channels and not generator.recipe.model.classes:
        raise ValueError(f"{name} is told images; on the page draw them under Edit, or: justimage sample --condition FILE")
    o = SampleOptions(
        source=Path(name),
        classes=tuple(str(word)[:200] for word in classes or ()),
        count=whole(count, "images", 1, models.max_images),
        seed=whole(seed, "seed", 0, MAX_SEED),
        guidance=None if guidance is None else finite(guidance, "guidance", -100, 100),
        interval=None if interval is None else tuple(finite(t, "interval", 0, 1) for t in interval),  # pyright: ignore
        ema=None if ema is None else finite(ema, "average", 0, 2**53),
        prompt=tuple(line.strip()[:MAX_PROMPT] for line in str(prompt or "").splitlines()[: models.max_images] if line.strip()),
        numbers=tuple(str(numbers or "").split()[:100]),
        batch=models.max_images,
    )
    if solver == BY_PASSES:
        o = replace(o, passes=whole(passes, "passes", 1, 2 * MAX_STEPS))
    elif solver != RECIPES:
        for value, what, allowed in (solver, "solver", SOLVERS), (times, "times", GRIDS):
            if value not in list(allowed):
                raise ValueError(f"{what} is {str(value)[:40]!r}; allowed: {', '.join(allowed)}")
        clip = None if solver in IN_VELOCITY else 0.0  # solvers in x end at the predicted image (docs/sampling.md)
        o = replace(o, solver=solver, steps=whole(steps, "steps", 1, MAX_STEPS), times=(times,), t_clip=clip)
    given = generator.conditions = given_conditions(o, generator.recipe, generator.recipe.model.size)
    if not generator.recipe.model.classes and not given and generator.is_told:
        raise ValueError(f"this model draws what it is told: {has_instead(generator.recipe)}")
    chosen, total = classes_and_count(o, generator.recipe, given)
    return Drawing(name, o, generator, make_job(o, generator, chosen, total), given, total)


def frames(drawing: Drawing, models: Models, visitor: str = "") -> Iterator[Frame]:
    """A drawing, moment by moment; the last frame has the images. Each step takes a turn of its visitor."""
    generator, job = drawing.generator, drawing.job
    denoiser, indices = generator.denoiser(job.ema), range(drawing.count)
    seeds, steps = [job.seed + i for i in indices], len(job.sampling.grid) - 1
    condition = map_tensors(lambda tensor: tensor.to(generator.device), generator.condition(job, indices))
    z = noise_of_seeds(denoiser, seeds).to(generator.device)
    points = trajectory(denoiser, z, condition, job.sampling, generator.dtype, seeds)
    shown = -math.inf
    for step in range(steps + 1):
        with models.turns.turn(visitor):
            point = next(points)
            due = step == steps or time.monotonic() - shown > FRAME_SECONDS
            frame = Frame(point.t, step, steps, pixels(denoiser, point.z), pixels(denoiser, point.x)) if due else None
        if frame:
            yield frame
            shown = time.monotonic()


def grid_png(drawing: Drawing, images: Tensor) -> bytes:
    """All images in one PNG, the one that the command writes, with its settings inside."""
    return figures.encode_png(grid_of(drawing, images), drawing.text())


def grid_of(drawing: Drawing, images: Tensor) -> Image.Image:
    return picture_of(images, drawing.options, drawing.given, drawing.job, drawing.generator.recipe)


def images_zip(drawing: Drawing, images: Tensor) -> bytes:
    """Each image as a PNG of its own size, under the name that the command gives it, with its settings inside."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for i, image in enumerate(images):
            archive.writestr(f"{i:06d}.png", figures.encode_png(figures.to_pil(image), drawing.text(i)))
    return buffer.getvalue()
