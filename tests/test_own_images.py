"""Somebody's own images: a first look, a recipe for them, a length by a time, and a word where they are memorised."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from justimage import data, log, recipe as recipes, run as runs
from justimage.data import ArraySource, Look
from justimage.evaluation.copies import watch_copies
from justimage.recipe import preset, with_values
from justimage.run import budget, resume
from tests.sets import png
from tests.test_training import digest, equal, finish, small


def photographs(folder: Path, counts: dict[str, int], size: tuple[int, int], grey: bool = False) -> Path:
    draw = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = draw.integers(0, 256, (*size, 3), dtype=np.uint8)
            pixels = pixels.mean(-1, keepdims=True).repeat(3, -1).astype(np.uint8) if grey else pixels
            (folder / name / f"{i}.png").write_bytes(png(pixels))
    return folder


@pytest.mark.parametrize(
    ("counts", "size", "grey", "expected"),
    [
        ({"": 6}, (40, 60), False, Look(6, (), 6, (40, 60), 3, True)),
        ({"cat": 3, "dog": 7}, (30, 30), True, Look(10, ("cat", "dog"), 3, (30, 30), 1, True)),
    ],
)
def test_a_look_at_images(tmp_path: Path, counts: dict[str, int], size: tuple[int, int], grey: bool, expected: Look) -> None:
    assert data.look(str(photographs(tmp_path, counts, size, grey))) == expected


def test_a_look_turns_photographs_as_they_are_shown_and_sees_shapes_that_differ(tmp_path: Path) -> None:
    picture, exif = Image.new("RGB", (60, 40), "red"), Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert data.look(str(tmp_path)).size == (60, 40)
    Image.new("RGB", (40, 40), "red").save(tmp_path / "square.jpg")
    assert not data.look(str(tmp_path)).same_shape


@pytest.mark.parametrize(
    ("size", "same_shape", "channels", "image_size", "patch_size"),
    [
        ((480, 640), False, 3, 48, 6),
        ((32, 32), True, 3, 32, 4),
        ((28, 28), True, 1, 28, 4),
        ((8, 8), True, 1, 8, 1),
        ((400, 600), True, 3, (42, 60), 6),
        ((1000, 980), True, 3, 48, 6),
        ((64, 1024), True, 3, (12, 192), 6),
    ],
)
def test_a_recipe_for_images_of_a_shape(
    size: tuple[int, int], same_shape: bool, channels: int, image_size: int | tuple[int, int], patch_size: int
) -> None:
    fitted = recipes.for_images(preset("laptop"), Look(100, (), 100, size, channels, same_shape))
    a = fitted.model
    assert (a.image_size, a.patch_size, a.channels) == (image_size, patch_size, channels)
    assert fitted.training.flip == (channels == 3)
    smaller = (a.size[0] * a.size[1]) ** 0.5 / 48
    assert fitted.diffusion.noise_scale == pytest.approx(0.5 * smaller if channels == 3 else min(0.5 / smaller, 1))


def test_a_longer_budget_or_a_faster_device_affords_a_larger_network() -> None:
    fitted = preset("laptop")

    def width(seconds: float, device: str, cores: int = 2) -> int:
        return recipes.for_budget(with_values(fitted, budget=seconds), device, cores).model.width

    assert [width(900, "cpu"), width(8 * 3600, "cpu"), width(8 * 3600, "cpu", 64)] == [192, 384, 768]
    assert [width(60, "cuda"), width(3600, "cuda")] == [384, 768]
    larger = recipes.for_budget(with_values(fitted, budget=3600), "cuda", 2)
    assert larger.training.learning_rate == pytest.approx(fitted.training.learning_rate * 192 / 768)
    assert (larger.model.size, larger.model.patch_size) == (fitted.model.size, fitted.model.patch_size)


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the speed that a training is found to have."""

    def at(images_per_second: float) -> None:
        monkeypatch.setattr(budget, "measure_speed", lambda *_, **__: images_per_second)

    return at


def test_a_budget_is_a_length_that_a_resumed_run_keeps(tmp_path: Path, steady: Callable[[float], None]) -> None:
    recipe = small(budget=100.0, save_every=400)
    steady(16.0)
    straight, cut = (runs.open_run(recipe, tmp_path / name, "cpu") for name in ("straight", "cut"))
    assert straight.recipe.training.total_images == 1600
    finish(straight)
    for step in runs.steps(cut):
        if step.images_seen == 800:
            break
    cut.close()
    steady(50.0)  # the machine is less busy now: the length stays
    again = runs.open_run(recipe, tmp_path / "cut", "cpu")
    assert again.resumed and again.recipe.training.total_images == 1600
    finish(again)
    assert equal(digest(straight.state), digest(again.state))
    longer = runs.open_run(with_values(recipe, budget=150.0), tmp_path / "cut", "cpu")
    assert longer.resumed and longer.state.images_seen == 1600 and longer.recipe.training.total_images == 2400
    longer.close()


def test_the_speed_is_that_of_real_steps_of_which_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "MEASURED_SECONDS", 0.2)
    source = data.digits()
    recipe = small(budget=30.0).resolve(source)
    speed = budget.measure_speed(recipe, source, resume.distributed.init("cpu"))
    assert 1 < speed < 1e6
    run = runs.open_run(recipe, tmp_path / "run", "cpu")
    new = runs.open_run(small(total_images=800), tmp_path / "new", "cpu")
    assert run.state.images_seen == 0 and equal(digest(run.state), digest(new.state))
    run.close()
    new.close()


def test_a_run_without_a_checkpoint_lends_no_length(tmp_path: Path, steady: Callable[[float], None]) -> None:
    """Killed before its first: whatever begins there then may be another network."""
    steady(100.0)
    runs.open_run(small(budget=100.0), tmp_path / "run", "cpu").close()
    steady(50.0)
    assert runs.open_run(small(budget=100.0), tmp_path / "run", "cpu").recipe.training.total_images == 5000


def test_a_budget_too_small_is_one_line(tmp_path: Path, steady: Callable[[float], None]) -> None:
    steady(16.0)
    with pytest.raises(
        ValueError, match="budget is 10 seconds, 20 steps of 8 images here; allowed: 100 steps or more, 50 seconds"
    ):
        runs.open_run(small(budget=10.0), tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


def test_balanced_classes_are_equally_often_there() -> None:
    labels = torch.tensor([0] * 7 + [1] * 2 + [2] * 3)
    source = ArraySource(torch.arange(12, dtype=torch.uint8).view(-1, 1, 1, 1), labels, ["a", "b", "c"], "")
    stream = data.Stream(source, 3, False, data.balanced(source))
    for epoch in range(5):
        images, classes = stream.batch(21 * epoch, 21)
        assert torch.bincount(classes).tolist() == [7, 7, 7]
        shown = torch.bincount(images.flatten().long(), minlength=12)
        assert all(each.max() - each.min() <= 1 for each in (shown[:7], shown[7:9], shown[9:]))
    with pytest.raises(ValueError, match=r"balance_classes needs .* two classes or more"):
        data.balanced(ArraySource(source.images, labels, [], ""))


def test_copies_are_seen_and_new_images_are_not() -> None:
    draw = torch.Generator().manual_seed(0)

    def noise(count: int) -> torch.Tensor:
        return torch.randint(0, 256, (count, 3, 16, 16), generator=draw, dtype=torch.uint8)

    real, new = noise(300), noise(100)
    source = ArraySource(real, torch.full((300,), -1), [], "")
    watch = watch_copies(source, flip=True)
    assert watch and watch.share(real[:50]) == watch.share(real[:50].flip(-1)) == 1 and watch.share(new) < 0.1
    nearly = (real[:50].float() + torch.randn(50, 3, 16, 16, generator=draw) * 4).clamp(0, 255).to(torch.uint8)
    assert watch.share(nearly) == 1
    unmirrored = watch_copies(source, flip=False)
    assert unmirrored and unmirrored.share(real[:50].flip(-1)) < 0.1


def test_a_run_that_memorises_says_so_and_ends_where_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    recipe = small(total_images=800, preview_every=80, preview_count=4, stop_at_copies=0.5)
    run = runs.open_run(recipe, tmp_path / "run", "cpu")
    run.on_warning = said.append
    shares = itertools.chain([0.0, 0.25], itertools.repeat(0.75))
    assert run.copies
    monkeypatch.setattr(type(run.copies), "share", lambda *_: next(shares))
    finish(run)
    assert [line.partition(" of the")[0] for line in said] == ["25%", "75%", "75%"]
    assert run.ended_early and run.state.images_seen < 800
    again = runs.open_run(recipe, tmp_path / "run", "cpu")
    assert again.ended_early
    again.close()
    events = [line for line in log.records(tmp_path / "run" / "events.jsonl") if line["event"] == "copies"]
    assert [line["share"] for line in events] == [0.25, 0.75, 0.75]
