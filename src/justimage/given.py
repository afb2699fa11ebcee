"""Conditions to sample with, beside classes: words, numbers and images that somebody gives, or those of real images."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import default_collate

from justimage.conditions import NULL_CLASS, with_entry
from justimage.data import Source
from justimage.data.source import digest_of_items
from justimage.recipe import Recipe
from justimage.tasks import open_task


def nothing_told(recipe: Recipe) -> dict[str, Tensor]:
    """The entries of a condition that say nothing, (1, ...), of everything that a model is told beside a class."""
    a = recipe.model
    text = torch.zeros(1, a.text_length, a.text_features) if a.text_features else torch.full((1, a.text_length), NULL_CLASS)
    entries = {"text": text, "vector": torch.zeros(1, a.vector), "image": torch.zeros(1, a.image_channels, *a.size)}
    return {name: tensor for name, tensor in entries.items() if tensor.numel()}


class Conditions(Protocol):
    """A condition for every image of a job, in order and over and over."""

    @property
    def fingerprint(self) -> str:
        """A hash that changes when a condition does."""
        ...

    def __len__(self) -> int: ...

    def at(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The conditions of some images, as a dict of batches."""
        ...


@dataclass(frozen=True)
class Given:
    """Entries that somebody gives, each (n, ...) and for itself over and over: as many as until all begin anew."""

    entries: dict[str, Tensor]

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in sorted(self.entries.items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return math.lcm(*map(len, self.entries.values()))

    def at(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return {name: tensor[[i % len(tensor) for i in indices]] for name, tensor in self.entries.items()}


@dataclass(frozen=True)
class OfImages:
    """The conditions that real images have by a recipe: their classes, what lies beside them, and what its task tells."""

    source: Source
    recipe: Recipe

    @property
    def fingerprint(self) -> str:
        """Of some of them, too: the source may know its files by their names and sizes only."""
        facts = f"{self.source.fingerprint} {digest_of_items(self.source)} {self.recipe.training.task}"
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.source)

    def at(self, indices: Sequence[int]) -> dict[str, Tensor]:
        chosen, r = [self.place(i) for i in indices], self.recipe
        condition = self.as_stored(indices)
        if not isinstance(condition, dict):
            condition = {"classes": condition}
        classes = {"classes": condition.get("classes", torch.full((len(chosen),), NULL_CLASS))} if r.model.classes else {}
        condition = {name: tensor for name, tensor in condition.items() if name != "classes"} | classes
        if r.training.task:
            task = open_task(r.training.task, r.shape)
            condition = with_entry(condition, "image", task.make(self.truth(indices), r.training.seed, chosen))
        return condition

    def as_stored(self, indices: Sequence[int]) -> Any:
        """The conditions of some images as the source has them and a batch of training does."""
        return default_collate([self.source[self.place(i)][1] for i in indices])

    def truth(self, indices: Sequence[int]) -> Tensor:
        """The images themselves (b, channels, height, width), as the network sees them."""
        return self.recipe.normalization.normalize(torch.stack([self.source[self.place(i)][0] for i in indices]))

    def place(self, index: int) -> int:
        """Which of the real images: spread over all classes, each once before any comes again."""
        count = len(self.source)
        step = next(s for s in range(int(count * 0.618) or 1, count + 1) if math.gcd(s, count) == 1)
        return index * step % count
