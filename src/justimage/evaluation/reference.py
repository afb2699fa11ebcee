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

from justimage import data, disk, units
from justimage.data import Crop, Source
from justimage.data.arrays import ArrayFile, Header, open_array_file, unpacked
from justimage.data.source import gather
from justimage.drawing import short_hash
from justimage.evaluation.scores import NEIGHBOURS, Gaussian, gaussian, nearest, radii
from justimage.features import Extractor
from justimage.units import Unit

SAMPLED = 512
"""Images of a set whose content tells it from one with files of the same names and sizes."""
UNIT, TOGETHER = 64, 32
"""Images whose features are kept in one file, and files that are read at a time."""
SAME = 1e-4
"""Of the usual distance between neighbours: what is nearer differs by rounding only, as twins among the real images do."""
MOST = 50_000
"""Real images that neighbours are looked for among, for precision and recall; of a larger set, so many spread evenly."""
LOOKED_AT, RARE = 2000, 0.01
"""Images whose nearest real ones are looked for, and the share of real ones whose nearest other is nearer than is common."""


def cache() -> Path:
    """Where features of real images are kept: $JUSTIMAGE_CACHE, or justimage/ where a user's caches are."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "justimage"
    return Path(os.environ.get("JUSTIMAGE_CACHE") or usual) / "features"


@dataclass(frozen=True)
class Reference:
    """Real images as features; without a source, only their statistics."""

    facts: dict[str, Any]
    """what a report says of them"""
    statistics: Gaussian
    source: Source | None = None
    folder: Path = Path()

    def parts(self) -> Iterator[Tensor]:
        """The features of all images, some at a time."""
        return (part for _, part in self.numbered(1))

    def numbered(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The numbers of every step-th image, and their features, some at a time."""
        before = 0
        for features in parts_of(self.folder, len(self.source or ())):
            numbers = torch.arange(before, before + len(features))
            chosen = numbers % step == 0
            yield numbers[chosen], features[chosen]
            before += len(numbers)

    @cached_property
    def around(self) -> tuple[Tensor, Tensor]:
        """The features of real images, at most MOST, and the squared distance of each to its third neighbour, kept, too."""
        _, real = self.spread()
        place = self.folder / f"radii-{NEIGHBOURS}-of-{len(real)}"

        def make(number: int) -> Unit:
            return {"radii": (radii(real) if len(real) > NEIGHBOURS else torch.zeros(len(real))).numpy()}

        for _ in units.complete(place, 1, make):
            pass
        return real, torch.from_numpy(next(units.units(place, 1))["radii"])

    @cached_property
    def common(self) -> float:
        """The distance within which only 1 % of real images have another."""
        numbers, some = self.spread(LOOKED_AT)
        apart = nearest(some, self.parts(), numbers)[0]
        return max(float(apart.quantile(RARE)), SAME * float(apart.median()))

    def spread(self, most: int = MOST) -> tuple[Tensor, Tensor]:
        """The numbers and features of at most so many images, spread evenly over the set."""
        step = -(-len(self.source or ()) // most)
        numbers, features = zip(*self.numbered(step), strict=True)
        return torch.cat(numbers), torch.cat(features)


@dataclass(frozen=True)
class Stored:
    """Images in an .npz file, as a source."""

    file: ArrayFile

    @property
    def class_names(self) -> list[str]:
        return self.file.class_names

    @property
    def fingerprint(self) -> str:
        return self.file.fingerprint

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.file.pixels(index).copy()), self.file.labels[index]


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
        source: Source = Stored(open_array_file(path))
        if (there := tuple(source[0][0].shape)) != shape:
            sizes = (" x ".join(map(str, s)) for s in (there, shape))
            raise ValueError("{} holds images of {}, the model draws {} (channels x height x width)".format(path, *sizes))
    else:
        source = data.open_source(word, crop)
    folder = features_of(source, extractor, shape, progress, stop)
    facts = {"path": word, "fingerprint": source.fingerprint, "images": len(source), "size": list(shape)}
    if found:
        return Reference(facts | {"sha256": disk.sha256(path), "statistics": "mu and sigma of the file"}, found, source, folder)
    return Reference(facts | {"statistics": "of all images"}, statistics_of(folder, len(source)), source, folder)


def features_of(
    source: Source,
    extractor: Extractor,
    shape: tuple[int, int, int],
    progress: Callable[[int, int], object] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    """The folder with the features of a set's images, in which what is missing is computed."""
    count, total = len(source), -(-len(source) // UNIT)
    job = {"images": source.fingerprint, "sample": sampled(source), "count": count, "shape": list(shape), "unit": UNIT}
    job |= {"features": extractor.identity, "device": extractor.device}
    folder = cache() / short_hash(job)
    threaded = not isinstance(source, data.Files) or source.contents.threads

    def make(number: int) -> Unit:
        images, labels = gather(source, np.arange(number * UNIT, min((number + 1) * UNIT, count)))
        features, _ = extractor.extract(images)
        return {"features": features.numpy(), "labels": labels.numpy()}

    units.begin(folder, job)
    for done in units.complete(folder, total, make, units.at_once(extractor.device) if threaded else 1, stop):
        progress(min(done * UNIT, count), count)
    return folder


def sampled(source: Source) -> str:
    """A hash of some images of a set; its fingerprint may know files by their names and sizes only."""
    chosen, digest = np.unique(np.linspace(0, len(source) - 1, SAMPLED).astype(np.int64)), hashlib.sha256()
    for start in range(0, len(chosen), UNIT):
        digest.update(gather(source, chosen[start : start + UNIT])[0].numpy().tobytes())
    return digest.hexdigest()


def statistics_of(folder: Path, count: int) -> Gaussian:
    """Mean and covariance of a set's kept features, kept beside them."""
    path = folder / "statistics.npz"
    if not path.exists():
        save_statistics(path, gaussian(parts_of(folder, count)))
    return read_statistics(path)


def parts_of(folder: Path, count: int) -> Iterator[Tensor]:
    """The kept features of a set's images (n, d), some thousand at a time."""
    rest = units.units(folder, -(-count // UNIT))
    while group := list(islice(rest, TOGETHER)):
        yield torch.from_numpy(np.concatenate([unit["features"] for unit in group]))


def labels_of(reference: Reference) -> np.ndarray:
    """The class of each real image."""
    count = -(-len(reference.source or ()) // UNIT)
    return np.concatenate([unit["labels"] for unit in units.units(reference.folder, count)])


def arrays_in(path: Path) -> dict[str, Header]:
    """What an .npz file holds, from the heads of its arrays; ValueError for what is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = {}
            for entry in archive.infolist():
                if entry.filename.endswith(".npy"):
                    with archive.open(entry) as file:
                        found[entry.filename[:-4]] = Header(file.read(2**16), entry.file_size)
            return found
    except (ValueError, OSError, EOFError, RuntimeError, OverflowError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no readable .npz ({disk.shown(' '.join(str(error).split()), 200)})") from error


def read_statistics(path: Path) -> Gaussian:
    """`mu` and `sigma` of an .npz file, as ADM's and the authors' reference statistics have them."""
    try:
        with zipfile.ZipFile(path) as archive:
            mu, sigma = (unpacked(archive, n, arrays_in(path)[n]).astype(np.float64) for n in ("mu", "sigma"))
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not np.isfinite(mu).all() or not np.isfinite(sigma).all():
            raise ValueError(f"mu is {mu.shape}, sigma {sigma.shape}; wanted are finite numbers (d,) and (d, d)")
        if not np.allclose(sigma, sigma.T, atol=1e-6 * max(np.abs(sigma).max(), 1e-30)):
            raise ValueError("sigma is not symmetric")
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} has no usable statistics ({disk.shown(' '.join(str(error).split()), 200)})") from error
    return Gaussian(torch.from_numpy(mu), torch.from_numpy(sigma))


def save_statistics(path: Path, statistics: Gaussian) -> None:
    """`mu` and `sigma` in an .npz file, to be a reference elsewhere."""
    with disk.replacing(path, units.writer()) as aside, open(aside, "wb") as file:
        np.savez(file, allow_pickle=False, mu=statistics.mean.numpy(), sigma=statistics.covariance.numpy())
