"""A compiled network: the same images to rounding, and the same without a compiler."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from justimage.inference import CompiledNetwork, compile_denoiser
from justimage.sampling import Sampling, trajectory
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


@pytest.mark.full
def test_images_are_sampled_compiled(run: Path, tmp_path: Path) -> None:
    words = ["sample", "--from", run, "--count", "2", "--steps", "2", "--compile", "--device", "cpu"]
    for name in "a", "b":
        done = justimage(*words, "--folder", name, cwd=tmp_path)
        assert done.returncode == 0 and "uncompiled" not in done.stderr, done.stderr
    assert (tmp_path / "a" / "images.csv").read_bytes() == (tmp_path / "b" / "images.csv").read_bytes()
