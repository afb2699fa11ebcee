"""The models that a page may use, by the name that it shows: those it was given, and runs found beside it.

Whatever a browser sends is looked up here, and is never a path by itself.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from justimage import checkpoint, data, hub, randomness
from justimage.data import Source
from justimage.distributed import preferred_precision
from justimage.evaluation.copies import averaged
from justimage.generate import ImageGenerator, Precision
from justimage.web.turns import Turns

KEPT = 4
"""Averages of models in memory at a time."""
COMPARED = 20_000
"""Training images among which neighbours are found, at most."""


@dataclass(frozen=True)
class Neighbourhood:
    """A model's training images, as they are compared with what it draws."""

    source: Source
    places: Tensor
    """(n,) of the images compared, in the source"""
    features: Tensor
    """(n, ...) of these"""


class Models:
    """Models by name, each loaded when it is first asked for and again when its run has a newer checkpoint."""

    def __init__(
        self, sources: Sequence[str | Path], device: torch.device, max_images: int = 16, home: Path | None = None
    ) -> None:
        """home: a folder in which runs are looked for [none]. max_images: of one drawing."""
        self.given, self.device, self.max_images, self.home = list(map(str, sources)), device, max_images, home
        self.turns, self.loading = Turns(), Lock()
        self.generators: dict[tuple[str, Precision], ImageGenerator] = {}
        self.newest: dict[tuple[str, Precision], Path] = {}  # checkpoints as each was loaded, damaged ones too
        self.neighbourhoods: dict[str, Neighbourhood] = {}

    @property
    def runs(self) -> list[str]:
        """Trainings that can be watched: directories with a recipe."""
        found = [*self.given, *self.found()]
        return [name for name in found if not hub.is_address(name) and (Path(name).expanduser() / "recipe.json").is_file()]

    @property
    def names(self) -> list[str]:
        """Models to draw with."""
        return [*self.given, *(name for name in self.found() if checkpoint.list_checkpoints(Path(name)))]

    def found(self) -> list[str]:
        """Runs that lie where the commands put them by default."""
        if self.home is None:
            return []
        places = sorted({*self.home.glob("runs/*"), *self.home.glob("demo/run"), *self.home.glob("demo-*/run")})
        found = [str(place) for place in places if (place / "recipe.json").is_file() and not place.is_symlink()]
        return [name for name in found if name not in self.given]

    def generator(self, name: str, precision: Precision | None = None) -> ImageGenerator:
        """The generator of a model, a copy whose conditions are the caller's own; ValueError for another than those offered.

        precision: by default the device's.
        """
        if name not in self.names:
            raise ValueError(f"model {name!r} is not one of this page's; allowed: {', '.join(self.names) or 'none yet'}")
        key = name, precision or preferred_precision(self.device)
        with self.loading:
            generator, newest = self.generators.pop(key, None), checkpoint.resolve(name)
            if generator is None or self.newest.get(key) != newest:
                generator, self.newest[key] = ImageGenerator(name, self.device, key[1]), newest
            self.generators[key] = generator  # the newest at the end
            self.forget()
        return copy.copy(generator)

    def forget(self) -> None:
        """Drop the averages that were not asked for lately."""
        while sum(len(g.denoisers) for g in self.generators.values()) > KEPT:
            oldest = next(key for key, g in self.generators.items() if g.denoisers)
            self.generators[oldest].denoisers.clear()

    def neighbourhood(self, name: str) -> Neighbourhood:
        """The training images of a model; ValueError or OSError where they are not here.

        A recipe from elsewhere may name any folder of this machine, so that only the built-in sets are opened for it.
        """
        recipe = self.generator(name).recipe
        if name not in self.runs and recipe.data not in data.BUILT_IN:
            raise ValueError(f"the training images of {name} are not shown: it is no training of this machine")
        if name not in self.neighbourhoods:
            source = data.open_source(recipe.data, recipe.crop)
            if source.shape != recipe.shape or recipe.normalization.mean:
                raise ValueError(f"{recipe.data} holds no pictures of this model's size")
            places = torch.from_numpy(randomness.subset(len(source), COMPARED))
            features = torch.cat([averaged(torch.stack([source[int(i)][0] for i in part])) for part in places.split(1024)])
            self.neighbourhoods = {name: Neighbourhood(source, places, features)}  # of one model at a time
        return self.neighbourhoods[name]
