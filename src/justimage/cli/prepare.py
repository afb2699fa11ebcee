"""justimage prepare."""

import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from justimage import recipe as recipes
from justimage.cli.options import parse
from justimage.cli.progress import bar
from justimage.data import Decode, is_table
from justimage.data.encoded import ENCODED, encode_table
from justimage.data.images import TOO_SMALL
from justimage.data.prepare import PrepareReport, format_shape, prepare
from justimage.disk import printable
from justimage.progress import finish

DESCRIPTION = """Decode and crop a set of images once, into a store: shards that training reads without decoding.

SOURCE is a folder (one sub-folder for each class, or flat); the same in a .zip; tar shards (one .tar, a folder of them, or a
pattern; classes in .cls members, or by folder); arrays in .npy or .npz, uint8 or floats of any scale and shape
(n, channels, height, width); or a folder saved by Hugging Face datasets (pip install 'justimage[hf]').

examples:
  justimage prepare imagenet/train stores/imagenet-256 --for jit-b16-256          the paper's data, read as in the paper
  justimage prepare cifar10.zip stores/cifar --image-size 32
  justimage prepare 'shards/train-{0000..0255}.tar' stores/scans --image-size 192 256 --channels 1
  justimage prepare weather.npy stores/weather              arrays are not cropped
  justimage train --preset folder-64 --data stores/weather --out runs/weather
  justimage prepare captions.csv captions.safetensors --encoder google-t5/t5-small      texts, once read (justimage[text])
  justimage train --data photos/ --condition captions.safetensors

Interrupted or killed, the same command resumes. On a complete store it verifies every hash."""

MAX_REFUSED_LINES = 10
"""Refused images that are printed; index.json lists all."""


@dataclass(frozen=True)
class PrepareOptions:
    source: Positional[str]
    """images, or arrays of them"""
    store: Positional[Path]
    """a new folder, or a store to resume or verify"""
    preset: Annotated[str | None, tyro.conf.arg(name="for", metavar="PRESET")] = None
    """a preset of justimage train, whose image size, channels, upscale and decode are the defaults of these options"""
    image_size: int | tuple[int, int] | None = None
    """of the crop: one side, or height and width; arrays are not cropped"""
    channels: int | None = None
    """1, 3 or 4 [3; arrays have their own]"""
    upscale: bool = False
    """scale up smaller images; otherwise they are refused"""
    decode: Decode = "photo"
    """photo: upright by EXIF, transparency on white, 16 bits scaled; torchvision: none of it, as the authors read ImageNet"""
    shard_images: int | None = None
    """images in a shard [about 64 MB; fewer for a small set]"""
    workers: int | None = None
    """processes [one for each core]"""
    encoder: str = ""
    """of a table's column text: a model of Hugging Face transformers, by its name or its folder"""
    max_tokens: int = 64
    """of a text; longer ones are cut"""


def main(argv: Sequence[str]) -> int:
    o = parse(PrepareOptions, argv, "prepare", DESCRIPTION)
    if o.preset:
        o = parse(PrepareOptions, argv, "prepare", DESCRIPTION, default=defaults(o.preset))
    if is_table(o.source):
        return encode_texts_of(o)
    if o.encoder:
        raise ValueError(f"{o.source} is no table (.csv, .tsv); --encoder {o.encoder} is for a table's texts")
    names = ("image_size", "channels", "upscale", "decode", "shard_images", "workers")
    settings: dict[str, Any] = {name: getattr(o, name) for name in names}
    started = time.perf_counter()
    try:
        with raise_on_sigterm(), bar("preparing") as advance, closing(prepare(o.source, o.store, **settings)) as job:
            report = finish(job, lambda p: advance(p.done, int(p.total)))
    except KeyboardInterrupt:
        print(f"stopped; resume with:  {shlex.join(['justimage', 'prepare', *argv])}", file=sys.stderr)
        return 75
    seconds = time.perf_counter() - started
    for line in describe_store(o, report, seconds):
        print(line)
    return 0


def encode_texts_of(o: PrepareOptions) -> int:
    """Encode the texts of a table."""
    if not o.encoder:
        raise ValueError(f"{o.source} is a table; to encode its texts say with what: --encoder google-t5/t5-small")
    if o.store.suffix.lower() != ENCODED:
        raise ValueError(f"{o.store} must be a file called something{ENCODED}, which train takes: --condition")
    with raise_on_sigterm(), bar("encoding") as advance:
        job = encode_table(Path(o.source), o.store, o.encoder, o.max_tokens)
        count, tokens, features = finish(job, lambda p: advance(p.done, int(p.total)))
    print(f"{count:,} texts of at most {tokens} tokens of {features} numbers, in {o.store}")
    return 0


def defaults(preset: str) -> PrepareOptions:
    """The values of options that are not given, from a preset."""
    crop = recipes.preset(preset).crop
    return PrepareOptions(tyro.MISSING, tyro.MISSING, preset, crop.size, crop.channels, crop.upscale, crop.decode)


def describe_store(o: PrepareOptions, report: PrepareReport, seconds: float) -> Iterator[str]:
    """Describe what was done, line by line, and the command to train on it."""
    for name, reason in report.refused[:MAX_REFUSED_LINES]:
        yield f"refused {printable(name)}: {printable(reason)}"
    if report.refused:
        more = f", {MAX_REFUSED_LINES} of them shown" if len(report.refused) > MAX_REFUSED_LINES else ""
        yield f"refused in all: {len(report.refused):,}{more}; {o.store / 'index.json'} lists them"
    if small := sum(TOO_SMALL in reason for _, reason in report.refused):
        remedy = "--upscale scales them up, and so does --for PRESET, which reads the paper's data as the paper does"
        yield f"smaller than the crop: {small:,}; {remedy} (into another store)"
    content = f"{report.count:,} images of {format_shape(report.shape)} {report.dtype}"
    if report.verified:
        yield f"{o.store} is complete: {content}; every hash was verified in {seconds:.1f} s"
    else:
        yield f"{content} in {o.store}, in {seconds:.1f} s"
    preset = ["--preset", o.preset] if o.preset else []
    yield f"now try:  {shlex.join(['justimage', 'train', *preset, '--data', str(o.store)])}"


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Within the block SIGTERM raises KeyboardInterrupt, as Ctrl-C does."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
