"""The demo: how it ends, with a network that learns nothing; and whole, minutes long, so run by `pytest -m full`."""

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from justimage import checkpoint, data, recipe as recipes
from justimage.cli import demo as command
from justimage.demo import digits as demo, images as own_images
from justimage.progress import finish
from justimage.recipe import preset, with_values
from justimage.run import budget
from tests.test_own_images import photographs


def test_the_reader_of_digits_is_good_on_digits_it_has_not_seen() -> None:
    _, held_out = demo.train_classifier()
    assert held_out > 0.97


@pytest.mark.parametrize(("count", "judged"), [(15, False), (40, True)])
def test_few_images_have_no_judge(count: int, judged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two classes: what is left of so few, some held out, is no batch."""
    photographs(tmp_path / "photos", {"a": count, "b": count}, (32, 32))
    source = data.open_source(str(tmp_path / "photos"), data.Crop((32, 32)))
    monkeypatch.setattr(own_images, "JUDGE_IMAGES", (64, 64))
    made = finish(own_images.ensure_judge(source, True, tmp_path / "judge.safetensors", torch.device("cpu")))
    assert (made is not None) is judged


def test_what_to_try_next_is_said_last_and_can_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    r = preset("digits")
    small = replace(
        r,
        model=replace(r.model, width=16, depth=2, heads=2, bottleneck=4, context_start=1),
        training=replace(r.training, total_images=32, batch=8, warmup=8),
        sampling=replace(r.sampling, steps=2),
        logging=replace(r.logging, preview_count=4),
    )
    monkeypatch.setattr(command, "preset", lambda name: small)
    monkeypatch.setattr(demo, "COUNT", 20)
    monkeypatch.setattr(demo, "BATCH", 10)
    assert command.main(["--out", str(tmp_path / "demo")]) == 0
    lines = capsys.readouterr().out.splitlines()
    *earlier, last = (i for i, line in enumerate(lines) if "now try" in line)
    assert not earlier and last == len(lines) - 1, lines
    drawn = next(i for i, line in enumerate(lines) if "sampling digits: 20 of 20" in line)
    judged = next(i for i, line in enumerate(lines) if "% of 20 samples" in line)
    assert drawn < judged < last
    words = shlex.split(lines[last].removeprefix("now try:"))
    assert words[:3] == ["justimage", "sample", "--from"] and checkpoint.resolve(words[3])
    assert json.loads((tmp_path / "demo" / "report.json").read_text())["samples"] == 20


@pytest.mark.full
@pytest.mark.timeout(900)
def test_the_demo_samples_digits_that_are_classified_as_requested(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "justimage", "demo", "--out", str(tmp_path / "demo")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["accuracy_on_samples"] >= 0.97 and report["samples"] == 1000
    for name in "samples", "denoising", "training":
        assert min(Image.open(tmp_path / "demo" / f"{name}.png").size) > 300


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo of somebody's images in seconds."""
    small = with_values(
        preset("laptop"), width=16, depth=2, heads=2, bottleneck=4, context_start=1, batch=4, warmup=8, steps=2, compile=False,
        precision="fp32", preview_count=4,
    )  # fmt: skip
    monkeypatch.setattr(recipes, "preset", lambda name: small)
    monkeypatch.setattr(budget, "measure_speed", lambda *_, **__: 0.5)  # images/s: 112 steps of 4 in 900 seconds
    monkeypatch.setattr(own_images, "JUDGE_IMAGES", (64, 64))
    monkeypatch.setattr(own_images, "SEARCH_COUNT", 16)
    monkeypatch.setattr(own_images, "COUNT", 20)


FORMS = {
    "flat": (dict(counts={"": 12}, size=(40, 40)), (3, 40, 40)),
    "grey": (dict(counts={"a": 25, "b": 25}, size=(32, 32), grey=True), (1, 32, 32)),
    "wide": (dict(counts={"a": 25, "b": 25}, size=(60, 90)), (3, 42, 60)),
    "small class": (dict(counts={"a": 40, "b": 5}, size=(48, 48)), (3, 48, 48)),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_demo_of_images_of_many_forms(
    form: str, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made, shape = FORMS[form]
    photographs(tmp_path / "photos", **made)
    name = "photos"
    if form == "grey":
        shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "photos")
        name = "photos.zip"
    assert command.main(["--data", name]) == 0
    out, said = tmp_path / "demo-photos", capsys.readouterr().out
    recipe = checkpoint.read_recipe(checkpoint.resolve(out / "run"))
    report = json.loads((out / "report.json").read_text())
    assert recipe.shape == shape and recipe.training.flip == (form != "grey") and report["samples"] == 20
    judged = form in ("grey", "wide")  # of the others nothing can be learnt
    assert (report["class_accuracy"] is not None) == judged == ("a classifier trained only on real images" in said)
    assert 0 <= report["copies"] <= 1 and "copies: " in said and f"--budget 60m --out {out.name}" in said
    for picture in "grid", "neighbours", "denoising", "training":
        assert min(Image.open(out / f"{picture}.png").size) > 60
    sample = shlex.split(next(line for line in said.splitlines() if "now try:" in line).removeprefix("now try:"))
    assert checkpoint.resolve(sample[3])
    assert command.main(["--data", name]) == 0 and "this run is complete" in capsys.readouterr().out


def test_images_that_no_demo_can_be_made_of_are_one_line(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileNotFoundError, match="missing does not exist; data is a folder"):
        command.main(["--data", str(tmp_path / "missing"), "--out", str(tmp_path / "demo")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        command.main(["--data", str(tmp_path / "empty"), "--out", str(tmp_path / "demo")])
    for name in "a", "b":
        (tmp_path / "alike" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (32, 32), "grey").save(tmp_path / "alike" / name / f"{i}.png")
    assert command.main(["--data", str(tmp_path / "alike"), "--out", str(tmp_path / "demo")]) == 0
    assert "warning: all 6 images are the same; there is nothing to learn" in capsys.readouterr().err
