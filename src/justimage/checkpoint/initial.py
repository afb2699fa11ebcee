"""First weights from a trained network: what fits is taken, other patches, channels and classes by two rules.

The blocks have to be the same. Positions are computed from the grid of patches, so another size of image changes no weight.

patches, channels   a matrix D makes a new patch of an old one: scaled, a grey one copied to all channels, several channels
                    averaged to one, otherwise the first ones kept. The head draws D times its old patch. The embedding is
                    multiplied by D's pseudo-inverse, so that a patch that D makes is the token that it was made of
                    (FlexiViT, Beyer et al. 2023)
classes             by name; without names, by number. One that the source does not know begins as its "no class"
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from justimage.architectures import Architecture
from justimage.checkpoint.model import ema_of, fingerprint, load, named_weights, read_recipe, resolve
from justimage.ema import ema_name
from justimage.recipe import Recipe

SAME = "width", "depth", "heads", "bottleneck", "context_tokens", "context_start", "rope", "qk_norm", "mlp", "norm"
"""What a network must have in common with the one that it starts from."""

NAMES = {
    "classifier": "the classifier",
    "augmentation": "the embedding of augmentations",
    "embed_image": "the embedding of images that it is told",
    "embed_vector": "the embedding of numbers",
    "text": "the encoder of texts",
}
PARTS: list[tuple[str, Callable[[Recipe], Any]]] = [
    ("classifier", lambda r: r.model.aux_classifier),
    ("augmentation", lambda r: r.model.augmented),
    ("embed_image", lambda r: r.model.image_channels),
    ("embed_vector", lambda r: (r.told.columns or r.model.vector) if r.model.vector else 0),
    ("text", lambda r: (r.model.text_length, r.model.text_features) if r.model.text_length else 0),
]
"""Parts that one network may have and another not, and what they must have in common."""


@dataclass(frozen=True)
class Initial:
    """The first weights of a network."""

    weights: dict[str, Tensor]
    """by name; those that are not among them are drawn as for any new network"""
    origin: str
    """what they are from"""
    notes: list[str]
    """what was adapted or made anew"""
    anew: tuple[str, ...]
    """the parts of the network that begin anew, wholly or for some classes"""


def read_initial(source: str, recipe: Recipe) -> Initial:
    """The first weights of a recipe's network, from a run, a converted checkpoint or a file of weights: of the average that it
    samples with. ValueError or OSError, in one line, for weights that cannot start that network."""
    place = resolve(source)
    old = read_recipe(place)
    check_same_network(source, old, recipe)
    weights = {name: w.detach() for name, w in named_weights(load(source, device="cpu").net).items()}
    classes = matching_classes(old, recipe)
    notes = [*adapt_patches(weights, old.model, recipe.model), *adapt_classes(weights, old, recipe, classes)]
    others = [part for part, size in PARTS if size(recipe) != size(old)]
    weights = {name: w for name, w in weights.items() if name.partition(".")[0] not in others}
    anew = [part for part, size in PARTS if part in others and size(recipe)]
    notes += [f"{NAMES[part]} is new" for part in anew]
    if -1 in classes:
        anew += [part for part in ("class_table", "classifier") if f"{part}.weight" in weights]
    ema = old.training.sample_ema if place.is_dir() else ema_of(place)
    seen = f" after {int(place.name):,} images" if place.is_dir() and place.name.isdigit() else ""
    average = f"average {ema_name(ema)}" if ema else "no average"
    return Initial(weights, f"{source}{seen}, {average}, {fingerprint(place, ema)[:16]}", notes, tuple(anew))


def check_same_network(source: str, old: Recipe, new: Recipe) -> None:
    """ValueError where the blocks, or what they predict, are not the same."""
    if any(name.startswith("net ") for name in (*new.custom, *old.custom)):
        raise ValueError(f"{source} cannot start this training: a custom network gets its first weights where it is made")
    pairs = [(name, getattr(old.model, name), getattr(new.model, name)) for name in SAME]
    pairs += [(name, getattr(old.diffusion, name), getattr(new.diffusion, name)) for name in ("prediction", "interpolant")]
    if differences := "; ".join(f"its {name} is {there}, here {here}" for name, there, here in pairs if there != here):
        raise ValueError(f"{source} cannot start this network: {differences}")


def adapt_patches(weights: dict[str, Tensor], old: Architecture, new: Architecture) -> Iterator[str]:
    """Change embedding and head for patches of another size, or with other channels."""
    if (old.channels, old.patch_size) == (new.channels, new.patch_size):
        return
    scale = scale_matrix(old.patch_size, new.patch_size)
    make = torch.kron(channel_matrix(old.channels, new.channels), scale)
    embedding = "embed.reduce.weight" if old.bottleneck else "embed.expand.weight"
    weights[embedding] = weights[embedding] @ torch.linalg.pinv(make)
    if old.image_channels == new.image_channels > 0:
        told = embedding.replace("embed", "embed_image")
        weights[told] = weights[told] @ torch.linalg.pinv(torch.kron(torch.eye(new.image_channels), scale))
    for name in "head.linear.weight", "head.linear.bias":
        weights[name] = make @ weights[name]
    if old.patch_size != new.patch_size:
        yield f"patches of {old.patch_size} are scaled to {new.patch_size}"
    if old.channels != new.channels:
        yield f"{old.channels} channels are made {new.channels}"


def channel_matrix(old: int, new: int) -> Tensor:
    """New channels (rows) from old ones."""
    return torch.ones(new, 1) if old == 1 else torch.full((1, old), 1 / old) if new == 1 else torch.eye(new, old)


def scale_matrix(old: int, new: int) -> Tensor:
    """The numbers of a channel's new patch (rows) from those of its old one: bicubic, antialiased."""
    each = torch.eye(old * old).view(-1, 1, old, old)
    return F.interpolate(each, size=(new, new), mode="bicubic", antialias=True).flatten(1).T.contiguous()


def matching_classes(old: Recipe, new: Recipe) -> list[int]:
    """Which class of the source each class is; -1 for one that the source does not know."""
    names = list(old.class_names)
    if not names or not new.class_names:
        return [i if i < (old.model.classes or 0) else -1 for i in range(new.model.classes or 0)]
    return [names.index(name) if name in names else -1 for name in new.class_names]


def adapt_classes(weights: dict[str, Tensor], old: Recipe, new: Recipe, found: list[int]) -> Iterator[str]:
    """Give the classes their rows of the table, and of the classifier where there is one."""
    if found == list(range(old.model.classes or 0)):
        return
    rows = torch.tensor([*found, -1], dtype=torch.int64)  # the last row of the table is "no class"
    weights["class_table.weight"] = weights["class_table.weight"][rows]
    if old.model.aux_classifier and new.model.aux_classifier:
        for name in "classifier.weight", "classifier.bias":
            weights[name] = torch.where((rows[:-1] >= 0).view(-1, *[1] * (weights[name].ndim - 1)), weights[name][rows[:-1]], 0)
    known = sum(i >= 0 for i in found)
    how = "by name" if old.class_names and new.class_names else "by number"
    yield f"{known} of {len(found)} classes are taken over {how}" + (', the others begin as "no class"' if -1 in found else "")
