"""Settings of the whole suite: the same cases every time, and one thread a worker where several share the machine."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock

hypothesis.settings.register_profile("exact", deadline=None, derandomize=True)
hypothesis.settings.load_profile("exact")

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; child processes inherit it


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


def built_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """A folder that one of the workers builds and all read."""
    base = factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with FileLock(root / f"{name}.lock"):
        if not (root / f"{name}.done").exists():
            (root / name).mkdir()
            build(root / name)
            (root / f"{name}.done").touch()
    return root / name


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with a run of digits, hardly trained."""

    def train(home: Path) -> None:
        from tests.test_cli import TINY_TRAINING, justimage

        options = ["--total-images", "640", "--ema", "100", "300", "--sample-ema", "300", "--out", "run"]
        done = justimage("train", "--preset", "digits", *TINY_TRAINING, *options, cwd=home)
        assert done.returncode == 0, done.stderr

    place = tmp_path_factory.mktemp("sampled") / "run"
    return Path(shutil.copytree(built_once(tmp_path_factory, "trained", train) / "run", place))


@pytest.fixture(scope="session")
def digits_classifier(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of the digits, as the command line makes it."""

    def train(home: Path) -> None:
        from tests.test_cli import justimage

        options = ["--images", "12000", "--width", "16", "--dimension", "32", "--out", "digits.safetensors"]
        done = justimage("feature-space", "train", "--data", "digits", *options, cwd=home)
        assert done.returncode == 0, done.stderr
        accuracy = re.search(r"reads ([\d.]+)% of (\d+) held-out images", done.stdout)
        assert accuracy and float(accuracy[1]) > 95 and 120 < int(accuracy[2]) < 240

    made = built_once(tmp_path_factory, "classifier", train) / "digits.safetensors"
    return Path(shutil.copy(made, run.parent / made.name))
