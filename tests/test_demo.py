"""The demo, whole: minutes long, so run by `pytest -m slow`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from justimage import demo


def test_the_reader_of_digits_is_good_on_digits_it_has_not_seen() -> None:
    _, held_out = demo.readers()
    assert held_out > 0.97


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_draws_digits_that_are_read_as_asked_for(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "justimage", "demo", "--out", str(tmp_path / "demo")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["read_as_asked_for"] >= 0.97 and report["digits_drawn"] == 1000
    for name in "samples", "denoising", "training":
        assert min(Image.open(tmp_path / "demo" / f"{name}.png").size) > 300
