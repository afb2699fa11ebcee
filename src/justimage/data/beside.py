"""Conditions that lie beside the images: other images of the same names, or a table of words and numbers.

A table is a .csv with a header, or a .tsv; or its texts as an encoder has read them, a .safetensors (encoded.py). Its column
`file` says which image a row is of, by its path below the folder or by its name, with or without a suffix; without this column
row i is of image i. A column `text` is words; all others are numbers, of which an empty cell is unknown.
"""

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from justimage.checks import check_finite
from justimage.conditions import text_bytes
from justimage.data.encoded import ENCODED, encode_texts, read_encoded, same_encoder
from justimage.data.files import Files, open_files
from justimage.data.images import PILLOW_FORMATS, Crop, upright_size
from justimage.data.look import look
from justimage.data.matching import match
from justimage.data.source import Source
from justimage.data.store import Store, is_store, open_store
from justimage.data.tables import FILE, TEXT, is_table, read_table
from justimage.disk import printable
from justimage.normalization import Normalization

MAX_TEXT = 512
"""Bytes of the longest text."""
CONSTANT = 1e-7
"""Deviation of numbers, relative to their mean, up to which they differ by rounding."""
SAMPLED_PAIRS = 2000
"""Pairs of images, at most, whose shapes are compared."""
SAME_SHAPE = 0.03
"""Most that the logarithms of two aspects may differ by."""


@dataclass(frozen=True)
class Told:
    """How what a network is told becomes a condition."""

    columns: tuple[str, ...] = ()
    """names of the numbers"""
    mean: tuple[float, ...] = ()
    """of each"""
    std: tuple[float, ...] = ()
    """standard deviation of each"""
    encoder: str = ""
    """of texts, by its name; empty for bytes"""
    normalization: Normalization = Normalization()
    """of images"""

    def __post_init__(self) -> None:
        check_finite(self)
        if not len(self.columns) == len(self.mean) == len(self.std):
            raise ValueError("told needs one mean and one std for each column")

    def vector(self, numbers: Mapping[str, float]) -> Tensor:
        """Numbers by name as a vector: each standardised, then for each whether it is known."""
        if unknown := [name for name in numbers if name not in self.columns]:
            allowed = ", ".join(self.columns) or "none"
            raise ValueError(f"this model is not told {printable(unknown[0])!r}; allowed: {allowed}")
        known = [name in numbers for name in self.columns]
        statistics = zip(self.columns, self.mean, self.std, strict=True)
        scaled = [(numbers.get(name, m) - m) / (s if s > CONSTANT * abs(m) else 1.0) for name, m, s in statistics]
        return torch.tensor([*scaled, *map(float, known)])

    def text(self, texts: Sequence[str], length: int) -> Tensor:
        """Texts as bytes (n, length), or as their encoder reads them (n, length, features)."""
        if self.encoder:
            return encode_texts(self.encoder, texts, length)
        return torch.stack([text_bytes(text, length) for text in texts])

    def image(self, images: Tensor) -> Tensor:
        """Images as the network is told them."""
        return self.normalization.normalize(images)


@dataclass(frozen=True)
class ToldSource:
    """A source whose conditions are dicts: "classes", where there are any, and "image", "vector" or "text" from beside."""

    source: Source
    told: Told
    keep_classes: bool
    fingerprint: str
    images: Source | None = None
    """images to be told"""
    matched: NDArray[np.int64] | None = None
    """which of them is of each image"""
    vectors: Tensor | None = None
    texts: Tensor | None = None
    has_class_numbers = False

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.source.shape

    @property
    def floats(self) -> bool:
        return self.source.floats

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        return self.source.statistics

    @property
    def class_names(self) -> list[str]:
        return self.source.class_names if self.keep_classes else []

    @property
    def labels(self) -> Any:
        return getattr(self.source, "labels", ())

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        images, condition = self.batch(np.array([index]))
        return images[0], {name: tensor[0] for name, tensor in condition.items()}

    def batch(self, indices: NDArray[np.int64]) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = self.source.batch(indices)
        condition = {"classes": labels} if self.class_names else {}
        if self.images is not None and self.matched is not None:
            condition["image"] = self.told.image(self.images.batch(self.matched[indices])[0])
        chosen = torch.from_numpy(indices)
        if self.vectors is not None:
            condition["vector"] = self.vectors[chosen]
        if self.texts is not None:
            texts = self.texts[chosen]
            condition["text"] = texts.float() if texts.is_floating_point() else texts.long()
        return images, condition


@dataclass(frozen=True)
class ToldBefore:
    """What a trained network was told, and other images must be told alike."""

    told: Told
    channels: int
    """of its images"""
    length: int
    """of its texts"""


def tell(source: Source, path: str, crop: Crop, keep_classes: bool = True, before: ToldBefore | None = None) -> ToldSource:
    """A source with conditions from `path` beside its classes: a table, or images as `data` takes them. before: what the
    network that they are for was told.

    ValueError or OSError, in one line, for what is not there for every image, or does not match.
    """
    if not source.has_class_numbers:
        raise ValueError("these images have conditions of their own; --condition is for images that have classes or none")
    if Path(path).suffix.lower() == ENCODED:
        found = tell_encoded(source, path, keep_classes, before)
    elif is_table(path):
        found = tell_table(source, path, keep_classes, before)
    else:
        found = tell_images(source, path, crop, keep_classes, before)
    digest = hashlib.sha256(f"{source.fingerprint} {found.fingerprint}".encode()).hexdigest()
    return replace(found, fingerprint=digest)


# images -----------------------------------------------------------------------------------------------------------------


def tell_images(source: Source, path: str, crop: Crop, keep_classes: bool, before: ToldBefore | None) -> ToldSource:
    """A source with images from another place: of the same names, or, of stores, in the same order."""
    place = Path(path).expanduser()
    if is_store(place):
        images = open_store(place)
        if images.shape[1:] != source.shape[1:]:
            sizes = (f"{shape[2]} x {shape[1]}" for shape in (images.shape, source.shape))
            raise ValueError("{} has images of {}, the data of {}".format(path, *sizes))
    else:
        images = open_files(path, replace(crop, channels=(before and before.channels) or look(path).channels, upscale=True))
    if isinstance(images, Files) and isinstance(source, Files):
        matched = match(source.names, images.names, path)
        check_same_shapes(source, images, matched)
    else:
        check_count(source, len(images), path, "images")
        matched = np.arange(len(source))
    statistics = images.statistics if isinstance(images, Store) and images.floats else None
    told = before.told if before else Told(normalization=Normalization(*statistics) if statistics else Normalization())
    return ToldSource(source, told, keep_classes, images.fingerprint, images, matched)


def check_same_shapes(source: Files, images: Files, matched: NDArray[np.int64]) -> None:
    """ValueError where two images of one name are of different shapes, as they would be cropped differently."""
    for i in np.unique(np.linspace(0, len(source) - 1, SAMPLED_PAIRS).astype(int)).tolist():
        sizes = []
        for files, index in (source, i), (images, int(matched[i])):
            try:
                with Image.open(io.BytesIO(files.contents.read_bytes(index)), formats=PILLOW_FORMATS) as image:
                    sizes.append(upright_size(image))
            except Exception:  # damaged: reading it will say so, with its name
                break
        if len(sizes) == 2 and abs(math.log(sizes[0][0] / sizes[0][1] * sizes[1][1] / sizes[1][0])) > SAME_SHAPE:
            (h, w), (h2, w2) = sizes
            raise ValueError(f"{printable(source.names[i])} is {w} x {h} and what is told of it {w2} x {h2}: shapes must agree")


# tables -----------------------------------------------------------------------------------------------------------------


def tell_table(source: Source, path: str, keep_classes: bool, before: ToldBefore | None) -> ToldSource:
    """A source with the words and numbers of a table."""
    header, rows = read_table(Path(path).expanduser())
    if FILE in header:
        if not isinstance(source, Files):
            raise ValueError(f"{path} names files, and this data has none; without a column {FILE!r} row i is of image i")
        column = header.index(FILE)
        matched = match(source.names, [row[column] for row in rows], path)
        rows = [rows[i] for i in matched]
    check_count(source, len(rows), path, "rows")
    names = [name for name in header if name not in (FILE, TEXT)]
    if before:
        names = list(before.told.columns)
        if missing := [name for name in [*names, *[TEXT] * bool(before.length)] if name not in header]:
            raise ValueError(f"{path} has no column {printable(missing[0])!r}, which the model is told: {', '.join(header)}")
    texts = vectors = None
    if TEXT in header and (not before or before.length):
        written = [row[header.index(TEXT)].strip() for row in rows]
        longest = max(written, key=lambda text: len(text.encode()))
        length = len(longest.encode())
        if not 0 < length <= MAX_TEXT:
            raise ValueError(f"{path}: its longest text has {length} bytes; allowed: 1 to {MAX_TEXT}: {longest[:60]!r}")
        length = before.length if before else length
        texts = torch.stack([text_bytes(text, length).to(torch.int16) for text in written])
    told = before.told if before else Told()
    if names:
        table = [{name: parse_cell(row[header.index(name)], name, path) for name in names} for row in rows]
        columns = np.array([[row[name] for name in names] for row in table])
        for i, name in enumerate(names):
            if not np.isfinite(columns[:, i]).any():
                raise ValueError(f"{path}: column {printable(name)!r} has no number")
        if not before:
            told = Told(tuple(names), tuple(np.nanmean(columns, 0).tolist()), tuple(np.nanstd(columns, 0).tolist()))
        vectors = torch.stack([told.vector({n: v for n, v in row.items() if math.isfinite(v)}) for row in table])
    elif texts is None:
        raise ValueError(f"{path} has no column but {FILE!r}; give a column {TEXT!r} of words, or columns of numbers")
    digest = hashlib.sha256(repr((header, rows)).encode("utf-8", "surrogatepass")).hexdigest()
    return ToldSource(source, told, keep_classes, digest, vectors=vectors, texts=texts)


def tell_encoded(source: Source, path: str, keep_classes: bool, before: ToldBefore | None) -> ToldSource:
    """A source with texts that an encoder has read."""
    texts, encoder, files = read_encoded(Path(path).expanduser())
    if files is not None:
        if not isinstance(source, Files):
            raise ValueError(f"{path} names files, and this data has none; encode a table without a column {FILE!r}")
        texts = texts[torch.from_numpy(match(source.names, files, path))]
    if before:
        if not same_encoder(encoder, before.told.encoder):
            raise ValueError(f"{path} is by {printable(encoder)}, the model's texts by {before.told.encoder or 'no encoder'}")
        texts = torch.nn.functional.pad(texts, (0, 0, 0, max(before.length - texts.shape[1], 0)))[:, : before.length]
    check_count(source, len(texts), path, "texts")
    digest = hashlib.sha256(encoder.encode() + texts.contiguous().numpy().tobytes()).hexdigest()
    return ToldSource(source, Told(encoder=encoder), keep_classes, digest, texts=texts)


def parse_cell(cell: str, name: str, path: str) -> float:
    """A number from a cell; NaN where it is empty."""
    try:
        value = float(cell) if cell.strip() else math.nan
    except ValueError:
        value = math.inf
    if math.isinf(value):
        raise ValueError(f"{path}: column {printable(name)!r} has {printable(cell, 60)!r}; a number, or nothing")
    return value


def check_count(source: Source, count: int, path: str, what: str) -> None:
    if count != len(source):
        raise ValueError(f"{path} has {count:,} {what} for {len(source):,} images; there must be one for each")
