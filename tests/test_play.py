"""The page without a browser: the same bytes as by command and in Python, errors in one line, fair turns."""

import io
import json
import os
import shlex
import shutil
import threading
import zipfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from justimage import checkpoint
from justimage.checkpoint.model import named_weights
from justimage.cli import edit, sample
from justimage.cli.edit import answer_steps
from justimage.cli.options import parse
from justimage.normalization import to_uint8
from justimage.recipe import with_values
from justimage.web import about, compare, downloads
from justimage.web.compare import difference, side_by_side
from justimage.web.draw import next_seed
from justimage.web.drawing import BY_PASSES, Drawing, Frame, frames, grid_png, images_zip, plan_drawing
from justimage.web.edit import TASKS, answers_png, beginning, cropped, edit_frames, plan_edit
from justimage.web.explore import neighbours, plan_way, way_frames
from justimage.web.models import Models
from justimage.web.turns import Busy, Turns
from justimage.web.watch import metrics_of, previews, run_directory, state

CPU = torch.device("cpu")


@pytest.fixture
def models(run: Path, monkeypatch: pytest.MonkeyPatch) -> Models:
    """The page's models, as in the folder where a run lies."""
    monkeypatch.chdir(run.parent)
    return Models(["run"], CPU, 16)


def drawn(drawing: Drawing, models: Models) -> Frame:
    *_, last = frames(drawing, models)
    return last


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


SETTINGS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "classes, guided, by passes": dict(classes=["7", "3"], count=5, seed=2**40, guidance=2.2, solver=BY_PASSES, passes=9),
    "noise on the way": dict(count=3, seed=5, solver="sde", steps=4, times="cosine", interval=(0.1, 0.9), guidance=1.5),
    "Heun, the weights themselves": dict(classes=["-1"], count=2, solver="heun", steps=3, times="linear", ema=0.0, guidance=1),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_page_command_and_python_give_the_same_bytes(
    name: str, models: Models, tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = plan_drawing(models, "run", **SETTINGS[name])
    images = drawn(drawing, models).x

    words = shlex.split(drawing.command())
    assert words[:2] == ["justimage", "sample"]
    words[words.index("--from") + 1] = str(run)
    monkeypatch.chdir(tmp_path)
    assert sample.main(words[2:]) == 0
    np.testing.assert_array_equal(pixels((tmp_path / "grid.png").read_bytes()), pixels(grid_png(drawing, images)))
    with zipfile.ZipFile(io.BytesIO(images_zip(drawing, images))) as archive:
        assert archive.namelist() == sorted(f.name for f in (tmp_path / "images").glob("*.png"))
        for file in archive.namelist():
            np.testing.assert_array_equal(pixels((tmp_path / "images" / file).read_bytes()), pixels(archive.read(file)))

    monkeypatch.chdir(run.parent)
    known: dict[str, Any] = {}
    exec(drawing.python(), known)
    assert torch.equal(known["images"], images)


def test_a_png_says_what_it_is(models: Models) -> None:
    drawing = plan_drawing(models, "run", classes=["4"], count=2, seed=9)
    images = drawn(drawing, models).x
    text = Image.open(io.BytesIO(grid_png(drawing, images))).text
    settings = json.loads(text["Settings"])
    assert text["Command"] == drawing.command()
    assert settings["weights_hash"] == drawing.generator.weights_hash(drawing.job.ema) and settings["seed"] == 9
    with zipfile.ZipFile(io.BytesIO(images_zip(drawing, images))) as archive:
        one = json.loads(Image.open(archive.open("000001.png")).text["Settings"])
    assert (one["seed"], one["image"], one["of"]) == (10, 1, "4")


def test_frames_lead_from_noise_to_the_images(models: Models) -> None:
    seen = list(
        frames(replace(plan_drawing(models, "run", count=2, solver="euler", steps=40, times="linear"), name="run"), models)
    )
    assert seen[0].t == 0 and seen[-1].t == 1 and [f.t for f in seen] == sorted(f.t for f in seen)
    assert torch.equal(seen[-1].z, seen[-1].x) and not torch.equal(seen[0].z, seen[0].x)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "count": (dict(count=17), "images is '17'; allowed: whole numbers from 1 to 16"),
    "half a seed": (dict(seed=2.5), "seed is 2.5; allowed: whole numbers from 0 to"),
    "half": (dict(count=1.5), "images is 1.5"),
    "word": (dict(count="many"), "images is 'many'"),
    "none": (dict(seed=None), "seed is 'None'"),
    "truth": (dict(seed=True), "seed is 'True'"),
    "huge": (dict(seed=1e300), "seed is '1e+300'; allowed: whole numbers from 0 to"),
    "endless": (dict(guidance=float("inf")), "guidance is 'inf'; allowed: -100 to 100"),
    "nan": (dict(seed=float("nan")), "seed is 'nan'"),
    "class": (dict(classes=["eleven"]), "class 'eleven' is not one of this model's, whose names are 0, 1"),
    "interval": (dict(interval=(0.9, 0.1)), "interval is 0.9 0.1; allowed: 0 <= low <= high <= 1"),
    "solver": (dict(solver="magic"), "solver is 'magic'; allowed: heun"),
    "times": (dict(solver="heun", steps=3, times="../x"), "times is '../x'; allowed: linear"),
    "steps": (dict(solver="heun", steps=10**6, times="linear"), "steps is '1000000'"),
    "passes": (dict(solver=BY_PASSES, passes=0), "passes is '0'"),
    "average": (dict(ema=123.0), "there is no ema 123"),
    "words": (dict(prompt="a red car"), "this model is not told words; it has classes"),
    "numbers": (dict(numbers="area=3"), "this model is not told numbers"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_line(name: str, models: Models) -> None:
    given, message = WRONG[name]
    with pytest.raises(ValueError) as caught:
        plan_drawing(models, "run", **given)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_other_seeds_follow_those_drawn() -> None:
    assert next_seed(5, 3) == 8
    assert next_seed(2.5, 3) == 2.5  # for the drawing to refuse


@pytest.mark.parametrize("name", ["/etc", "../run", "run/", "", None, "hf://a/b", "run/checkpoints"])
def test_only_the_models_of_the_page_are_opened(name: Any, models: Models) -> None:
    with pytest.raises(ValueError, match="is not one of this page's; allowed: run"):
        plan_drawing(models, name)
    with pytest.raises(ValueError, match="is not one of this page's; allowed: run"):
        run_directory(models, name)


def test_runs_are_found_beside_the_page(run: Path, tmp_path: Path) -> None:
    assert Models([], CPU, home=tmp_path).names == []
    for place in "runs/a", "demo/run", "elsewhere/b":
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).symlink_to(run) if place == "runs/a" else None
    (tmp_path / "demo" / "run").mkdir()
    (tmp_path / "demo" / "run" / "recipe.json").write_bytes((run / "recipe.json").read_bytes())
    found = Models([], CPU, home=tmp_path)
    assert found.names == [] and found.runs == [str(tmp_path / "demo" / "run")]  # no link is followed; nothing to draw with yet


# turns ------------------------------------------------------------------------------------------------------------------


def test_a_visitor_waits_for_at_most_one_turn_of_each_other() -> None:
    """Whoever has several drawings gets no more turns than whoever has one."""
    turns, order, lock = Turns(at_once=3), [], threading.Lock()
    drawings = {"greedy": 3, "modest": 1, "calm": 1}
    working = sum(drawings.values())

    def draw(visitor: str) -> None:
        nonlocal working
        with turns.place(visitor):
            for _ in range(30):
                with turns.turn(visitor):
                    while len(turns.waiting) < working - 1:  # all others wait for theirs
                        pass
                    order.append(visitor)
            with turns.condition, lock:
                working -= 1

    threads = [threading.Thread(target=draw, args=[visitor]) for visitor, n in drawings.items() for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(order) == 30 * 5 and not turns.drawings and not turns.served
    for visitor in "modest", "calm":
        places = [i for i, who in enumerate(order) if who == visitor]
        for earlier, later in pairwise(places):
            between = order[earlier + 1 : later]
            assert len(between) == len(set(between)) <= 2


def test_one_drawing_too_many_is_refused(models: Models) -> None:
    turns = Turns(at_once=2, in_all=3)
    with turns.place("a"), turns.place("a"), pytest.raises(Busy, match="2 of your drawings are under way"), turns.place("a"):
        pass
    with turns.place("a"), turns.place("b"), turns.place("c"), pytest.raises(Busy, match="3 drawings are under way"):
        turns.place("d").__enter__()
    assert not turns.drawings


def test_a_drawing_that_is_stopped_leaves_no_turn_taken(models: Models) -> None:
    running = frames(plan_drawing(models, "run", count=1), models, "a")
    next(running)
    running.close()
    assert not models.turns.taken and not models.turns.waiting


# compare, explore, edit, watch ------------------------------------------------------------------------------------------


def test_two_averages_are_compared_from_the_same_noise(models: Models) -> None:
    first, second = (
        plan_drawing(models, "run", count=2, ema=ema, solver="euler", steps=n, times="linear")
        for ema, n in ((100, 2), (300, 4))
    )
    seen = list(side_by_side(first, second, models))
    assert torch.equal(seen[0][0].z, seen[0][1].z) and (seen[-1][0].step, seen[-1][1].step) == (2, 4)
    assert "0 of 2 equal" in difference(*seen[-1])
    *_, (one, other) = side_by_side(first, first, models)
    assert difference(one, other) == "apart by 0.0 of 255 (rms); 2 of 2 equal to the byte"
    with pytest.raises(ValueError, match="other seeds"):
        next(side_by_side(first, plan_drawing(models, "run", count=2, seed=1), models))


def test_both_sides_begin_with_the_average_of_their_recipes(models: Models, run: Path, tmp_path: Path) -> None:
    import gradio as gr

    shutil.copytree(run, tmp_path / "other")
    for sources, expected in ((["run", tmp_path / "other"], [300.0, 300.0]), (["run"], [300.0, 0.0])):
        with gr.Blocks():
            follow, fields = compare.layout(Models(sources, CPU), gr.Dropdown())
            begun = dict(zip([field.elem_id for field in fields], follow("run"), strict=True))
            assert [begun[f"{side}-ema"].value for side in ("left", "right")] == expected


def test_images_of_two_sizes_have_no_distance() -> None:
    small, large = (Frame(1, 1, 1, x, x) for x in (torch.zeros(1, 1, 32, 32), torch.zeros(1, 3, 48, 64)))
    assert difference(small, large) == "images of 32 x 32 x 1 and 64 x 48 x 3, which have no distance"


def test_a_model_that_is_told_an_image_says_so(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "told an image" not in about(models, "run")
    generator = models.generator("run")
    monkeypatch.setattr(models, "generator", lambda name: generator)
    recipe, where = generator.recipe, "is told an image: Edit, or justimage sample --condition"
    for classes, line in (10, f"10 classes; {where} (other tabs leave it out)"), (None, f"grey; {where} only"):
        generator.recipe = replace(recipe, model=replace(recipe.model, image_channels=1, classes=classes))
        assert line in about(models, "run")


@pytest.mark.parametrize(
    ("trained", "task", "number"),
    [("colour", "colourise", None), ("upscale:4", "upscale", 4), ("inpaint", "mask", None), ("deblur:1.25", "deblur", 1.25)],
)
def test_a_model_begins_with_the_task_that_it_was_trained_for(trained: str, task: str, number: float | None) -> None:
    begin, begun = beginning(trained)
    assert (TASKS[begin], begun) == (task, number)


@pytest.mark.parametrize("trained", ["", "edges", "denoise:0.2"])
def test_other_models_begin_with_none(trained: str) -> None:
    assert beginning(trained) == ("", None)


def test_the_ends_of_a_way_are_the_drawings_themselves(models: Models) -> None:
    way = plan_way(models, "run", (4, 5), ("2", "9"), 2, 1.5)
    *_, last = way_frames(way, models)
    assert torch.equal(last.x, drawn(plan_drawing(models, "run", ["2", "9"], 2, 4, 1.5), models).x)
    *_, between = way_frames(plan_way(models, "run", (4, 5), ("2", ""), 5), models)
    assert between.x.shape[0] == 5
    with pytest.raises(ValueError, match="images is '1'; allowed: whole numbers from 2 to 16"):
        plan_way(models, "run", (0, 1), ("", ""), 1)


def test_an_image_of_the_training_is_its_own_nearest_neighbour(
    models: Models, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = models.neighbourhood("run")
    image, label = near.source[1234]
    found = neighbours(models, "run", image, 3)
    assert torch.equal(found[0][0], image) and found[0][1] == f"{label}, apart by 0" and len(found) == 3


def test_a_model_from_elsewhere_opens_no_folder_of_this_machine(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = str(next(iter(sorted(models.generator("run").checkpoint.glob("ema-*.safetensors")))))
    elsewhere = Models([weights], CPU)
    assert len(elsewhere.neighbourhood(weights).source) == 1797  # a built-in set is opened
    monkeypatch.setattr("justimage.data.BUILT_IN", {})
    with pytest.raises(ValueError, match="it is no training of this machine"):
        Models([weights], CPU).neighbourhood(weights)


def photograph(size: tuple[int, int] = (90, 60)) -> dict[str, Any]:
    """A picture, and a stroke over its middle."""
    background = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).resize(size)
    layer = Image.new("RGBA", size)
    layer.paste((232, 89, 12, 255), (35, 20, 55, 40))
    return {"background": background, "layers": [layer]}


@pytest.mark.parametrize("task", [name for name, option in TASKS.items() if option != "colourise"])
def test_an_edit_is_that_of_the_command(
    task: str, models: Models, tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editing = plan_edit(models, "run", tmp_path, photograph(), task, class_name="3", answers=2, steps=3, seed=1)
    *_, (step, total, given, found) = edit_frames(editing, models)
    assert 0 < step <= total
    words = shlex.split(editing.command())
    words[words.index("--from") + 1] = str(run)
    monkeypatch.chdir(tmp_path)
    assert edit.main(words[2:]) == 0
    np.testing.assert_array_equal(pixels((tmp_path / "edit.png").read_bytes()), pixels(answers_png(editing, given, found)))
    shown, _, _ = answer_steps(editing.edit)
    assert torch.equal(to_uint8(shown), given)


def test_a_brush_marks_what_is_drawn_anew() -> None:
    drawn = photograph()
    photo, mask = cropped(drawn["background"], drawn["layers"], (32, 32))
    assert photo.size == mask.size == (60, 60) and mask.getbbox() == (20, 20, 40, 40)
    np.testing.assert_array_equal(np.asarray(photo), np.asarray(drawn["background"])[:, 15:75])


def test_a_large_photograph_is_kept_smaller_and_its_mask_fits() -> None:
    photo, mask = cropped(Image.new("RGB", (5000, 3000)), [], (32, 64))
    assert photo.size == mask.size == (2048, 1024)


def test_downloads_are_bounded_in_number_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "KEPT", 5)
    monkeypatch.setattr(downloads, "KEPT_BYTES", 1000)
    files = downloads.Downloads()
    made = []
    for number in range(12):
        made.append(files.folder())
        files.write(made[-1] / "a", b"x" * (10 if number < 8 else 400))
        os.utime(made[-1], (number, number))
        assert sum(place.is_dir() for place in made) <= 6
    assert [place.is_dir() for place in made] == [False] * 9 + [True] * 3
    files.held.cleanup()


def test_a_command_names_the_classes_that_the_page_drew_of_many(models: Models, tmp_path: Path) -> None:
    """A command that writes files would else draw all, and in another picture."""
    recipe = with_values(checkpoint.read_recipe(checkpoint.resolve("run")), classes=20, class_names=())
    weights = named_weights(recipe.build().net)
    checkpoint.write_checkpoint(tmp_path / "many", {"model": weights}, recipe.shared((0.0,)), {"images_seen": 0})
    many = Models([str(tmp_path / "many")], CPU, 32)
    for count in 12, 20:
        drawing = plan_drawing(many, str(tmp_path / "many"), (), count)
        o = parse(sample.SampleOptions, shlex.split(drawing.command())[2:], "sample", "")
        classes, total = sample.classes_and_count(o, recipe, None)
        assert (tuple(classes), total) == (drawing.job.classes, count) and len(classes) == 16
    assert "--classes" not in plan_drawing(models, "run", (), 12).command()


def test_an_edit_that_cannot_be_is_one_line(models: Models, tmp_path: Path) -> None:
    first = next(iter(TASKS))
    for given, message in (
        (({}, first), "there is no photograph yet"),
        ((None, first), "there is no photograph yet"),
        ((photograph() | {"layers": []}, first), "nothing is painted over yet"),
        ((photograph(), "steal"), "task is 'steal'; allowed: fill"),
        ((photograph(), "colour"), "draws images of 1 channel; colours need 3"),
    ):
        with pytest.raises(ValueError, match=message):
            list(edit_frames(plan_edit(models, "run", tmp_path, *given), models))
    with pytest.raises(ValueError, match="answers is '99'; allowed: whole numbers from 1 to 8"):
        plan_edit(models, "run", tmp_path, photograph(), "vary", answers=99)


def test_a_training_is_watched_by_its_files(models: Models, tmp_path: Path) -> None:
    run = run_directory(models, "run")
    assert state(run, metrics_of(run)) == "finished: 640 of 640 images (100%)" and previews(run)
    metrics = [{"images_seen": 160, "images_per_second": 80.0, "loss": 1.0}]
    (tmp_path / "recipe.json").write_bytes((run / "recipe.json").read_bytes())
    assert state(tmp_path, []) == "begun: 0 of 640 images (0%)"
    assert state(tmp_path, metrics) == "training: 160 of 640 images (25%), 80 images/s, about 6 s left"
