"""Drawing a model's images as features only, kept in units beside the run and used again by whoever needs them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from justimage import units
from justimage.drawing import Artist, Drawing, short_hash, signed
from justimage.evaluation.reference import Reference
from justimage.features import Extractor
from justimage.units import Unit

Progress = Callable[[str, int, int], object]
"""Told what is being done, how many images of it are done, and of how many."""


@dataclass
class Examiner:
    """Draws images of a model as features only, beside a reference; keeps the features in a folder, and reuses them."""

    artist: Artist
    extractor: Extractor
    reference: Reference
    place: Path
    resize: tuple[int, int] | None = None
    """height and width to which drawn images are scaled before they are compared (App. B.4), bicubic and antialiased"""
    progress: Progress = lambda what, done, total: None
    stop: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        names, asked = self.extractor.class_names, self.artist.recipe.class_names
        if names and asked and names != asked:
            odd = next((a for a in (*asked, *names) if a not in names or a not in asked), asked[0])
            raise ValueError(f"the classifier's classes are not the model's: {odd!r} is missing in one, or in another place")

    def kept(self, job: Drawing) -> Path:
        """Where a job's features are."""
        return self.place / "units" / short_hash(self.facts(job))

    def facts(self, job: Drawing) -> dict[str, Any]:
        return {"drawing": job.describe(), "features": self.extractor.identity, "resize": self.resize}

    def draw(self, job: Drawing, count: int, title: str = "drawing") -> Iterator[Unit]:
        """The units with features of a job's first `count` images and what is known of them, drawn where they are missing."""
        folder, total = self.kept(job), job.units(count)

        def make(number: int) -> Unit:
            images = self.artist.draw(job, number)
            features, logits = self.extractor.extract(resized(images, self.resize))
            answer = {} if logits is None else {"logits": logits.numpy()}
            return signed(job, number, images) | {"features": features.numpy()} | answer

        units.begin(folder, self.facts(job))
        for i, done in enumerate(units.complete(folder, total, make, units.at_once(self.artist.device), self.stop)):
            if i or done < total:
                self.progress(title, min(done * job.unit, count), count)
        return units.units(folder, total)

    def features(self, job: Drawing, count: int, title: str = "drawing") -> dict[str, Tensor]:
        """Everything known of a job's first `count` images, as arrays (count, ...)."""
        found = list(self.draw(job, count, title))
        arrays = {name: np.concatenate([unit[name] for unit in found])[:count] for name in found[0] if name != "sha256"}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def resized(images: Tensor, size: tuple[int, int] | None) -> Tensor:
    """uint8 images scaled to (height, width), bicubic and antialiased in float32, rounded; None leaves them."""
    if size is None or tuple(images.shape[-2:]) == size:
        return images
    if images.dtype != torch.uint8:
        raise ValueError(f"images of {images.dtype} are not resized; allowed: pixels (uint8)")
    scaled = F.interpolate(images.float(), size, mode="bicubic", antialias=True, align_corners=False)
    return scaled.round().clamp(0, 255).to(torch.uint8)
