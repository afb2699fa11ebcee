"""justimage sample."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from justimage import disk, drawing, pictures
from justimage.cli.drawn import Drawn, numbered, settings
from justimage.cli.options import checked_device, parse
from justimage.cli.progress import stages, within_batches
from justimage.distributed import share
from justimage.drawing import Artist, Drawing
from justimage.recipe import Recipe
from justimage.stopping import requests
from justimage.units import JOB

DESCRIPTION = """Draw images from a trained model.

examples:
  justimage sample --from runs/digits --out grid.png
  justimage sample --from runs/digits --classes 3 7 --count 16 --guidance 2.2 --interval 0.1 1.0 --out grid.png
  justimage sample --from runs/photos --classes cat --count 1000 --folder cats/
  justimage sample --from runs/photos --count 50000 --balanced --npz samples.npz   arr_0 uint8 NHWC, arr_1 labels (as ADM's)
  justimage sample --from runs/weather --count 100 --npz samples.npz       arr_0 float32 NCHW in the data's units, labels
  torchrun --standalone --nproc-per-node=gpu -m justimage sample --from runs/l16 --count 50000 --balanced --folder l16/

Image i is drawn from seed + i. A folder or an .npz is drawn in units of --batch images by however many processes; stopped or
killed, the same command goes on, and every image is the same, to the bit. images.csv in a folder has their classes, seeds and
SHA-256."""

PICTURED = 64


@dataclass(frozen=True)
class Options(Drawn):
    source: Annotated[Path, tyro.conf.arg(name="from")] = tyro.MISSING
    """a run, a converted folder, or one .safetensors file"""
    classes: tuple[str, ...] = ()
    """numbers or names, over and over; -1 for no class [all; of a picture alone the first 16]"""
    balanced: bool = False
    """all classes, and an error where --count is not equally many of each"""
    count: int | None = None
    """images [about 16, as many of each class]"""
    out: Path | None = None
    """one picture of all, beside a folder or npz of the first 64 [grid.png, unless a folder or npz is given]"""
    folder: Path | None = None
    """a new folder for one PNG an image"""
    npz: Path | None = None
    """one file of arrays"""


def main(words: Sequence[str]) -> int:
    o = parse(Options, words, "sample", DESCRIPTION)
    out = o.out or (None if o.folder or o.npz else Path("grid.png"))
    if out and out.suffix.lower() not in pictures.FORMATS:
        raise ValueError(f"{out} has no picture's name; allowed: {', '.join(pictures.FORMATS)}")
    if len({out, o.folder, o.npz} - {None}) < len([p for p in (out, o.folder, o.npz) if p]):
        raise ValueError("out, folder and npz must be different places")
    for place, kind in (out, "file"), (o.npz, "file"), (o.folder, "folder"):
        if place:
            vacant(place, kind)
    device = checked_device(o.device)
    artist = Artist(o.source, device)
    total = artist.recipe.network.classes or 0
    if o.balanced and o.classes:
        raise ValueError("--balanced draws all classes; leave --classes out")
    shown_at_once = total if o.balanced or o.folder or o.npz else min(total, 16)
    classes = numbered(o.classes, artist.recipe) or list(range(shown_at_once)) or [-1]
    count = o.count if o.count is not None else max(16 // len(classes), 1) * len(classes)
    for name, value in ("count", count), ("batch", o.batch):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be 1 or more")
    if o.balanced and count % len(classes):
        near = max(count // len(classes), 1) * len(classes)
        raise ValueError(f"count is {count}, which is not equally many of {len(classes)} classes; {near} is")
    chosen = settings(o, artist.recipe, device)
    leads, started = share()[0] == 0, time.perf_counter()
    shown, pictured = [], 0
    with stages(leads) as progress:
        progress("reading the model", 0, 0)
        job = artist.job(classes=classes, **chosen | {"unit": min(o.batch, count)})
        net = artist.model(job.ema).net
        with (
            requests("this batch, kept") as asked,
            within_batches([net], job.solver, job.steps, job.unit, progress) as advance,
        ):
            if o.folder or o.npz:
                drawing.save(artist, job, count, o.folder, o.npz, lambda *n: advance("sampling", *n), lambda: bool(asked))
            if out and leads:
                title, pictured = ("the picture", min(count, PICTURED)) if o.folder or o.npz else ("sampling", count)
                for unit in range(job.units(pictured)):
                    if asked:
                        raise KeyboardInterrupt  # a picture is not worth keeping halves of
                    advance(title, unit * job.unit, pictured)
                    shown.append(artist.draw(job, unit))
                advance(title, pictured, pictured)
    if not leads:
        return 0
    if out:
        images = artist.model(job.ema).units.visible(torch.cat(shown)[:pictured])
        disk.write(out, pictures.encoded(sheet(images, job, artist.recipe), out.suffix))
    seconds = time.perf_counter() - started
    print(f"{count} images in {seconds:.1f} s: {job.solver}, {job.steps} steps, guidance {job.guidance:g}, {job.precision}")
    print(shlex.join(str(place) for place in (out, o.folder, o.npz) if place))
    return 0


def vacant(place: Path, kind: str) -> None:
    """ValueError or OSError now, rather than after the work, for a place that cannot take the result."""
    disk.writable(place)
    if kind == "file" and place.is_dir():
        raise IsADirectoryError(f"{place} is a folder; give the name of a file")
    if kind == "folder" and place.exists() and (not place.is_dir() or (any(place.iterdir()) and not (place / JOB).exists())):
        raise FileExistsError(f"{place} exists and is not an empty folder; give a new one")


def sheet(images: Tensor, job: Drawing, recipe: Recipe) -> pictures.Image.Image:
    """A grid with whole cycles of the classes in each row, and their names above."""
    cycle = len(job.classes)
    columns = min(len(images), cycle * max(1, 8 // cycle) if cycle <= 16 else 8)
    labels = [job.label(i) for i in range(columns)]
    words = ["" if c < 0 else recipe.class_names[c] if recipe.class_names else str(c) for c in labels]
    return pictures.grid(images, columns, top=words if cycle <= columns else [])
