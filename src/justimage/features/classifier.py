"""A classifier of any labelled data: a small residual network, trained in minutes, whose last hidden layer gives features.

For data unlike Inception's (digits, scans, spectra), distances between the features of a network trained to classify that
data are meaningful; and its classes show whether a generated image is of the requested class.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

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
from justimage.strict_json import parse

KIND = "justimage classifier 2"
"""Marks the file format; its number is the version."""
MAX_SHIFT = 1 / 8
"""Largest random shift of a training image, relative to its side."""
SAVE_EVERY = 30.0
"""Seconds between two times that an unfinished training is stored."""
MAX_SIZE, MAX_METADATA = 2**12, 2**24
"""Limits on files: the largest side, number of channels or classes, or width; and characters of metadata."""


@dataclass(frozen=True)
class ClassifierShape:
    """The architecture of a classifier."""

    channels: int
    size: tuple[int, int]
    classes: int
    width: int = 32
    """channels of the first stage; each later stage doubles them, up to 8 times, and halves the side"""
    features: int = 128
    """width of the last hidden layer"""

    def __post_init__(self) -> None:
        for name, value in {**asdict(self), "size": max(self.size), "smaller side": min(self.size)}.items():
            if not 1 <= value <= MAX_SIZE:
                raise ValueError(f"{name} is {value}; allowed: 1 to {MAX_SIZE}")
        if self.classes < 2:
            raise ValueError(
                f"there are {self.classes} classes; a classifier needs 2 or more: use inception, or an exported network"
            )

    @property
    def stages(self) -> int:
        """Number of stages, 2 to 5, chosen so that the last one has sides of 4 to 8 pixels where possible."""
        return max(2, min(5, round(math.log2(min(self.size) / 6)) + 1))


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(out_channels), nn.BatchNorm2d(out_channels)
        same_shape = (in_channels, stride) == (out_channels, 1)
        self.shortcut = nn.Identity() if same_shape else nn.Conv2d(in_channels, out_channels, 1, stride)

    def forward(self, h: Tensor) -> Tensor:
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(h)))))
        return F.relu(self.shortcut(h) + residual)


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


@dataclass(frozen=True)
class ClassifierMetadata:
    """The metadata in a classifier's file."""

    kind: str
    shape: ClassifierShape
    normalization: Normalization
    class_names: tuple[str, ...]
    fingerprint: str
    """of the data"""
    held_out_accuracy: float
    held_out_images: int
    images: int
    """number of training images"""


class ClassifierStep(NamedTuple):
    images_seen: int
    loss: float


@dataclass
class ClassifierTrainer:
    """Trains a classifier on 90 % of a source; the other 10 %, chosen by hash, are held out to measure its accuracy."""

    source: Source
    shape: ClassifierShape
    normalization: Normalization = Normalization()
    images: int = 60_000
    """number of training images, counted with repetition"""
    batch: int = 64
    learning_rate: float = 2e-3
    flip: bool = False
    seed: int = 0
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        if self.images < 1 or self.batch < 2 or self.learning_rate <= 0:
            raise ValueError("images must be 1 or more, batch 2 or more, learning_rate above 0")
        is_held_out = randomness.uniform(self.seed, "held out", np.arange(len(self.source))) < 0.1
        self.train_indices, self.held_out_indices = np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
        if len(self.train_indices) < self.batch or not len(self.held_out_indices):
            raise ValueError(
                f"there are {len(self.source)} images, too few to train with batches of {self.batch} and hold some out"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(randomness.key(self.seed, "classifier"))
            self.net = Classifier(self.shape).to(self.device)
        self.done, self.total = 0, -(-self.images // self.batch)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), self.learning_rate, weight_decay=0.05)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, self.learning_rate, total_steps=self.total + 1)

    def augment(self, x: Tensor, start: int) -> Tensor:
        """Shift each image at random by up to MAX_SHIFT of its side, repeating the border, and mirror half of them if asked.

        x: normalized images, the first of which is image `start` of the training.
        """
        positions = np.arange(start, start + len(x))
        limits = [max(1, round(side * MAX_SHIFT)) for side in self.shape.size]
        padded = F.pad(x, (limits[1], limits[1], limits[0], limits[0]), mode="replicate")
        tops, lefts = (
            (randomness.uniform(self.seed, f"move {axis}", positions) * (2 * limit + 1)).astype(int)
            for axis, limit in enumerate(limits)
        )
        height, width = self.shape.size
        crops = zip(padded, tops, lefts, strict=True)
        shifted = torch.stack([image[:, top : top + height, left : left + width] for image, top, left in crops])
        if self.flip:
            mirror = torch.from_numpy(randomness.uniform(self.seed, "mirror", positions) < 0.5)
            shifted[mirror] = shifted[mirror].flip(-1)
        return shifted

    def steps(self, path: Path | None = None) -> Iterator[ClassifierStep]:
        """Train the network; yield after each update.

        path: where `save` will write it. Killed, the same training with the same path resumes from a file beside it.
        """
        stored = time.monotonic()
        if path and (file := unfinished(path)).exists():
            self.load_state(file)
        per_epoch = len(self.train_indices) // self.batch
        self.net.train()
        while (i := self.done) < self.total:
            order = randomness.order(self.seed, i // per_epoch, len(self.train_indices))
            indices = self.train_indices[order[i % per_epoch * self.batch :][: self.batch]]
            images, labels = self.source.batch(indices)
            x = self.augment(self.normalization.normalize(images), i * self.batch)
            loss = F.cross_entropy(self.net(x.to(self.device))[1], labels.to(self.device), label_smoothing=0.05)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.done += 1
            if path and time.monotonic() - stored >= SAVE_EVERY:
                self.save_state(unfinished(path))
                stored = time.monotonic()
            yield ClassifierStep(self.done * self.batch, loss.item())
        self.net.eval()

    @property
    def key(self) -> str:
        """A hash of what decides the training."""
        parts = [self.source.fingerprint, asdict(self.shape), asdict(self.normalization)]
        settings = [self.images, self.batch, self.learning_rate, self.flip, self.seed]
        return hashlib.sha256(json.dumps(parts + settings).encode()).hexdigest()

    def save_state(self, file: Path) -> None:
        """Store the unfinished training, as .safetensors."""
        optimizer = self.optimizer.state_dict()
        tensors = {f"net {name}": tensor for name, tensor in self.net.state_dict().items()}
        tensors |= {f"{i} {name}": tensor for i, state in optimizer["state"].items() for name, tensor in state.items()}
        facts = {
            "key": self.key,
            "done": self.done,
            "schedule": self.schedule.state_dict(),
            "groups": optimizer["param_groups"],
        }
        disk.write(file, save({n: t.cpu().contiguous() for n, t in tensors.items()}, {"training": json.dumps(facts)}))

    def load_state(self, file: Path) -> None:
        """Resume a training that `save_state` stored; one with other settings is left alone. ValueError for any other file."""
        net: dict[str, Tensor] = {}
        state: dict[int, dict[str, Tensor]] = {}
        try:
            with safe_open(file, "pt") as stored:
                facts = json.loads((stored.metadata() or {})["training"])
                if facts["key"] != self.key:
                    return
                for name in stored.keys():  # noqa: SIM118
                    part, rest = name.split(" ")
                    target = net if part == "net" else state.setdefault(int(part), {})
                    target[rest] = stored.get_tensor(name)
            self.net.load_state_dict(net)
            self.optimizer.load_state_dict({"state": state, "param_groups": facts["groups"]})
            self.schedule.load_state_dict(facts["schedule"])
            self.done = facts["done"]
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{file} is a damaged unfinished training; remove it to begin anew") from error

    @torch.no_grad()
    def accuracy(self) -> float:
        """Return the fraction of held-out images that are classified correctly."""
        correct = 0
        for indices in np.split(self.held_out_indices, range(256, len(self.held_out_indices), 256)):
            images, labels = self.source.batch(indices)
            logits = self.net(self.normalization.normalize(images).to(self.device))[1]
            correct += int((logits.argmax(1).cpu() == labels).sum())
        return correct / len(self.held_out_indices)

    def save(self, path: Path, accuracy: float) -> None:
        """Write the network and its metadata as one .safetensors file."""
        metadata = ClassifierMetadata(
            KIND, self.shape, self.normalization, tuple(self.source.class_names), self.source.fingerprint, accuracy,
            len(self.held_out_indices), self.images,
        )  # fmt: skip
        weights = {n: t.cpu().contiguous() for n, t in self.net.state_dict().items()}
        disk.write(path, save(weights, {"justimage": json.dumps(asdict(metadata))}))
        disk.remove(unfinished(path))


def unfinished(path: Path) -> Path:
    """The file that holds a classifier's unfinished training."""
    return path.with_name(f"{path.name}.unfinished")


def read_classifier(path: Path) -> tuple[ClassifierMetadata, Classifier]:
    """Read a classifier's file; ValueError, in one line, for anything else."""
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("justimage", "{}")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a .safetensors file ({error})") from error
    values = disk.json_object(text[:MAX_METADATA].encode(), str(path))
    kind = str(values.get("kind"))
    if kind != KIND:
        if kind.rstrip("0123456789") == KIND.rstrip("0123456789"):
            raise ValueError(f"{path} is a {disk.printable(kind)}, this version reads {KIND}; train it again")
        raise ValueError(f"{path} holds no classifier that justimage feature-space train has made")
    try:
        metadata = parse(values, ClassifierMetadata, "its metadata")
        if len(metadata.normalization.mean) not in (0, metadata.shape.channels):
            raise ValueError(
                f"its normalization has {len(metadata.normalization.mean)} channels, not {metadata.shape.channels}"
            )
        with torch.device("meta"):
            net = Classifier(metadata.shape).eval()
        with safe_open(path, "pt") as file:
            tensors = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
        net.load_state_dict(tensors, strict=True, assign=True)
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} is a damaged classifier ({' '.join(str(error).split())[:200]})") from error
    return metadata, net.requires_grad_(False)


def open_classifier(path: Path, device: torch.device) -> Extractor:
    """Open the classifier in a file; ValueError, in one line, for anything else."""
    metadata, net = read_classifier(path)
    net, shape, normalization = net.to(device), metadata.shape, metadata.normalization

    @torch.no_grad()
    def extract(images: Tensor) -> tuple[Tensor, Tensor]:
        if tuple(images.shape[1:]) != (shape.channels, *shape.size):
            wanted, given = (" x ".join(map(str, s)) for s in ((shape.channels, *shape.size), images.shape[1:]))
            raise ValueError(f"{path} was trained on images of {wanted}, and these are {given} (channels x height x width)")
        if images.is_floating_point() != bool(normalization.mean):
            wanted = "floats" if normalization.mean else "pixels (uint8)"
            raise ValueError(f"{path} was trained on {wanted}, and these are {images.dtype}")
        features, logits = net(normalization.normalize(images).to(device))
        return features.cpu(), logits.cpu()

    name = f"{path.name}, a classifier with {metadata.held_out_accuracy:.1%} accuracy on held-out images"
    return Extractor(name, f"classifier:{disk.sha256(path)}", shape.features, extract, metadata.class_names)
