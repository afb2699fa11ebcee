"""A compiled network: the same images to rounding, and the same without a compiler."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from justimage import checkpoint
from justimage.inference import CompiledNetwork, cast_weights, compile_denoiser, suit_cpu
from justimage.sampling import Sampling, sample, trajectory
from justimage.transformer import JiT
from tests.reference import noise, relative_error, tiny
from tests.test_cli import justimage

SETTINGS = Sampling("unipc", steps=4, times="cosine", guidance=2.0, interval=(0.1, 1.0), t_clip=0.0)


def end(denoiser, dtype: torch.dtype | None = None) -> torch.Tensor:
    *_, last = trajectory(denoiser, noise(2, (2, 3, 32, 32)), torch.tensor([3, 7]), SETTINGS, dtype)
    return last.z


@pytest.mark.full
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_it_samples_the_same_to_rounding(dtype: torch.dtype) -> None:
    """With guidance in some steps, so in two batch sizes. In bf16 no farther from fp32 than bf16 without a compiler."""
    model = tiny()
    exact, found = end(model), end(compile_denoiser(model, dtype))
    rounding = 1e-5 if dtype == torch.float32 else 1.5 * relative_error(end(model, dtype), exact)
    assert 0 < relative_error(found, exact) < rounding
    assert torch.equal(end(model), exact), "the network itself is as it was"


@pytest.mark.parametrize("changes", [{}, {"rope": False, "norm": "layer"}, {"mlp": "gelu", "qk_norm": False}])
def test_layers_rewritten_for_a_cpu_compute_the_same(changes: dict) -> None:
    """In float64, but for a softmax in float32: only a mistake is larger than that."""
    net = JiT("T/8", image_size=(32, 24), classes=10, **changes).double()
    for i, parameter in enumerate(net.parameters()):
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(i))
    inputs = noise(2, (2, 3, 32, 24)).double(), torch.tensor([0.2, 0.7]), torch.tensor([3, -1])
    with torch.no_grad():
        before = net(*inputs)
        suit_cpu(net)
        assert relative_error(net(*inputs), before) < 1e-7


@pytest.mark.parametrize("most", [math.inf, 1, 2, 3])
def test_batches_of_any_size_are_compiled_whole_or_cut(most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole on a GPU, where there is no most."""
    monkeypatch.setattr(torch, "compile", lambda net, **_: net)
    model = tiny()
    compiled = compile_denoiser(model, torch.float32)
    assert isinstance(compiled.net, CompiledNetwork)
    compiled.net.most = most
    assert relative_error(end(compiled), end(model)) < 1e-5 and compiled.net.works


def test_without_a_compiler_it_warns_once_and_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*inputs: object) -> None:
        raise RuntimeError("no C++ compiler\nmore")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    model = tiny()
    compiled = compile_denoiser(model, torch.float32)
    with pytest.warns(UserWarning, match="sampling uncompiled, as the compiler failed: no C") as caught:
        assert torch.equal(end(compiled), end(model))
    assert len(caught) == 1 and isinstance(compiled.net, CompiledNetwork) and not compiled.net.works
    assert (compiled.shape, compiled.classes) == (model.shape, model.classes)
    assert replace(compiled, net=model.net) == model


def test_weights_cast_once_give_what_autocast_gives_to_the_bit() -> None:
    model, cast = tiny(), tiny()
    cast_weights(cast.net, torch.bfloat16)
    assert torch.equal(end(cast, torch.bfloat16), end(model, torch.bfloat16))


def test_a_model_is_loaded_with_weights_cast(run: Path) -> None:
    """The same images to the bit, in little more than half of the memory."""
    whole, cast = checkpoint.load(run, device="cpu"), checkpoint.load(run, device="cpu", dtype=torch.bfloat16)
    images = [sample(model, [1, 2], 0, SETTINGS, dtype=torch.bfloat16) for model in (whole, cast)]
    assert torch.equal(*images)
    sizes = [sum(p.nbytes for p in model.net.parameters()) for model in (whole, cast)]
    assert sizes[1] < 0.6 * sizes[0]


def test_a_large_batch_is_cut_and_the_last_piece_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda net, **_: net)
    model = tiny()
    fast = CompiledNetwork(model.net, torch.float32)
    z, t, y = noise(2, (5, 3, 32, 32)), torch.rand(5), torch.arange(5)
    with torch.no_grad():
        whole = model.net(z, t, y)
        for most in 1, 2, 3, 8:
            fast.most = most
            assert relative_error(fast(z, t, y), whole) < 1e-5
            assert relative_error(fast(z, t), model.net(z, t)) < 1e-5


@pytest.mark.full
def test_images_are_sampled_compiled(run: Path, tmp_path: Path) -> None:
    words = ["sample", "--from", run, "--count", "2", "--steps", "2", "--compile", "--device", "cpu"]
    for name in "a", "b":
        done = justimage(*words, "--folder", name, cwd=tmp_path)
        assert done.returncode == 0 and "uncompiled" not in done.stderr, done.stderr
    assert (tmp_path / "a" / "images.csv").read_bytes() == (tmp_path / "b" / "images.csv").read_bytes()
