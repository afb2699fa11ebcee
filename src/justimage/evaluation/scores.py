"""Scores of generated images against real ones, computed from features; each with its standard deviation.

Features are (n, d), one row for each image. Everything is computed in float64, in chunks of fixed size and order, each by one
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

from justimage import randomness
from justimage.chunks import map_threads

CHUNK, PAIRS = 1024, 2**23
"""Rows of features in a chunk, and the maximum number of pairwise distances computed at a time."""
NEIGHBOURS = 3
"""k of precision and recall (Kynkaanniemi et al. 2019), as in ADM's evaluator."""
SEED = 2020
"""Of what is drawn by NumPy's generator as in torch-fidelity: the order of the samples for IS, and the subsets of KID."""
KID_SUBSETS, KID_SUBSET = 100, 1000
"""As there."""
KID_MAX_IMAGES = 4000
"""Images from which the standard deviation of KID is estimated."""
SPLITS = 10
"""Number of splits of the Inception Score, and of the samples where a standard deviation comes from disjoint subsets."""


class Score(NamedTuple):
    """A score, and its standard deviation over other samples of the same size."""

    value: float
    std: float
    split_std: float | None = None
    """the standard deviation that is customarily printed, where it differs: over splits of the sample, or subsets"""


@dataclass(frozen=True)
class Gaussian:
    """Mean (d,) and unbiased covariance (d, d) of features, float64, and the number of images; None: unknown."""

    mean: Tensor
    covariance: Tensor
    count: int | None = None

    @cached_property
    def half(self) -> Tensor:
        """Square root of the covariance."""
        return matrix_sqrt(self.covariance)


def gaussian(chunks: Iterable[Tensor]) -> Gaussian:
    """Return the statistics of features in chunks (n_i, d), summed in order; ValueError for fewer than two images."""

    def sums(chunk: Tensor) -> tuple[int, Tensor, Tensor]:
        x = chunk.double()
        return len(x), x.sum(0), x.T @ x

    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for n, s, p in map_threads(sums, chunks):
        count, total, products = count + n, total + s, products + p
    if count < 2:
        raise ValueError(f"there are {count} images; a covariance needs 2 or more")
    mean = total / count
    return Gaussian(mean, (products - count * torch.outer(mean, mean)) / (count - 1), count)


def matrix_sqrt(matrix: Tensor, power: float = 0.5) -> Tensor:
    """Return a power of the positive part of a symmetric matrix; directions without variance remain 0."""
    values, vectors = torch.linalg.eigh(matrix)
    floor = values.max().clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    powers = torch.where(values > floor, values.clamp(min=floor), torch.inf if power < 0 else 0.0) ** power
    return (vectors * powers) @ vectors.T


def frechet(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), the squared Wasserstein distance of Gaussians (Heusel et al. 2017)."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of dimension {len(a.mean)} are compared with statistics of dimension {len(b.mean)}")
    if not all(bool(q.isfinite().all()) for q in (a.mean, a.covariance, b.mean, b.covariance)):
        return math.nan
    cross = torch.linalg.eigvalsh(b.half @ a.covariance @ b.half).clamp(min=0).sqrt().sum()
    traces = torch.trace(a.covariance) + torch.trace(b.covariance)
    return float((a.mean - b.mean).square().sum() + traces - 2 * cross)


def influence(generated: Gaussian, real: Gaussian) -> Callable[[Tensor], Tensor]:
    """Return the influence function of the Frechet distance: features (n, d) -> (n,), of mean about 0.

    It is the derivative of the distance with respect to the generated images' mean and covariance, 2 (m - m_r) and I - T, at
    one image; T = C_r^(1/2) (C_r^(1/2) C C_r^(1/2))^(-1/2) C_r^(1/2) is the optimal transport. The standard deviation of the
    distance over samples of n images is that of the influences over sqrt(n); likewise for a difference of two distances and
    the differences of influences.
    """
    half = real.half
    transport = half @ matrix_sqrt(half @ generated.covariance @ half, -0.5) @ half
    slope, curvature = 2 * (generated.mean - real.mean), torch.eye(len(half), dtype=half.dtype) - transport
    offset = (curvature * generated.covariance).sum()

    def evaluate(features: Tensor) -> Tensor:
        x = features.double() - generated.mean
        return x @ slope + ((x @ curvature) * x).sum(1) - offset

    return evaluate


def fid(generated: Iterable[Tensor], real: Gaussian) -> tuple[Score, Tensor]:
    """Return the Frechet distance of generated features, in chunks (n_i, d), to real ones; and each image's influence (n,)."""
    chunks = list(generated)
    statistics = gaussian(chunks)
    if not math.isfinite(value := frechet(statistics, real)):
        return Score(math.nan, math.nan), torch.full((sum(map(len, chunks)),), math.nan, dtype=torch.float64)
    influences = torch.cat(list(map_threads(influence(statistics, real), chunks)))
    return Score(value, standard_error(influences)), influences


def standard_error(values: Tensor) -> float:
    """Return the standard error of the mean of values (n,); nan for fewer than two."""
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


def inception_score(logits: Tensor, splits: int = SPLITS) -> Score:
    """Return exp of the mean KL divergence of p(class | image) from p(class) (Salimans et al. 2016): the mean over `splits`
    splits of the sample at random; split_std is the standard deviation over them. (Splits of samples whose classes take turns
    would have as many of each class, and 2 to 10 % more.)"""
    n, scores = len(logits), []
    log_p = logits[np.random.RandomState(SEED).permutation(n)].double().log_softmax(1)
    splits = max(1, min(splits, n))
    for i in range(splits):
        split = log_p[i * n // splits : (i + 1) * n // splits]
        p = split.exp()
        scores.append((p * (split - p.mean(0).log())).nan_to_num(0.0).sum(1).mean().exp())
    values = torch.stack(scores)
    return Score(float(values.mean()), standard_error(values), float(values.std(correction=0)))


def kid(generated: Tensor, real: Tensor, subsets: int = KID_SUBSETS, size: int = KID_SUBSET) -> Score:
    """Return the kernel distance (Binkowski et al. 2018), the unbiased MMD^2 with the kernel (x.y / d + 1)^3: the mean over
    `subsets` random subsets of at most `size` images; split_std is the standard deviation over them.

    The standard deviation over other samples is estimated from the influences of KID_MAX_IMAGES images.
    """
    size, rng = min(size, len(generated), len(real)), np.random.RandomState(SEED)
    if size < 2:
        return Score(math.nan, math.nan)
    pairs = [
        (rng.choice(len(generated), size, replace=False), rng.choice(len(real), size, replace=False)) for _ in range(subsets)
    ]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def distance(indices: tuple[np.ndarray, np.ndarray]) -> Tensor:
        x, y = generated[indices[0]].double(), real[indices[1]].double()
        xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
        within = (xx.sum() - xx.trace()) / (len(x) * (len(x) - 1)) + (yy.sum() - yy.trace()) / (len(y) * (len(y) - 1))
        return within - 2 * xy.mean()

    values = torch.stack(list(map_threads(distance, pairs)))
    x, y = generated[:KID_MAX_IMAGES].double(), real[randomness.subset(len(real), KID_MAX_IMAGES)].double()

    def influence(start: int) -> Tensor:  # 2 (mean of k(x_i, x_j) over j != i - mean of k(x_i, y_j)), for one chunk of i
        chunk = x[start : start + CHUNK]
        within = kernel(chunk, x)
        within = within.sum(1) - within[torch.arange(len(chunk)), torch.arange(start, start + len(chunk))]
        return 2 * (within / (len(x) - 1) - kernel(chunk, y).mean(1))

    influences = torch.cat(list(map_threads(influence, range(0, len(x), CHUNK))))
    return Score(float(values.mean()), float(influences.std() / math.sqrt(len(generated))), float(values.std(correction=0)))


def row_chunks(count: int, columns: int) -> range:
    """Return the first rows of chunks of a (count, columns) matrix, each of at most CHUNK rows and PAIRS elements."""
    return range(0, count, max(1, min(CHUNK, PAIRS // max(columns, 1))))


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared distances (n, m) of features (n, d) and (m, d), float64."""
    a, b = a.double(), b.double()
    norms = (torch.einsum("nd,nd->n", q, q) for q in (a, b))  # of b, no squares are stored: it may be large
    return (next(norms)[:, None] + next(norms) - 2 * a @ b.T).clamp(min=0)


def knn_radii(features: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """Return the squared distance (n,) of each row to its k-th nearest other row."""
    features, rows = features.double(), row_chunks(len(features), len(features))

    def radii(start: int) -> Tensor:
        indices = torch.arange(start, min(start + rows.step, len(features)))
        d = distances(features[indices], features)
        d[torch.arange(len(indices)), indices] = torch.inf
        return d.kthvalue(k, dim=1).values

    return torch.cat(list(map_threads(radii, rows)))


def manifold_coverage(
    generated: Tensor, real: Tensor, k: int = NEIGHBOURS, real_radii: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return which generated images lie within the k-NN radius of a real one (n,), and which real ones within that of a
    generated one (m,). real_radii: `knn_radii` of the real images, if known."""
    generated_radii, real_radii = knn_radii(generated, k), knn_radii(real, k) if real_radii is None else real_radii
    real, rows = real.double(), row_chunks(len(generated), len(real))

    def compare(start: int) -> tuple[Tensor, Tensor]:
        chunk = slice(start, start + rows.step)
        d = distances(generated[chunk], real)
        return (d <= real_radii).any(1), (d <= generated_radii[chunk, None]).any(0)

    precise, covered = zip(*map_threads(compare, rows), strict=True)
    return torch.cat(precise), torch.stack(covered).any(0)


def precision_recall(
    generated: Tensor, real: Tensor, k: int = NEIGHBOURS, real_radii: Tensor | None = None
) -> tuple[Score, Score]:
    """Return improved precision and recall (Kynkaanniemi et al. 2019); std is estimated from SPLITS disjoint subsets of both
    sets at random. real_radii: `knn_radii` of the real images, if known."""
    if min(len(generated), len(real)) <= k:
        return Score(math.nan, math.nan), Score(math.nan, math.nan)
    values = [float(q.double().mean()) for q in manifold_coverage(generated, real, k, real_radii)]
    splits = min(SPLITS, min(len(generated), len(real)) // (4 * k))
    if splits < 2:
        return Score(values[0], math.nan), Score(values[1], math.nan)
    x, y = (q[randomness.order(0, 0, len(q))] for q in (generated, real))
    of_splits = torch.tensor(
        [[q.double().mean() for q in manifold_coverage(x[i::splits], y[i::splits], k)] for i in range(splits)]
    )
    precision, recall = (Score(v, float(s)) for v, s in zip(values, of_splits.std(0) / math.sqrt(splits), strict=True))
    return precision, recall


def class_accuracy(logits: Tensor, labels: Tensor) -> Score:
    """Return the fraction of images that are classified as the requested class."""
    correct = (logits.argmax(1) == labels).double()
    return Score(float(correct.mean()), standard_error(correct))


def nearest(features: Tensor, others: Iterable[Tensor], own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the distance (n,) of each row to the nearest of the others, which come in chunks, and its index (n,) there.

    own: index (n,) of each row among the others; a row is not its own neighbour.
    """
    best, which = torch.full((len(features),), torch.inf, dtype=torch.float64), torch.zeros(len(features), dtype=torch.int64)
    offset = 0
    for chunk in others:
        rows = row_chunks(len(features), len(chunk))

        def closest(start: int, chunk: Tensor = chunk, offset: int = offset, size: int = rows.step) -> tuple[Tensor, Tensor]:
            d = distances(features[start : start + size], chunk)
            if own is not None:
                column = own[start : start + size] - offset
                row = ((column >= 0) & (column < len(chunk))).nonzero().squeeze(1)
                d[row, column[row]] = torch.inf
            values, indices = d.min(1)
            return values, indices

        values, indices = (torch.cat(q) for q in zip(*map_threads(closest, rows), strict=True))
        closer = values < best
        best, which = torch.where(closer, values, best), torch.where(closer, indices + offset, which)
        offset += len(chunk)
    return best.sqrt(), which
