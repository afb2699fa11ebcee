"""Scores from features: the distance of samples to real images, each with its uncertainty.

Features are (n, d), one row an image. Everything is computed in float64, in blocks of a fixed size and order, each by one
thread, so that a score has the same digits on any number of cores.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from justimage.chunks import map_threads

CHUNK, PAIRS = 1024, 2**23
"""Rows of features per block, and distances computed at a time."""
NEIGHBOURS = 3
"""k of precision and recall (Kynkaanniemi et al. 2019), as in ADM's evaluator."""
KID_SUBSETS, KID_SUBSET, KID_SEED = 100, 1000, 2020
"""As in torch-fidelity, which draws the subsets with NumPy's generator."""
KID_MAX_IMAGES = 4000
SPLITS = 10
"""Splits of the Inception Score, and of the samples where an uncertainty is estimated from disjoint splits."""


class Score(NamedTuple):
    """A value, and its standard deviation over other samples of the same size."""

    value: float
    std: float
    split_std: float | None = None
    """the deviation over splits or subsets that is usually printed, where it differs"""


@dataclass(frozen=True)
class Gaussian:
    """Mean (d,) and unbiased covariance (d, d) of features, float64, and the number of images, None if unknown."""

    mean: Tensor
    covariance: Tensor
    count: int | None = None

    @cached_property
    def half(self) -> Tensor:
        """The square root of the covariance."""
        return matrix_sqrt(self.covariance)


def gaussian(parts: Iterable[Tensor]) -> Gaussian:
    """Fit batches of features (n_i, d), summed in their order; ValueError for fewer than two images."""

    def sums(part: Tensor) -> tuple[int, Tensor, Tensor]:
        x = part.double()
        return len(x), x.sum(0), x.T @ x

    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for n, s, p in map_threads(sums, parts):
        count, total, products = count + n, total + s, products + p
    if count < 2:
        raise ValueError(f"there are {count} images; a covariance needs 2 or more")
    mean = total / count
    return Gaussian(mean, (products - count * torch.outer(mean, mean)) / (count - 1), count)


def matrix_sqrt(matrix: Tensor, power: float = 0.5) -> Tensor:
    """A power of the positive part of a symmetric matrix; directions without variance stay without."""
    values, vectors = torch.linalg.eigh(matrix)
    least = values.max().clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    powers = torch.where(values > least, values.clamp(min=least), torch.inf if power < 0 else 0.0) ** power
    return (vectors * powers) @ vectors.T


def frechet(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), the squared Wasserstein distance of Gaussians (Heusel et al. 2017)."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} numbers an image are compared with statistics of {len(b.mean)}")
    if not all(bool(q.isfinite().all()) for q in (a.mean, a.covariance, b.mean, b.covariance)):
        return math.nan
    half = b.half
    middle = torch.linalg.eigvalsh(half @ a.covariance @ half).clamp(min=0).sqrt().sum()
    trace = torch.trace(a.covariance) + torch.trace(b.covariance)
    return float((a.mean - b.mean).square().sum() + trace - 2 * middle)


def influence(samples: Gaussian, real: Gaussian) -> Callable[[Tensor], Tensor]:
    """The influence of each sample on the Frechet distance: features (n, d) -> (n,), of mean about 0.

    The derivative of the distance with respect to the samples' mean and covariance, 2 (m - m_r) and I - T with the optimal
    transport's T = C_r^(1/2) (C_r^(1/2) C C_r^(1/2))^(-1/2) C_r^(1/2), at one sample. The standard deviation of the distance is
    that of these numbers divided by sqrt(n); for a difference of two settings, that of their difference.
    """
    half = real.half
    transport = half @ matrix_sqrt(half @ samples.covariance @ half, -0.5) @ half
    slope, curve = 2 * (samples.mean - real.mean), torch.eye(len(half), dtype=half.dtype) - transport
    centre = (curve * samples.covariance).sum()

    def of(features: Tensor) -> Tensor:
        x = features.double() - samples.mean
        return x @ slope + ((x @ curve) * x).sum(1) - centre

    return of


def fid(samples: Iterable[Tensor], real: Gaussian) -> tuple[Score, Tensor]:
    """The Frechet distance of batches of features to real ones, and the influence of each sample on it (n,)."""
    parts = list(samples)
    seen = gaussian(parts)
    if not math.isfinite(value := frechet(seen, real)):
        return Score(math.nan, math.nan), torch.full((sum(map(len, parts)),), math.nan, dtype=torch.float64)
    influences = torch.cat(list(map_threads(influence(seen, real), parts)))
    return Score(value, standard_error(influences)), influences


def standard_error(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


def inception_score(logits: Tensor, splits: int = SPLITS) -> Score:
    """exp of the mean KL divergence of p(class | image) from its mean, averaged over `splits` consecutive splits; split_std is
    the usual deviation over them (Salimans et al. 2016)."""
    log_p = logits.double().log_softmax(1)
    n, scores = len(log_p), []
    splits = max(1, min(splits, n))
    for i in range(splits):
        part = log_p[i * n // splits : (i + 1) * n // splits]
        p = part.exp()
        scores.append((p * (part - p.mean(0).log())).nan_to_num(0.0).sum(1).mean().exp())
    values = torch.stack(scores)
    return Score(float(values.mean()), standard_error(values), float(values.std(correction=0)))


def kid(samples: Tensor, real: Tensor, subsets: int = KID_SUBSETS, size: int = KID_SUBSET) -> Score:
    """The kernel distance (Binkowski et al. 2018): unbiased MMD^2 with the kernel (x.y / d + 1)^3, averaged over `subsets`
    random subsets of at most `size` images; split_std is the usual deviation over them. std comes from the influences of at
    most KID_MAX_IMAGES samples."""
    size, draw = min(size, len(samples), len(real)), np.random.RandomState(KID_SEED)
    if size < 2:
        return Score(math.nan, math.nan)
    pairs = [
        (draw.choice(len(samples), size, replace=False), draw.choice(len(real), size, replace=False)) for _ in range(subsets)
    ]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def distance(chosen: tuple[np.ndarray, np.ndarray]) -> Tensor:
        x, y = samples[chosen[0]].double(), real[chosen[1]].double()
        xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
        within = (xx.sum() - xx.trace()) / (len(x) * (len(x) - 1)) + (yy.sum() - yy.trace()) / (len(y) * (len(y) - 1))
        return within - 2 * xy.mean()

    values = torch.stack(list(map_threads(distance, pairs)))
    x, y = samples[:KID_MAX_IMAGES].double(), real[:: -(-len(real) // KID_MAX_IMAGES)].double()

    def influence(start: int) -> Tensor:  # 2 (mean of k(x_i, x_j) over others - mean of k(x_i, y_j)), of some rows i
        own = x[start : start + CHUNK]
        within = kernel(own, x)
        within = within.sum(1) - within[torch.arange(len(own)), torch.arange(start, start + len(own))]
        return 2 * (within / (len(x) - 1) - kernel(own, y).mean(1))

    influences = torch.cat(list(map_threads(influence, range(0, len(x), CHUNK))))
    return Score(float(values.mean()), float(influences.std() / math.sqrt(len(samples))), float(values.std(correction=0)))


def blocks(count: int, against: int) -> range:
    """The first rows of blocks of `count` rows, each with at most PAIRS distances to `against` others."""
    return range(0, count, max(1, min(CHUNK, PAIRS // max(against, 1))))


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances (n, m) of features (n, d) and (m, d), float64."""
    a, b = a.double(), b.double()
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)


def knn_radii(features: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """The squared distance of each row to the k-th nearest other row (n,)."""

    features, rows = features.double(), blocks(len(features), len(features))

    def of(start: int) -> Tensor:
        own = torch.arange(start, min(start + rows.step, len(features)))
        d = distances(features[own], features)
        d[torch.arange(len(own)), own] = torch.inf
        return d.kthvalue(k, dim=1).values

    return torch.cat(list(map_threads(of, rows)))


def manifold_coverage(
    samples: Tensor, real: Tensor, k: int = NEIGHBOURS, real_radii: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Which samples lie within the k-th neighbour radius of some real image (n,), and which real images within that of some
    sample (m,). real_radii: `knn_radii` of the real images, where known."""
    sample_radii, real_radii = knn_radii(samples, k), knn_radii(real, k) if real_radii is None else real_radii
    real, rows = real.double(), blocks(len(samples), len(real))

    def of(start: int) -> tuple[Tensor, Tensor]:
        d = distances(samples[start : start + rows.step], real)
        return (d <= real_radii).any(1), (d <= sample_radii[start : start + rows.step, None]).any(0)

    covered, precise = torch.zeros(len(real), dtype=torch.bool), []
    for found, columns in map_threads(of, rows):
        precise.append(found)
        covered |= columns
    return torch.cat(precise), covered


def precision_recall(
    samples: Tensor, real: Tensor, k: int = NEIGHBOURS, real_radii: Tensor | None = None
) -> tuple[Score, Score]:
    """Improved precision and recall (Kynkaanniemi et al. 2019); std from SPLITS disjoint splits of both sets."""
    if min(len(samples), len(real)) <= k:
        return Score(math.nan, math.nan), Score(math.nan, math.nan)
    whole = [float(side.double().mean()) for side in manifold_coverage(samples, real, k, real_radii)]
    splits = min(SPLITS, min(len(samples), len(real)) // (4 * k))
    if splits < 2:
        return Score(whole[0], math.nan), Score(whole[1], math.nan)
    parts = torch.tensor(
        [[s.double().mean() for s in manifold_coverage(samples[i::splits], real[i::splits], k)] for i in range(splits)]
    )
    precision, recall = (float(d) for d in parts.std(0) / math.sqrt(splits))
    return Score(whole[0], precision), Score(whole[1], recall)


def class_accuracy(logits: Tensor, labels: Tensor) -> Score:
    """The share of samples classified as the requested class."""
    right = (logits.argmax(1) == labels).double()
    return Score(float(right.mean()), standard_error(right))


def nearest(samples: Tensor, real: Iterable[Tensor], own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The distance (n,) of each sample to the nearest real image, and the index of that image (n,); real features in batches.

    own: the index of each sample among the real images (n,), which is excluded.
    """
    best, which = torch.full((len(samples),), torch.inf, dtype=torch.float64), torch.zeros(len(samples), dtype=torch.int64)
    before = 0
    for part in real:
        rows = blocks(len(samples), len(part))

        def of(start: int, part: Tensor = part, before: int = before, size: int = rows.step) -> tuple[Tensor, Tensor]:
            d = distances(samples[start : start + size], part)
            if own is not None:
                place = own[start : start + size] - before
                here = ((place >= 0) & (place < len(part))).nonzero().squeeze(1)
                d[here, place[here]] = torch.inf
            values, indices = d.min(1)
            return values, indices

        found = list(map_threads(of, rows))
        values, indices = (torch.cat(side) for side in zip(*found, strict=True))
        closer = values < best
        best, which = torch.where(closer, values, best), torch.where(closer, indices + before, which)
        before += len(part)
    return best.sqrt(), which
