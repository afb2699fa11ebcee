"""justimage feature-space."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from justimage import data, disk
from justimage.cli import fail
from justimage.cli.options import checked_device, parse
from justimage.cli.progress import bar, stage, stages
from justimage.data import Decode
from justimage.data.store import is_store, open_store
from justimage.evaluation.reference import open_reference, save_statistics
from justimage.features import open_features
from justimage.features.classifier import ClassifierShape, ClassifierTrainer
from justimage.progress import Progress, finish
from justimage.recipe import normalization_of
from justimage.stopping import requests

HELP = """usage: justimage feature-space train | statistics [options]

The space in which samples are compared with real images, and statistics of real images in it.

  train        a classifier of your own data, in minutes: its last hidden layer is the features, its classes say whether an
               image is what was asked for
  statistics   mean and covariance of real images' features, as an .npz that evaluate takes for a reference

examples:
  justimage feature-space train --data digits --out digits.safetensors
  justimage feature-space train --data photos/ --image-size 64 --flip --out photos.safetensors
  justimage feature-space statistics --data imagenet/train --image-size 256 --decode torchvision --out imagenet-256.npz
  justimage feature-space train --help"""


@dataclass(frozen=True)
class DataOptions:
    data: str
    """images with classes: a folder, an archive, a store, or "digits\""""
    out: Path
    """the file to write"""
    image_size: tuple[int, ...] = ()
    """side, or height and width [a store's; 32 of digits]"""
    channels: int | None = None
    """1 grey, 3 colour, 4 with transparency [a store's; 1 of digits; 3]"""
    decode: Decode = "photo"
    """photo, or torchvision: as the authors' code reads ImageNet"""
    device: str | None = None
    """cpu, cuda, cuda:1 [cuda if there is one]"""


@dataclass(frozen=True)
class ClassifierOptions(DataOptions):
    images: int = 60_000
    """images to train on, repetitions counted"""
    batch: int = 64
    """images per step"""
    learning_rate: float = 2e-3
    """peak learning rate"""
    width: int = 32
    """channels of the first stage"""
    dimension: int = 128
    """number of features"""
    flip: bool = False
    """mirror images at random"""
    seed: int = 0


@dataclass(frozen=True)
class StatisticsOptions(DataOptions):
    features: str = "inception"
    """inception, or a file: .pth, .safetensors, .pt2"""


def main(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if words[0] == "train":
        return train_feature_space(parse(ClassifierOptions, words[1:], "feature-space train", HELP))
    if words[0] == "statistics":
        return statistics(parse(StatisticsOptions, words[1:], "feature-space statistics", HELP))
    fail(f"feature-space has no {words[0]!r}; there are train, statistics")


def crop_of(o: DataOptions) -> data.Crop:
    """How image files are read, as the options, or a store, say."""
    place = Path(o.data).expanduser()
    if is_store(place):
        channels, height, width = open_store(place).shape
        return data.Crop((height, width), channels)
    if o.data not in data.BUILT_IN and not o.image_size:
        raise ValueError("--image-size is not given; a store knows its size, a folder needs --image-size")
    size = list(o.image_size) or [32]
    if len(size) > 2 or min(size) < 1 or (o.channels is not None and o.channels < 1):
        raise ValueError(
            f"image size is {' '.join(map(str, size))}, channels {o.channels}; allowed: one or two numbers above 0"
        )
    channels = o.channels or (1 if o.data in data.BUILT_IN else 3)
    return data.Crop((size[0], size[-1]), channels, upscale=True, decode=o.decode)


def train_feature_space(o: ClassifierOptions) -> int:
    device = checked_device(o.device)
    disk.check_writable(o.out)
    if o.out.suffix != ".safetensors":
        raise ValueError(f"{o.out} must be a .safetensors file")
    crop = crop_of(o)
    with stage(f"reading {o.data}"):
        source = data.open_source(o.data, crop)
    with bar("reading images") as advance:
        source = finish(data.cache_in_ram(source), lambda p: advance(p.done, int(p.total)))
    shape = ClassifierShape(crop.channels, crop.size, len(source.class_names), o.width, o.dimension)
    units = normalization_of(source)
    trainer = ClassifierTrainer(source, shape, units, o.images, o.batch, o.learning_rate, o.flip, o.seed, device)
    held_out = len(trainer.held_out_indices)
    print(f"{len(trainer.train_indices):,} training images, {held_out:,} held out, {shape.classes} classes")
    with bar("training", o.images) as advance:
        for step in trainer.steps(o.out):
            advance(min(step.images_seen, o.images), o.images, lambda loss=step.loss: f"loss {loss:.4f}")
    accuracy = trainer.accuracy()
    trainer.save(o.out, accuracy)
    print(f"reads {accuracy:.2%} of {held_out:,} held-out images correctly; in {o.out}")
    used = shlex.join(["justimage", "evaluate", "RUN", "--features", str(o.out)])
    print(f"now try:  {used}")
    return 0


def statistics(o: StatisticsOptions) -> int:
    device = checked_device(o.device)
    disk.check_writable(o.out)
    if o.out.suffix != ".npz":
        raise ValueError(f"{o.out} must be an .npz file")
    with requests("this batch, kept"), stages() as show:
        show(Progress(f"loading {o.features}"))
        extractor = open_features(o.features, device)
        show(Progress(f"reading {o.data}"))
        found = finish(open_reference(o.data, extractor, crop_of(o)), show)
    save_statistics(o.out, found.statistics)
    print(f"mean and covariance of {found.info['images']:,} images, {len(found.statistics.mean)} numbers each; in {o.out}")
    return 0
