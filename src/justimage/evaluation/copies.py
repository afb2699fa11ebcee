"""Whether a training memorises: the share of its previews that copy an image of the training set."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from justimage import randomness
from justimage.data import ArraySource, Source
from justimage.evaluation.reference import COPY_QUANTILE, DUPLICATE_TOLERANCE
from justimage.evaluation.scores import CHUNK, nearest

SIDE = 8
"""Images are compared as averages of SIDE x SIDE pixels."""
MAX_IMAGES, SAMPLED = 20_000, 1_000
"""Images of a set that is watched, at most; and how many tell how near real ones are to each other."""


@dataclass(frozen=True)
class CopyWatch:
    """The images of a small set, as they are compared with samples."""

    features: Tensor
    """(n, channels SIDE SIDE)"""
    threshold: float
    """the distance within which COPY_QUANTILE of the real images have another one"""

    def share(self, images: Tensor) -> float:
        """The share of images (b, channels, height, width), uint8, that are as near to a real one."""
        distance, _ = nearest(averaged(images), self.features.split(CHUNK))
        return float((distance <= self.threshold).double().mean())


def watch_copies(source: Source, flip: bool) -> CopyWatch | None:
    """A watch over a set of pixels in memory; None for one too large to memorise, or of floats. flip: whether training mirrors
    images, whose mirror images are then copies, too."""
    if not isinstance(source, ArraySource) or source.floats or not 2 <= len(source) <= MAX_IMAGES:
        return None
    real = averaged(source.images)
    some = torch.from_numpy(randomness.subset(len(real), SAMPLED))
    apart, _ = nearest(real[some], real.split(CHUNK), some)
    mirrored = [averaged(source.images.flip(-1))] if flip else []
    threshold = max(float(apart.quantile(COPY_QUANTILE)), DUPLICATE_TOLERANCE * float(apart.median()))
    return CopyWatch(torch.cat([real, *mirrored]), threshold)


def averaged(images: Tensor) -> Tensor:
    return torch.cat([F.adaptive_avg_pool2d(part.float(), SIDE).flatten(1) for part in images.split(CHUNK)])
