"""The authors' checkpoints: the same numbers through conversion, strict, and no pickled code."""

import argparse
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import justimage
from justimage import checkpoint
from justimage.convert import official
from justimage.recipe import Recipe, with_values
from justimage.sampling import Sampling, trajectory
from tests.reference import SHARED, TINY, TINY_ARRAYS, needs_shared, noise, official_weights, relative_error


def official_file(path: Path, shapes: dict[str, list[int]], scale: float, **args) -> Path:
    model = official_weights(shapes, scale)
    file = {"model": model, "model_ema1": {n: w * 0.9 if n != "net.pos_embed" else w for n, w in model.items()}}
    file["model_ema2"] = {n: w * 0.8 if n != "net.pos_embed" else w for n, w in model.items()}
    torch.save(file | {"optimizer": {}, "epoch": 3, "args": argparse.Namespace(**args)}, path)
    return path


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    return official_file(tmp_path / "tiny.pth", TINY["state_dict_shapes"], 0.2, img_size=32, noise_scale=1.0)


def test_a_checkpoint_converts_with_its_averages_and_back(tiny_file: Path, tmp_path: Path) -> None:
    folder = official.import_official(tiny_file, tmp_path / "ours", context_start=2)
    model = justimage.load(folder, ema=0)
    out = model.net(noise(1, (4, 3, 32, 32)), torch.from_numpy(TINY_ARRAYS["t"]), torch.from_numpy(TINY_ARRAYS["y"]))
    assert relative_error(out, TINY_ARRAYS["forward"]) < 1e-5
    for ema, factor in (0.9999, 0.9), (0.9996, 0.8):
        weight = justimage.load(folder, ema=ema).net.state_dict()["time.hidden.weight"]
        torch.testing.assert_close(weight, model.net.state_dict()["time.hidden.weight"] * factor)
    back = official.export_official(folder, tmp_path / "back.pth")
    with torch.serialization.safe_globals([argparse.Namespace]):
        theirs, ours = (torch.load(p, weights_only=True) for p in (tiny_file, back))
    for part in "model", "model_ema1", "model_ema2":
        assert theirs[part].keys() == ours[part].keys()
        assert all(torch.equal(theirs[part][n], ours[part][n]) for n in theirs[part])


def test_one_file_of_a_converted_folder_loads_alone(tiny_file: Path, tmp_path: Path) -> None:
    folder = official.import_official(tiny_file, tmp_path / "ours", context_start=2)
    whole = justimage.load(folder, ema=0.9996)
    moved = (folder / "ema-0.9996-00001-of-00001.safetensors").rename(tmp_path / "weights.safetensors")
    for alone in justimage.load(moved), justimage.load(moved, ema=0.9996):
        assert all(torch.equal(p, q) for p, q in zip(whole.net.parameters(), alone.net.parameters(), strict=True))
        assert alone.diffusion == whole.diffusion
    with pytest.raises(ValueError, match=r"holds ema 0\.9996, not ema 0\.9999"):
        justimage.load(moved, ema=0.9999)


def test_settings_survive_the_way_there_and_back(tmp_path: Path) -> None:
    file = official_file(
        tmp_path / "a.pth", TINY["state_dict_shapes"], 0.2, num_sampling_steps=7, sampling_method="euler", cfg=3.0,
        ema_decay1=0.99, ema_decay2=0.9, noise_scale=2.0, t_eps=0.04, label_drop_prob=0.2, interval_min=0.2,
    )  # fmt: skip
    first = official.import_official(file, tmp_path / "ours", context_start=2)
    again = official.import_official(official.export_official(first, tmp_path / "b.pth"), tmp_path / "more", context_start=2)
    recipe = checkpoint.read_recipe(first)
    assert recipe == checkpoint.read_recipe(again)
    assert (recipe.sampling.steps, recipe.sampling.solver, recipe.training.ema) == (7, "euler", (0.99, 0.9))
    assert (recipe.diffusion.noise_scale, recipe.diffusion.t_clip, recipe.diffusion.label_drop) == (2.0, 0.04, 0.2)


def test_what_the_authors_code_would_misread_is_not_exported(tiny_file: Path, tmp_path: Path) -> None:
    folder = official.import_official(tiny_file, tmp_path / "ours", context_start=2)
    recipe = checkpoint.read_recipe(folder)
    recipe = replace(recipe, diffusion=replace(recipe.diffusion, prediction="v"))
    groups = {g: checkpoint.load_group(folder, g) for g in ("model", "ema-0.9999", "ema-0.9996")}
    checkpoint.write_checkpoint(tmp_path / "v", groups, recipe, {})
    with pytest.raises(ValueError, match="x-prediction"):
        official.export_official(tmp_path / "v", tmp_path / "v.pth")


def test_a_folder_of_averages_alone_is_exported_by_the_one_that_it_samples_with(tiny_file: Path, tmp_path: Path) -> None:
    """As one of the Hub is; and one without averages comes back. A network of one's own is refused."""
    folder = official.import_official(tiny_file, tmp_path / "ours", context_start=2)
    recipe = checkpoint.read_recipe(folder)
    average = checkpoint.load_group(folder, "ema-0.9999")
    one = checkpoint.write_checkpoint(tmp_path / "one", {"ema-0.9999": average}, recipe.shared((0.9999,)), {})
    official.export_official(one, tmp_path / "one.pth")
    back = official.import_official(tmp_path / "one.pth", tmp_path / "again", context_start=2)
    for group in "model", "ema-0.9999":
        assert all(torch.equal(t, average[n]) for n, t in checkpoint.load_group(back, group).items())
    assert checkpoint.read_recipe(back).training.ema == (0.9999,)

    none = checkpoint.write_checkpoint(tmp_path / "none", {"model": average}, with_values(recipe, ema=(), sample_ema=0), {})
    official.export_official(none, tmp_path / "none.pth")
    back = official.import_official(tmp_path / "none.pth", tmp_path / "plain", context_start=2)
    assert checkpoint.read_recipe(back).training.ema == ()
    own = replace(recipe, custom=("net own",))
    with pytest.raises(ValueError, match="was trained with net own, which the authors' code does not have"):
        official.export_official(checkpoint.write_checkpoint(tmp_path / "own", {"model": average}, own, {}), tmp_path / "o.pth")


def test_sampling_that_the_authors_code_does_not_know_becomes_theirs() -> None:
    known = Recipe(sampling=Sampling("euler", steps=20, guidance=1.5, interval=(0.2, 0.9)))
    assert official.official_sampling(known) == known.sampling
    few = Sampling(guidance=1.5, interval=(0.2, 0.9), t_clip=0.0)
    wanted = Sampling("heun", steps=50, guidance=1.5, interval=(0.2, 0.9), t_clip=0.05)
    for other in replace(few, solver="unipc"), few, replace(few, t_clip=0.05, times="cosine"):
        assert official.official_sampling(Recipe(sampling=other)) == wanted


@pytest.mark.full
@needs_shared
def test_b16_is_the_references_forward_and_generation(tmp_path: Path) -> None:
    shapes = json.loads((SHARED / "reference" / "official_state_dict_jit_b_16_256.json").read_text())
    torch.save({"model": official_weights(shapes, 0.02), "args": argparse.Namespace()}, tmp_path / "b16.pth")
    model = justimage.load(official.import_official(tmp_path / "b16.pth", tmp_path / "b16"), ema=0)
    assert set(official.to_official(dict(model.net.named_parameters()), model.net.architecture)) == set(shapes)
    forward = np.load(SHARED / "reference" / "forward_jit_b_16_256.npz")
    with torch.no_grad():
        out = model.net(noise(256, (2, 3, 256, 256)), torch.from_numpy(forward["t"]), torch.from_numpy(forward["y"]))
    assert relative_error(out, forward["out"]) < 1e-5
    generated = np.load(SHARED / "reference" / "generate_jit_b_16_256_heun6.npz")
    *_, last = trajectory(
        model, noise(11, (1, 3, 256, 256)), torch.tensor([207]), Sampling(steps=6, guidance=2.9, interval=(0.1, 1.0))
    )
    assert relative_error(last.z, generated["out"]) < 1e-5


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    for write in (lambda o, p: torch.save(o, p), lambda o, p: p.write_bytes(pickle.dumps(o))):
        write({"model": {}, "args": Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
        with pytest.raises(ValueError, match="nothing of it was run"):
            official.import_official(tmp_path / "evil.pth", tmp_path / "ours")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "ours").exists()


@pytest.mark.parametrize("fault", ["missing", "extra", "misshapen", "head", "vector", "positions", "empty", "text"])
def test_what_does_not_fit_is_named_and_nothing_written(fault: str, tiny_file: Path, tmp_path: Path) -> None:
    with torch.serialization.safe_globals([argparse.Namespace]):
        file = torch.load(tiny_file, weights_only=True)
    name, weights = "net.blocks.1.mlp.w3.bias", file["model_ema2"]
    match fault:
        case "missing":
            del weights[name]
        case "extra":
            weights["net.more"] = torch.zeros(1)
        case "misshapen":
            weights[name] = torch.zeros(3)
        case "head":
            file["model"]["net.final_layer.linear.bias"] = torch.zeros(3)
        case "vector":
            file["model"]["net.x_embedder.proj1.weight"] = torch.zeros(3)
        case "positions":
            file["model"]["net.pos_embed"] += 0.1
        case "empty":
            del file["model"]
    torch.save(file, tiny_file)
    if fault == "text":
        tiny_file.write_text("hello")
    words = {
        "missing": "missing tensors: net.blocks.1.mlp.w3.bias",
        "extra": "extra tensors: net.more",
        "misshapen": r"\[3\], not \[64\]",
        "head": "net.final_layer.linear.bias is",
        "vector": "not an official network",
        "positions": "pos_embed",
        "empty": "no entry 'model'",
        "text": "not an official checkpoint",
    }
    with pytest.raises(ValueError, match=words[fault]):
        official.import_official(tiny_file, tmp_path / "ours", context_start=2)
    assert not list(tmp_path.glob("*ours*"))


def test_an_unknown_size_asks_where_class_tokens_enter(tiny_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--context-start"):
        official.import_official(tiny_file, tmp_path / "ours")


def test_nothing_is_overwritten(tiny_file: Path, tmp_path: Path) -> None:
    folder = official.import_official(tiny_file, tmp_path / "ours", context_start=2)
    for again in (lambda: official.import_official(tiny_file, folder, 2), lambda: official.export_official(folder, tiny_file)):
        with pytest.raises(FileExistsError):
            again()
    assert checkpoint.verify(folder)
