"""Images at any position: `data[position] -> (image, condition)`, without state, in any order.

A source (digits, a folder, an archive, a store, or any dataset) numbers its images; a `Stream` turns that into an endless
shuffled sequence, every position of which is a function of the seed. Images are (channels, height, width): uint8, or float32
of any scale.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from justimage.data.arrays import ArraySource, refuse_unprepared
from justimage.data.beside import Told, ToldBefore, ToldSource, tell
from justimage.data.built_in import BUILT_IN, digits, textured_digits
from justimage.data.files import Files, open_files
from justimage.data.images import Crop, Decode, decode
from justimage.data.look import Look, look
from justimage.data.source import DatasetSource, ImageError, LabeledImages, Source, as_source, conditions_of
from justimage.data.store import Store, is_store, open_store
from justimage.data.stream import Stream, balanced, batches
from justimage.data.tables import is_table, read_table
from justimage.progress import Job, Progress

__all__ = [
    "BUILT_IN",
    "ArraySource",
    "Crop",
    "DatasetSource",
    "Decode",
    "Files",
    "ImageError",
    "LabeledImages",
    "Look",
    "Source",
    "Store",
    "Stream",
    "Told",
    "ToldBefore",
    "ToldSource",
    "all_alike",
    "as_source",
    "balanced",
    "batches",
    "cache_in_ram",
    "check_same_files",
    "conditions_of",
    "decode",
    "digits",
    "is_table",
    "look",
    "open_source",
    "read_table",
    "sample_sizes",
    "tell",
    "textured_digits",
]  # fmt: skip

SAMPLED_FILES = 64
"""Files whose sizes are compared between processes."""
MAX_RAM_BYTES = 2**30
"""Bytes of decoded images up to which a source is read into memory once, instead of decoded again in every epoch."""


def open_source(path: str, crop: Crop) -> Source:
    """Open the images at `path`: "digits", "textured-digits", a store, or image files as in `open_files`.

    Raises ValueError or OSError, in one line, for a path that is missing, damaged, or of another size than the crop.
    """
    if path in BUILT_IN:
        if crop.channels != 1:
            raise ValueError(f"the {path} have 1 channel; the recipe asks for {crop.channels}: --channels 1")
        return BUILT_IN[path](crop.size)
    place = Path(path).expanduser()
    if is_store(place):
        store = open_store(place)
        if store.shape != crop.shape:
            found, asked = (" x ".join(map(str, shape)) for shape in (store.shape, crop.shape))
            raise ValueError(f"{path} holds images of {found}, the recipe asks for {asked} (channels x height x width)")
        return store
    refuse_unprepared(path)
    return open_files(path, crop)


def sample_sizes(source: Source) -> dict[str, int]:
    """Sizes in bytes of some files of a source, by path, from which another process knows that it sees the same files."""
    if isinstance(source, ToldSource):
        return sample_sizes(source.source) | (sample_sizes(source.images) if source.images else {})
    if not isinstance(source, Files | Store):
        return {}
    paths = {source.file(int(i)) for i in np.linspace(0, len(source) - 1, SAMPLED_FILES)}
    return {str(path): path.stat().st_size for path in paths}


def check_same_files(sizes: dict[str, int]) -> None:
    """ValueError, in one line, where this process sees other files than the one that listed them, as on another disk."""
    for path, size in sizes.items():
        found = Path(path).stat().st_size if Path(path).exists() else None
        if found != size:
            here = "is missing" if found is None else f"has {found:,} bytes"
            raise ValueError(f"{path} {here} here, and has {size:,} for the first process; all must see the same files")


def all_alike(source: Source) -> bool:
    """Whether images in memory are all the same, so that there is nothing to learn."""
    source = source.source if isinstance(source, ToldSource) else source
    if not isinstance(source, ArraySource) or len(source) < 2:
        return False
    return not bool((source.images[1:] != source.images[:1]).any())


def cache_in_ram(source: Source) -> Job[Source]:
    """Decode image files into memory, if they take at most MAX_RAM_BYTES there; any other source is returned as it is.

    A damaged image is found here, before training begins.
    """
    if isinstance(source, ToldSource):
        images = (yield from cache_in_ram(source.images)) if source.images else None
        return replace(source, source=(yield from cache_in_ram(source.source)), images=images)
    if not isinstance(source, Files) or len(source) * math.prod(source.shape) > MAX_RAM_BYTES:
        return source
    images = torch.empty(len(source), *source.shape, dtype=torch.uint8)
    labels = torch.empty(len(source), dtype=torch.int64)

    def load(index: int) -> None:
        images[index], labels[index] = source[index]

    with ThreadPoolExecutor(os.cpu_count() if source.contents.threads else 1) as pool:
        for done, _ in enumerate(pool.map(load, range(len(source))), 1):
            yield Progress("reading images", done, len(source))
    return ArraySource(images, labels, source.class_names, source.fingerprint)
