"""Inception-v3 with the weights of 2015, from torch-fidelity: the features of published FID and IS.

Images are resized to 299 x 299 as in TensorFlow 1; features are the 2048 pooled activations, logits those without bias.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from justimage import disk
from justimage.features import Extractor
from justimage.operators import declare_operators

FILE, BYTES, SHA256 = "weights-inception-2015-12-05-6726825d.pth", 95_628_359, "6726825d0af5f729"
"""The weights file that torch-fidelity publishes (release v0.2.0), its size, and the beginning of its SHA-256."""


def default_path() -> Path:
    """Return where torch-fidelity stores the weights; ValueError with instructions if they are missing."""
    check_torch_fidelity()
    path = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if not path.is_file():
        raise ValueError(
            f"the weights of Inception-v3 are not at {path}; put {FILE} there (torch-fidelity's release v0.2.0, "
            f"{BYTES:,} bytes, SHA-256 {SHA256}...), or --features FILE.pth, or a classifier: justimage feature-space train"
        )
    return path


def check_torch_fidelity() -> None:
    if importlib.util.find_spec("torch_fidelity") is None:
        raise ValueError("Inception features need torch-fidelity: pip install 'justimage[eval]'")


def open_weights(path: Path, device: torch.device, sha256: str = SHA256) -> Extractor:
    """Open Inception-v3 with weights from a file, a pickle: one whose SHA-256 begins differently is not unpickled."""
    actual = disk.sha256(path)
    if not actual.startswith(sha256):
        raise ValueError(f"{path} has SHA-256 {actual[:16]}..., not {sha256}...; it is not the file {FILE}")
    check_torch_fidelity()
    declare_operators()
    from torch_fidelity.utils import create_feature_extractor

    net: Any = create_feature_extractor(
        "inception-v3-compat", ["2048", "logits_unbiased"], cuda=False, feature_extractor_weights_path=str(path), verbose=False
    )
    net = net.to(device)

    @torch.no_grad()
    def extract(images: Tensor) -> tuple[Tensor, Tensor]:
        if images.dtype != torch.uint8 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"Inception takes uint8 images of 1 or 3 channels; these are {images.dtype} of {images.shape[1]}; "
                "use features of your data: justimage feature-space train"
            )
        features, logits = net(images.expand(-1, 3, -1, -1).to(device))
        return features.float().cpu(), logits.float().cpu()

    return Extractor("Inception-v3 (2015-12-05, torch-fidelity)", f"inception:{actual}", 2048, extract)
