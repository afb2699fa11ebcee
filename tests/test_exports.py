"""Exported files: the same numbers as PyTorch for any number of images, or no file."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import justimage
from justimage import checkpoint
from justimage.cli import convert
from justimage.convert import exports
from justimage.convert.int8 import Int8Linear, with_int8_weights
from justimage.normalization import Normalization
from justimage.sampling import Denoiser, Sampling, sample

GUIDED = Sampling("unipc", steps=3, times="logsnr", guidance=2.0, interval=(0.1, 1.0), t_clip=0.0)


def tiny(**changes) -> Denoiser:
    """A network with random weights, none of them zero."""
    torch.manual_seed(0)
    small = dict(image_size=8, patch_size=4, channels=2, width=16, depth=2, heads=2, bottleneck=4, context_start=1)
    net = justimage.JiT("T/4", **dict(classes=5, context_tokens=2, **small) | changes).eval()
    for weight in net.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.2)
    return Denoiser(net, sampling=GUIDED, normalization=Normalization((1.0, -2.0), (3.0, 0.5)))


def inputs_of(model: Denoiser, n: int, sampler: bool) -> exports.Named:
    """Inputs other than those with which a file was compared when it was written."""
    return {name: q.flip(0) for name, q in exports.random_inputs(model, n, sampler).items()}


def opened(path: Path):
    return exports.open_onnx(path) if path.suffix == ".onnx" else exports.open_pt2(path)


TOLD = {
    "classes": {},
    "classes, and an auxiliary classifier": dict(aux_classifier=True),
    "nothing": dict(classes=0),
    "image, vector and text": dict(image_channels=1, vector=3, text_length=6),
    "an encoder's tokens": dict(classes=0, text_length=4, text_features=7, norm="layer", mlp="gelu", rope=False),
}


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("told", [pytest.param(t, marks=[] if t == "classes" else pytest.mark.full) for t in TOLD])
@torch.no_grad()
def test_a_network_computes_the_same_for_any_batch(told: str, suffix: str, tmp_path: Path) -> None:
    model = tiny(**TOLD[told])
    done = exports.export(model, tmp_path / f"net{suffix}")
    assert done.error <= 1e-4 and done.int8_error == 0
    run = opened(done.path)
    for n in 1, 3, 8:
        inputs = inputs_of(model, n, False)
        wanted = model.net(*exports.arguments(inputs))
        wanted = wanted[0] if isinstance(wanted, tuple) else wanted
        assert exports.relative_error(run(inputs), wanted) < 1e-5
    known: dict = {}
    exec(done.usage, known)  # the file runs as it says, without this package
    assert "justimage" not in done.usage and len(done.usage.splitlines()) == 3
    assert tuple(known["output"].shape) == (4, *model.shape)


SAMPLINGS = {
    "guided": GUIDED,
    "guidance every second time": replace(GUIDED, guidance_every=2),
    "unguided Heun": Sampling("heun", steps=2),
}


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("how", [pytest.param(s, marks=[] if s == "guided" else pytest.mark.full) for s in SAMPLINGS])
def test_a_sampler_makes_the_images_of_sample(how: str, suffix: str, tmp_path: Path) -> None:
    """Floats to rounding, here in units of the data; of pixels few, and by a level."""
    model = tiny()
    run = opened(exports.export(model, tmp_path / f"s{suffix}", SAMPLINGS[how]).path)
    for n in 1, 3, 8:
        inputs = inputs_of(model, n, True)
        wanted = sample(model, inputs["classes"], noise=inputs["noise"], sampling=SAMPLINGS[how])
        assert exports.relative_error(run(inputs), wanted) < 1e-5


@pytest.mark.full
def test_a_sampler_told_an_image_makes_pixels(tmp_path: Path) -> None:
    model = replace(tiny(image_channels=1), normalization=Normalization())
    run = opened(exports.export(model, tmp_path / "s.onnx", GUIDED).path)
    inputs = inputs_of(model, 3, True)
    wanted = sample(model, {name: q for name, q in inputs.items() if name != "noise"}, noise=inputs["noise"], sampling=GUIDED)
    assert run(inputs).dtype == torch.uint8 and exports.relative_error(run(inputs), wanted) < 1e-5


def test_int8_rounds_each_weight_by_half_a_level_at_most() -> None:
    net: Any = tiny().net
    for name, layer in with_int8_weights(net).named_modules():
        if isinstance(layer, Int8Linear):
            weight = net.get_submodule(name).weight
            assert layer.levels.dtype == torch.int8
            assert bool(((layer.weight - weight).abs() <= weight.abs().amax(1, keepdim=True) / 254 * 1.00001).all())


@pytest.mark.parametrize("suffix", [".onnx", pytest.param(".pt2", marks=pytest.mark.full)])
@torch.no_grad()
def test_int8_is_written_as_integers_and_computes_what_pytorch_does_with_them(suffix: str, tmp_path: Path) -> None:
    model = tiny(width=128)
    small = exports.export(model, tmp_path / f"net{suffix}", int8=True)
    assert small.path.stat().st_size < 0.5 * exports.bytes_of(model.net)
    inputs = inputs_of(model, 3, False)
    wanted = with_int8_weights(model.net)(*exports.arguments(inputs))
    assert exports.relative_error(opened(small.path)(inputs), wanted) < 1e-5
    assert 0 < small.int8_error < 0.05


def test_a_run_becomes_a_file_that_says_how_it_was_made(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnx

    words = "--to onnx --sampler --passes 3 --guidance 1.5 --ema 100"
    assert convert.main([str(run), str(tmp_path / "s.onnx"), *words.split()]) == 0
    said = capsys.readouterr().out
    assert "onnxruntime.InferenceSession" in said and "guidance 1.5" in said
    graph = onnx.load(tmp_path / "s.onnx")
    about = json.loads({p.key: p.value for p in graph.metadata_props}["justimage"])
    place = checkpoint.resolve(run)
    assert about["weights"] == checkpoint.fingerprint(place, 100) and about["ema"] == 100
    assert about["version"] == justimage.__version__ and about["kind"] == "sampler"
    assert about["recipe"]["class_names"] == list(map(str, range(10)))
    assert (about["sampling"]["guidance"], about["sampling"]["solver"]) == (1.5, "unipc")
    assert str(Path(__file__).parents[1]).encode() not in (tmp_path / "s.onnx").read_bytes()  # no paths of this machine
    noise = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(7))
    found = exports.open_onnx(tmp_path / "s.onnx")({"noise": noise, "classes": torch.tensor([3, -1])})
    how = Sampling(**about["sampling"] | {"interval": tuple(about["sampling"]["interval"])})
    wanted = sample(justimage.load(run, ema=100, device="cpu"), [3, -1], noise=noise, sampling=how)
    assert exports.relative_error(found, wanted) < 1e-4


def test_a_file_that_differs_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none that the runtime refuses, or of a network that cannot be traced."""
    run = exports.open_pt2
    monkeypatch.setattr(exports, "open_pt2", lambda path: lambda inputs: run(path)(inputs) * 1.001)
    with pytest.raises(ValueError, match="differ from PyTorch by"):
        exports.export(tiny(), tmp_path / "net.pt2")
    nan = {1: 1.0, 3: torch.nan}  # of some images alone
    monkeypatch.setattr(exports, "open_pt2", lambda path: lambda inputs: run(path)(inputs) * nan[len(inputs["z"])])
    with pytest.raises(ValueError, match="nothing was written"):
        exports.export(tiny(), tmp_path / "net.pt2")

    class Untraceable(torch.nn.Module):
        def forward(self, z: torch.Tensor, t: torch.Tensor, y: object = None) -> torch.Tensor:
            return z * float(np.float64(z.sum().item()))

    with pytest.raises(ValueError, match=r"does not export to \.pt2") as error:
        exports.export(Denoiser(Untraceable(), shape=(1, 4, 4)), tmp_path / "net.pt2")
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


MISTAKES = {
    "wrong ending": ("convert RUN net.pth --to onnx", "net.pth must end in .onnx"),
    "a target that exists": ("convert RUN there.onnx --to onnx", "there.onnx exists"),
    "a solver that draws noise": ("convert SDE new.onnx --to onnx --sampler", "solver sde draws noise"),
    "options of a sampler": ("convert RUN new.onnx --to onnx --passes 9", "add --sampler"),
    "no run": ("convert nowhere new.pt2 --to pt2", "nowhere does not exist"),
    "no such average": ("convert RUN new.pt2 --to pt2 --ema 0.5", "no ema 0.5"),
    "a file as parent": ("convert RUN there.onnx/new.pt2 --to pt2", "there.onnx is a file"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    mistake: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.onnx").touch()
    words, said = MISTAKES[mistake]
    if "SDE" in words:
        recipe = checkpoint.read_recipe(place := checkpoint.resolve(run))
        groups = {f"ema-{value:g}": checkpoint.load_group(place, f"ema-{value:g}") for value in (100, 300)}
        recipe = replace(recipe, sampling=replace(recipe.sampling, solver="sde"))
        checkpoint.write_checkpoint(tmp_path / "sde", groups, recipe, {"images_seen": 640})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, OSError)) as error:
        convert.main([w.replace("RUN", str(run)).replace("SDE", "sde") for w in words.split()[1:]])
    assert said in str(error.value) and "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_without_the_extra_one_line_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "find_spec", lambda package: None)
    with pytest.raises(ValueError, match=r"pip install 'justimage\[export\]'"):
        exports.export(tiny(), tmp_path / "net.onnx")
    exports.check_target(tmp_path / "net.pt2")


def test_weights_that_an_onnx_file_cannot_hold_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "ONNX_BYTES", 1000)
    with pytest.raises(ValueError, match="an ONNX file holds 2: --to pt2, or --int8"):
        exports.export(tiny(), tmp_path / "net.onnx")
