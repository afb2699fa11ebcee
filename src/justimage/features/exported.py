"""Features from any network saved by torch.export: images as in the data -> features, or (features, logits)."""

import pickle
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

from justimage import disk
from justimage.features import Extractor

DAMAGED = (
    RuntimeError, ValueError, KeyError, EOFError, OSError, AssertionError, zipfile.BadZipFile, pickle.PickleError,
)  # fmt: skip
"""Errors that PyTorch raises for a damaged file."""


@contextmanager
def tensors_only() -> Iterator[None]:
    """Within the block let PyTorch unpickle tensors only: torch.export.load would execute arbitrary pickles of a file."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise pickle.UnpicklingError("it holds pickled objects")

    load, loads = torch.load, pickle.loads
    torch.load, pickle.loads = lambda *args, **options: load(*args, **options | {"weights_only": True}), refuse
    try:
        yield
    finally:
        torch.load, pickle.loads = load, loads


def open_exported(path: Path, device: torch.device) -> Extractor:
    """Open the network in a .pt2 file; ValueError, in one line, for anything else."""
    try:
        with warnings.catch_warnings(), tensors_only():
            warnings.simplefilter("ignore")
            # an exported graph names the device of each constant and check; Module.to does not change them
            net = move_to_device_pass(torch.export.load(path), device).module()
    except DAMAGED as error:
        raise ValueError(f"{path} is not a network that torch.export saved ({' '.join(str(error).split())[:200]})") from error

    @torch.no_grad()
    def extract(images: Tensor) -> tuple[Tensor, Tensor | None]:
        try:
            output = net(images.to(device))
        except (RuntimeError, AssertionError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            remedy = f"it cannot run on {device.type}" if "device" in reason else "export it with a dynamic batch size"
            given = f"{tuple(images.shape)} {images.dtype}"
            raise ValueError(f"{path} does not take images of {given} ({reason}); {remedy}") from error
        features, logits = output if isinstance(output, tuple | list) and len(output) == 2 else (output, None)
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            raise ValueError(f"{path} must return features (n, dimension), or (features, logits); it returns neither")
        return features.float().cpu(), None if logits is None else logits.float().cpu()

    return Extractor(f"{path.name} (torch.export)", f"export:{disk.sha256(path)}", None, extract)
