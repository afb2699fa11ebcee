"""The real images that drawn ones are compared with: their features, computed once and kept, or statistics from a file."""

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from justimage import chunks, data, disk
from justimage.chunks import Chunk
from justimage.data import Crop, Source
from justimage.data.arrays import NpyHeader, open_array_file, unpack
from justimage.evaluation.scores import NEIGHBOURS, Gaussian, gaussian, knn_radii, nearest
from justimage.features import Extractor
from justimage.generate import short_hash

FINGERPRINT_IMAGES = 512
"""Images of a set whose content tells it from one with files of the same names and sizes."""
CHUNK, FILES_PER_READ = 64, 32
"""Images whose features are kept in one file, and files that are read at a time."""
DUPLICATE_TOLERANCE = 1e-4
"""Of the usual distance between neighbours: what is nearer differs by rounding only, as twins among the real images do."""
MAX_REAL = 50_000
"""Real images that neighbours are looked for among, for precision and recall; of a larger set, so many spread evenly."""
COPY_SAMPLES, COPY_QUANTILE = 2000, 0.01
"""Images whose nearest real ones are looked for, and the share of real ones whose nearest other is nearer than is common."""


def cache_root() -> Path:
    """Where features of real images are kept: $JUSTIMAGE_CACHE, or justimage/ where a user's caches are."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "justimage"
    return Path(os.environ.get("JUSTIMAGE_CACHE") or usual) / "features"


@dataclass(frozen=True)
class Reference:
    """Real images as features; without a source, only their statistics."""

    info: dict[str, Any]
    """what a report says of them"""
    statistics: Gaussian
    source: Source | None = None
    folder: Path = Path()

    def iter_features(self) -> Iterator[Tensor]:
        """The features of all images, some at a time."""
        return (part for _, part in self.iter_indexed(1))

    def iter_indexed(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The numbers of every step-th image, and their features, some at a time."""
        before = 0
        for features in iter_chunks(self.folder, len(self.source or ())):
            numbers = torch.arange(before, before + len(features))
            chosen = numbers % step == 0
            yield numbers[chosen], features[chosen]
            before += len(numbers)

    @cached_property
    def knn_radii(self) -> tuple[Tensor, Tensor]:
        """The features of real images, at most MOST, and the squared distance of each to its third neighbour, kept, too."""
        _, real = self.subsample()
        place = self.folder / f"radii-{NEIGHBOURS}-of-{len(real)}"

        def make(number: int) -> Chunk:
            return {"radii": (knn_radii(real) if len(real) > NEIGHBOURS else torch.zeros(len(real))).numpy()}

        for _ in chunks.complete(place, 1, make):
            pass
        return real, torch.from_numpy(next(chunks.read_chunks(place, 1))["radii"])

    @cached_property
    def copy_threshold(self) -> float:
        """The distance within which only 1 % of real images have another."""
        numbers, some = self.subsample(COPY_SAMPLES)
        apart = nearest(some, self.iter_features(), numbers)[0]
        return max(float(apart.quantile(COPY_QUANTILE)), DUPLICATE_TOLERANCE * float(apart.median()))

    def subsample(self, most: int = MAX_REAL) -> tuple[Tensor, Tensor]:
        """The numbers and features of at most so many images, spread evenly over the set."""
        step = -(-len(self.source or ()) // most)
        numbers, features = zip(*self.iter_indexed(step), strict=True)
        return torch.cat(numbers), torch.cat(features)


def open_reference(
    word: str,
    extractor: Extractor,
    crop: Crop,
    progress: Callable[[int, int], object] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> Reference:
    """Real images from a folder, an archive, a store or "digits", cropped as the model's own; or an .npz with `mu` and
    `sigma`, or with images. Raises ValueError or OSError, in one line, for what is missing, damaged or of another size."""
    path, found, shape = Path(word).expanduser(), None, crop.shape
    if path.suffix.lower() == ".npz":
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
        names = arrays_in(path)
        found = read_statistics(path) if {"mu", "sigma"} <= names.keys() else None
        if found and extractor.dimension not in (None, len(found.mean)):
            raise ValueError(
                f"{path} has statistics of {len(found.mean)} numbers an image; these features have {extractor.dimension}"
            )
        if found and not any(len(header.shape) == 4 for header in names.values()):
            facts = {"path": word, "sha256": disk.sha256(path), "images": None, "statistics": "mu and sigma of the file"}
            return Reference(facts, found)
        source: Source = open_array_file(path)
        if (there := source.shape) != shape:
            sizes = (" x ".join(map(str, s)) for s in (there, shape))
            raise ValueError("{} holds images of {}, the model draws {} (channels x height x width)".format(path, *sizes))
    else:
        source = data.open_source(word, crop)
    folder = compute_features(source, extractor, shape, progress, stop)
    facts = {"path": word, "fingerprint": source.fingerprint, "images": len(source), "size": list(shape)}
    if found:
        return Reference(facts | {"sha256": disk.sha256(path), "statistics": "mu and sigma of the file"}, found, source, folder)
    return Reference(facts | {"statistics": "of all images"}, statistics_of(folder, len(source)), source, folder)


def compute_features(
    source: Source,
    extractor: Extractor,
    shape: tuple[int, int, int],
    progress: Callable[[int, int], object] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    """The folder with the features of a set's images, in which what is missing is computed."""
    count, total = len(source), -(-len(source) // CHUNK)
    job = {"images": source.fingerprint, "sample": sample_hash(source), "count": count, "shape": list(shape), "unit": CHUNK}
    job |= {"features": extractor.fingerprint, "device": extractor.device}
    folder = cache_root() / short_hash(job)
    threaded = not isinstance(source, data.Files) or source.contents.threads

    def make(number: int) -> Chunk:
        images, labels = source.batch(np.arange(number * CHUNK, min((number + 1) * CHUNK, count)))
        features, _ = extractor.extract(images)
        return {"features": features.numpy(), "labels": labels.numpy()}

    chunks.begin(folder, job)
    for done in chunks.complete(folder, total, make, chunks.concurrency(extractor.device) if threaded else 1, stop):
        progress(min(done * CHUNK, count), count)
    return folder


def sample_hash(source: Source) -> str:
    """A hash of some images of a set; its fingerprint may know files by their names and sizes only."""
    chosen, digest = np.unique(np.linspace(0, len(source) - 1, FINGERPRINT_IMAGES).astype(np.int64)), hashlib.sha256()
    for start in range(0, len(chosen), CHUNK):
        digest.update(source.batch(chosen[start : start + CHUNK])[0].numpy().tobytes())
    return digest.hexdigest()


def statistics_of(folder: Path, count: int) -> Gaussian:
    """Mean and covariance of a set's kept features, kept beside them."""
    path = folder / "statistics.npz"
    if not path.exists():
        save_statistics(path, gaussian(iter_chunks(folder, count)))
    return read_statistics(path)


def iter_chunks(folder: Path, count: int) -> Iterator[Tensor]:
    """The kept features of a set's images (n, d), some thousand at a time."""
    rest = chunks.read_chunks(folder, -(-count // CHUNK))
    while group := list(islice(rest, FILES_PER_READ)):
        yield torch.from_numpy(np.concatenate([unit["features"] for unit in group]))


def read_labels(reference: Reference) -> np.ndarray:
    """The class of each real image."""
    count = -(-len(reference.source or ()) // CHUNK)
    return np.concatenate([unit["labels"] for unit in chunks.read_chunks(reference.folder, count)])


def arrays_in(path: Path) -> dict[str, NpyHeader]:
    """What an .npz file holds, from the heads of its arrays; ValueError for what is none."""
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
