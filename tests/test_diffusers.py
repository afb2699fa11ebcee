"""Folders for diffusers: they run without justimage and draw what it draws, and come back as they were; others' are read."""

import ast
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import justimage
from justimage import checkpoint
from justimage.architectures import Architecture
from justimage.conditions import text_bytes
from justimage.convert import diffusers_folder, official
from justimage.diffusion import Diffusion
from justimage.ema import ema_name
from justimage.normalization import Normalization
from justimage.randomness import image_noise
from justimage.recipe import Recipe, Training
from justimage.sampling import Denoiser, Sampling, sample, trajectory
from justimage.solvers import SOLVERS
from justimage.transformer import JiT
from tests.hub_server import HubServer
from tests.reference import TINY, TINY_ARCHITECTURE, TINY_ARRAYS, noise, official_weights, relative_error

ODD = Architecture(
    image_size=(16, 24), patch_size=8, channels=2, classes=3, width=32, depth=3, heads=2, bottleneck=None, context_tokens=2,
    context_start=1, mlp="gelu", norm="layer", vector=2, text_length=6,
)  # fmt: skip
RECIPES = {
    "paper": Recipe(
        model=TINY_ARCHITECTURE,
        sampling=Sampling("heun", steps=4, guidance=2.2, interval=(0.1, 1.0)),
        training=Training(ema=(0.9996, 0.9999), sample_ema=0.9996),
        class_names=("cat", "dog", *"cdefghij"),
    ),
    "odd": Recipe(
        model=ODD,
        diffusion=Diffusion("v", "x", "trigonometric", noise_scale=0.5, t_clip=0.02),
        sampling=Sampling("unipc", times=(0.0, 0.2, 0.5, 0.8, 0.9, 1.0), guidance=1.5, t_clip=0.01),
        training=Training(ema=(2000.0,), sample_ema=0.0),
        normalization=Normalization((1.0, -2.0), (0.5, 3.0)),
    ),
}
CONDITIONS = {
    "paper": {"class_labels": ["cat", 4]},
    "odd": {"class_labels": [0, 2], "prompt": ["a cat", ""], "condition": {"vector": [[0.5, -1.0], [2.0, 0.0]]}},
}
SETTINGS = {
    f"{solver}, guidance {guidance}": dict(solver=solver, num_inference_steps=5, guidance_scale=guidance, times="cosine")
    for solver in ("heun", "euler", "dpm2", "unipc")
    for guidance in (1.0, 2.5)
}


@dataclass
class Model:
    name: str
    ours: Path
    folder: Path
    found: dict[str, np.ndarray]
    """what a process with diffusers alone made of it"""
    again: Path
    """the folder as diffusers saved it"""

    @property
    def denoiser(self) -> Denoiser:
        return justimage.load(self.ours, device="cpu")

    def sample(self, sampling: Sampling) -> Tensor:
        """The samples of seeds 3 and 8 by justimage, as the solver ends."""
        denoiser, y = self.denoiser, torch.tensor([0, 4] if self.name == "paper" else [0, 2])
        if self.name == "odd":
            words = torch.stack([text_bytes(text, 6) for text in CONDITIONS["odd"]["prompt"]])
            y = {"classes": y, "text": words, "vector": torch.tensor(CONDITIONS["odd"]["condition"]["vector"])}
        z = torch.stack([image_noise(seed, denoiser.shape) for seed in (3, 8)]) * denoiser.diffusion.noise_scale
        *_, last = trajectory(denoiser, z, y, sampling, seeds=(3, 8))
        return last.z


def written(place: Path, recipe: Recipe) -> Path:
    """A checkpoint whose every weight matters: a new network's head is 0. Averages differ."""
    named = {n: (i, tuple(p.shape)) for i, (n, p) in enumerate(JiT(recipe.model).named_parameters())}
    groups = {
        f"ema-{ema_name(ema)}" if ema else "model": {
            n: 0.1 * noise(1000 * k + i, shape) + (len(shape) == 1 and "norm" in n) for n, (i, shape) in named.items()
        }
        for k, ema in enumerate((0.0, *recipe.training.ema))
    }
    return checkpoint.write_checkpoint(place, groups, recipe, {"images_seen": 0})


@pytest.fixture(scope="module", params=list(RECIPES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    pytest.importorskip("diffusers")
    name, place = request.param, tmp_path_factory.mktemp("diffusers")
    ours = written(place / "ours", RECIPES[name])
    folder = diffusers_folder.export_diffusers(ours, place / "folder")
    usual = CONDITIONS[name] | {"seeds": [3, 8]}
    jobs: dict[str, Any] = {"as configured": {"call": usual}}
    jobs |= {pipe: {"call": usual, "pipe": pipe} for pipe in ("bf16", "again")}
    jobs |= {setting: {"call": usual | values} for setting, values in SETTINGS.items()}
    if name == "paper":
        for solver in SOLVERS:
            values = dict(latents=noise(1, (2, 3, 32, 32)).tolist(), class_labels=[0, 4], solver=solver, num_inference_steps=4)
            jobs[f"{solver}, by step"] = {"call": values, "loop": True}
            jobs[f"{solver}, by pipeline"] = {"call": values | {"guidance_scale": 1.0}}
    return Model(name, ours, folder, run_alone(place, folder, jobs), place / "again")


def run_alone(place: Path, folder: str | Path, jobs: dict[str, Any], **environment: str) -> dict[str, np.ndarray]:
    """The samples of jobs, by a process that cannot import justimage."""
    (place / "jobs.json").write_text(json.dumps(jobs))
    words = Path(__file__).with_name("diffusers_alone.py"), folder, place / "jobs.json", place / "found.npz"
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = {"HF_HOME": str(place / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environment
    line = [sys.executable, *map(str, words)]
    done = subprocess.run(line, env=plain | environment, cwd=place, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return dict(np.load(place / "found.npz"))


pytestmark = pytest.mark.full


@pytest.mark.parametrize("setting", ["as configured", *SETTINGS])
def test_diffusers_alone_draws_our_samples(model: Model, setting: str) -> None:
    usual = RECIPES[model.name].sampling
    values = SETTINGS.get(setting)
    asked = (
        replace(usual, solver=values["solver"], steps=5, times="cosine", guidance=values["guidance_scale"]) if values else usual
    )
    assert relative_error(torch.from_numpy(model.found[setting]), model.sample(asked)) <= 1e-5
    guided = SETTINGS.get(setting.replace(" 1.0", " 2.5"))
    if values and guided != values:
        assert np.abs(model.found[setting] - model.found[setting.replace(" 1.0", " 2.5")]).max() > 1e-3


def test_bf16_weights_leave_the_sample_in_float32(model: Model) -> None:
    plain, half = model.found["as configured"], model.found["bf16"]
    assert model.found["bf16 weights"] and half.dtype == np.float32
    assert 0 < relative_error(torch.from_numpy(half), plain) < 0.1


def test_steps_of_the_scheduler_are_the_pipelines(model: Model) -> None:
    loops = [name.removesuffix(", by step") for name in model.found if name.endswith(", by step")]
    assert loops == (list(SOLVERS) if model.name == "paper" else [])
    for solver in loops:
        by_step, by_pipeline = (model.found[f"{solver}, {how}"] for how in ("by step", "by pipeline"))
        assert relative_error(torch.from_numpy(by_step), by_pipeline) <= 1e-6, solver


def test_pixels_are_those_of_sample(model: Model) -> None:
    if model.name == "odd":  # floats are shown, one channel of two
        assert model.found["pixels"].shape == (2, 16, 24)
        return
    pixels = sample(model.denoiser, 1, seeds=[5, 6]).movedim(1, -1).numpy()
    assert np.abs(pixels.astype(int) - model.found["pixels"]).max() <= 1


def test_a_generator_is_enough_to_draw_the_same_again(model: Model) -> None:
    first, again, other = model.found["by generator"]
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_what_a_model_is_not_told_is_one_line(model: Model) -> None:
    paper = model.name == "paper"
    known = "it has cat, dog, c, d, e, f, g, h, i, j" if paper else "it has none, they have no names"
    assert str(model.found["wrong class"]) == f"class 'cta' is not one of this model's; {known}"
    told = "class_labels alone" if paper else "vector, text"
    assert str(model.found["wrong entry"]) == f"condition has 'picture'; this transformer is told {told}"
    shape = "has 'vector'; this transformer is told class_labels alone" if paper else "'vector' is (1, 3); allowed: (n, 2)"
    assert str(model.found["wrong shape"]) == f"condition {shape}"


def test_what_diffusers_saves_runs_and_comes_back(model: Model, tmp_path: Path) -> None:
    assert np.array_equal(model.found["again"], model.found["as configured"])
    assert len(list((model.again / "transformer").glob("*.safetensors"))) > 1  # in parts, by an index
    wanted = RECIPES[model.name].shared((RECIPES[model.name].training.sample_ema,))
    for folder in model.folder, model.again:
        back = diffusers_folder.import_diffusers(folder, tmp_path / folder.name)
        assert checkpoint.read_recipe(back) == wanted
        there, here = justimage.load(model.ours, device="cpu").net, justimage.load(back, device="cpu").net
        assert all(torch.equal(p, q) for p, q in zip(there.parameters(), here.parameters(), strict=True))


def test_a_repository_on_the_hub_runs_and_comes_back(model: Model, tmp_path: Path) -> None:
    """With its code, by a stand-in for the Hub."""
    from tests.test_hub import Command

    if model.name == "odd":
        return
    server = HubServer()
    files = {str(file.relative_to(model.folder)): file.read_bytes() for file in model.folder.rglob("*") if file.is_file()}
    server.repositories["me/cats"] = {"main": files}
    jobs = {"as configured": {"call": CONDITIONS[model.name] | {"seeds": [3, 8]}}}
    hub = {"HF_ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "friend"}
    found = run_alone(tmp_path, "me/cats", jobs, **hub)
    assert np.array_equal(found["as configured"], model.found["as configured"])
    server.requests[:] = []
    done = Command(server, tmp_path)("convert", "hf://me/cats", "back")
    server.shutdown()
    assert done.returncode == 0, done.stderr
    assert not [line for line in server.requests if ".py" in line]  # code is not even fetched
    assert checkpoint.read_recipe(tmp_path / "back") == RECIPES["paper"].shared((0.9996,))


def test_another_average(tmp_path: Path) -> None:
    ours = written(tmp_path / "ours", RECIPES["paper"])
    folder = diffusers_folder.export_diffusers(ours, tmp_path / "folder", ema=0.9999)
    back = justimage.load(diffusers_folder.import_diffusers(folder, tmp_path / "back"), device="cpu")
    there = justimage.load(ours, ema=0.9999, device="cpu")
    assert all(torch.equal(p, q) for p, q in zip(there.net.parameters(), back.net.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"there is no ema 0\.5"):
        diffusers_folder.export_diffusers(ours, tmp_path / "none", ema=0.5)
    assert not (tmp_path / "none").exists()


# folders of others ------------------------------------------------------------------------------------------------------


def pull_request(weights: dict[str, Tensor], split: bool) -> dict[str, Tensor]:
    """The authors' weights with the names of pull request 13098: as it is (q, k, v apart), and as it was at first."""
    names = [
        (".adaLN_modulation.1.", ".adaLN_modulation."), ("final_layer.adaLN_modulation.", "adaLN_modulation_final."),
        ("final_layer.norm_final.", "norm_final."), ("final_layer.linear.", "linear_final."),
    ]  # fmt: skip
    if split:
        names += [(".attn.proj.", ".attn.to_out.0."), (".attn.q_norm.", ".attn.norm_q."), (".attn.k_norm.", ".attn.norm_k.")]
    found = {}
    for name, tensor in weights.items():
        name = name.removeprefix("net.")
        for old, new in names:
            name = name.replace(old, new)
        if split and ".attn.qkv." in name:
            found |= {name.replace("qkv", f"to_{letter}"): part for letter, part in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            found[name] = tensor
    return found


SPELLINGS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "pull request": partial(pull_request, split=True),
    "JiT-diffusers": partial(pull_request, split=False),
    "JiT-diffusers at first": lambda weights: {n.replace("net.", "transformer.", 1): w for n, w in weights.items()},
}
CONFIG = dict(
    _class_name="JiTTransformer2DModel", sample_size=32, patch_size=8, hidden_size=64, num_layers=4, num_attention_heads=4,
    num_classes=10, bottleneck_dim=16, in_context_len=4, in_context_start=2, norm_eps=1e-6, dropout=0.1,
)  # fmt: skip


def foreign(place: Path, spelling: str, positions: Tensor | None = None) -> Path:
    """A folder of others, with weights that the authors' code was run with."""
    weights = official_weights(TINY["state_dict_shapes"], 0.2)
    if positions is not None:
        weights["net.pos_embed"] = positions
    (place / "transformer").mkdir(parents=True)
    (place / "scheduler").mkdir()
    labels = {str(i): f"class {i}" for i in range(10)}
    for name, values in {
        "model_index.json": {"_class_name": ["pipeline", "JiTPipeline"], "id2label": labels},
        "transformer/config.json": CONFIG,
        "scheduler/scheduler_config.json": {"_class_name": "JiTScheduler", "solver": "euler", "t_eps": 0.04},
    }.items():
        (place / name).write_text(json.dumps(values))
    tensors = {n: w.contiguous().clone() for n, w in SPELLINGS[spelling](weights).items()}
    save_file(tensors, place / "transformer" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    for code in "pipeline.py", "transformer/jit_transformer_2d.py", "scheduler/scheduling_jit.py":
        (place / code).write_text(f"open({str(place / 'ran')!r}, 'w')\n")
    return place


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_folders_of_others_are_the_authors_network(spelling: str, tmp_path: Path) -> None:
    source = foreign(tmp_path / "theirs", spelling)
    for place in source, source / "transformer":
        ours = diffusers_folder.import_diffusers(place, tmp_path / f"ours-{place.name}")
        model = justimage.load(ours, device="cpu")
        out = model.net(noise(1, (4, 3, 32, 32)), torch.from_numpy(TINY_ARRAYS["t"]), torch.from_numpy(TINY_ARRAYS["y"]))
        assert relative_error(out, TINY_ARRAYS["forward"]) < 1e-5
        assert model.net.architecture == replace(TINY_ARCHITECTURE, dropout=0.1)
    recipe = checkpoint.read_recipe(tmp_path / "ours-theirs")
    assert (recipe.sampling.solver, recipe.sampling.t_clip, recipe.class_names[3]) == ("euler", 0.04, "class 3")
    assert not (source / "ran").exists()


def test_the_positions_of_diffusers_are_the_authors(model: Model, tmp_path: Path) -> None:
    """The pull request's table is made by diffusers; a folder with it is read."""
    if model.name == "paper":
        table = torch.from_numpy(model.found["pos_embed"])
        diffusers_folder.import_diffusers(foreign(tmp_path / "theirs", "pull request", table), tmp_path / "ours")


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def retype(file: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, {"format": "pt"})


CONFIG_FILE, FILE = "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"
Q, V, W3 = "blocks.1.attn.to_q.weight", "blocks.1.attn.to_v.weight", "blocks.1.mlp.w3.bias"
Weights = dict[str, Tensor]
SPOILED_WEIGHTS: dict[str, tuple[str, Callable[[Weights], Any]]] = {
    "missing": (f"is missing tensors: net.{W3}", lambda w: w.pop(W3)),
    "extra": ("has extra tensors: net.more", lambda w: w.update(more=torch.zeros(1))),
    "half of q, k, v": (f"net.{Q} has no to_k or to_v", lambda w: w.pop(V)),
    "misshapen": ("has misshapen tensors: net.blocks.1.attn.qkv", lambda w: w.update({Q: torch.zeros(9, 64)})),
    "positions": ("is not the fixed table", lambda w: w["pos_embed"].add_(0.1)),
    "integers": ("not a float", lambda w: w.update({Q: w[Q].long()})),
}
SPOILED_FILES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "epsilon": ("norm_eps is 0.001", lambda p: change(p / CONFIG_FILE, norm_eps=1e-3)),
    "start": ("context_start is 9", lambda p: change(p / CONFIG_FILE, in_context_start=9)),
    "nonsense": ("is configured as no JiT", lambda p: change(p / CONFIG_FILE, in_context_start="two")),
    "pickle": ("pickled weights are not read", lambda p: (p / FILE).rename((p / FILE).with_suffix(".bin"))),
    "no weights": ("has no weights", lambda p: (p / FILE).unlink()),
    "index": ("lists no files", lambda p: (p / f"{FILE}.index.json").write_text('{"weight_map": {"a": "../b.safetensors"}}')),
    "no config": ("config.json", lambda p: (p / CONFIG_FILE).unlink()),
    "text": ("is not JSON", lambda p: (p / "model_index.json").write_text("hello")),
}
FAULTS = SPOILED_FILES | {
    fault: (message, lambda p, edit=edit: retype(p / FILE, edit)) for fault, (message, edit) in SPOILED_WEIGHTS.items()
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_one_line_and_nothing_written(fault: str, tmp_path: Path) -> None:
    source = foreign(tmp_path / "theirs", "pull request")
    message, spoil = FAULTS[fault]
    spoil(source)
    with pytest.raises((ValueError, OSError)) as error:
        diffusers_folder.import_diffusers(source, tmp_path / "ours")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "ours").exists()


def test_our_own_folder_is_read_strictly(tmp_path: Path) -> None:
    folder = diffusers_folder.export_diffusers(written(tmp_path / "ours", RECIPES["odd"]), tmp_path / "folder")
    for number, (name, values, message) in enumerate([
        ("transformer/config.json", {"width": "wide"}, "recipe.model.width is 'wide'"),
        ("transformer/config.json", {"depth": 4}, "is missing tensors: blocks.3."),
        ("transformer/config.json", {"width": 10**9}, "width is 1000000000"),
        ("scheduler/scheduler_config.json", {"solver": "magic"}, "solver is 'magic'"),
        ("model_index.json", {"recipe": {"version": 1}}, "version 1"),
    ]):  # fmt: skip
        shutil.copytree(folder, tmp_path / str(number))
        change(tmp_path / str(number) / name, **values)
        with pytest.raises(ValueError, match=message):
            diffusers_folder.import_diffusers(tmp_path / str(number), tmp_path / "back")
    assert not (tmp_path / "back").exists()
    with pytest.raises(ValueError, match="is a folder of diffusers; make a checkpoint of it: justimage convert"):
        justimage.load(folder)


def test_what_cannot_be_carried_is_refused(tmp_path: Path) -> None:
    ours = written(tmp_path / "ours", replace(RECIPES["paper"], custom=("loss mine",)))
    with pytest.raises(ValueError, match="was trained with loss mine"):
        diffusers_folder.export_diffusers(ours, tmp_path / "folder")
    with pytest.raises(FileExistsError):
        diffusers_folder.export_diffusers(ours, tmp_path)
    assert not (tmp_path / "folder").exists()


# the code in a folder ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", diffusers_folder.CODE.values())
def test_joined_code_stands_alone(part: str, tmp_path: Path) -> None:
    """No name is missing or defined twice, and nothing of justimage is imported."""
    (tmp_path / "joined.py").write_text(text := diffusers_folder.joined_code(part))
    line = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F,E9", str(tmp_path / "joined.py")]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    modules = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    assert not [module for module in modules if module.startswith("justimage")]


@pytest.mark.parametrize(("part", "kinds"), [("transformer", (Architecture,)), ("scheduler", (Sampling, Diffusion))])
def test_configurations_are_our_dataclasses(part: str, kinds: tuple[type, ...]) -> None:
    """Every field, with its default, but classes, which a recipe may leave open."""
    tree = ast.parse((Path(inspect.getfile(diffusers_folder)).parent / f"carried/justimage_{part}.py").read_text())
    made = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    names = [argument.arg for argument in made.args.args][1:]
    defaults = dict(zip(names, map(ast.literal_eval, made.args.defaults), strict=True))
    renamed = {(Diffusion, old): new for old, new in diffusers_folder.TWO_CLIPS.items()}
    assert defaults == {renamed.get((kind, f.name), f.name): f.default for kind in kinds for f in fields(kind)}
    assert list(defaults) == [renamed.get((kind, f.name), f.name) for kind in kinds for f in fields(kind)]


def test_the_command_line_goes_both_ways(tmp_path: Path) -> None:
    from tests.test_cli import justimage as command

    written(tmp_path / "ours", RECIPES["paper"])
    for words in (("ours", "folder", "--to", "diffusers", "--ema", "0.9999"), ("folder", "back")):
        done = command("convert", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert checkpoint.read_recipe(tmp_path / "back") == RECIPES["paper"].shared((0.9999,))
    official.export_official(tmp_path / "back", tmp_path / "back.pth")
