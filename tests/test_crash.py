"""Killed anywhere, on a disk that fails anywhere, damaged afterwards: a run ends as the uninterrupted one, or says why not."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from justimage import checkpoint, hub, run as runs
from justimage.checkpoint import CorruptCheckpoint, NoUsableCheckpoint
from justimage.cli import push
from justimage.generate import ImageGenerator
from justimage.web.models import Models
from tests import crash

pytestmark = pytest.mark.full

PARTS = 4


def crashes(*words: str | int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash", *map(str, words)],
        capture_output=True, text=True, timeout=900, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
def test_a_kill_at_any_operation_on_the_disk_changes_nothing(part: int) -> None:
    """Clean, and torn in the middle of a write or a removal; and again at some operation of the resume."""
    found = crashes("points", part, PARTS)
    assert found["operations"] > 80 and found["cases"] >= 2 * (found["operations"] // PARTS) and found["wrong"] == []


@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
def test_a_full_or_failing_disk_ends_no_training(part: int) -> None:
    """At any operation once there is a run: the checkpoints before are intact, the next save works, the end is the same."""
    found = crashes("faults", part, PARTS)
    assert found["wrong"] == [] and found["ended"] <= 24


@pytest.mark.timeout(3600)
def test_a_hundred_kills_at_random_instants_change_nothing() -> None:
    """SIGKILL: the last checkpoint's hashes and every logged loss are those of the uninterrupted training."""
    found = crashes("kills", 100, 1)
    assert found["kills"] == 100 and found["wrong"] == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    for _ in runs.steps(runs.open_run(crash.recipe(), run, "cpu")):
        pass
    return run


def flipped(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def test_a_thousand_flipped_bits_are_each_noticed(trained: Path) -> None:
    """Anywhere in any file of a checkpoint, and each is one line that names a file."""
    folder, draw = checkpoint.list_checkpoints(trained)[-1], random.Random(0)
    files = sorted(folder.iterdir())
    for _ in range(1000):
        file = draw.choice(files)
        bit = draw.randrange(file.stat().st_size * 8)
        flipped(file, bit)
        with pytest.raises(CorruptCheckpoint) as caught:
            checkpoint.verify(folder)
        assert folder.name in str(caught.value) and "\n" not in str(caught.value)
        flipped(file, bit)
    checkpoint.verify(folder)


def cut(folder: Path, older: Path) -> None:
    file = folder / "optimizer-00001-of-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def emptied(folder: Path, older: Path) -> None:
    (folder / "model-00001-of-00001.safetensors").write_bytes(b"")


def swapped(folder: Path, older: Path) -> None:
    a, b = folder / "ema-10-00001-of-00001.safetensors", folder / "ema-20-00001-of-00001.safetensors"
    a.rename(folder / "x")
    b.rename(a)
    (folder / "x").rename(b)


def missing(folder: Path, older: Path) -> None:
    (folder / "ema-40-00001-of-00001.safetensors").unlink()


def mixed(folder: Path, older: Path) -> None:
    shutil.copy(older / "model-00001-of-00001.safetensors", folder)


def manifest_of_another(folder: Path, older: Path) -> None:
    shutil.copy(older / "MANIFEST.json", folder)


def linked(folder: Path, older: Path) -> None:
    file = folder / "model-00001-of-00001.safetensors"
    file.rename(folder.parent.parent / "elsewhere")
    file.symlink_to(folder.parent.parent / "elsewhere")


DAMAGES = [cut, emptied, swapped, missing, mixed, manifest_of_another, linked]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_a_checkpoint_that_was_tampered_with_gives_way_to_the_older(damage, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    older, newest = checkpoint.list_checkpoints(run)
    damage(newest, older)
    opened = runs.open_run(crash.recipe(), run, "cpu")
    assert opened.state.images_seen == int(older.name) and len(opened.warnings) == 1 and "\n" not in opened.warnings[0]
    for _ in runs.steps(opened):
        pass
    assert crash.outcome(run) == crash.outcome(trained)


def test_images_are_drawn_from_the_newest_checkpoint_that_is_intact_and_damage_is_never_pushed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would get hashes of its own, by which everybody finds it whole."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    older, newest = checkpoint.list_checkpoints(run)
    usual = checkpoint.group_of(checkpoint.read_recipe(newest).training.sample_ema)
    flipped(newest / f"{usual}-00001-of-00001.safetensors", 10_000)
    generator = ImageGenerator(run, torch.device("cpu"))
    models = Models([str(run)], torch.device("cpu"))
    model = models.generator(str(run))
    assert model.checkpoint == older and model.denoisers is models.generator(str(run)).denoisers  # loaded once
    assert generator.checkpoint == older and generator.make_job().ema == generator.recipe.training.sample_ema
    pushed = []
    monkeypatch.setattr(hub, "create", lambda *_, **__: [])
    monkeypatch.setattr(hub, "push", lambda folder, *_, **__: pushed.append(checkpoint.read_state(folder)) or "hf://me/x")
    push.main([str(run), "me/x", "--device", "cpu"])
    assert [state["images_seen"] for state in pushed] == [int(older.name)]
    shutil.rmtree(older)
    with pytest.raises(ValueError, match=newest.name):
        push.main([str(run), "me/x", "--device", "cpu"])
    assert len(pushed) == 1


def test_where_every_checkpoint_is_damaged_each_has_its_line_and_nothing_begins(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    for folder in checkpoint.list_checkpoints(run):
        flipped(folder / "state.json", 100)
    with pytest.raises(NoUsableCheckpoint) as caught:
        runs.open_run(crash.recipe(), run, "cpu")
    assert all(folder.name in str(caught.value) for folder in checkpoint.list_checkpoints(run))
    begun = runs.open_run(crash.recipe(), run, "cpu", fresh=True)
    assert begun.state.images_seen == 0 and len(checkpoint.list_checkpoints(tmp_path / "run.old-1")) == 2
