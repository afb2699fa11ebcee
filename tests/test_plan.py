"""Plans: cases by hand, theorems that hold whatever the constants, and the command's output for people and programs."""

import json
import re
import shlex
import sys
from dataclasses import asdict, replace
from math import isclose
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings, strategies as st

from justimage import cli, plan as plans
from justimage.cost import cost
from justimage.distributed import Parallel
from justimage.plan import GPUS, Arrangement, Request, TrainingPlan, divisors, estimate, peak_of
from justimage.recipe import PRESETS, Recipe, preset, with_values
from tests.test_cli import justimage

B, G = preset("jit-b16-256"), preset("jit-g16-256")


def plan(recipe: Recipe, *values, **named) -> TrainingPlan:
    return plans.plan(Request(recipe, *values, **named))


def test_b16_on_eight_h100_by_hand() -> None:
    d, h, classes = 768, 2048, 1001
    a_block = (3 * d * d + 3 * d) + (d * d + d) + 2 * 64 + 2 * d + (2 * d * h + 2 * h) + (h * d + d) + (6 * d * d + 6 * d)
    embedding = 768 * 128 + (128 * d + d) + classes * d + (256 * d + d) + (d * d + d) + 32 * d
    parameters = 12 * a_block + embedding + d + (2 * d * d + 2 * d) + (768 * d + 768)
    assert parameters == 131_123_712 == cost(replace(B.model, classes=1000)).parameters

    tokens = 4 * 256 + 8 * 288  # the 32 class tokens enter before block 4
    attention = 4 * 2 * 256**2 * d + 8 * 2 * 288**2 * d
    outside = 256 * (768 * 128 + 128 * d) + 256 * d * 768 + 256 * d + d * d + 2 * d * d
    multiply_adds = tokens * (4 * d * d + 3 * d * h) + attention + 12 * 6 * d * d + outside
    assert multiply_adds == 25_222_840_320

    p = plan(B, gpus=8, gpu_type="h100", parallel="ddp", grad_accumulation=2, mfu=0.4)
    m, s = p.memory, p.seconds
    assert (m.weights, m.gradients, m.moments, m.averages) == (524_494_848, 524_494_848, 1_048_989_696, 1_573_484_544)
    assert m.copies == 262_247_424 and m.reserve == 6.4e9
    assert m.activations == 64 * (3328 * (68 * 768 + 6 * 2048) + 36 * 3 * 256 * 256) == 14_193_524_736
    assert isclose(m.total, 24_527_236_096)  # 24.5 of 80 GB

    forward_and_backward = 6 * 25_222_840_320 * 128 / (0.4 * 989.4e12)  # 48.9 ms
    assert isclose(s.compute, forward_and_backward) and isclose(s.compute, 0.04894669, rel_tol=1e-6)
    all_reduce = 2 * 7 / 8 * 4 * 131_123_712 / (0.8 * 450e9)  # 2.55 ms, a fifth of which shows
    assert isclose(s.communication, all_reduce / 5) and isclose(s.hidden, all_reduce * 4 / 5)
    assert isclose(s.optimizer, 28 * 131_123_712 / (0.8 * 3.35e12))  # 1.37 ms
    assert isclose(s.averages, 3 * 12 * 131_123_712 / (0.8 * 3.35e12))  # 1.76 ms
    assert isclose(s.total, 0.05258793, rel_tol=1e-6)
    assert isclose(p.images_per_second, 1024 / s.total) and round(p.images_per_second) == 19472
    assert isclose(p.days, 600 * 1_281_167 / p.images_per_second / 86400) and round(p.days * 24, 1) == 11.0
    assert isclose(p.data_rate, p.images_per_second * 196_608) and isclose(p.mfu, 0.4 * s.compute / s.total)
    assert p.checkpoint == 4 * 6 * 131_123_712


def test_fsdp_across_nodes_by_hand() -> None:
    """G on 64 H100, 8 nodes: a ring enters a node by its eight adapters together, 400 GB/s, of which 80 % are reached."""
    p = plan(G, gpus=64, parallel="fsdp", grad_accumulation=1)
    n = 2_007_130_000
    d, h = 1664, 4437
    block = (3 * d * d + 3 * d) + (d * d + d) + 2 * 104 + 2 * d + (2 * d * h + 2 * h) + (h * d + d) + (6 * d * d + 6 * d)
    assert isclose(p.memory.weights + p.memory.gradients + p.memory.moments + p.memory.averages, 28 * n / 64)
    assert p.memory.copies == 10 * block + 8 * (n - 40 * block)
    transfer = (2 + 2 + 4) * n * 63 / 64 / (0.8 * 8 * 50e9)
    assert isclose(p.seconds.communication + p.seconds.hidden, transfer)
    assert p.nodes == 8
    twice = plan(G, gpus=64, parallel="fsdp", grad_accumulation=2)
    assert twice.memory.copies == p.memory.copies + 4 * n  # the microbatches' gradients, summed whole
    assert isclose(twice.seconds.communication + twice.seconds.hidden, transfer * 12 / 8)


def test_hsdp_across_nodes_by_hand() -> None:
    """G on 16 H100: gathers and the reduce-scatter pass over NVLink, and then an eighth of the gradients, in fp32, over each
    GPU's adapter to the other node and back."""
    p = plan(G, gpus=16, parallel="hsdp", grad_accumulation=2)
    n = 2_007_130_000
    fsdp = plan(G, gpus=16, parallel="fsdp", grad_accumulation=2)
    state = p.memory.weights + p.memory.gradients + p.memory.moments + p.memory.averages
    assert p.nodes == 2 and state == 28 * n / 8 and p.memory.copies == fsdp.memory.copies
    assert p.memory.activations == fsdp.memory.activations and p.checkpoint == fsdp.checkpoint
    within = (2 * 2 + 2 * 2 + 4) * n * 7 / 8 / (0.8 * 450e9)
    across = 2 * (4 * n / 8) / 2 / (0.8 * 50e9)
    assert isclose(p.seconds.communication + p.seconds.hidden, within + across)
    assert isclose(p.seconds.optimizer, 28 * n / 8 / (0.8 * 3.35e12))


def test_to_begin_a_process_holds_the_network_or_its_largest_tensor() -> None:
    """Of G, the largest is the modulation of a block, 6 x 1664 rows of 1664 numbers; of B, alone, all of it."""
    assert plan(G, 16, parallel="ddp").host_memory == 4 * 2_007_130_000
    assert [plan(G, 16, parallel=how).host_memory for how in ("hsdp", "fsdp")] == [4 * 6 * 1664 * 1664] * 2
    assert plan(B, 1, parallel="fsdp").host_memory == 4 * 131_123_712


def test_g_unsharded_is_56_gb_and_leaves_little_room_on_a_card_of_80() -> None:
    p = plan(G, gpus=8, parallel="ddp", grad_accumulation=16)
    state = p.memory.weights + p.memory.gradients + p.memory.moments + p.memory.averages
    assert state == 4 * (4 + 3) * 2_007_130_000 == 56_199_640_000
    an_image = (10 * 256 + 30 * 288) * (68 * 1664 + 6 * 4437) + 36 * 3 * 256 * 256
    assert p.memory.activations == 8 * an_image
    room = 80e9 * 0.92 - state - 2 * 2_007_130_000
    assert room // an_image == 8 and p.fits  # 13.4 GB hold eight images, not sixteen
    assert not plan(G, gpus=8, parallel="ddp", grad_accumulation=8, activation_checkpointing=False).fits
    assert plan(G, gpus=64).parallel == "fsdp"


def test_hsdp_is_chosen_where_a_copy_a_node_fits_and_links_beat_the_network() -> None:
    """Two nodes of H100: ddp's optimizer, of all weights, takes too long; where memory is little, only fsdp is left."""
    for recipe in B, G:
        p = plan(recipe, 16)
        assert p.parallel == "hsdp" and p.why.startswith("--parallel ddp")
        fastest = plan(recipe, 16, parallel="fsdp", grad_accumulation=p.grad_accumulation).seconds.total
        assert p.seconds.total <= 1.1 * fastest < plan(recipe, 16, parallel="ddp").seconds.total
    assert all(plan(recipe, 8).parallel != "hsdp" for recipe in (B, G))  # one node
    assert plan(with_values(B, batch=1023), 11).parallel != "hsdp"  # eleven nodes of one GPU
    small = plan(G, 16, gpu_memory=12e9)
    assert small.parallel == "fsdp" and not plan(G, 16, parallel="hsdp", gpu_memory=12e9).fits


RECIPES = st.sampled_from([preset(name) for name in ("jit-b16-256", "jit-l32-512", "jit-h16-256", "folder-64")])
MODES: tuple[Parallel, ...] = "ddp", "hsdp", "fsdp"
FORCED = st.fixed_dictionaries({"parallel": st.sampled_from(MODES), "activation_checkpointing": st.booleans()})
theorem = settings(max_examples=30, deadline=None)


@theorem
@given(RECIPES, st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128]), st.booleans(), st.sampled_from(list(GPUS)))
def test_more_gpus_never_need_more_bytes_a_gpu_under_fsdp(recipe: Recipe, gpus: int, recompute: bool, gpu_type: str) -> None:
    few, many = (plan(recipe, n, gpu_type, "fsdp", 1, recompute).memory for n in (gpus, 2 * gpus))
    assert all(getattr(many, name) <= getattr(few, name) for name in asdict(few))


@theorem
@given(RECIPES, st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]), st.booleans(), st.sampled_from(list(GPUS)))
def test_on_one_node_hsdp_is_fsdp(recipe: Recipe, gpus: int, microbatches: int, recompute: bool, gpu_type: str) -> None:
    hsdp, fsdp = (plan(recipe, gpus, gpu_type, how, microbatches, recompute) for how in ("hsdp", "fsdp"))
    assert replace(hsdp, parallel="fsdp", advice="", why="") == replace(fsdp, advice="", why="")


@theorem
@given(RECIPES, st.sampled_from([2, 4, 16]), st.sampled_from([1, 2, 4]), st.booleans(), st.sampled_from(list(GPUS)))
def test_hsdp_takes_the_memory_of_one_node_and_talks_less_between_nodes(
    recipe: Recipe, nodes: int, microbatches: int, recompute: bool, gpu_type: str
) -> None:
    """Where links within a node cost nothing, what is left is what passes between nodes."""
    batch = 8 * 16 * microbatches
    hsdp, fsdp, alone = (
        plan(with_values(recipe, batch=batch * n), 8 * n, gpu_type, how, microbatches, recompute)
        for how, n in (("hsdp", nodes), ("fsdp", nodes), ("fsdp", 1))
    )
    assert hsdp.memory == alone.memory and hsdp.seconds.optimizer == alone.seconds.optimizer
    assert fsdp.memory.total < hsdp.memory.total
    linked = {gpu_type: replace(GPUS[gpu_type], link=float("inf"))}
    with mock.patch.dict(GPUS, linked):
        request = Request(with_values(recipe, batch=batch * nodes), 8 * nodes, gpu_type)
        between = [estimate(request, Arrangement(how, microbatches, recompute)).seconds for how in ("hsdp", "fsdp")]
    few, many = (s.communication + s.hidden for s in between)
    assert (
        isclose(few / many, 8 * (nodes - 1) / nodes / ((4 * microbatches + 4) * (8 * nodes - 1) / (8 * nodes))) and few < many
    )


@theorem
@given(RECIPES, st.sampled_from([2, 8, 16]), st.sampled_from(MODES))
def test_a_precision_that_is_left_open_is_that_of_gpus(recipe: Recipe, gpus: int, parallel: Parallel) -> None:
    open_, bf16 = (plan(with_values(recipe, precision=p), gpus, parallel=parallel) for p in ("auto", "bf16"))
    assert open_ == bf16


NAMES = {
    "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H100 PCIe": "h100-pcie", "NVIDIA H100 NVL": "h100-nvl", "NVIDIA H200": "h200",
    "NVIDIA H200 NVL": "h200-nvl", "NVIDIA B200": "b200", "NVIDIA A100-SXM4-80GB": "a100", "NVIDIA A100-SXM4-40GB": "a100-40",
    "A100-SXM4-40GB": "a100-40", "NVIDIA A100-PCIE-40GB": "a100-pcie-40", "NVIDIA A100 80GB PCIe": "a100-pcie",
    "NVIDIA L40S": "l40s", "NVIDIA L40": "l40", "NVIDIA L4": "l4", "NVIDIA A40": "a40", "NVIDIA A30": "a30",
    "NVIDIA A10": "a10", "NVIDIA RTX A6000": "rtx-a6000", "NVIDIA RTX 6000 Ada Generation": "rtx6000-ada",
    "NVIDIA GeForce RTX 3090": "rtx3090", "NVIDIA GeForce RTX 4090": "rtx4090", "NVIDIA GeForce RTX 5090": "rtx5090",
    "AMD Instinct MI300X": "mi300x", "AMD Instinct MI300X OAM": "mi300x", "AMD Instinct MI325X": "mi325x",
}  # fmt: skip
"""What devices call themselves, and what they are."""
OTHERS = [
    "NVIDIA RTX A1000", "NVIDIA RTX A4000", "NVIDIA A10G", "NVIDIA A2", "NVIDIA GeForce RTX 4090 Laptop GPU", "Quadro RTX 6000",
    "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GH200 480GB",
    "NVIDIA A100-SXM4-80GB MIG 3g.40gb", "NVIDIA H20", "NVIDIA GB200", "Tesla V100-SXM2-32GB", "AMD Instinct MI250X", "cpu", "",
]  # fmt: skip
"""Devices that are none of ours, though their names may hold one of theirs."""


@pytest.mark.parametrize("name", [*NAMES, *OTHERS])
def test_a_device_is_known_by_all_words_of_its_name(name: str) -> None:
    assert peak_of(name) == (GPUS[NAMES[name]].peak if name in NAMES else None)


def test_every_type_has_a_known_device() -> None:
    assert set(NAMES.values()) == GPUS.keys()


@theorem
@given(RECIPES, FORCED, st.integers(1, 40), st.integers(2, 5))
def test_activations_and_computing_are_linear_in_images(recipe: Recipe, forced: dict, images: int, times: int) -> None:
    small, large = (plan(with_values(recipe, batch=8 * n), 8, grad_accumulation=1, **forced) for n in (images, times * images))
    assert large.memory.activations == times * small.memory.activations
    assert isclose(large.seconds.compute, times * small.seconds.compute)
    assert replace(large.memory, activations=0) == replace(small.memory, activations=0)


@theorem
@given(RECIPES, st.sampled_from(MODES), st.sampled_from([1, 4, 16]), st.sampled_from([1, 2, 4]))
def test_recomputation_costs_a_third_of_computing_and_saves_memory(
    recipe: Recipe, parallel, gpus: int, microbatches: int
) -> None:
    kept, recomputed = (
        plan(recipe, gpus, parallel=parallel, grad_accumulation=microbatches, activation_checkpointing=x) for x in (False, True)
    )
    assert isclose(recomputed.seconds.compute, kept.seconds.compute * 4 / 3)
    assert recomputed.memory.activations < kept.memory.activations / 3 and recomputed.checkpoint == kept.checkpoint
    # a network of one block would have nothing to save: its inside is kept either way, and its input besides
    assert replace(recomputed.memory, activations=0) == replace(kept.memory, activations=0)


@theorem
@given(RECIPES, FORCED, st.sampled_from([1, 2, 8, 32]), st.sampled_from([1, 2, 4, 8]))
def test_accumulation_changes_nothing_but_activations_and_transfers(
    recipe: Recipe, forced: dict, gpus: int, microbatches: int
) -> None:
    whole, split = (plan(recipe, gpus, grad_accumulation=n, **forced) for n in (1, microbatches))
    assert split.memory.activations * microbatches == whole.memory.activations
    assert split.seconds.compute == whole.seconds.compute and split.seconds.optimizer == whole.seconds.optimizer


@theorem
@given(RECIPES, st.sampled_from([1, 2, 4, 8]))
def test_days_are_inverse_to_gpus_where_computing_is_all(recipe: Recipe, gpus: int) -> None:
    """At an MFU of 0.1 % everything else is next to nothing."""
    few, many = (
        plan(recipe, n, parallel="fsdp", grad_accumulation=1, activation_checkpointing=False, mfu=0.001)
        for n in (gpus, 2 * gpus)
    )
    assert isclose(few.days / many.days, 2, rel_tol=0.01)


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ("digits", "laptop")])
def test_what_is_chosen_fits_and_nothing_simpler_is_as_fast(name: str) -> None:
    recipe = preset(name)
    for gpus, gpu_type in (1, "h200"), (8, "h100"), (16, "a100-40"), (64, "rtx4090"):
        p = plan(recipe, gpus, gpu_type)
        assert p.fits == (p.memory.total <= GPUS[gpu_type].memory) and (p.fits or p.advice)
        assert p.parameters == cost(replace(recipe.model, classes=1000)).parameters
        if p.fits:
            forced = plan(recipe, gpus, gpu_type, p.parallel, p.grad_accumulation, p.activation_checkpointing)
            assert replace(forced, why="") == replace(p, why="")
            for microbatches in divisors(p.grad_accumulation)[:-1]:
                less = plan(recipe, gpus, gpu_type, p.parallel, microbatches, p.activation_checkpointing)
                assert not less.fits or less.seconds.total > p.seconds.total or less.microbatch < 8


def test_advice_is_the_least_change_and_it_works() -> None:
    p = plan(G, 8, parallel="ddp", grad_accumulation=1, activation_checkpointing=False)
    assert not p.fits and p.advice == "it fits with --parallel ddp --grad-accumulation 16"
    assert plan(G, 8, parallel="ddp", grad_accumulation=16).fits
    assert plan(G, 1, "l40s").advice.startswith("it fits on 2 of them with --parallel fsdp")
    assert plan(G, 2, "l40s").fits and not plan(G, 1, "l40s").fits
    alone = plan(with_values(G, batch=1), 1, "rtx4090")
    assert alone.advice == "it fits on 1 of h100 with --parallel ddp" and plan(with_values(G, batch=1), 1, "h100").fits
    assert plan(G, 1, gpu_memory=1e9).advice


def test_past_128_gpus_the_batch_is_used_up() -> None:
    assert not plan(B, 128).notes
    assert "4 images per GPU" in plan(B, 256).notes[0] and plan(B, 1024).microbatch == 1


def test_the_documents_examples_are_what_the_command_says() -> None:
    text = (Path(__file__).parents[1] / "docs" / "scale.md").read_text()
    rows = re.findall(r"^\| ([BLHG])/16 \| (\d+) \| `(.*?)` \| ([\d.]+) \| ([\d,]+) \|", text, re.MULTILINE)
    assert len(rows) == 16
    for size, gpus, flags, amount, speed in rows:
        p = plan(preset(f"jit-{size.lower()}16-256"), int(gpus))
        assert (flags, amount, speed) == (p.flags, f"{p.memory.total / 1e9:.1f}", f"{p.images_per_second:,.0f}")
    for name, gpu in GPUS.items():
        assert f"`{name}`" in text and f"{gpu.peak / 1e12:,g}" in text


def test_only_bf16_can_be_planned() -> None:
    recipe = with_values(B, classes=1000, precision="fp32")
    with pytest.raises(ValueError, match="precision is fp32; only bf16 can be planned"):
        plan(recipe, 1, "h100")


MISTAKES = {
    "--gpu-type h10": "perhaps h100; there are h100, h200",
    "--gpu-type tpu": "there are h100, h200",
    "--gpus 12": "gpus is 12, which does not divide the batch of 1024; perhaps 4, 8, 16",
    "--gpus 0": "gpus is 0",
    "--gpus 8 --grad-accumulation 3": "grad_accumulation is 3, which does not divide the 128 images of a GPU; allowed: 1, 2, 4",
    "--mfu 40": "mfu is 40; it must be above 0 and at most 1",
    "--mfu nan": "mfu is nan",
    "--gpu-memory 0": "memory is 0 GB",
    "--batch 0": "batch is 0",
    "--preset jit-g16": "perhaps",
    "--from nowhere": "nowhere does not exist",
    "--preset digits --from nowhere": "give one of them",
    "--parallel pipeline": "parallel",
    "--gpus many": "--gpus",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line(words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["justimage", "plan", *words.split()])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert end.value.code == 2 and out == "" and err.count("\n") == 1 and MISTAKES[words] in err, err


@pytest.mark.full
def test_a_person_reads_the_plan_and_the_command(tmp_path: Path) -> None:
    words = "--preset jit-g16-256 --gpus 64 --gpu-type h100 --batch 512"
    done = justimage("plan", *words.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    p = plan(with_values(G, batch=512), 64)
    assert f"{p.images_per_second:,.0f} images/s" in done.stdout and "8 nodes of 8" in done.stdout and "fits" in done.stdout
    command = next(line for line in done.stdout.splitlines() if line.startswith("torchrun"))
    assert "--nnodes=8" in command and "--nproc-per-node=8" in command
    assert command.endswith(f"train --preset jit-g16-256 --data STORE --out RUN --batch 512 {p.flags}")
    assert "Assumed, not measured: 40%" in done.stdout


@pytest.mark.full
def test_a_program_reads_every_number(tmp_path: Path) -> None:
    words = "--preset jit-h16-256 --gpus 8 --parallel fsdp --grad-accumulation 8 --activation-checkpointing --mfu 0.3 --json"
    done = justimage("plan", *words.split(), cwd=tmp_path)
    values = json.loads(done.stdout)
    p = plan(preset("jit-h16-256"), 8, "h100", "fsdp", 8, True, mfu=0.3)
    assert TrainingPlan.__dataclass_fields__.keys() <= values.keys()
    assert values["memory"] == asdict(p.memory) and values["days"] == p.days and values["fits"]
    assert shlex.split(values["command"])[-5:] == [
        "--parallel",
        "fsdp",
        "--grad-accumulation",
        "8",
        "--activation-checkpointing",
    ]
