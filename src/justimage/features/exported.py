"""Features from any network saved by torch.export: images in the data's own units -> features, or (features, logits)."""

import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from justimage import disk
from justimage.features import Extractor


def open_exported(path: Path, device: torch.device) -> Extractor:
    """The network in a .pt2 file. It is a program of somebody's: use files that you trust."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = torch.export.load(path).module().to(device)
    except (RuntimeError, ValueError, KeyError, EOFError, OSError, AssertionError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a network that torch.export saved ({' '.join(str(error).split())[:200]})") from error

    @torch.no_grad()
    def extract(images: Tensor) -> tuple[Tensor, Tensor | None]:
        try:
            found = net(images.to(device))
        except (RuntimeError, AssertionError, TypeError) as error:
            raise ValueError(
                f"{path} does not take images of {tuple(images.shape)} {images.dtype} ({' '.join(str(error).split())[:200]}); "
                "export it with a dynamic number of images"
            ) from error
        features, logits = found if isinstance(found, tuple | list) and len(found) == 2 else (found, None)
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            raise ValueError(f"{path} gives no features (images, numbers); allowed: those, or (features, logits)")
        return features.float().cpu(), None if logits is None else logits.float().cpu()

    return Extractor(f"{path.name} (torch.export)", f"export:{disk.sha256(path)}", None, extract)
