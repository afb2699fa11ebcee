"""justimage prepare."""

import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from justimage import recipe as recipes
from justimage.cli.options import parse
from justimage.cli.progress import bar
from justimage.data import Decode
from justimage.data.images import TOO_SMALL
from justimage.data.prepare import PrepareReport, describe_plan as times, prepare
from justimage.disk import printable

DESCRIPTION = """Decode and crop a set of images once, into a store: shards that training reads without decoding.

SOURCE is a folder (one sub-folder a class, or flat), the same in a .zip; tar shards (one .tar, a folder of them, or a
pattern; classes in .cls members, or by folder); arrays in .npy or .npz, uint8 or floats of any scale and shape
(n, channels, height, width); or a folder that Hugging Face datasets saved (pip install 'justimage[hf]').

examples:
  justimage prepare imagenet/train stores/imagenet-256 --for jit-b16-256          the paper's data, read as it is there
  justimage prepare cifar10.zip stores/cifar --image-size 32
  justimage prepare 'shards/train-{0000..0255}.tar' stores/scans --image-size 192 256 --channels 1
  justimage prepare weather.npy stores/weather              arrays have their own size
  justimage train --preset folder-64 --data stores/weather --out runs/weather

Interrupted or killed, the same command goes on. On a complete store it verifies every hash."""

REFUSED_SHOWN = 10
"""Refused images that are printed; index.json lists all."""


@dataclass(frozen=True)
class PrepareOptions:
    source: Positional[str]
    """the images, or arrays"""
    store: Positional[Path]
    """a new folder, or a store to go on with"""
    preset: Annotated[str | None, tyro.conf.arg(name="for", metavar="PRESET")] = None
    """the preset of justimage train that the store is for: its image size, channels, upscale and decode, unless given here"""
    image_size: int | tuple[int, int] | None = None
    """of the crop: one side, or height and width; arrays are not cropped"""
    channels: int | None = None
    """1, 3 or 4 [3; arrays have their own]"""
    upscale: bool = False
    """scale up what is smaller; otherwise it is refused"""
    decode: Decode = "photo"
    """photo: upright by EXIF, transparency on white, 16 bits scaled; torchvision: as the authors read ImageNet, none of that"""
    shard_images: int | None = None
    """images a shard [about 64 MB; fewer of a small set]"""
    workers: int | None = None
    """processes [one a core]"""


def main(words: Sequence[str]) -> int:
    o = parse(PrepareOptions, words, "prepare", DESCRIPTION)
    if o.preset:
        o = parse(PrepareOptions, words, "prepare", DESCRIPTION, default=default([o.preset]))
    names = ("image_size", "channels", "upscale", "decode", "shard_images", "workers")
    settings: dict[str, Any] = {name: getattr(o, name) for name in names}
    started = time.perf_counter()
    try:
        with raise_on_sigterm(), bar("preparing") as advance:
            report = prepare(o.source, o.store, progress=advance, **settings)
    except KeyboardInterrupt:
        print(f"stopped; go on with:  {shlex.join(['justimage', 'prepare', *words])}", file=sys.stderr)
        return 75
    seconds = time.perf_counter() - started
    for line in summary(o, report, seconds):
        print(line)
    return 0


def default(names: Sequence[str]) -> PrepareOptions:
    """The options that are not given, of which a preset knows some."""
    source, store = tyro.MISSING, tyro.MISSING
    if not names:
        return PrepareOptions(source, store)
    crop = recipes.preset(names[0]).crop
    return PrepareOptions(source, store, names[0], crop.size, crop.channels, crop.upscale, crop.decode)


def summary(o: PrepareOptions, report: PrepareReport, seconds: float) -> Iterator[str]:
    for name, reason in report.refused[:REFUSED_SHOWN]:
        yield f"refused {printable(name)}: {printable(reason)}"
    if report.refused:
        more = f", of which {REFUSED_SHOWN} are shown" if len(report.refused) > REFUSED_SHOWN else ""
        yield f"refused in all: {len(report.refused):,}{more}; they are listed in {o.store / 'index.json'}"
    if small := sum(TOO_SMALL in reason for _, reason in report.refused):
        remedy = "--upscale scales them up, and so does --for PRESET, which reads the paper's data as the paper does"
        yield f"smaller than the crop: {small:,}; {remedy} (into another store)"
    what = f"{report.count:,} images of {times(report.shape)} {report.dtype}"
    if report.verified:
        yield f"{o.store} is complete: {what}; every hash was verified in {seconds:.1f} s"
    else:
        yield f"{what} in {o.store}, in {seconds:.1f} s"
    preset = ["--preset", o.preset] if o.preset else []
    yield f"now try:  {shlex.join(['justimage', 'train', *preset, '--data', str(o.store)])}"


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Within the block SIGTERM interrupts as Ctrl-C does."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
