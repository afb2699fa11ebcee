"""Several processes compute what one would have: the same draws to the bit, the same losses to rounding, the same decisions."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from justimage import checkpoint, distributed, log, run as runs
from justimage.checkpoint import shards
from justimage.parallelize import Shard
from tests import world
from tests.test_training import small

pytestmark = pytest.mark.full


def several(processes: int, out: Path, *parts: str) -> list[dict[str, Any]]:
    """What each of several processes finds."""
    words = ["--standalone", "--nproc-per-node", str(processes), "-m", "tests.world", str(out), *parts]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        capture_output=True, text=True, timeout=500, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, uninterrupted."""
    out = tmp_path_factory.mktemp("straight")
    for _ in runs.steps(runs.open_run(world.logged(640), out / "run", "cpu")):
        pass
    return out


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Two processes, after one had begun the run that they go on with, and before one goes on again."""
    out = tmp_path_factory.mktemp("two")
    for _ in runs.steps(runs.open_run(world.logged(128), out / "run", "cpu")):
        pass
    parts = (
        "draws",
        "losses",
        "told_losses",
        "watched",
        "resumes",
        "gathered",
        "not_finite",
        "policies",
        "first_weights",
        "compiled",
        "budgets",
    )
    return out, several(2, out, *parts, "own_optimizer")


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Four processes, of which each two are taken for a node."""
    out = tmp_path_factory.mktemp("four")
    for _ in runs.steps(runs.open_run(world.logged(128), out / "run", "cpu")):
        pass
    return out, several(4, out, "draws", "losses_across_nodes", "first_weights", "resumes", "gathered")


def merged(found: list[dict[str, Any]]) -> dict[str, str]:
    return {position: value for one in found for position, value in one["draws"].items()}


def test_two_processes_draw_what_one_draws(two: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    alone = world.draws(tmp_path)
    assert len(alone) == 80 and len(set(alone.values())) == 80
    assert merged(two[1]) == alone and all(len(one["draws"]) == 40 for one in two[1])


def test_four_processes_draw_what_one_draws(four: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    assert merged(four[1]) == world.draws(tmp_path) and all(len(one["draws"]) == 20 for one in four[1])


@pytest.fixture(scope="module")
def losses_alone() -> torch.Tensor:
    return torch.tensor(world.losses_of({"alone": {}})["alone"], dtype=torch.float64)


def assert_close(name: str, values: list[list[float]], alone: torch.Tensor) -> None:
    """Losses and gradient norms of as many steps, to rounding."""
    difference = (torch.tensor(values, dtype=torch.float64) / alone[: len(values)] - 1).abs()
    rounding = (2e-2, 1e-1) if name.startswith("bf16") else (1e-5, 1e-3)
    assert difference[:, 0].max() < rounding[0], (name, difference[:, 0].max())
    assert difference[:, 1].max() < rounding[1], (name, difference[:, 1].max())


def test_what_is_told_is_told_however_the_work_is_divided(two: tuple[Path, list[dict[str, Any]]]) -> None:
    for name, alone in world.told_losses(Path()).items():
        first, second = (one["told_losses"][name] for one in two[1])
        assert first == second and len(first) == world.STEPS
        assert_close(name, first, torch.tensor(alone, dtype=torch.float64))


def test_losses_agree_however_the_work_is_divided(
    two: tuple[Path, list[dict[str, Any]]], four: tuple[Path, list[dict[str, Any]]], losses_alone: torch.Tensor
) -> None:
    for found, part, cases in (two[1], "losses", 7), (four[1], "losses_across_nodes", 3):
        assert len(found[0][part]) == cases
        for name, values in found[0][part].items():
            assert len(values) == world.STEPS
            assert_close(name, values, losses_alone)
            assert all(values == one[part][name] for one in found)


def test_the_state_of_any_optimizer_is_divided_anew(two: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    alone = torch.tensor(world.own_optimizer(tmp_path), dtype=torch.float64)
    assert len(alone) == 24
    for one in two[1]:
        assert_close("own", one["own_optimizer"], alone)


def test_the_first_weights_are_those_of_one_process_of_which_none_holds_the_whole(
    two: tuple[Path, list[dict[str, Any]]], four: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    alone = world.first_weights(tmp_path)
    for found in two[1], four[1]:
        for one in found:
            for mode, first in one["first_weights"].items():
                assert first["hashes"] == alone["ddp"]["hashes"], mode
    assert alone["ddp"]["held"] >= 1
    assert all(one["first_weights"]["ddp"]["held"] >= 1 for one in two[1])
    assert all(one["first_weights"]["fsdp"]["held"] < 0.8 for one in two[1])  # a half, and the tensor in hand, twice
    assert all(one["first_weights"]["fsdp"]["held"] < 0.5 for one in four[1])
    assert all(0.5 < one["first_weights"]["hsdp"]["held"] < 0.8 for one in four[1])


def test_blocks_compiled_in_two_processes_are_whole_and_compute_the_same(
    two: tuple[Path, list[dict[str, Any]]], losses_alone: torch.Tensor
) -> None:
    """Three graphs: the short sequence, and the long one with and without dropout; DDP's buckets would cut each of them."""
    for one in two[1]:
        for mode in "ddp", "fsdp":
            assert_close(mode, one["compiled"][mode], losses_alone)
            assert one["compiled"][f"{mode} graphs"] == 3, mode


def test_inductor_compiles_blocks_in_two_processes(losses_alone: torch.Tensor, tmp_path: Path) -> None:
    (tmp_path / "inductor").touch()
    for one in several(2, tmp_path, "compiled"):
        assert_close("ddp", one["compiled"]["ddp"], losses_alone)
        assert one["compiled"]["ddp graphs"] == 3


def test_scores_on_the_way_are_those_of_one_process(two: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    alone = world.watched(tmp_path)["ddp"]
    assert len(alone) == 4 and alone["fid"] > 0
    for one in two[1]:
        for mode in "ddp", "fsdp":
            assert one["watched"][mode] == pytest.approx(alone, rel=1e-3)


def test_three_processes_go_on_to_the_same_bits(tmp_path: Path) -> None:
    """The sum of three depends on its order, which must be that of the processes that were stopped."""
    for one in several(3, tmp_path, "goes_on"):
        ddp, ddp_resumed, fsdp, fsdp_resumed = one["goes_on"]
        assert ddp == ddp_resumed and fsdp == fsdp_resumed


def test_weights_that_sharding_would_lose_are_refused(tmp_path: Path) -> None:
    for one in several(2, tmp_path, "refused"):
        left, there = one["refused"]
        assert left == "init_weights of Forgetful leaves left as it is; for fsdp it must fill everything"
        assert there.startswith("this Forgetful has its weights already, and fsdp draws them in place")


@pytest.mark.parametrize("processes", [2, 4])
def test_one_to_several_to_one_in_every_mode(processes: int, straight: Path, request: pytest.FixtureRequest) -> None:
    """DDP to FSDP and back, HSDP to FSDP and back; and a checkpoint of parts is read as one."""
    out, found = request.getfixturevalue({2: "two", 4: "four"}[processes])
    for _ in runs.steps(runs.open_run(world.logged(640), out / "run", "cpu")):
        pass
    whole, parts = ({m["images_seen"]: m["loss"] for m in log.records(p / "run" / "metrics.jsonl")} for p in (straight, out))
    assert whole.keys() == parts.keys() and len(whole) == 80
    assert max(abs(parts[n] / whole[n] - 1) for n in whole) < 1e-5
    counts = [(e["images_seen"], e["processes"]) for e in log.records(out / "run" / "events.jsonl") if "processes" in e]
    assert counts == [(0, 1), *((seen, processes) for seen in (128, 256, 384)), (512, 1)]
    assert found[0]["resumes"] == len(list(small().resolve(world.source()).build().net.parameters()))
    assert all(one["gathered"] == world.gathered(straight) for one in found)


def test_all_processes_end_in_the_same_step_with_their_state_untouched(two: tuple[Path, list[dict[str, Any]]]) -> None:
    for cases in zip(*(one["not_finite"] for one in two[1]), strict=True):
        for case in cases:
            assert "the loss became" in case["ended"] and case["at"] == 24 and case["untouched"], case
            assert case["seconds"] < 5, case
    assert len(two[1][0]["not_finite"]) == 16


def test_a_budget_is_one_length_for_all_processes_and_grows_in_proportion(two: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = (one["budgets"] for one in two[1])
    assert first == second
    (length, seen, weights), (longer, later, more) = first
    assert seen[-1] == length > 0 and later[0] > length and later[-1] == longer and weights != more
    assert 1.5 * length - small().training.batch < longer <= 1.5 * length


def test_one_process_ends_with_its_state_untouched(tmp_path: Path) -> None:
    for case in world.not_finite(tmp_path):
        assert "the loss became" in case["ended"] and case["at"] == 24 and case["untouched"] and case["seconds"] < 5, case


def test_steps_that_are_not_finite_are_left_out_alike(two: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    """Skipped, or gone back before; two processes and one; and with the same result as if the step had never been."""
    alone = world.policies(tmp_path)
    for policy in "skip", "rollback":
        both = [one["policies"][policy] for one in two[1]]
        assert alone[policy]["passed over"] == [40] == both[0]["passed over"] == both[1]["passed over"]
        assert both[0]["weights"] == both[1]["weights"]
        assert [n for n, _ in alone[policy]["lines"]] == [8, 16, 24, 32, 40, 56, 64, 72, 80, 88, 96]
        pairs = zip(both[0]["lines"], alone[policy]["lines"], strict=True)
        assert all(a[0] == b[0] and abs(a[1] / b[1] - 1) < 1e-5 for a, b in pairs)
    assert alone["skip"]["weights"] == alone["rollback"]["weights"]


@pytest.mark.parametrize("accumulate", [3, 16])
def test_a_batch_that_cannot_be_divided_is_refused(accumulate: int) -> None:
    from justimage import data, training

    with pytest.raises(ValueError, match=f"a batch of 8 cannot be divided evenly over {accumulate} parts"):
        training.init_state(small(grad_accumulation=accumulate).resolve(data.digits()))


def test_any_number_of_parts_is_read_by_any_other(tmp_path: Path) -> None:
    """Tensors of every awkward height, written in 1 to 5 parts as FSDP2 divides them, read whole and in pieces."""
    tensors = {f"t{h}": torch.randn(h, 3) for h in (1, 2, 5, 7, 16)} | {"scalar": torch.tensor(3.0), "none": torch.empty(0, 2)}
    recipe = small()
    for parts in range(1, 6):
        folder = tmp_path / f"run{parts}" / "checkpoints" / "000000008"
        (shards.staging_dir(folder)).mkdir(parents=True)
        for part in range(parts):
            mine = {}
            for n, t in tensors.items():
                height = -(-t.shape[0] // parts) if t.ndim else 0
                start = min(part * height, t.shape[0]) if t.ndim else 0
                rows = t[start : start + height] if t.ndim else t
                mine[n] = Shard(rows, start, list(t.shape), t.ndim > 0 or part == 0)
            shards.write_shard(folder, {"model": mine}, recipe, part, parts)
        shards.publish_shards(folder, recipe, {"images_seen": 8}, parts)
        reader = checkpoint.shards.Reader(folder)
        checkpoint.verify(folder)
        for n, t in tensors.items():
            assert torch.equal(reader.read_rows("model", n), t), (parts, n)
            for start in range(t.shape[0] if t.ndim else 0):
                for count in range(1, t.shape[0] - start + 1):
                    assert torch.equal(reader.read_rows("model", n, start, count), t[start : start + count]), (parts, n, start)


def test_rows_that_are_missing_or_twice_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "000000008"
    shards.staging_dir(folder).mkdir(parents=True)
    whole = torch.randn(6, 2)
    for starts in ((0, 4), (0, 2)):
        for part, start in enumerate(starts):
            shards.write_shard(folder, {"model": {"w": Shard(whole[start : start + 3], start, [6, 2], True)}}, small(), part, 2)
        with pytest.raises(ValueError, match="rows are not all there, or more than once"):
            shards.publish_shards(folder, small(), {"images_seen": 8}, 2)
        assert not folder.exists()


def test_no_thread_outlives_the_connection(tmp_path: Path) -> None:
    """One that is still there and releases a tensor while Python ends would abort the process."""
    assert several(2, tmp_path) == [{}, {}]


def test_one_process_is_a_world_of_one() -> None:
    alone = distributed.init("cpu")
    assert (alone.rank, alone.size, alone.is_main, alone.gather(3), alone.on_main(lambda: 4)) == (0, 1, True, [3], 4)
