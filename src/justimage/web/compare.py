"""Compare: two models, averages or settings from the same seeds, side by side."""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import torch

from justimage.web.draw import averages_of, classes_of, usual_average
from justimage.web.drawing import BY_PASSES, Drawing, Frame, frames, plan_drawing
from justimage.web.models import Models
from justimage.web.show import DRAWS, QUIET, command_box, note, picture, refusals, saying, sheet, stop_with


def side_by_side(first: Drawing, second: Drawing, models: Models, visitor: str = "") -> Iterator[tuple[Frame, Frame]]:
    """Two drawings in step; the one that is ready first waits at its end. ValueError where they are not of the same seeds."""
    if (first.count, first.job.seed) != (second.count, second.job.seed):
        raise ValueError("the two drawings have other seeds; compare images of the same")
    left = right = None
    for one, other in zip_longest(frames(first, models, visitor), frames(second, models, visitor)):
        left, right = one or left, other or right
        assert left and right  # each has a first frame
        yield left, right


def difference(first: Frame, second: Frame) -> str:
    """How far the images are from each other, in a sentence."""
    if first.x.shape != second.x.shape:
        sizes = (f"{width} x {height} x {channels}" for _, channels, height, width in (first.x.shape, second.x.shape))
        return f"images of {' and '.join(sizes)}, which have no distance"
    apart = (first.x.float() - second.x.float()).square().mean().sqrt().item()
    same = int(torch.eq(first.x, second.x).flatten(1).all(1).sum())
    return f"apart by {apart:.1f} of 255 (rms); {same} of {len(first.x)} equal to the byte"


def layout(models: Models, model: Any) -> Any:
    """Put the tab's fields on the page; returns an event's function and outputs that follow the chosen model."""
    import gradio as gr

    with gr.Row():
        classes = gr.Dropdown(
            [], multiselect=True, allow_custom_value=True, label="Classes", info="of both; empty for all", scale=3
        )
        count = gr.Number(min(4, models.max_images), label="Images", min_width=90, elem_id="compare-count")
        seed = gr.Number(0, label="Seed", min_width=90, elem_id="compare-seed")
    sides = []
    with gr.Row():
        for side in "left", "right":
            with gr.Column(min_width=280):
                name = gr.Dropdown([], label=f"Model, {side}", elem_id=f"{side}-model")
                with gr.Row():
                    ema = gr.Dropdown([], label="Average", min_width=120, elem_id=f"{side}-ema")
                    guidance = gr.Slider(0, 8, 1, step=0.05, label="Guidance", min_width=120, elem_id=f"{side}-guidance")
                    passes = gr.Number(13, label="Passes", min_width=80, elem_id=f"{side}-passes")
                sides.append((name, ema, guidance, passes))
    with gr.Row():
        go = gr.Button("Compare", variant="primary", elem_id="compare", elem_classes="ji-go", min_width=90)
        stop = gr.Button("Stop", min_width=70, scale=0)
    line = gr.HTML(note(""), elem_id="compare-line")
    with gr.Row():
        pictures = [gr.HTML(picture(None, side), elem_id=f"{side}-x", min_width=280) for side in ("left", "right")]
    with gr.Accordion("The same by commands", open=False):
        commands = [command_box(f"Command, {side}", f"{side}-command") for side in ("left", "right")]

    def compare(request: gr.Request, classes: Any, count: Any, seed: Any, *chosen: Any) -> Iterator[tuple[Any, ...]]:
        visitor = request.session_hash or ""
        with refusals(), models.turns.place(visitor):
            one, other = (
                plan_drawing(models, name, classes, count, seed, guidance, solver=BY_PASSES, passes=passes, ema=ema)
                for name, ema, guidance, passes in (chosen[:4], chosen[4:])
            )
            first = second = None
            for first, second in side_by_side(one, other, models, visitor):
                drawn = [picture(sheet(f.x), f"t = {f.t:.2f}", lossless=f.step == f.steps) for f in (first, second)]
                yield *drawn, note(f"step {first.step} of {first.steps}, {second.step} of {second.steps}"), "", ""
            assert first and second
            yield gr.skip(), gr.skip(), note(f"done: {difference(first, second)}"), one.command(), other.command()

    given = [classes, count, seed, *(field for side in sides for field in side)]
    shown = [*pictures, line, *commands]
    begun = go.click(saying(compare, line, shown), given, shown, **DRAWS)
    stop_with(stop, [begun], line)

    def average(name: str) -> Any:
        with refusals():
            generator = models.generator(name)
            return gr.Dropdown(averages_of(generator.emas), value=usual_average(generator))

    for name, ema, *_ in sides:
        name.input(average, name, ema, **QUIET)

    def follow(name: str) -> tuple[Any, ...]:
        generator, names = models.generator(name), models.names
        s = generator.recipe.sampling
        how = s.guidance, s.passes if s.passes <= 100 else 13
        other = names[(names.index(name) + 1) % len(names)]
        averages, others = averages_of(generator.emas), averages_of(models.generator(other).emas)
        second = others[-1][1] if other == name else usual_average(models.generator(other))  # else the same on both sides
        return (
            gr.Dropdown(classes_of(generator.recipe), value=[]),
            gr.Dropdown(names, value=name), gr.Dropdown(averages, value=usual_average(generator)), *how,
            gr.Dropdown(names, value=other), gr.Dropdown(others, value=second), *how,
        )  # fmt: skip

    return follow, [classes, *(field for side in sides for field in side)]
