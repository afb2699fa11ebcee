"""Images to features, the space in which sets of images are compared.

inception           Inception-v3 as the field uses it (FID, IS); for natural colour images
FILE.pth            the same, its weights in that file
FILE.safetensors    a classifier trained on one's own data: justimage features train
FILE.pt2            any network that torch.export saved, images -> features or (features, logits)
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

Extract = Callable[[Tensor], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Extractor:
    """A network that reads images, (n, channels, height, width) in the data's own units, on the CPU.

    extract(images) -> features (n, dimension) and logits (n, classes) or None, float32, on the CPU.
    """

    name: str
    """for people"""
    fingerprint: str
    """changes when what it computes does"""
    dimension: int | None
    """of a feature; None where only a first image tells"""
    extract: Extract
    class_names: tuple[str, ...] = ()
    """of the logits, where they are classes of one's own data"""
    device: str = "cpu"
    """the kind of what computes it; others round otherwise"""


def open_features(word: str, device: torch.device) -> Extractor:
    """The extractor of that name or in that file; ValueError or OSError, in one line, for what cannot be used."""
    from justimage.features import classifier, exported, inception

    kinds = {".pth": inception.open_weights, ".safetensors": classifier.open_classifier, ".pt2": exported.open_exported}
    if word == "inception":
        return replace(inception.open_weights(inception.default_path(), device), device=device.type)
    path = Path(word).expanduser()
    if path.suffix not in kinds:
        raise ValueError(
            f"features are {word!r}; allowed: inception, or a file: {', '.join(kinds)} (justimage features --help)"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; a classifier of your own data is made by: justimage features train")
    return replace(kinds[path.suffix](path, device), device=device.type)
