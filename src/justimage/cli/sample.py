"""justimage sample."""

import difflib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from justimage import checkpoint, disk, pictures, sampling
from justimage.cli.options import checked_device, parse
from justimage.cli.progress import bar
from justimage.recipe import Recipe
from justimage.sampling import SolverName

DESCRIPTION = """Draw images from a trained model.

examples:
  justimage sample --from runs/digits --out grid.png
  justimage sample --from runs/digits --classes 3 7 --count 16 --guidance 2.2 --interval 0.1 1.0 --out grid.png
  justimage sample --from runs/photos --classes cat --count 1000 --folder cats/
  justimage sample --from runs/photos --count 1000 --npz samples.npz       images uint8 NHWC, labels
  justimage sample --from runs/weather --count 100 --npz samples.npz       arrays float32 NCHW in the data's units, labels

Image i is drawn from seed + i, whatever the count and the batch."""


@dataclass(frozen=True)
class Options:
    source: Annotated[Path, tyro.conf.arg(name="from")]
    """a run, a converted folder, or one .safetensors file"""
    classes: tuple[str, ...] = ()
    """numbers or names, over and over; -1 for no class [all of up to 16]"""
    count: int | None = None
    """images [about 16, as many of each class]"""
    guidance: float | None = None
    """scale of classifier-free guidance, 1 for none [the recipe's]"""
    interval: tuple[float, float] | None = None
    """times between which guidance applies [the recipe's]"""
    solver: SolverName | None = None
    """second order or first [the recipe's]"""
    steps: int | None = None
    """of the solver [the recipe's]"""
    ema: float | None = None
    """the average of the weights, 0 for the weights themselves [the recipe's]"""
    seed: int = 0
    """of the first image"""
    batch: int = 64
    """images drawn at a time"""
    precision: Literal["fp32", "bf16"] | None = None
    """what the network computes in [bf16 on a GPU, fp32 on a CPU]"""
    device: str | None = None
    """cpu, cuda, cuda:1 [cuda if there is one]"""
    out: Path | None = None
    """one picture of all [grid.png, unless a folder or npz is given]"""
    folder: Path | None = None
    """a new folder for one PNG an image"""
    npz: Path | None = None
    """one file of arrays"""


def main(words: Sequence[str]) -> int:
    o = parse(Options, words, "sample", DESCRIPTION)
    recipe = checkpoint.stored_recipe(checkpoint.find(o.source))
    chosen = {k: getattr(o, k) for k in ("guidance", "interval", "solver", "steps") if getattr(o, k) is not None}
    s = replace(recipe.sampling, **chosen)
    out = o.out or (None if o.folder or o.npz else Path("grid.png"))
    if out and out.suffix.lower() not in pictures.FORMATS:
        raise ValueError(f"{out} has no picture's name; allowed: {', '.join(pictures.FORMATS)}")
    if len({out, o.folder, o.npz} - {None}) < len([p for p in (out, o.folder, o.npz) if p]):
        raise ValueError("out, folder and npz must be different places")
    for place, kind in (out, "file"), (o.npz, "file"), (o.folder, "folder"):
        if place:
            vacant(place, kind)
    classes = numbered(o.classes, recipe)
    count = o.count if o.count is not None else max(16 // len(classes), 1) * len(classes)
    for name, value in ("count", count), ("batch", o.batch):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be 1 or more")
    labels = [classes[i % len(classes)] for i in range(count)]
    device = checked_device(o.device)
    precision = o.precision or ("fp32" if device.type == "cpu" else "bf16")
    model = checkpoint.load(o.source, o.ema, device)
    settings: dict[str, Any] = dict(guidance=s.guidance, interval=s.interval, steps=s.steps, solver=s.solver, batch=o.batch)
    sampling.check(model, torch.tensor(labels), s.guidance)
    started, parts, done = time.perf_counter(), [], 0
    with bar("sampling") as advance:
        advance(0, count)
        for part in sampling.draw(model, labels, o.seed, dtype=torch.bfloat16 if precision == "bf16" else None, **settings):
            for i, image in enumerate(model.units.visible(part) if o.folder else []):
                disk.write((o.folder or Path()) / f"{done + i:06d}.png", pictures.png(pictures.picture(image)))
            done += len(part)
            if out or o.npz:
                parts.append(part)
            advance(done, count)
    seconds = time.perf_counter() - started
    print(f"{count} images in {seconds:.1f} s: {s.solver}, {s.steps} steps, guidance {s.guidance:g}, {precision}")
    if out:
        disk.write(
            out, pictures.encoded(sheet(model.units.visible(torch.cat(parts)), labels, len(classes), recipe), out.suffix)
        )
    if o.npz:
        with disk.replacing(o.npz) as aside, open(aside, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays(torch.cat(parts)), labels=np.array(labels))
    print(*filter(None, (out, o.folder, o.npz)))
    return 0


def arrays(drawn: Tensor) -> dict[str, np.ndarray]:
    """Pixels as ADM stores them, (n, height, width, channels); floats as they are prepared, (n, channels, height, width)."""
    return {"images": drawn.movedim(1, -1).numpy()} if drawn.dtype == torch.uint8 else {"arrays": drawn.numpy()}


def vacant(place: Path, kind: str) -> None:
    """ValueError or OSError now, rather than after the work, for a place that cannot take the result."""
    disk.writable(place)
    if kind == "file" and place.is_dir():
        raise IsADirectoryError(f"{place} is a folder; give the name of a file")
    if kind == "folder" and place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise FileExistsError(f"{place} exists and is not an empty folder; give a new one")


def numbered(words: Sequence[str], recipe: Recipe) -> list[int]:
    """Classes given as numbers or names, as numbers; all of the first 16 where none is given."""
    total = recipe.network.classes or 0
    names = {name: i for i, name in enumerate(recipe.class_names)}
    numbers = []
    for word in words:
        if word in names:
            numbers.append(names[word])
        elif any(name.isdigit() for name in names):
            raise ValueError(f"class {word!r} is not one of this model's, whose names are {', '.join(recipe.class_names)}")
        elif re.fullmatch(r"-?\d+", word) and -1 <= int(word) < total:
            numbers.append(int(word))
        else:
            near = [] if word.isdigit() else difflib.get_close_matches(word, names, n=1)
            allowed = f"0 to {total - 1}" if total else "-1 (it has no classes)"
            raise ValueError(
                f"class {word!r} is not one of this model's; allowed: {allowed}" + (f"; perhaps {near[0]}" if near else "")
            )
    return numbers or list(range(min(total, 16))) or [-1]


def sheet(images: Tensor, labels: Sequence[int], cycle: int, recipe: Recipe) -> pictures.Image.Image:
    """A grid with whole cycles of the classes in each row, and their names above."""
    columns = min(len(images), cycle * max(1, 8 // cycle) if cycle <= 16 else 8)
    words = ["" if c < 0 else recipe.class_names[c] if recipe.class_names else str(c) for c in labels[:columns]]
    return pictures.grid(images, columns, top=words if cycle <= columns else [])
