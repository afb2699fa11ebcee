"""A first look at somebody's images: how many there are, of which classes, how large, of which shape, grey or not."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image, ImageOps

from justimage.data.arrays import refuse_unprepared
from justimage.data.built_in import BUILT_IN
from justimage.data.files import Files, open_files
from justimage.data.images import PILLOW_FORMATS, Crop, upright_size
from justimage.data.store import is_store, open_store

SAMPLED = 100
"""Images that are looked at."""
GREY_TOLERANCE = 4
"""Of 255, by which the channels of a grey image may differ: JPEG keeps colour coarsely."""


@dataclass(frozen=True)
class Look:
    """The facts about images that decide how to train on them."""

    images: int
    class_names: tuple[str, ...]
    smallest_class: int
    """images of the class that has the fewest; all images, where there are no classes"""
    size: tuple[int, int]
    """median height and width"""
    channels: int
    """1 where all are grey, else 3; a store's own"""
    same_shape: bool
    """whether the aspects of nine in ten are within 15 % of the median"""


def look(path: str) -> Look:
    """Look at what `train` takes for data. ValueError or OSError, in one line, for what it would refuse, too."""
    if path in BUILT_IN:
        source = BUILT_IN[path]((32, 32))
        return facts(len(source), source.class_names, source.labels.tolist(), [source.shape[1:]], source.shape[0])
    place = Path(path).expanduser()
    if is_store(place):
        store = open_store(place)
        return facts(len(store), store.class_names, store.labels.tolist(), [store.shape[1:]], store.shape[0])
    refuse_unprepared(path)
    files = open_files(path, Crop((1, 1), upscale=True))
    chosen = np.unique(np.linspace(0, len(files) - 1, SAMPLED).round().astype(int))
    found = [shape for i in chosen if (shape := shape_of(files, int(i)))]
    if not found:
        raise ValueError(f"{path}: none of {len(chosen)} images could be read")
    grey = all(is_grey for _, _, is_grey in found)
    return facts(len(files), files.class_names, files.labels, [(height, width) for height, width, _ in found], 1 if grey else 3)


def facts(
    images: int, class_names: Sequence[str], labels: Sequence[int], sizes: Sequence[tuple[int, int]], channels: int
) -> Look:
    """A look from the labels of all images and the sizes (height, width) of some."""
    counts = np.bincount(np.asarray(labels)[np.asarray(labels) >= 0], minlength=len(class_names))
    size = int(median(h for h, _ in sizes)), int(median(w for _, w in sizes))
    aspects = np.array([w / h for h, w in sizes])
    alike = np.abs(np.log(aspects / np.median(aspects))) < np.log(1.15)
    smallest = int(counts.min()) if len(class_names) else images
    return Look(images, tuple(class_names), smallest, size, channels, bool(alike.mean() >= 0.9))


def shape_of(files: Files, index: int) -> tuple[int, int, bool] | None:
    """Height and width of an image as it is shown, and whether it is grey; None for one that cannot be read."""
    try:
        image = Image.open(io.BytesIO(files.contents.read_bytes(index)), formats=PILLOW_FORMATS)
        height, width = upright_size(image)
        if image.mode in ("1", "L", "LA", "I", "I;16"):
            return height, width, True
        pixels = np.asarray(ImageOps.contain(image.convert("RGB"), (64, 64))).astype(int)
    except Exception:  # Pillow raises many kinds; where the image is used, the error names it
        return None
    return height, width, bool((pixels.max(-1) - pixels.min(-1)).max() <= GREY_TOLERANCE)
