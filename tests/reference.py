"""The authors' numbers: weights, noise and outputs as `fixtures/` and, beside the project, `shared/reference` describe them."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from justimage.architectures import Architecture
from justimage.convert import official
from justimage.diffusion import Diffusion
from justimage.sampling import Denoiser
from justimage.transformer import JiT

FIXTURES = Path(__file__).parent / "fixtures"
SHARED = Path(__file__).resolve().parents[2] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the folder shared/ is not beside this project")
TINY: dict[str, Any] = json.loads((FIXTURES / "tiny_reference.json").read_text())
TINY_ARRAYS = np.load(FIXTURES / "tiny_reference.npz")
TINY_ARCHITECTURE = Architecture(
    image_size=32, patch_size=8, width=64, depth=4, heads=4, bottleneck=16, context_tokens=4, context_start=2, classes=10
)  # fmt: skip


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
"""To parametrise a test with; `pytest -m gpu` runs it on the second."""


def noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def official_weights(shapes: dict[str, list[int]], scale: float) -> dict[str, Tensor]:
    """The reference's state dict, by official name, made from nothing but the names; positions as the network's own."""
    weights = {}
    for name, shape in shapes.items():
        if name == "net.pos_embed":
            side = int(shape[1] ** 0.5)
            weights[name] = official.sincos_positions(side, side, shape[2])
            continue
        w = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
        w = 1 + np.float32(0.1) * w if "norm" in name and name.endswith("weight") else np.float32(scale) * w
        weights[name] = torch.from_numpy(w)
    return weights


def tiny(device: str = "cpu", **process: Any) -> Denoiser:
    """The tiny reference network, ready to compare."""
    net = JiT(TINY_ARCHITECTURE)
    net.load_state_dict(official.to_ours(official_weights(TINY["state_dict_shapes"], 0.2), TINY_ARCHITECTURE))
    return Denoiser(net.eval().to(device), Diffusion(**process))


def relative_error(ours: Tensor, theirs: Tensor | np.ndarray) -> float:
    ours, theirs = ours.detach().cpu(), torch.as_tensor(theirs)
    return ((ours - theirs).norm() / theirs.norm()).item()
