"""Real images to compare samples with: their features, computed once and cached, or statistics from a file."""

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from justimage import chunks, data, disk, randomness
from justimage.chunks import Chunk
from justimage.conditions import NULL_CLASS, class_numbers
from justimage.data import Crop, Source
from justimage.data.arrays import NpyHeader, open_array_file, unpack
from justimage.evaluation.scores import NEIGHBOURS, Gaussian, gaussian, knn_radii, nearest
from justimage.features import Extractor
from justimage.generate import short_hash
from justimage.progress import Job, Progress

FINGERPRINT_IMAGES = 512
"""Images whose content distinguishes a set from one with files of the same names and sizes."""
CHUNK, FILES_PER_READ = 64, 32
"""Images whose features are in one file, and files read at a time."""
DUPLICATE_TOLERANCE = 1e-4
"""Relative distance below which two images count as duplicates."""
MAX_REAL = 50_000
"""Real images among which neighbours are searched, for precision and recall; of a larger set, as many at random."""
COPY_SAMPLES, COPY_QUANTILE = 2000, 0.01
"""Samples examined for memorisation, and the quantile of real-to-real nearest-neighbour distances used as its threshold."""


def cache_root() -> Path:
    """The cache of features of real images."""
    return disk.cache_dir("features")


@dataclass(frozen=True)
class Reference:
    """Real images as features; without a source, only their statistics."""

    info: dict[str, Any]
    """facts for the report"""
    statistics: Gaussian
    source: Source | None = None
    folder: Path = Path()

    def iter_features(self) -> Iterator[Tensor]:
        """Iterate over the features of all images, some at a time."""
        return iter_chunks(self.folder, len(self.source or ()))

    @cached_property
    def knn_radii(self) -> tuple[Tensor, Tensor]:
        """Features of at most MAX_REAL real images, and the squared distance of each to its third neighbour, cached."""
        _, real = self.subsample()
        place = self.folder / f"radii-{NEIGHBOURS}-of-{len(real)}-at-random"

        def make(number: int) -> Chunk:
            return {"radii": (knn_radii(real) if len(real) > NEIGHBOURS else torch.zeros(len(real))).numpy()}

        for _ in chunks.compute_missing(place, 1, make):
            pass
        return real, torch.from_numpy(next(chunks.read_chunks(place, 1))["radii"])

    @cached_property
    def copy_threshold(self) -> float:
        """The nearest-neighbour distance below which 1 % of real images have another real one."""
        numbers, some = self.subsample(COPY_SAMPLES)
        apart = nearest(some, self.iter_features(), numbers)[0]
        return max(float(apart.quantile(COPY_QUANTILE)), DUPLICATE_TOLERANCE * float(apart.median()))

    def subsample(self, most: int = MAX_REAL) -> tuple[Tensor, Tensor]:
        """Indices and features of at most `most` images, drawn at random."""
        indices = torch.from_numpy(randomness.subset(len(self.source or ()), most))
        parts, first = [], 0
        for features in self.iter_features():
            last = first + len(features)
            parts.append(features[indices[(indices >= first) & (indices < last)] - first])
            first = last
        return indices, torch.cat(parts)


def open_reference(word: str, extractor: Extractor, crop: Crop) -> Job[Reference]:
    """Real images from a folder, an archive, a store or "digits", cropped like the model's; or an .npz with `mu` and
    `sigma`, or with images. Raises ValueError or OSError, in one line, for what is missing, damaged or of another size."""
    path, statistics, info = Path(word).expanduser(), None, {"path": word}
    if path.suffix.lower() == ".npz":
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
        names = arrays_in(path)
        if {"mu", "sigma"} <= names.keys():
            statistics = read_statistics(path)
            info |= {"sha256": disk.sha256(path), "statistics": "mu and sigma of the file"}
            if extractor.dimension not in (None, len(statistics.mean)):
                found = f"{path} has statistics of {len(statistics.mean)} numbers an image"
                raise ValueError(f"{found}; these features have {extractor.dimension}")
            if not any(len(header.shape) == 4 for header in names.values()):
                return Reference(info | {"images": None}, statistics)
        source: Source = open_array_file(path)
        if source.shape != crop.shape:
            sizes = (" x ".join(map(str, shape)) for shape in (source.shape, crop.shape))
            raise ValueError("{} holds images of {}, the model samples {} (channels x height x width)".format(path, *sizes))
    else:
        source = data.open_source(word, crop)
    folder = yield from compute_features(source, extractor)
    info |= {"fingerprint": source.fingerprint, "images": len(source), "size": list(crop.shape)}
    if statistics:
        return Reference(info, statistics, source, folder)
    return Reference(info | {"statistics": "of all images"}, cached_statistics(folder, len(source)), source, folder)


def compute_features(source: Source, extractor: Extractor) -> Job[Path]:
    """Compute what is missing of the features of a set's images; returns their folder."""
    count, total = len(source), -(-len(source) // CHUNK)
    job = {"images": source.fingerprint, "sample": sample_hash(source), "count": count, "shape": list(source.shape)}
    job |= {"chunk": CHUNK, "features": extractor.fingerprint, "device": extractor.device}
    folder = cache_root() / short_hash(job)
    threaded = not isinstance(source, data.Files) or source.contents.threads

    def make(number: int) -> Chunk:
        images, condition = source.batch(np.arange(number * CHUNK, min((number + 1) * CHUNK, count)))
        labels = class_numbers(condition)
        features, _ = extractor.extract(images)
        return {"features": features.numpy(), "labels": np.full(len(images), NULL_CLASS) if labels is None else labels.numpy()}

    chunks.begin(folder, job)
    for done in chunks.compute_missing(folder, total, make, chunks.concurrency(extractor.device) if threaded else 1):
        yield Progress("real images", min(done * CHUNK, count), count)
    return folder


def sample_hash(source: Source) -> str:
    """A hash of the content of some images: a fingerprint may know files by their names and sizes only."""
    chosen, digest = np.unique(np.linspace(0, len(source) - 1, FINGERPRINT_IMAGES).astype(np.int64)), hashlib.sha256()
    for start in range(0, len(chosen), CHUNK):
        digest.update(source.batch(chosen[start : start + CHUNK])[0].numpy().tobytes())
    return digest.hexdigest()


def cached_statistics(folder: Path, count: int) -> Gaussian:
    """Mean and covariance of a set's cached features, cached beside them."""
    path = folder / "statistics.npz"
    if not path.exists():
        save_statistics(path, gaussian(iter_chunks(folder, count)))
    return read_statistics(path)


def iter_chunks(folder: Path, count: int) -> Iterator[Tensor]:
    """Iterate over the cached features of a set (n, d), some thousand at a time."""
    rest = chunks.read_chunks(folder, -(-count // CHUNK))
    while group := list(islice(rest, FILES_PER_READ)):
        yield torch.from_numpy(np.concatenate([unit["features"] for unit in group]))


def real_labels(reference: Reference) -> np.ndarray:
    """The class of each real image."""
    count = -(-len(reference.source or ()) // CHUNK)
    return np.concatenate([unit["labels"] for unit in chunks.read_chunks(reference.folder, count)])


def arrays_in(path: Path) -> dict[str, NpyHeader]:
    """The headers of an .npz file's arrays by name; ValueError for another file."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = {}
            for entry in archive.infolist():
                if entry.filename.endswith(".npy"):
                    with archive.open(entry) as file:
                        found[entry.filename[:-4]] = NpyHeader(file.read(2**16), entry.file_size)
            return found
    except (ValueError, OSError, EOFError, RuntimeError, OverflowError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no readable .npz ({disk.printable(' '.join(str(error).split()), 200)})") from error


def read_statistics(path: Path) -> Gaussian:
    """`mu` and `sigma` of an .npz file, as ADM's and the authors' reference statistics have them."""
    try:
        with zipfile.ZipFile(path) as archive:
            mu, sigma = (unpack(archive, n, arrays_in(path)[n]).astype(np.float64) for n in ("mu", "sigma"))
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not np.isfinite(mu).all() or not np.isfinite(sigma).all():
            raise ValueError(f"mu is {mu.shape}, sigma {sigma.shape}; wanted are finite numbers (d,) and (d, d)")
        if not np.allclose(sigma, sigma.T, atol=1e-6 * max(np.abs(sigma).max(), 1e-30)):
            raise ValueError("sigma is not symmetric")
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} has no usable statistics ({disk.printable(' '.join(str(error).split()), 200)})") from error
    return Gaussian(torch.from_numpy(mu), torch.from_numpy(sigma))


def save_statistics(path: Path, statistics: Gaussian) -> None:
    """`mu` and `sigma` in an .npz file, to be a reference elsewhere."""
    with disk.replacing(path, chunks.tmp_prefix()) as aside, open(aside, "wb") as file:
        np.savez(file, allow_pickle=False, mu=statistics.mean.numpy(), sigma=statistics.covariance.numpy())
