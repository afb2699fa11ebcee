"""The demo: how it ends, with a network that learns nothing; and whole, minutes long, so run by `pytest -m full`."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from justimage import checkpoint
from justimage.cli import demo as command
from justimage.demo import digits as demo
from justimage.recipe import preset


def test_the_reader_of_digits_is_good_on_digits_it_has_not_seen() -> None:
    _, held_out = demo.train_classifier()
    assert held_out > 0.97


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
