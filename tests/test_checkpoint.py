"""Checkpoints: complete or absent, verified, and loaded by anyone who has one file."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import justimage
from justimage import checkpoint, disk, log, recipe as recipes, run as runs
from justimage.checkpoint import CorruptCheckpoint, NoUsableCheckpoint, saver
from justimage.sampling import Sampling
from justimage.transformer import JiT
from tests.test_training import small


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    recipe = small(total_images=32)
    for step in justimage.train(recipe, run, device="cpu"):
        if step.images_seen == 16:
            break
    for _ in justimage.train(recipe, run, device="cpu"):
        pass
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_the_directory_is_laid_out_as_documented(run: Path) -> None:
    assert {p.name for p in run.iterdir()} >= {"recipe.json", "metrics.jsonl", "events.jsonl", "checkpoints"}
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["000000016", "000000032"]
    names = {p.name for p in (run / "checkpoints" / "000000032").iterdir()}
    groups = ["model", "optimizer", "ema-100", "ema-200", "ema-400"]
    assert names == {"MANIFEST.json", "state.json", *(f"{g}-00001-of-00001.safetensors" for g in groups)}


@pytest.mark.parametrize(
    "file", ["model-00001-of-00001.safetensors", "optimizer-00001-of-00001.safetensors", "state.json", "MANIFEST.json"]
)
@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
def test_damage_is_noticed_and_the_older_checkpoint_used(file: str, how: str, run: Path) -> None:
    path = run / "checkpoints" / "000000032" / file
    content = bytearray(path.read_bytes())
    match how:
        case "flip":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        case "truncate":
            path.write_bytes(content[: len(content) // 2])
        case "remove":
            path.unlink()
    with pytest.raises(CorruptCheckpoint) as caught:
        checkpoint.verify(run / "checkpoints" / "000000032")
    assert file in str(caught.value) and "\n" not in str(caught.value)
    assert checkpoint.newest(run) == run / "checkpoints" / "000000016"
    assert (run / "checkpoints" / "000000032").is_dir()  # reading changes nothing
    opened = runs.open_run(small(total_images=32), run, "cpu")
    assert opened.state.images_seen == 16 and file in opened.warnings[0]
    assert (run / "checkpoints" / ".bad-000000032").is_dir()
    assert '"damaged"' in (run / "events.jsonl").read_text()


def test_where_all_are_damaged_nothing_starts_afresh(run: Path) -> None:
    for folder in (run / "checkpoints").iterdir():
        (folder / "MANIFEST.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(NoUsableCheckpoint, match="no intact checkpoint"):
            next(justimage.train(small(total_images=64), run, device="cpu"))


def test_a_run_whose_checkpoints_are_gone_does_not_begin_again(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    metrics = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="had a checkpoint at 32 images, and has none now"):
        next(justimage.train(small(total_images=64), run, device="cpu"))
    assert (run / "metrics.jsonl").read_bytes() == metrics


def test_logs_that_a_crash_tore_do_not_stop_a_run(run: Path) -> None:
    for name in "events.jsonl", "metrics.jsonl":
        with open(run / name, "a") as file:
            file.write('{"event": "sa')
    opened = runs.open_run(small(total_images=32), run, "cpu")
    assert opened.state.images_seen == 32 and log.last_saved(run) == 32
    assert [e["event"] for e in log.records(run / "events.jsonl")][-1] == "resumed"


def test_the_newest_is_the_one_with_most_images(run: Path) -> None:
    """Also where the number outgrows its padding: 800 epochs of ImageNet are more than 10^9 images."""
    (run / "checkpoints" / "000000016").rename(run / "checkpoints" / "999999999")
    (run / "checkpoints" / "000000032").rename(run / "checkpoints" / "1000000000")
    assert checkpoint.newest(run) == run / "checkpoints" / "1000000000"
    checkpoint.prune(run, 1)
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["1000000000"]


def test_a_first_write_cut_short_does_not_block_the_directory(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".tmp-recipe.json").write_text("{")
    next(justimage.train(small(total_images=16), tmp_path / "run", device="cpu"))


def test_a_half_written_checkpoint_is_never_read(run: Path) -> None:
    (run / "checkpoints" / "000000032").rename(run / "checkpoints" / ".tmp-000000048")
    assert checkpoint.newest(run) == run / "checkpoints" / "000000016"


def test_a_run_a_folder_and_a_file_load_alike(run: Path, tmp_path: Path) -> None:
    folder = run / "checkpoints" / "000000032"
    file = shutil.copy(folder / "ema-200-00001-of-00001.safetensors", tmp_path / "alone.safetensors")
    models = [justimage.load(run, ema=200), justimage.load(folder, ema=200), justimage.load(file)]
    images = [justimage.sample(m, [3, 7], [0, 1], Sampling(guidance=2.0, interval=(0.1, 1.0), steps=3)) for m in models]
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])
    assert not torch.equal(justimage.load(run, ema=0).net.head.linear.weight, models[0].net.head.linear.weight)
    assert torch.equal(justimage.load(run).net.head.linear.weight, justimage.load(run, ema=100).net.head.linear.weight)
    with pytest.raises(ValueError, match=r"no ema 0\.9999.*100, 200, 400"):
        justimage.load(run, ema=0.9999)


@pytest.mark.parametrize("fault", ["missing", "extra", "misshapen"])
def test_one_file_loads_strictly(fault: str, run: Path, tmp_path: Path) -> None:
    file = run / "checkpoints" / "000000032" / "model-00001-of-00001.safetensors"
    tensors, recipe = load_file(file), json.loads((run / "recipe.json").read_text())
    match fault:
        case "missing":
            del tensors["head.linear.bias"]
        case "extra":
            tensors["head.more"] = torch.zeros(2)
        case "misshapen":
            tensors["head.linear.bias"] = torch.zeros(2)
    save_file(tensors, tmp_path / "bad.safetensors", metadata={"justimage": json.dumps({"group": "model", "recipe": recipe})})
    with pytest.raises(ValueError, match=f"{fault} tensors: head"):
        justimage.load(tmp_path / "bad.safetensors")


def test_what_is_no_model_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.pth").touch()
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 10)
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    for name, words in [("missing", "does not exist"), ("empty", "holds no checkpoint"), ("weights.pth", "justimage convert"),
                        ("junk.safetensors", "not a readable"), ("foreign.safetensors", "carries no recipe")]:  # fmt: skip
        with pytest.raises((ValueError, OSError), match=words) as caught:
            justimage.load(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    disk.write(tmp_path / "a" / "file", b"one")
    disk.write(tmp_path / "a" / "file", b"two")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["file"] and (tmp_path / "a" / "file").read_bytes() == b"two"


def test_the_copy_on_the_host_lies_in_few_pieces_that_rounding_up_hardly_enlarges() -> None:
    """PyTorch rounds pinned memory up to powers of two. Weights and moments of H/16; and any tensors come back."""
    with torch.device("meta"):
        net = JiT("H/16", classes=1000)
    sizes = {n: 4 * p.numel() for n, p in net.named_parameters()}
    for group in sizes, {f"{key}.{n}": size for n, size in sizes.items() for key in ("exp_avg", "exp_avg_sq")}:
        groups = saver.pack(group)
        assert [n for names in groups for n in names] == list(group) and len(groups) < 12
        rounded = sum(2 ** math.ceil(math.log2(sum(group[n] for n in names))) for names in groups)
        alone = sum(2 ** math.ceil(math.log2(size)) for size in group.values())
        assert rounded < 1.15 * sum(group.values()) and alone > 1.6 * sum(group.values())
    tensors = {"none": torch.empty(0, 3), "a": torch.randn(3, 5), "one": torch.tensor(7.0), "half": torch.randn(7).bfloat16()}
    places = saver.allocate_host(tensors)
    for n, t in tensors.items():
        places[n].copy_(t)
    assert all(torch.equal(places[n], t) and places[n].dtype == t.dtype for n, t in tensors.items())
    assert len({p.untyped_storage().data_ptr() for p in places.values()}) == 1


def test_the_next_save_uses_the_same_memory(run: Path) -> None:
    opened = runs.open_run(recipes.from_json(disk.read_json(run / "recipe.json")), run, "cpu")
    s, kept = opened.state, opened.checkpoints.saver
    groups = checkpoint.sharded_state_dict(s.denoiser.net, s.optimizer, s.ema, s.world)
    first = kept.copy("model", groups["model"])
    with torch.no_grad():
        next(s.denoiser.net.parameters()).add_(1)
    second = kept.copy("model", groups["model"])
    assert all(first[n].tensor.data_ptr() == second[n].tensor.data_ptr() for n in first)
    assert all(torch.equal(second[n].tensor, p) for n, p in s.denoiser.net.named_parameters())
    kept.close()


def test_a_window_of_losses_that_no_training_wrote_is_damage(run: Path) -> None:
    folder = checkpoint.list_checkpoints(run)[-1]
    state = json.loads((folder / "state.json").read_text())
    assert isinstance(state["window"], list)
    (folder / "state.json").write_text(json.dumps(state | {"window": [1.0, 0.5]}))
    assert checkpoint.read_state(folder)["window"] == [1.0, 0.5]
    for window in [True], "x", [None], [1e999], [1]:
        (folder / "state.json").write_text(json.dumps(state | {"window": window}))
        with pytest.raises(checkpoint.CorruptCheckpoint, match="losses"):
            checkpoint.read_state(folder)
