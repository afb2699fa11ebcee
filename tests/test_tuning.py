"""A run tunes itself to its device, once, and tells the time that it takes."""

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from justimage import cost, distributed, log, recipe as recipes, run as runs, tuning
from justimage.cli import estimate
from justimage.recipe import Recipe
from tests.test_training import digest, equal, finish, losses, small

CPU = distributed.World(torch.device("cpu"))
FP32, BF16, COMPILED = ("fp32", False), ("bf16", False), ("bf16", True)


def open_recipe(images: int = 10**9, **machine: Any) -> Recipe:
    """Everything left to the device."""
    recipe = small(total_images=images, precision="auto")
    machine = {"compile": True, "grad_accumulation": None} | machine
    return replace(recipe, model=replace(recipe.model, classes=10), parallelism=replace(recipe.parallelism, **machine))


def tuned(recipe: Recipe, seconds: dict[tuple[str, bool], float | None]) -> tuning.Tuning:
    """What is chosen where a block takes so long by each way to compute."""

    def time_block(a: Any, bf16: bool, compiled: bool, device: torch.device) -> float | None:
        return seconds["bf16" if bf16 else "fp32", compiled]

    compiled = "fp32" if ("fp32", True) in seconds else "bf16"
    with mock.patch.multiple(tuning, time_block=time_block, preferred_precision=lambda _: compiled):
        return tuning.choose_tuning(recipe, CPU, lambda what: None)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({FP32: 2.0, BF16: 1.0, COMPILED: 10.0}, BF16),  # as on this kind of CPU
        ({FP32: 2.0, BF16: 1.0, COMPILED: 0.5}, COMPILED),
        ({FP32: 1.0, BF16: 3.0, ("fp32", True): 0.8}, ("fp32", True)),
        ({FP32: 1.0, BF16: 0.98, COMPILED: 0.97}, FP32),  # the simplest of what is about as fast
        ({FP32: 1.0, BF16: 0.5, COMPILED: 0.49}, BF16),
        ({FP32: 2.0, BF16: 1.0, COMPILED: None}, BF16),  # no compiler works
    ],
)
def test_the_simplest_of_the_fastest_ways_is_chosen(seconds: dict, chosen: tuple[str, bool]) -> None:
    found = tuned(open_recipe(), seconds)
    assert (found.precision, found.compile) == chosen


def test_what_is_stated_is_not_measured_and_a_short_training_is_not_compiled() -> None:
    stated = replace(open_recipe(compile=False), training=replace(open_recipe().training, precision="fp32"))
    assert tuned(stated, {}).images_per_second == {}
    assert tuned(open_recipe(images=10), {FP32: 2.0, BF16: 1.0}).images_per_second.keys() == {"fp32", "bf16"}
    with_compiler = replace(open_recipe(), training=replace(open_recipe().training, precision="bf16"))
    assert tuned(with_compiler, {BF16: 1.0, COMPILED: 2.0}).images_per_second.keys() == {"bf16", "bf16, compiled"}


def test_a_block_is_timed_as_it_is_trained() -> None:
    a = replace(open_recipe().model, dropout=0.5)
    before = torch.random.get_rng_state()
    for bf16 in False, True:
        seconds = tuning.time_block(a, bf16, False, CPU.device)
        assert seconds and seconds > 0
    assert torch.equal(before, torch.random.get_rng_state())
    with mock.patch.object(torch, "compile", side_effect=RuntimeError("no C++ compiler")), pytest.raises(RuntimeError):
        tuning.time_block(a, False, True, CPU.device)
    with mock.patch.object(torch, "compile", return_value=mock.Mock(side_effect=RuntimeError("no C++ compiler"))):
        assert tuning.time_block(a, False, True, CPU.device) is None


def test_parts_are_the_fewest_that_fit() -> None:
    recipe = recipes.with_values(recipes.preset("jit-b16-256"), classes=1000, batch=256, precision="bf16")
    gpu = distributed.World(torch.device("cuda"))
    fitting = []
    for gigabytes in (4, 12, 24, 80, 192):
        with mock.patch.object(cost, "memory_available", lambda device, n=gigabytes: n * 10**9):
            parts = tuning.microbatches(recipe, gpu)
            taken = [tuning.estimate_memory(recipe, gpu, 256 // n) for n in (parts, max(parts // 2, 1))]
            assert parts == 256 or taken[0] <= 0.9e9 * gigabytes
            assert parts == 1 or taken[1] > 0.9e9 * gigabytes
            fitting.append(parts)
            eight = distributed.World(torch.device("cuda"), size=8)
            assert tuning.microbatches(recipe, eight) <= parts and 256 // 8 % tuning.microbatches(recipe, eight) == 0
    assert fitting == sorted(fitting, reverse=True) and fitting[0] == 256 and fitting[-1] == 1
    with mock.patch.object(cost, "memory_available", lambda device: 10**13):
        parts = tuning.microbatches(recipe, CPU)  # no more at a time than a CPU gains by
        state = tuning.estimate_memory(recipe, CPU, 0)
        taken = [tuning.estimate_memory(recipe, CPU, 256 // n) - state for n in (parts, parts // 2)]
        assert taken[0] <= tuning.MAX_ACTIVATIONS["cpu"] < taken[1]
        assert tuning.microbatches(small(), CPU) == 1


def test_a_gpu_computes_in_what_it_has_instructions_for_and_compiles_where_triton_is() -> None:
    recipe, gpu = open_recipe(), distributed.World(torch.device("cuda"))
    for bf16, capability, found, wanted in (
        (True, (9, 0), object(), ("bf16", True)), (False, (7, 5), object(), ("fp32", True)),
        (True, (9, 0), None, ("bf16", False)), (False, (6, 1), object(), ("fp32", False)),
    ):  # fmt: skip
        with (
            mock.patch("torch.cuda.is_bf16_supported", lambda including_emulation, bf16=bf16: bf16),
            mock.patch("torch.cuda.get_device_capability", lambda device, capability=capability: capability),
            mock.patch("importlib.util.find_spec", lambda name, found=found: found),
            mock.patch.object(cost, "memory_available", lambda device: 80e9),
            mock.patch.object(distributed.World, "device_name", "gpu"),
        ):
            chosen = tuning.choose_tuning(recipe, gpu, lambda what: None)
            assert (chosen.precision, chosen.compile) == wanted
            assert distributed.preferred_precision(gpu.device) == wanted[0]


def test_recomputation_takes_less_memory() -> None:
    recipe = recipes.with_values(recipes.preset("jit-l16-256"), classes=1000, precision="bf16")
    again = recipes.with_values(recipe, activation_checkpointing=True)
    state = tuning.estimate_memory(recipe, CPU, 0)
    assert 0.05 < (tuning.estimate_memory(again, CPU, 8) - state) / (tuning.estimate_memory(recipe, CPU, 8) - state) < 0.15


def test_a_run_keeps_its_tuning_and_so_its_bits(tmp_path: Path) -> None:
    """Where another measurement would choose otherwise; and on another kind of device the precision is still the run's."""
    recipe = open_recipe(images=96)
    chosen = tuning.Tuning("cpu", 1, "bf16", False, 2, {"fp32": 1.0, "bf16": 2.0})
    other = tuning.Tuning("cpu", 1, "fp32", False, 1, {})
    ends = []
    for name, stops in ("straight", 0), ("stopped", 3):
        with mock.patch.object(tuning, "choose_tuning", return_value=chosen):
            run = runs.open_run(recipe, tmp_path / name, "cpu")
        for _ in range(stops):
            for _ in runs.steps(run):
                break
            with mock.patch.object(tuning, "choose_tuning", return_value=other):
                run = runs.open_run(recipe, tmp_path / name, "cpu")
        finish(run)
        assert (run.recipe.training.precision, run.recipe.parallelism.grad_accumulation) == ("bf16", 2)
        ends.append(digest(run.state))
    assert equal(*ends)
    assert log.last_value(tmp_path / "stopped", "tuning") == asdict(chosen)
    fourth = distributed.World(torch.device("cpu"), size=4)
    assert not chosen.matches(recipe, fourth) and chosen.matches(recipe, CPU)
    elsewhere = tuning.Tuning("another", 1, "bf16", False, 1, {})
    chooses = lambda r, *_: replace(elsewhere, precision=r.training.precision)
    with mock.patch.object(tuning, "choose_tuning", side_effect=chooses):
        recipe = replace(
            recipe,
            training=replace(recipe.training, total_images=104),
            parallelism=replace(recipe.parallelism, grad_accumulation=4),
        )
        assert runs.open_run(recipe, tmp_path / "straight", "cpu").recipe.training.precision == "bf16"


@pytest.mark.parametrize(
    "spoilt",
    [
        {"grad_accumulation": 0},
        {"grad_accumulation": "2"},
        {"precision": "fp8"},
        {"images_per_second": {"fp32": "fast"}},
        {"more": 1},
        {"asked": {"compile": True}},
        {"asked": tuning.EVERYTHING_OPEN | {"grad_accumulation": "2"}},
    ],
)
def test_a_tuning_that_was_not_written_here_is_chosen_anew(spoilt: dict) -> None:
    chosen = tuning.Tuning("cpu", 1, "bf16", False, 2, {"fp32": 1.0})
    recipe = open_recipe()
    with mock.patch.object(tuning, "choose_tuning", return_value=replace(chosen, grad_accumulation=4)):
        assert tuning.tune(recipe, CPU, asdict(chosen))[1] == chosen
        assert tuning.tune(recipe, CPU, asdict(chosen) | spoilt)[1].grad_accumulation == 4


def test_another_request_is_chosen_for_anew_and_a_recipe_is_lent_as_asked() -> None:
    """Once without the compiler is not always without it; and what a device chose is no other device's."""
    recipe = open_recipe()
    without = replace(recipe, parallelism=replace(recipe.parallelism, compile=False))
    kept = tuned(without, {FP32: 1.0, BF16: 0.5})
    assert kept.matches(without, CPU) and not kept.matches(recipe, CPU)
    chosen = tuned(recipe, {FP32: 2.0, BF16: 1.0, COMPILED: 10.0})
    assert not chosen.compile and chosen.matches(recipe, CPU)
    assert tuning.as_asked(chosen.apply(recipe), asdict(chosen)) == recipe
    earlier = {name: value for name, value in asdict(chosen).items() if name != "asked"}
    assert tuning.from_event(earlier) == chosen and tuning.as_asked(recipe, earlier) == recipe == tuning.as_asked(recipe, None)


def test_a_tuning_that_no_longer_fits_is_chosen_anew() -> None:
    """A run that was sharded over the GPUs and goes on with a whole copy in each."""
    gpus = distributed.World(torch.device("cuda"), size=8)
    recipe = recipes.with_values(recipes.preset("jit-h16-256"), classes=1000, parallel="fsdp")
    with (
        mock.patch.object(cost, "memory_available", lambda device: 60e9),
        mock.patch.object(distributed.World, "device_name", "gpu"),
        mock.patch.dict(os.environ, LOCAL_WORLD_SIZE="4"),
    ):
        modes = [recipes.with_values(recipe, parallel=mode) for mode in ("fsdp", "hsdp", "ddp")]
        taken, parts = [tuning.estimate_memory(r, gpus, 16) for r in modes], [tuning.microbatches(r, gpus) for r in modes]
        assert taken[0] < taken[1] < taken[2] and parts[0] <= parts[1] <= parts[2] and parts[0] < parts[2]
        kept = tuning.Tuning("gpu", 8, "bf16", True, parts[0], {})
        assert kept.matches(recipe, gpus) and not kept.matches(recipes.with_values(recipe, parallel="ddp"), gpus)
        assert kept.matches(recipes.with_values(recipe, parallel="ddp", grad_accumulation=parts[0]), gpus)  # as was asked for


def test_lines_of_metrics_do_not_depend_on_stops_saves_and_previews(tmp_path: Path) -> None:
    """Windows of six steps, saves every four, a stop after each third step: the same lines, with the same digits."""
    recipe = small(total_images=24 * 8)
    recipe = recipes.with_values(recipe, save_every=32, preview_every=40, preview_count=2)
    finish(runs.open_run(recipe, tmp_path / "straight", "cpu"))
    for _ in range(8):
        for number, _ in enumerate(runs.steps(runs.open_run(recipe, tmp_path / "stopped", "cpu")), 1):
            if number == 3:
                break
    assert losses(tmp_path / "straight") == losses(tmp_path / "stopped")
    assert [seen for seen, _ in losses(tmp_path / "stopped")] == [48, 96, 144, 192]


def said(recipe: Recipe, tmp_path: Path, parts: int, seconds: float) -> list[str]:
    """What is told of a run, some parts of eight images long, each taking some seconds."""
    with mock.patch.object(
        tuning, "choose_tuning", return_value=tuning.Tuning("cpu", 1, "fp32", False, 1, {"fp32": 0.5, "bf16": 0.4})
    ):
        told = estimate.Estimate(runs.open_run(recipe, tmp_path / "run", "cpu"))
    lines = list(told.before())
    with mock.patch.object(estimate.time, "perf_counter", side_effect=[100 + seconds * i + (i > 0) * 50 for i in range(parts)]):
        for i in range(parts):
            lines += told.update(8 * i)
    return lines


def test_a_training_tells_its_time_and_what_would_fit(tmp_path: Path) -> None:
    """By the time of a block before, and by parts of a batch later: the first one, which compiles, is left out."""
    lines = said(open_recipe(images=400_000), tmp_path, 9, 4.0)
    assert "computed in fp32 (images/s measured: fp32 0.5, bf16 0.4)" in lines[0] and " GB" in lines[0]
    assert lines[1] == "measured by the time of one block: 0.5 images/s, so 400,000 images take about 9.3 days"
    assert "--total-images 10000)" in lines[2] and lines[2].startswith("warning: that is long. In a night, 8 hours")
    assert lines[3:] == ["measured over 32 images: 2 images/s, so 400,000 images take about 2.3 days"]  # in 16 seconds


def test_a_short_training_tells_no_more_than_its_bar(tmp_path: Path) -> None:
    lines = said(small(total_images=160), tmp_path, 9, 4.0)
    assert [line for line in lines if "warning" in line] == []
    assert any("so 160 images take about 80 seconds" in line for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(40, "40 seconds"), (119, "119 seconds"), (150, "2.5 minutes"), (8 * 3600, "8 hours"), (3e6, "35 days")],
)
def test_times_are_formatted_as_people_do(seconds: float, text: str) -> None:
    assert estimate.format_time(seconds) == text
