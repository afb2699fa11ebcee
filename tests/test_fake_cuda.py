"""What training, sampling and scoring do on a GPU, seen on a fake one: `tests/fake_cuda` says how, and what cannot be seen.

A GPU that is waited for has nothing to do meanwhile. So a step waits once, for the numbers by which all processes decide; a
trajectory does not wait between its first evaluation of the network and its last; and copies to and from a GPU are queued.
"""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import fake_cuda
from tests.fake_cuda.cases import CASES

ROOT = Path(__file__).resolve().parents[1]
NOTHING = {"blocking": {}, "queued": {}, "waits": {}}
WHERE = {"cuda:0 float32"}
Answer = Callable[[str], dict[str, Any]]

pytestmark = [pytest.mark.full, pytest.mark.skipif(bool(fake_cuda.lacking()), reason=fake_cuda.lacking())]


def about(prefix: str) -> list[str]:
    return [name for name in CASES if name.startswith(prefix)]


def run(group: str, place: Path) -> dict[str, dict[str, Any]]:
    """What the cases of a group found, run by whichever process of the tests is the first to ask."""
    with open(place / "lock", "w") as built, open(place / f"{group}.lock", "w") as lock:
        fcntl.flock(built, fcntl.LOCK_EX)
        if not (place / fake_cuda.LIBRARY).exists():
            fake_cuda.build(place)
        fcntl.flock(built, fcntl.LOCK_UN)
        fcntl.flock(lock, fcntl.LOCK_EX)
        answers = place / f"{group}.json"
        if not answers.exists():
            environment = os.environ | {"FAKE_CUDA": str(place / fake_cuda.LIBRARY)}
            command = [sys.executable, "-m", "tests.fake_cuda", f"{group}/"]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            answers.write_text(done.stdout)
        return json.loads(answers.read_text())


@pytest.fixture(scope="session")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Answer:
    """What a case, by its name, came to: what it found, or its error."""
    place, groups = tmp_path_factory.getbasetemp(), {}
    place = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / "fake_cuda"
    place.mkdir(exist_ok=True)

    def answer(name: str) -> dict[str, Any]:
        group = name.split("/")[0]
        if group not in groups:
            groups[group] = run(group, place)
        return groups[group][name]

    return answer


@pytest.fixture
def found(tried: Answer) -> Answer:
    """What a case, by its name, found; where it met an error the test fails with that."""

    def answer(name: str) -> dict[str, Any]:
        case = tried(name)
        assert "error" not in case, f"{case['error']} ({case['at']})"
        return case

    return answer


def test_copies_waits_casts_and_memory_are_counted(found: Answer) -> None:
    case = found("training/counted")
    assert case["blocking"] == {" to cpu": 2, " to cuda": 1} and case["queued"] == {" to cpu": 2}
    assert case["waits"] == {"": 5} and case["read"] == [1, [1, 0.5, 0, 0], True, 7]
    assert case["pinned"] == case["casts"] == case["fills"] == 1
    assert case["bytes"] == [1600, 0] and case["int64"] == 100


@pytest.mark.parametrize("name", [*about("training/mixed"), "training/drawn elsewhere"])
def test_what_mixes_devices_fails(name: str, tried: Answer) -> None:
    error = tried(name)["error"]
    assert "cuda" in error and "cpu" in error and "Error" in error


@pytest.mark.parametrize("name", about("training/step"))
def test_a_step_waits_once_and_only_queues_copies(name: str, found: Answer) -> None:
    case, parts = found(name), 2 if "accumulation" in name or "floats" in name else 1
    assert case["waits"] == {"training.py:TrainStep.reduce": 1} and case["blocking"] == {}
    assert case["queued"] == {
        "training.py:TrainStep.fetch to cuda": 2 * parts, "training.py:TrainStep.backward to cuda": parts,
        "training.py:draw to cuda": 2 * parts,
    }  # fmt: skip
    assert set(case["state"]) == WHERE


@pytest.mark.parametrize("name", about("training/step"))
def test_a_step_casts_each_weight_once_a_pass_and_none_of_a_norm(name: str, found: Answer) -> None:
    """Norms are computed in float32 by CUDA's autocast, whatever their weight is."""
    casts, passes = found(name)["casts"], 2 if any(word in name for word in ("accumulation", "floats", "recomputation")) else 1
    assert not any("norm" in weight for weight in casts)
    assert set(casts.values()) == (set() if "fp32" in name else {passes} if "recomputation" not in name else {1, passes})


@pytest.mark.parametrize("name", about("training/step"))
def test_a_step_makes_no_batch_to_throw_away(name: str, found: Answer) -> None:
    assert found(name)["fills"] == []


def test_dropout_in_eager_mode_needs_little_beside_its_output(found: Answer) -> None:
    """The output, the input scaled, and a byte of mask for each two of either."""
    case = found("training/dropout")
    assert case["bytes"] < 2.6 and case["int64"] < 0.1


def test_an_average_is_updated_and_lent_on_the_device(found: Answer) -> None:
    assert found("training/average") == NOTHING | {"state": list(WHERE)}


def test_what_is_saved_is_copied_behind_the_step_to_a_few_pinned_pieces_kept_for_the_next(found: Answer) -> None:
    case = found("training/copied")
    for save, pinned in zip(case["saves"], (case["groups"], 0), strict=True):
        assert save["blocking"] == save["waits"] == {} and save["left"] == 0 and save["pinned"] == pinned
        assert sum(save["queued"].values()) == case["tensors"]


def test_a_checkpoint_is_restored_to_the_device(found: Answer) -> None:
    case = found("training/restored")
    assert set(case["state"]) == WHERE and case["blocking"] == {} and case["waits"] == {"training.py:TrainStep.reduce": 1}


@pytest.mark.parametrize("name", about("sampling/trajectory"))
def test_a_trajectory_never_waits_between_its_first_pass_and_its_last(name: str, found: Answer) -> None:
    case = found(name)
    noise = {"queued": {"sampling.py:GuidedVelocity.noise to cuda": 3}} if ": sde," in name else {}
    assert {key: case[key] for key in NOTHING} == NOTHING | noise
    assert set(case["state"]) == WHERE and case["points"] == 4


@pytest.mark.parametrize("name", about("sampling/images"))
def test_images_are_sampled_with_weights_cast_once(name: str, found: Answer) -> None:
    """In bf16 by default. What is asked and what was drawn are copied, and the classes looked at, before and after."""
    case, floats = found(name), "floats" in name
    assert case["state"] == ["cpu float32" if floats else "cpu uint8"]
    assert case["waits"] == {"sample_arguments.py:check_condition": 1} and case["queued"] == {}
    units = {n: count for n, count in case["blocking"].items() if n.startswith("normalization.py")}
    assert case["blocking"] == {"sampling.py:sample_batches to cuda": 2, "sampling.py:sample_batches to cpu": 1} | units
    assert list(units.values()) == ([2] if floats else []), "mean and deviation, once"
    assert set(case["casts"].values()) == (set() if "fp32" in name else {1})
    assert not any("norm" in weight for weight in case["casts"])


def test_previews_are_sampled_on_the_device_and_shown_on_the_host(found: Answer) -> None:
    case = found("sampling/preview")
    assert case["state"] == ["cpu uint8"] and case["waits"] == {"sample_arguments.py:check_condition": 1}
    assert set(case["casts"].values()) == {2}, "once for the samples and once to denoise"
    assert set(case["blocking"]) <= {
        f"{f} to {d}"
        for f in ("sampling.py:sample_batches", "preview.py:preview", "preview.py:denoise_once")
        for d in ("cuda", "cpu")
    }


def test_the_demo_samples_where_its_run_was_trained(found: Answer) -> None:
    """On the CPU, also beside a GPU."""
    assert found("sampling/demo") == NOTHING | {"state": ["cpu uint8"], "drawn": 4}


@pytest.mark.parametrize("name", about("features/scores"))
def test_a_training_is_scored_by_features_on_the_device(name: str, found: Answer) -> None:
    """For 64 images: they are copied to the network and its answers back, then three sums to all processes and back."""
    case = found(name)
    assert case["scores"] == ["fid", "fid_100"] and case["waits"] == {"sample_arguments.py:check_condition": 1}
    reader = {n: count for n, count in case["blocking"].items() if n.startswith("features/")}
    assert sorted((n.split()[-1], count) for n, count in reader.items()) == [("cpu", 2), ("cuda", 1)]
    assert {n: count for n, count in case["blocking"].items() if n not in reader} == {
        "sampling.py:sample_batches to cuda": 2, "sampling.py:sample_batches to cpu": 1,
        "evaluation/online.py:distance to cuda": 3, "evaluation/online.py:distance to cpu": 3,
    }  # fmt: skip


def test_a_classifier_learns_on_the_device(found: Answer) -> None:
    case = found("features/learned")
    assert sum(case["step"]["waits"].values()) == 1 and case["accuracy"]["waits"] == {}
    assert set(case["state"]) == WHERE
