"""Which of the things that lie beside images is of which image: by their names, the strictest spelling first."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from justimage.data.files import class_root
from justimage.data.images import FORMATS
from justimage.data.tables import FILE
from justimage.disk import printable

SPELLINGS: tuple[Callable[[str], str], ...] = (
    lambda path: path,
    lambda path: without_suffix(path),
    lambda path: path.rpartition("/")[2],
    lambda path: without_suffix(path).rpartition("/")[2],
)
"""Of two paths, the part that must be the same; the strictest first."""


def match(wanted: Sequence[str], given: Sequence[str], path: str) -> NDArray[np.int64]:
    """The index in `given` of each wanted name, below the folders that hold the classes; ValueError where one is missing, or is
    there twice."""
    if "" in map(clean, given):
        raise ValueError(f"{path} has a row of no file; each names one, or there is no column {FILE!r}")
    problems = []
    for found in [clean(name) for name in given], below_root(given):
        for spelling in SPELLINGS:
            names = [spelling(name) for name in found]
            places = {name: i for i, name in enumerate(names)}
            keys = [spelling(name) for name in below_root(wanted)]
            missing = [i for i, key in enumerate(keys) if key not in places]
            if len(set(keys)) < len(keys):
                continue
            if not missing and len(places) == len(names):
                return np.array([places[key] for key in keys])
            twice = next((name for name in names if places[name] != names.index(name)), "") if not missing else ""
            problems.append((len(missing), missing, twice))
    count, missing, twice = min(problems)
    if count:
        more = f" (and {count - 1:,} more)" if count > 1 else ""
        raise ValueError(f"{path} has nothing for {printable(wanted[missing[0]])}{more}")
    raise ValueError(f"{path} has more than one called {printable(twice)}; give each image its own, by its path in the folder")


def without_suffix(path: str) -> str:
    """A path without the suffix of an image."""
    stem, _, suffix = path.rpartition(".")
    return stem if f".{suffix.lower()}" in FORMATS else path


def clean(name: str) -> str:
    return name.strip().replace("\\", "/")


def below_root(names: Sequence[str]) -> list[str]:
    """Names below the folder that holds the classes."""
    names = [clean(name) for name in names]
    prefix = class_root(names)
    return [name[len(prefix) :] if name.startswith(prefix) else name for name in names]
