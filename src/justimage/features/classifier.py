"""A classifier of one's own data: a small residual network, trained in minutes; its last hidden layer is the features.

For data that Inception has never seen (digits, scans, spectra), distances in the space of a network that has learnt to tell
its classes apart mean something; and its classes say whether a drawn image is what was asked for.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from justimage import disk, randomness
from justimage.data import Source
from justimage.features import Extractor
from justimage.normalization import Normalization

KIND = "justimage classifier 1"
MAX_SHIFT = 1 / 8
"""Of the side: how far an image is moved at most, in training."""
MAX_WIDTH, MAX_DEPTH = 2**12, 2**24
"""The largest side, number of channels, classes or width, and bytes of a description, that a file may ask for."""


@dataclass(frozen=True)
class ClassifierShape:
    """The architecture of a classifier."""

    channels: int
    size: tuple[int, int]
    classes: int
    width: int = 32
    """channels of the first stage; each of the others has twice as many, and half the side"""
    features: int = 128

    def __post_init__(self) -> None:
        for name, value in {**asdict(self), "size": max(self.size), "least": min(self.size)}.items():
            if not 1 <= value <= MAX_WIDTH:
                raise ValueError(f"{name} is {value}; allowed: 1 to {MAX_WIDTH}")
        if self.classes < 2:
            raise ValueError("the data has fewer than 2 classes to tell apart; use inception, or an exported network")

    @property
    def stages(self) -> int:
        """So many, of two to five, that 4 to 8 pixels a side are left where that is possible."""
        return max(2, min(5, round(math.log2(min(self.size) / 6)) + 1))


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.shortcut = nn.Identity() if (before, stride) == (after, 1) else nn.Conv2d(before, after, 1, stride)

    def forward(self, h: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(h)))))
        return F.relu(self.shortcut(h) + inner)


class Classifier(nn.Module):
    """Images in [-1, 1] -> features (b, features) and logits (b, classes)."""

    def __init__(self, shape: ClassifierShape) -> None:
        super().__init__()
        widths = [shape.width * 2 ** min(i, 3) for i in range(shape.stages)]
        self.stem = nn.Sequential(
            nn.Conv2d(shape.channels, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        self.stages = nn.Sequential(
            *(ResidualBlock(a, b, 1 + (i > 0)) for i, (a, b) in enumerate(pairwise([widths[0], *widths])))
        )
        self.features = nn.Linear(widths[-1], shape.features)
        self.head = nn.Linear(shape.features, shape.classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = F.relu(self.features(self.stages(self.stem(x)).mean((2, 3))))
        return features, self.head(features)


class ClassifierStep(NamedTuple):
    images_seen: int
    loss: float


@dataclass
class ClassifierTrainer:
    """Trains a classifier on a part of a source; the rest, a tenth chosen by hash, is held out to be read at the end."""

    source: Source
    shape: ClassifierShape
    units: Normalization = Normalization()
    images: int = 60_000
    """to train on, counted with repetition"""
    batch: int = 64
    learning_rate: float = 2e-3
    flip: bool = False
    seed: int = 0
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        if self.images < 1 or self.batch < 2 or self.learning_rate <= 0:
            raise ValueError("images must be 1 or more, batch 2 or more, learning_rate above 0")
        held = randomness.uniform(self.seed, "held out", np.arange(len(self.source))) < 0.1
        self.kept, self.held = np.flatnonzero(~held), np.flatnonzero(held)
        if len(self.kept) < self.batch or not len(self.held):
            raise ValueError(
                f"there are {len(self.source)} images, too few to train with batches of {self.batch} and hold some out"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(randomness.key(self.seed, "classifier"))
            self.net = Classifier(self.shape).to(self.device)

    def augment(self, x: Tensor, start: int) -> Tensor:
        """Images, as the network reads them, each moved by up to SHIFT of its side, the border repeated, and maybe mirrored."""
        where = np.arange(start, start + len(x))
        reach = [max(1, round(side * MAX_SHIFT)) for side in self.shape.size]
        padded = F.pad(x, (reach[1], reach[1], reach[0], reach[0]), mode="replicate")
        tops, lefts = (
            (randomness.uniform(self.seed, f"move {axis}", where) * (2 * r + 1)).astype(int) for axis, r in enumerate(reach)
        )
        height, width = self.shape.size
        places = zip(padded, tops, lefts, strict=True)
        out = torch.stack([p[:, top : top + height, left : left + width] for p, top, left in places])
        if self.flip:
            turned = torch.from_numpy(randomness.uniform(self.seed, "mirror", where) < 0.5)
            out[turned] = out[turned].flip(-1)
        return out

    def steps(self) -> Iterator[ClassifierStep]:
        """Train; yields a step after each update."""
        total = -(-self.images // self.batch)
        optimizer = torch.optim.AdamW(self.net.parameters(), self.learning_rate, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=total + 1)
        per_epoch = len(self.kept) // self.batch
        self.net.train()
        for i in range(total):
            order = randomness.order(self.seed, i // per_epoch, len(self.kept))
            chosen = self.kept[order[i % per_epoch * self.batch :][: self.batch]]
            images, labels = self.source.batch(chosen)
            x = self.augment(self.units.normalize(images), i * self.batch)
            loss = F.cross_entropy(self.net(x.to(self.device))[1], labels.to(self.device), label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            yield ClassifierStep((i + 1) * self.batch, loss.item())
        self.net.eval()

    @torch.no_grad()
    def accuracy(self) -> float:
        """How many held-out images it reads correctly."""
        right = 0
        for start in range(0, len(self.held), 256):
            images, labels = self.source.batch(self.held[start : start + 256])
            right += int((self.net(self.units.normalize(images).to(self.device))[1].argmax(1).cpu() == labels).sum())
        return right / len(self.held)

    def save(self, path: Path, accuracy: float) -> None:
        """One .safetensors file that carries what it is."""
        about = {
            "kind": KIND,
            "shape": asdict(self.shape),
            "units": asdict(self.units),
            "class_names": list(self.source.class_names),
            "fingerprint": self.source.fingerprint,
            "held_out_accuracy": accuracy,
            "held_out_images": len(self.held),
            "images": self.images,
        }
        weights = {n: t.cpu().contiguous() for n, t in self.net.state_dict().items()}
        disk.write(path, save(weights, {"justimage": json.dumps(about)}))


def read_classifier_metadata(path: Path) -> dict[str, Any]:
    """Read the metadata of a classifier's file; ValueError for another file."""
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("justimage", "{}")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a .safetensors file ({error})") from error
    about = disk.json_object(text[:MAX_DEPTH].encode(), str(path))
    if about.get("kind") != KIND:
        raise ValueError(f"{path} holds no classifier that justimage features train has made")
    return about


def open_classifier(path: Path, device: torch.device) -> Extractor:
    """The classifier in a file; ValueError, in one line, for what is none."""
    about = read_classifier_metadata(path)
    try:
        stated = about["shape"]
        shape = ClassifierShape(**stated | {"size": tuple(stated["size"])})
        units = Normalization(**{k: tuple(v) for k, v in about["units"].items()})
        names = tuple(str(n) for n in about["class_names"])
        with torch.device("meta"):
            net = Classifier(shape).eval()
        with safe_open(path, "pt") as file:
            found = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
        net.load_state_dict(found, strict=True, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} is a damaged classifier ({' '.join(str(error).split())[:200]})") from error
    net = net.to(device).requires_grad_(False)

    @torch.no_grad()
    def extract(images: Tensor) -> tuple[Tensor, Tensor]:
        if tuple(images.shape[1:]) != (shape.channels, *shape.size):
            wanted, there = (" x ".join(map(str, s)) for s in ((shape.channels, *shape.size), images.shape[1:]))
            raise ValueError(f"{path} was trained on images of {wanted}, and these are {there} (channels x height x width)")
        if images.is_floating_point() != bool(units.mean):
            kind = "floats" if units.mean else "pixels (uint8)"
            raise ValueError(f"{path} was trained on {kind}, and these are {images.dtype}")
        features, logits = net(units.normalize(images).to(device))
        return features.cpu(), logits.cpu()

    name = f"{path.name}, a classifier that reads {float(about.get('held_out_accuracy', math.nan)):.1%} of held-out images"
    return Extractor(name, f"classifier:{disk.sha256(path)}", shape.features, extract, names)
