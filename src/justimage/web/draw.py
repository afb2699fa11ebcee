"""The tab to draw in."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from justimage.generate import ImageGenerator
from justimage.recipe import Recipe
from justimage.solvers import GRIDS, SOLVERS
from justimage.web.downloads import Downloads
from justimage.web.drawing import BY_PASSES, MAX_SEED, MAX_STEPS, RECIPES, Frame, frames, grid_png, images_zip, plan_drawing
from justimage.web.models import Models
from justimage.web.show import DRAWS, QUIET, command_box, note, picture, refusals, saying, sheet, stop_with, whole

HISTORY = 12
"""Drawings of a visitor that stay in sight."""
FIRST = 8
"""Images that a drawing has unless one says otherwise, at most."""


def classes_of(recipe: Recipe) -> list[str]:
    """The classes as a person chooses them."""
    return list(recipe.class_names) or [str(i) for i in range(recipe.model.classes or 0)]


def averages_of(emas: Sequence[float]) -> list[tuple[str, float]]:
    """Averages of the weights, by a name; last the weights themselves."""
    kept = [(f"{ema:g}", float(ema)) for ema in emas if ema]
    return [*kept, ("none: the weights themselves", 0.0)] if kept or 0.0 in emas else kept


def usual_average(generator: ImageGenerator) -> float:
    """The average that a model draws with unless one says otherwise: its recipe's, where it is there."""
    offered, usual = [ema for _, ema in averages_of(generator.emas)], generator.recipe.training.sample_ema
    return float(usual) if usual in offered else offered[0]


def panels(frame: Frame) -> tuple[str, str, str]:
    """A moment of a drawing as HTML: the noisy sample, the predicted image, and a line."""
    last = frame.step == frame.steps
    z = picture(sheet(frame.z), f"z at t = {frame.t:.2f}: the noisy sample")
    x = picture(sheet(frame.x), "the images" if last else "x: the image predicted from it", lossless=last)
    return z, x, note(f"step {frame.step} of {frame.steps}" + (", done" if last else ""))


def layout(models: Models, files: Downloads, model: Any) -> Any:
    """Put the tab's fields on the page; returns an event's function and outputs that follow the chosen model."""
    import gradio as gr

    empty_z, empty_x = (
        picture(None, "z: the noisy sample"),
        picture(None, "x: the predicted image", hint="press Draw"),
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            classes = gr.Dropdown(
                [],
                multiselect=True,
                allow_custom_value=True,
                label="Classes",
                info="names or numbers; empty for all",
                elem_id="classes",
            )
            prompt = gr.Textbox(
                label="Words",
                info="a line for each image",
                lines=1,
                max_lines=6,
                max_length=4000,
                visible=False,
                elem_id="prompt",
            )
            numbers = gr.Textbox(
                label="Numbers", info="NAME=VALUE, such as area=3000", max_length=2000, visible=False, elem_id="numbers"
            )
            with gr.Row():
                count = gr.Number(min(FIRST, models.max_images), label="Images", min_width=90, elem_id="count")
                seed = gr.Number(0, label="Seed", min_width=90, elem_id="seed")
            guidance = gr.Slider(0, 8, 1, step=0.05, label="Guidance", info="1 for none", elem_id="guidance")
            with gr.Accordion("Solver, interval, average", open=False):
                solver = gr.Dropdown([RECIPES, BY_PASSES, *SOLVERS], value=RECIPES, label="Solver", elem_id="solver")
                passes = gr.Number(13, label="Passes of the network", visible=False, elem_id="passes")
                steps = gr.Number(12, label="Steps", visible=False, elem_id="steps")
                times = gr.Dropdown(list(GRIDS), value="logsnr", label="Times", visible=False, elem_id="times")
                with gr.Row():
                    low = gr.Slider(0, 1, 0, step=0.01, label="Guided from t", min_width=120)
                    high = gr.Slider(0, 1, 1, step=0.01, label="to t", min_width=120)
                ema = gr.Dropdown([], label="Average of the weights", elem_id="ema")
            go = gr.Button("Draw", variant="primary", elem_id="draw", elem_classes="ji-go")
            with gr.Row():
                again = gr.Button("Other seeds", elem_id="again", min_width=90, size="md")
                stop = gr.Button("Stop", elem_id="stop", min_width=70, size="md")
        with gr.Column(scale=5, min_width=300):
            with gr.Row():
                z, x = gr.HTML(empty_z, elem_id="z", min_height=200), gr.HTML(empty_x, elem_id="x", min_height=200)
            line = gr.HTML(note(""), elem_id="line")
            with gr.Row():
                grid = gr.DownloadButton("All in one PNG", interactive=False, size="sm", elem_id="grid")
                each = gr.DownloadButton("Each as a PNG, zipped", interactive=False, size="sm", elem_id="each")
            with gr.Accordion("The same by a command, and in Python", open=False):
                command = command_box("Command", "command")
                python = command_box("Python", "python")
            history = gr.Gallery(
                label="Drawn before", columns=4, height="auto", object_fit="contain", visible=False, elem_id="history"
            )
    kept = gr.State([])

    def draw(request: gr.Request, kept: list[Any], name: str, *chosen: Any) -> Iterator[tuple[Any, ...]]:
        classes, prompt, numbers, count, seed, guidance, solver, passes, steps, times, low, high, ema = chosen
        visitor = request.session_hash or ""
        with refusals(), models.turns.place(visitor):
            drawing = plan_drawing(
                models, name, classes, count, seed, guidance, (low, high), solver, steps, times, passes, ema, prompt, numbers
            )
            frame = None
            yield gr.skip(), gr.skip(), note("waiting for a turn"), *[gr.skip()] * 6
            for frame in frames(drawing, models, visitor):
                yield *panels(frame), *[gr.skip()] * 6
            assert frame
            place = files.folder()
            one = files.write(place / "grid.png", grid_png(drawing, frame.x))
            zipped = files.write(place / "images.zip", images_zip(drawing, frame.x))
            kept = [(str(one), drawing.title, drawing.command()), *kept][:HISTORY]
            kept = [entry for entry in kept if Path(entry[0]).exists()]
            whole = picture(sheet(frame.x), drawing.title, lossless=True)
            yield (
                picture(sheet(frame.z), "z at t = 1: no noise is left"), whole,
                note(f"done: {drawing.job.sampling.passes} passes an image"),
                gr.DownloadButton(value=str(one), interactive=True), gr.DownloadButton(value=str(zipped), interactive=True),
                drawing.command(), drawing.python(),
                gr.Gallery([(path, title) for path, title, _ in kept], visible=True), kept,
            )  # fmt: skip

    given = [kept, model, classes, prompt, numbers, count, seed, guidance, solver, passes, steps, times, low, high, ema]
    shown = [z, x, line, grid, each, command, python, history, kept]
    draw = saying(draw, line, shown)
    begun = [go.click(draw, given, shown, **DRAWS), prompt.submit(draw, given, shown, **DRAWS)]
    following = again.click(next_seed, [seed, count], seed, **QUIET)
    begun.append(following.success(draw, given, shown, **DRAWS))
    stop_with(stop, begun, line)
    solver.change(partial(fields_of, gr), solver, [passes, steps, times], **QUIET)

    def recall(kept: list[Any], chosen: gr.SelectData) -> str:
        with refusals():
            return kept[int(chosen.index)][2] if int(chosen.index) < len(kept) else ""

    history.select(recall, kept, command, **QUIET)

    def follow(name: str) -> tuple[Any, ...]:
        """Offer in the fields what a model has, beginning with its own settings."""
        generator = models.generator(name)
        recipe, s = generator.recipe, generator.recipe.sampling
        return (
            gr.Dropdown(classes_of(recipe), value=[], visible=bool(recipe.model.classes)),
            gr.Textbox(visible=bool(recipe.model.text_length) and not recipe.model.text_features),
            gr.Textbox(visible=bool(recipe.told.columns)),
            gr.Slider(value=s.guidance, visible=bool(recipe.model.classes) or generator.is_told),
            *s.interval, gr.Dropdown(averages_of(generator.emas), value=usual_average(generator)),
        )  # fmt: skip

    return follow, [classes, prompt, numbers, guidance, low, high, ema]


def next_seed(seed: Any, count: Any) -> Any:
    """The seed after a drawing's last; a field that holds no such number stays, for the drawing to refuse it."""
    try:
        return whole(seed, "seed", 0, MAX_SEED) + whole(count, "images", 1, MAX_STEPS)
    except ValueError:
        return seed


def fields_of(gr: Any, solver: str) -> tuple[Any, Any, Any]:
    """The fields that a way to choose a solver needs."""
    by_name = solver in SOLVERS
    return gr.Number(visible=solver == BY_PASSES), gr.Number(visible=by_name), gr.Dropdown(visible=by_name)
