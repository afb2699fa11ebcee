"""Feature extractors: networks that map images to the space in which sets of images are compared.

inception           Inception-v3 as in published FID and IS; for natural colour images
FILE.pth            the same, with weights from this file
FILE.safetensors    a classifier of any labelled data, trained by: justimage feature-space train
FILE.pt2            any network saved by torch.export, images -> features or (features, logits)
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

Extract = Callable[[Tensor], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Extractor:
    """A feature extractor.

    extract(images) -> features (n, dimension) and logits (n, classes) or None, both float32; images are
    (n, channels, height, width), as in the data, not normalized. All are on the CPU.
    """

    name: str
    """shown in reports"""
    fingerprint: str
    """changes when the computed features do"""
    dimension: int | None
    """of the features; None: known only after the first images"""
    extract: Extract
    class_names: tuple[str, ...] = ()
    """of the logits, where they are the classes of the data; empty for other classes or none"""
    device: str = "cpu"
    """type of the device that computes the features; another type may round differently"""


def open_features(word: str, device: torch.device) -> Extractor:
    """Open a feature extractor by name or from a file; ValueError or OSError, in one line, for anything unusable."""
    from justimage.features import classifier, exported, inception

    kinds = {".pth": inception.open_weights, ".safetensors": classifier.open_classifier, ".pt2": exported.open_exported}
    if word == "inception":
        return replace(inception.open_weights(inception.default_path(), device), device=device.type)
    path = Path(word).expanduser()
    if path.suffix not in kinds:
        allowed = f"inception, or a file: {', '.join(kinds)}"
        raise ValueError(f"features are {word!r}; allowed: {allowed} (justimage feature-space --help)")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; to train a classifier of your data: justimage feature-space train")
    return replace(kinds[path.suffix](path, device), device=device.type)
