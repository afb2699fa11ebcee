"""Features from any network saved by torch.export: images in the data's own units -> features, or (features, logits)."""

import pickle
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

from justimage import disk
from justimage.features import Extractor

UNREADABLE = (RuntimeError, ValueError, KeyError, EOFError, OSError, AssertionError)
"""Errors that PyTorch raises for an unreadable file."""


@contextmanager
def tensors_only() -> Iterator[None]:
    """Within the block PyTorch unpickles nothing but tensors; torch.export.load would run what a file's pickles say."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise pickle.UnpicklingError("it holds pickled objects")

    load, loads = torch.load, pickle.loads
    torch.load, pickle.loads = lambda *words, **options: load(*words, **options | {"weights_only": True}), refuse
    try:
        yield
    finally:
        torch.load, pickle.loads = load, loads


def open_exported(path: Path, device: torch.device) -> Extractor:
    """The network in a .pt2 file; ValueError, in one line, for what is none."""
    try:
        with warnings.catch_warnings(), tensors_only():
            warnings.simplefilter("ignore")
            # a graph names the device of each of its constants and checks, which Module.to does not change
            net = move_to_device_pass(torch.export.load(path), device).module()
    except (
        RuntimeError,
        ValueError,
        KeyError,
        EOFError,
        OSError,
        AssertionError,
        zipfile.BadZipFile,
        pickle.PickleError,
    ) as error:
        raise ValueError(f"{path} is not a network that torch.export saved ({' '.join(str(error).split())[:200]})") from error
    return Extractor(f"{path.name} (torch.export)", f"export:{disk.sha256(path)}", None, partial(read, net, path, device))


@torch.no_grad()
def read(net: Any, path: Path, device: torch.device, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Features and logits, if it gives any, of images (n, channels, height, width)."""
    try:
        found = net(images.to(device))
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        remedy = f"it cannot compute on {device.type}" if "device" in reason else "export it with a dynamic number of images"
        raise ValueError(f"{path} does not take images of {tuple(images.shape)} {images.dtype} ({reason}); {remedy}") from error
    features, logits = found if isinstance(found, tuple | list) and len(found) == 2 else (found, None)
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
        raise ValueError(f"{path} gives no features (images, numbers); allowed: those, or (features, logits)")
    return features.float().cpu(), None if logits is None else logits.float().cpu()
