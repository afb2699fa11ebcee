"""A model's samples as features, kept in chunks beside the run and reused by every score."""

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
from justimage.progress import Job, Progress


@dataclass
class FeatureSampler:
    """Samples images of a model as features only, to be compared with a reference; caches them in a folder."""

    generator: ImageGenerator
    extractor: Extractor
    reference: Reference
    root: Path
    resize: tuple[int, int] | None = None
    """height and width to which samples are scaled before they are compared (App. B.4), bicubic and antialiased"""

    def __post_init__(self) -> None:
        names, wanted = self.extractor.class_names, self.generator.recipe.class_names
        if names and wanted and names != wanted:
            odd = next((a for a in (*wanted, *names) if a not in names or a not in wanted), wanted[0])
            raise ValueError(f"the classifier's classes are not the model's: {odd!r} is missing in one, or in another place")

    def key(self, job: SampleJob) -> dict[str, Any]:
        """Everything that determines the features of a job."""
        return {"job": job.describe(), "features": self.extractor.fingerprint, "resize": self.resize}

    def cache_dir(self, job: SampleJob) -> Path:
        """The folder with a job's features."""
        return self.root / "chunks" / short_hash(self.key(job))

    def ensure(self, job: SampleJob, count: int, title: str = "sampling") -> Job[None]:
        """Sample what is missing of a job's first `count` images."""
        folder, total = self.cache_dir(job), job.n_chunks(count)

        def make(number: int) -> Chunk:
            images = self.generator.sample_chunk(job, number)
            features, logits = self.extractor.extract(resize(images, self.resize))
            found = labels_and_hashes(self.generator, job, number, images) | {"features": features.numpy()}
            return found if logits is None else found | {"logits": logits.numpy()}

        chunks.begin(folder, self.key(job))
        for i, done in enumerate(chunks.compute_missing(folder, total, make, chunks.concurrency(self.generator.device))):
            if i or done < total:  # nothing to show where all were there
                yield Progress(title, min(done * job.batch, count), count)

    def load(self, job: SampleJob, count: int) -> tuple[dict[str, Tensor], list[str]]:
        """Features, labels and logits (count, ...) of a job's first images, which `ensure` has sampled, and their SHA-256."""
        found = list(chunks.read_chunks(self.cache_dir(job), job.n_chunks(count)))
        arrays = {name: np.concatenate([chunk[name] for chunk in found])[:count] for name in found[0]}
        return {n: torch.from_numpy(a) for n, a in arrays.items() if n != "sha256"}, arrays["sha256"].tolist()

    def features(self, job: SampleJob, count: int, title: str = "sampling") -> Job[dict[str, Tensor]]:
        """Features, labels and logits (count, ...) of a job's first images, sampled where they are missing."""
        yield from self.ensure(job, count, title)
        return self.load(job, count)[0]


def resize(images: Tensor, size: tuple[int, int] | None) -> Tensor:
    """uint8 images scaled to (height, width), bicubic and antialiased in float32, rounded; None leaves them."""
    if size is None or tuple(images.shape[-2:]) == size:
        return images
    if images.dtype != torch.uint8:
        raise ValueError(f"images of {images.dtype} are not resized; allowed: pixels (uint8)")
    scaled = F.interpolate(images.float(), size, mode="bicubic", antialias=True, align_corners=False)
    return scaled.round().clamp(0, 255).to(torch.uint8)
