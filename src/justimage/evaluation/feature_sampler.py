"""Drawing a model's images as features only, kept in units beside the run and used again by whoever needs them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from justimage import chunks
from justimage.chunks import Chunk
from justimage.evaluation.reference import Reference
from justimage.features import Extractor
from justimage.generate import ImageGenerator, SampleJob, labels_and_hashes, short_hash

Progress = Callable[[str, int, int], object]
"""Told what is being done, how many images of it are done, and of how many."""


@dataclass
class FeatureSampler:
    """Draws images of a model as features only, beside a reference; keeps the features in a folder, and reuses them."""

    generator: ImageGenerator
    extractor: Extractor
    reference: Reference
    root: Path
    resize: tuple[int, int] | None = None
    """height and width to which drawn images are scaled before they are compared (App. B.4), bicubic and antialiased"""
    progress: Progress = lambda what, done, total: None
    stop: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        names, asked = self.extractor.class_names, self.generator.recipe.class_names
        if names and asked and names != asked:
            odd = next((a for a in (*asked, *names) if a not in names or a not in asked), asked[0])
            raise ValueError(f"the classifier's classes are not the model's: {odd!r} is missing in one, or in another place")

    def cache_dir(self, job: SampleJob) -> Path:
        """Where a job's features are."""
        return self.root / "units" / short_hash(self.key(job))

    def key(self, job: SampleJob) -> dict[str, Any]:
        return {"drawing": job.describe(), "features": self.extractor.fingerprint, "resize": self.resize}

    def draw(self, job: SampleJob, count: int, title: str = "drawing") -> Iterator[Chunk]:
        """The units with features of a job's first `count` images and what is known of them, drawn where they are missing."""
        folder, total = self.cache_dir(job), job.n_chunks(count)

        def make(number: int) -> Chunk:
            images = self.generator.sample_chunk(job, number)
            features, logits = self.extractor.extract(resize(images, self.resize))
            answer = {} if logits is None else {"logits": logits.numpy()}
            return labels_and_hashes(job, number, images) | {"features": features.numpy()} | answer

        chunks.begin(folder, self.key(job))
        for i, done in enumerate(chunks.complete(folder, total, make, chunks.concurrency(self.generator.device), self.stop)):
            if i or done < total:
                self.progress(title, min(done * job.batch, count), count)
        return chunks.read_chunks(folder, total)

    def features(self, job: SampleJob, count: int, title: str = "drawing") -> dict[str, Tensor]:
        """Everything known of a job's first `count` images, as arrays (count, ...)."""
        found = list(self.draw(job, count, title))
        arrays = {name: np.concatenate([unit[name] for unit in found])[:count] for name in found[0] if name != "sha256"}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def resize(images: Tensor, size: tuple[int, int] | None) -> Tensor:
    """uint8 images scaled to (height, width), bicubic and antialiased in float32, rounded; None leaves them."""
    if size is None or tuple(images.shape[-2:]) == size:
        return images
    if images.dtype != torch.uint8:
        raise ValueError(f"images of {images.dtype} are not resized; allowed: pixels (uint8)")
    scaled = F.interpolate(images.float(), size, mode="bicubic", antialias=True, align_corners=False)
    return scaled.round().clamp(0, 255).to(torch.uint8)
