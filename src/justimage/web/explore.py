"""Explore: the images between two, and the training images next to one."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from justimage import figures
from justimage.cli.sample import class_name
from justimage.cli.sampling_options import parse_classes
from justimage.conditions import NULL_CLASS
from justimage.editing import between, noise_of_seeds
from justimage.evaluation.copies import averaged
from justimage.generate import ImageGenerator
from justimage.sampling import GuidedVelocity, Sampling
from justimage.solvers import SOLVERS
from justimage.web.draw import classes_of
from justimage.web.drawing import MAX_SEED, Frame, frames, plan_drawing
from justimage.web.models import Models
from justimage.web.show import DRAWS, finite, picture, picture_row, pixels, refusals, sheet, stop_with, whole

MAX_NEIGHBOURS = 8


@dataclass(frozen=True)
class Way:
    """From one seed and class to another, in equal steps."""

    generator: ImageGenerator
    ema: float
    sampling: Sampling
    seeds: tuple[int, int]
    classes: tuple[int, int]
    count: int


class Blend:
    """A velocity between those of two classes, a share for each image: (1 - share) v_first + share v_second."""

    def __init__(self, first: GuidedVelocity, second: GuidedVelocity, shares: Tensor) -> None:
        self.first, self.second, self.shares = first, second, shares
        self.coefficients, self.noise = first.coefficients, first.noise

    def __call__(self, z: Tensor, t: float) -> tuple[Tensor, Tensor]:
        (v, x), (v2, x2) = self.first(z, t), self.second(z, t)
        return torch.lerp(v, v2, self.shares), torch.lerp(x, x2, self.shares)


def plan_way(
    models: Models, name: str, seeds: tuple[Any, Any], classes: tuple[Any, Any], count: Any = 8, guidance: Any = None
) -> Way:
    """A way from what a browser sent; ValueError in one line for whatever there is none for."""
    generator = models.generator(name)
    recipe = generator.recipe
    if generator.is_told:
        raise ValueError("this model is told more than a class; ways are shown between classes only")
    first, second = (label_of(c, generator) for c in classes)
    given = recipe.sampling.guidance if guidance is None else finite(guidance, "guidance", -100, 100)
    sampling = replace(recipe.sampling, guidance=given)
    chosen = whole(seeds[0], "seed", 0, MAX_SEED), whole(seeds[1], "seed", 0, MAX_SEED)
    count = whole(count, "images", 2, models.max_images)
    job = generator.make_job(None, [first, second], sampling)
    return Way(generator, job.ema, job.sampling, chosen, (first, second), count)


def label_of(word: Any, generator: ImageGenerator) -> int:
    """A class by its name or number, as a browser sent it; none for nothing."""
    word = str(word if word is not None else "").strip()[:200]
    return parse_classes([word], generator.recipe)[0] if word else NULL_CLASS


def way_frames(way: Way, models: Models, visitor: str = "") -> Iterator[Frame]:
    """The images on the way, moment by moment, both ends among them: noise on the great circle, velocities on the line."""
    g, s, n = way.generator, way.sampling, way.count
    denoiser = g.denoiser(way.ema)
    first, second = noise_of_seeds(denoiser, way.seeds)
    z = between(first, second, n) if way.seeds[0] != way.seeds[1] else first.expand(n, *first.shape).clone()
    z, seeds = z.to(g.device), [way.seeds[0]] * n
    ends = [GuidedVelocity(denoiser, torch.full((n,), c, device=g.device), s, g.dtype, seeds) for c in way.classes]
    shares = torch.linspace(0, 1, n, device=g.device).view(-1, 1, 1, 1)
    velocity = Blend(ends[0], ends[1], shares) if way.classes[0] != way.classes[1] else ends[0]
    points = SOLVERS[s.solver](velocity, z, s.grid)
    steps = len(s.grid) - 1
    for step in range(steps + 1):
        with models.turns.turn(visitor), torch.no_grad():
            p = next(points)
            frame = Frame(p.t, step, steps, pixels(denoiser, p.z), pixels(denoiser, p.x if step < steps else p.z))
        yield frame


def neighbours(models: Models, name: str, image: Tensor, count: Any = MAX_NEIGHBOURS) -> list[tuple[Tensor, str]]:
    """The training images next to an image (channels, height, width), uint8, with their classes, by averages of pixels."""
    count = whole(count, "neighbours", 1, MAX_NEIGHBOURS)
    near = models.neighbourhood(name)
    distance, which = torch.cdist(averaged(image[None]), near.features)[0].topk(min(count, len(near.features)), largest=False)
    recipe, found = models.generator(name).recipe, []
    for d, i in zip(distance.tolist(), near.places[which].tolist(), strict=True):
        picture, label = near.source[i]
        words = class_name(int(label), recipe) if recipe.model.classes and not isinstance(label, dict) else ""
        found.append((picture, f"{words}, apart by {d / near.features.shape[1] ** 0.5:.0f}".removeprefix(", ")))
    return found


def layout(models: Models, model: Any) -> Any:
    """Put the tab's fields on the page; returns an event's function and outputs that follow the chosen model."""
    import gradio as gr

    with gr.Row():
        ends = []
        for side, seed in ("from", 0), ("to", 1):
            with gr.Column(min_width=200), gr.Row():
                label = gr.Dropdown([], allow_custom_value=True, label=f"Class, {side}", min_width=110, elem_id=f"{side}-class")
                number = gr.Number(seed, label=f"Seed, {side}", min_width=80, elem_id=f"{side}-seed")
                ends.append((label, number))
        with gr.Column(min_width=200), gr.Row():
            count = gr.Number(min(8, models.max_images), label="Images", min_width=80, elem_id="way-count")
            guidance = gr.Slider(0, 8, 1, step=0.05, label="Guidance", min_width=110)
    with gr.Row():
        go = gr.Button("Show the way between them", variant="primary", elem_id="way", elem_classes="ji-go")
        stop = gr.Button("Stop", min_width=70, scale=0)
    strip = gr.HTML(picture(None, "from one to the other: noise on the great circle, classes on the line"), elem_id="strip")
    near = gr.Button("Training images next to the first one", elem_id="near", size="md")
    found = gr.HTML(picture(None, "the nearest by averages of their pixels"), elem_id="found")

    def show_way(request: gr.Request, name: Any, a: Any, i: Any, b: Any, j: Any, count: Any, guidance: Any) -> Iterator[str]:
        visitor = request.session_hash or ""
        with refusals(), models.turns.place(visitor):
            way = plan_way(models, name, (i, j), (a, b), count, guidance)
            for f in way_frames(way, models, visitor):
                caption = f"t = {f.t:.2f}" if f.step < f.steps else "from one to the other"
                yield picture(sheet(f.x, len(f.x)), caption, lossless=f.step == f.steps)

    def show_near(request: gr.Request, name: Any, a: Any, i: Any, guidance: Any) -> str:
        visitor = request.session_hash or ""
        with refusals(), models.turns.place(visitor):
            drawing = plan_drawing(models, name, [a] if a else ["-1"], 1, i, guidance)
            *_, last = frames(drawing, models, visitor)
            pictures = neighbours(models, name, last.x[0])
            return picture_row([(figures.to_pil(image), words) for image, words in [(last.x[0], "drawn"), *pictures]])

    (a, i), (b, j) = ends
    begun = [go.click(show_way, [model, a, i, b, j, count, guidance], strip, **DRAWS)]
    begun.append(near.click(show_near, [model, a, i, guidance], found, **DRAWS))
    stop_with(stop, begun)

    def follow(name: str) -> tuple[Any, ...]:
        recipe = models.generator(name).recipe
        names = classes_of(recipe)
        choices = [("no class", ""), *((c, c) for c in names)]
        first, second = (names[0], names[min(1, len(names) - 1)]) if names else ("", "")
        return gr.Dropdown(choices, value=first), gr.Dropdown(choices, value=second), recipe.sampling.guidance

    return follow, [a, b, guidance]
