"""Edit: a photograph and a brush; the tasks, checks and steps are those of `justimage edit`."""

import io
import shlex
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageChops, ImageOps
from torch import Tensor

from justimage import disk, figures
from justimage.cli.edit import TRAINED, Edit, EditOptions, answer_steps, check_options, editor
from justimage.normalization import to_uint8
from justimage.web.downloads import Downloads
from justimage.web.draw import classes_of
from justimage.web.drawing import FRAME_SECONDS, MAX_SEED, frames, plan_drawing
from justimage.web.models import Models
from justimage.web.show import DRAWS, QUIET, command_box, finite, note, picture, refusals, saying, sheet, stop_with, whole

TASKS = {
    "fill what is painted over": "mask", "vary": "strength", "enlarge": "upscale", "colour": "colourise", "sharpen": "deblur",
}  # fmt: skip
MAX_STEPS, MAX_ANSWERS = 100, 8
PHOTO, MASK = "photo.png", "mask.png"
MAX_SIDE = 2048
"""Pixels of a photograph's longer side, to which larger ones are scaled: each edit keeps its own."""


@dataclass(frozen=True)
class Editing:
    """A task that is ready to be done."""

    name: str
    """of the model"""
    edit: Edit
    task: str

    def command(self) -> str:
        """The command that gives the same, with the files that the page offers to download."""
        o = self.edit.o
        value = {"mask": [MASK], "colourise": []}.get(self.task, [repr(getattr(o, self.task))])
        words = ["justimage", "edit", PHOTO, "--from", self.name, f"--{self.task}", *value, "--class", o.class_name]
        words += ["--answers", str(o.answers), "--steps", str(o.steps), "--seed", str(o.seed)]
        words += ["--guidance", repr(self.edit.sampling.guidance), "--device", self.edit.device.type]
        return shlex.join([*words, "--out", "edit.png"])


def plan_edit(
    models: Models,
    name: str,
    folder: Path,
    drawn: Any,
    task: Any,
    *,
    strength: Any = 0.5,
    factor: Any = 2,
    blur: Any = 1.5,
    class_name: Any = "",
    answers: Any = 4,
    steps: Any = 24,
    seed: Any = 0,
) -> Editing:
    """An edit from what a browser sent: `drawn` has the photograph ("background") and what was painted ("layers").

    Both are written into `folder`, cropped to the model's shape, for the command's own reading. ValueError in one line for
    whatever cannot be done.
    """
    generator = models.generator(name, "fp32")
    if task not in TASKS:
        raise ValueError(f"task is {str(task)[:40]!r}; allowed: {', '.join(TASKS)}")
    photo = drawn.get("background") if isinstance(drawn, dict) else None
    if photo is None:
        raise ValueError("there is no photograph yet; drop one onto the frame, or choose a file")
    chosen = TASKS[task]
    photo, mask = cropped(photo, drawn.get("layers") or [], generator.recipe.model.size)
    if chosen == "mask" and not mask.getbbox():
        raise ValueError("nothing is painted over yet; paint over what is to be drawn anew")
    disk.write(folder / PHOTO, figures.encode_png(photo))
    disk.write(folder / MASK, figures.encode_png(mask))
    values: dict[str, Any] = {
        "mask": {"mask": folder / MASK},
        "strength": {"strength": finite(strength, "strength", 0.01, 1)},
        "upscale": {"upscale": whole(factor, "factor", 2, 64)},
        "colourise": {"colourise": True},
        "deblur": {"deblur": finite(blur, "blur", 0.1, 20)},
    }[chosen]
    o = EditOptions(
        photo=folder / PHOTO, source=Path(name), class_name=str(class_name or "-1")[:200],
        answers=whole(answers, "answers", 1, min(MAX_ANSWERS, models.max_images)),
        steps=whole(steps, "steps", 2, MAX_STEPS), seed=whole(seed, "seed", 0, MAX_SEED), **values,
    )  # fmt: skip
    check_options(o)
    return Editing(name, editor(o, generator), chosen)


def beginning(trained: str) -> tuple[str, float | None]:
    """The task to begin with, and its number, of a model trained for one; "" where it is none of the page's."""
    name, _, number = trained.partition(":")
    chosen = [task for task, option in TASKS.items() if TRAINED.get(option) == name]
    return (chosen[0], float(number) if number else None) if chosen else ("", None)


def cropped(photo: Image.Image, layers: list[Image.Image], size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """The middle of a photograph in the shape of a model's images, and a mask: white where any layer was painted on."""
    mask = Image.new("L", photo.size)
    for layer in layers:
        if layer is not None and layer.size == photo.size:
            painted = layer.convert("RGBA").getchannel("A").point([0] * 128 + [255] * 128)
            mask = ImageChops.lighter(mask, painted)
    (width, height), (h, w) = photo.size, size
    side = min(width / w, height / h)
    across, down = round(side * w), round(side * h)
    left, top = (width - across) // 2, (height - down) // 2
    box = left, top, left + across, top + down
    photo, mask = on_white(photo).crop(box), mask.crop(box)
    if max(photo.size) > MAX_SIDE:
        photo = ImageOps.contain(photo, (MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return photo, mask.resize(photo.size, Image.Resampling.NEAREST)


def on_white(photo: Image.Image) -> Image.Image:
    """A photograph without transparency."""
    photo = photo.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")


def edit_frames(editing: Editing, models: Models, visitor: str = "") -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Step, steps, the image as it was given, and the answers as they are predicted so far, uint8."""
    with models.turns.turn(visitor):
        shown, steps, total = answer_steps(editing.edit)
        given = to_uint8(shown).cpu()
    done = 0
    while True:
        with models.turns.turn(visitor):
            x = next(steps, None)
            if x is None:
                return
            found = to_uint8(x).cpu()
        yield min(done, total), total, given, found
        done += 1


def answers_png(editing: Editing, given: Tensor, found: Tensor) -> bytes:
    """The picture that the command writes, with its settings inside."""
    grid = figures.image_grid(torch.cat([given, found]), 1 + len(found), top=["given", *[""] * len(found)])
    return figures.encode_png(grid, {"Software": "justimage", "Command": editing.command()})


def layout(models: Models, files: Downloads, model: Any) -> Any:
    """Put the tab's fields on the page; returns an event's function and outputs that follow the chosen model."""
    import gradio as gr

    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            drawn = gr.ImageEditor(
                label="Photograph, and a brush", type="pil", image_mode="RGBA", sources=("upload", "clipboard"), transforms=(),
                layers=False, brush=gr.Brush(default_size=40, colors=["#e8590c"], color_mode="fixed"), height=420,
                canvas_size=(640, 640), elem_id="editor",
            )  # fmt: skip
            take = gr.Button("No photograph at hand: draw one", size="sm", elem_id="take")
        with gr.Column(scale=2, min_width=280):
            task = gr.Radio(list(TASKS), value=next(iter(TASKS)), label="Task", elem_id="task")
            strength = gr.Slider(
                0.05, 1, 0.5, step=0.05, label="Strength", info="share of the way back to noise", visible=False
            )
            factor = gr.Number(
                2, label="Factor", info="the photograph is taken as so many times smaller", visible=False, elem_id="factor"
            )
            blur = gr.Slider(0.1, 8, 1.5, step=0.05, label="Blur, in the model's pixels", visible=False)
            label = gr.Dropdown([], allow_custom_value=True, label="Class of the photograph", elem_id="edit-class")
            with gr.Row():
                answers = gr.Number(min(4, models.max_images), label="Answers", min_width=80, elem_id="answers")
                steps = gr.Number(24, label="Steps", min_width=80, elem_id="edit-steps")
                seed = gr.Number(0, label="Seed", min_width=80, elem_id="edit-seed")
            with gr.Row():
                go = gr.Button("Edit", variant="primary", elem_id="edit", elem_classes="ji-go", min_width=90)
                stop = gr.Button("Stop", min_width=70)
    line = gr.HTML(note(""), elem_id="edit-line")
    with gr.Row():
        given = gr.HTML(picture(None, "as the model is given it"), elem_id="given")
        found = gr.HTML(picture(None, "answers"), elem_id="found-answers")
    with gr.Row():
        result = gr.DownloadButton("The picture", interactive=False, size="sm", elem_id="edit-picture")
        sources = gr.DownloadButton("Photograph and mask, zipped", interactive=False, size="sm", elem_id="edit-sources")
    with gr.Accordion("The same by a command", open=False):
        command = command_box("Command", "edit-command")

    def run(request: gr.Request, name: Any, drawn: Any, task: Any, *chosen: Any) -> Iterator[tuple[Any, ...]]:
        visitor = request.session_hash or ""
        words = "strength", "factor", "blur", "class_name", "answers", "steps", "seed"
        with refusals(), models.turns.place(visitor):
            place = files.folder()
            editing = plan_edit(models, name, place, drawn, task, **dict(zip(words, chosen, strict=True)))
            yield gr.skip(), gr.skip(), note("waiting for a turn"), *[gr.skip()] * 3
            shown, x, due = None, None, 0.0
            for step, total, shown, x in edit_frames(editing, models, visitor):
                if time.monotonic() >= due:
                    yield (
                        known_picture(shown), picture(sheet(x), "answers, as predicted so far"),
                        note(f"step {step} of {total}"), *[gr.skip()] * 3,
                    )  # fmt: skip
                    due = time.monotonic() + FRAME_SECONDS
            assert shown is not None and x is not None
            png = files.write(place / "edit.png", answers_png(editing, shown, x))
            zipped = files.write(place / "sources.zip", sources_zip(place))
            yield (
                known_picture(shown), picture(sheet(x), "answers", lossless=True), note("done"),
                gr.DownloadButton(value=str(png), interactive=True), gr.DownloadButton(value=str(zipped), interactive=True),
                editing.command(),
            )  # fmt: skip

    fields = [model, drawn, task, strength, factor, blur, label, answers, steps, seed]
    results = [given, found, line, result, sources, command]
    begun = go.click(
        saying(run, line, results), fields, results, **(DRAWS | {"concurrency_id": "edit", "concurrency_limit": 6}),
    )  # fmt: skip
    stop_with(stop, [begun], line)

    def take_one(request: gr.Request, name: Any, seed: Any) -> Any:
        visitor = request.session_hash or ""
        with refusals(), models.turns.place(visitor):
            *_, last = frames(plan_drawing(models, name, (), 1, seed), models, visitor)
            image = figures.to_pil(last.x[0], max(1, 512 // last.x.shape[-1])).convert("RGB")
            return {"background": image, "layers": [], "composite": image}

    take.click(take_one, [model, seed], drawn, **DRAWS)

    def fields_of_task(task: str) -> tuple[Any, Any, Any]:
        chosen = TASKS.get(task)
        return (
            gr.Slider(visible=chosen == "strength"),
            gr.Number(visible=chosen == "upscale"),
            gr.Slider(visible=chosen == "deblur"),
        )

    task.change(fields_of_task, task, [strength, factor, blur], **QUIET)

    def follow(name: str) -> tuple[Any, ...]:
        recipe = models.generator(name).recipe
        names, (begin, number) = classes_of(recipe), beginning(recipe.training.task)
        upscale, deblur = (number if TASKS.get(begin) == option else None for option in ("upscale", "deblur"))
        return (
            gr.Dropdown([("not said", ""), *((c, c) for c in names)], value="", visible=bool(names)),
            gr.Radio(value=begin) if begin else gr.skip(),
            gr.Number(value=int(upscale), visible=True) if upscale else gr.skip(),
            gr.Slider(0.1, max(8, deblur), deblur, visible=True) if deblur else gr.skip(),
        )

    return follow, [label, task, factor, blur]


def known_picture(shown: Tensor) -> str:
    return picture(sheet(shown), "as the model is given it", lossless=True)


def sources_zip(place: Path) -> bytes:
    """The photograph and the mask as the command reads them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in PHOTO, MASK:
            archive.writestr(name, (place / name).read_bytes())
    return buffer.getvalue()
