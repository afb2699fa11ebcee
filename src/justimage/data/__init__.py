"""Images at any position: `data[position] -> (image, label)`, with no state, in any order.

A source (digits, a folder, an archive, a store) numbers its images; a `Stream` turns that into an endless shuffled
sequence whose every position is a function of the seed. Images are (channels, height, width): uint8, or, from a store of
arrays, float32 in the data's own units.
"""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from justimage.data.arrays import SUFFIXES, ArraySource, digits
from justimage.data.files import Files, open_files
from justimage.data.images import Crop, Decode, decode
from justimage.data.source import OwnData, Source, as_source, conditions_of
from justimage.data.store import Store, is_store, open_store
from justimage.data.stream import Stream, batches

__all__ = [
    "ArraySource",
    "Crop",
    "Decode",
    "Files",
    "Source",
    "Store",
    "Stream",
    "batches",
    "cache_in_ram",
    "check_same_files",
    "decode",
    "digits",
    "open_source",
    "sample_sizes",
]  # fmt: skip

SAMPLED_FILES = 64
"""Files by which processes see whether they have the same."""
MAX_RAM_BYTES = 2**30
"""Bytes of decoded images up to which a source is read into memory once, instead of decoded again each epoch."""


def open_source(path: str, crop: Crop) -> Source:
    """The images at `path`: "digits"; a store; or image files as `open_files` says.

    Raises ValueError or OSError, in one line, for what is missing, damaged, or of another size than the model's.
    """
    if path == "digits":
        if crop.channels != 1:
            raise ValueError(f"the digits have 1 channel; the recipe asks for {crop.channels}")
        return digits(crop.size)
    place = Path(path).expanduser()
    if is_store(place):
        store = open_store(place)
        if store.shape != crop.shape:
            found, asked = (" x ".join(map(str, shape)) for shape in (store.shape, crop.shape))
            raise ValueError(f"{path} holds images of {found}, the recipe asks for {asked} (channels x height x width)")
        return store
    if place.suffix.lower() in SUFFIXES:
        raise ValueError(
            f"arrays are prepared before they are trained on: justimage prepare {path} {place.with_suffix('')}-store"
        )
    return open_files(path, crop)


def sample_sizes(source: Source) -> dict[str, int]:
    """The sizes in bytes of some files, spread over a set, by which another process knows that it sees the same set."""
    if not isinstance(source, Files | Store):
        return {}
    places = {source.file(int(i)) for i in np.linspace(0, len(source) - 1, SAMPLED_FILES)}
    return {str(place): place.stat().st_size for place in places}


def check_same_files(sizes: dict[str, int]) -> None:
    """ValueError, in one line, where this process finds other files than the one that listed them, such as on another disk."""
    for place, size in sizes.items():
        found = Path(place).stat().st_size if Path(place).exists() else None
        if found != size:
            here = "is missing" if found is None else f"has {found:,} bytes"
            raise ValueError(f"{place} {here} here, and has {size:,} for the first process; all must see the same files")


def cache_in_ram(source: Source, progress: Callable[[int, int], object] = lambda done, total: None) -> Source:
    """Image files decoded once into memory, if that takes at most MAX_RAM_BYTES; otherwise the source itself.

    A damaged image is found here, before anything is trained. progress receives how many are decoded, and of how many.
    """
    if not isinstance(source, Files) or len(source) * math.prod(source.shape) > MAX_RAM_BYTES:
        return source
    images = torch.empty(len(source), *source.shape, dtype=torch.uint8)
    labels = torch.empty(len(source), dtype=torch.int64)

    def load(index: int) -> None:
        images[index], labels[index] = source[index]

    with ThreadPoolExecutor(os.cpu_count() if source.contents.threads else 1) as pool:
        for done, _ in enumerate(pool.map(load, range(len(source))), 1):
            progress(done, len(source))
    return ArraySource(images, labels, source.class_names, source.fingerprint)
