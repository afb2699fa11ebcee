"""justimage sample."""

import math
import shlex
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from justimage import disk, figures, generate
from justimage.chunks import JOB
from justimage.cli.options import checked_device, parse
from justimage.cli.photographs import photo_size, read_told
from justimage.cli.progress import stages, track_batches
from justimage.cli.sampling_options import SamplingOptions, parse_classes, precision_of, sampling_of
from justimage.conditions import NULL_CLASS
from justimage.data.arrays import SUFFIXES
from justimage.distributed import rank_and_size
from justimage.generate import ImageGenerator, SampleJob
from justimage.given import Given, nothing_told
from justimage.progress import Job, Progress, finish
from justimage.recipe import Recipe
from justimage.stopping import requested, requests
from justimage.tasks import open_task
from justimage.tiles import tiled

DESCRIPTION = """Sample images from a trained model.

examples:
  justimage sample --from runs/digits --out grid.png
  justimage sample --from runs/digits --classes 3 7 --count 16 --guidance 2.2 --interval 0.1 1.0 --out grid.png
  justimage sample --from runs/photos --classes cat --count 1000 --folder cats/
  justimage sample --from runs/captioned --prompt "a red car" "a blue car" --out cars.png
  justimage sample --from runs/houses --numbers area=3000 price=500000
  justimage sample --from runs/sketched --condition a.png b.png --answers 6 --out answers.png
  justimage sample --from runs/photos --count 50000 --balanced --npz samples.npz   arr_0 uint8 NHWC, arr_1 labels (as ADM's)
  justimage sample --from runs/weather --count 100 --npz samples.npz       arr_0 float32 NCHW in the data's units, labels
  torchrun --standalone --nproc-per-node=gpu -m justimage sample --from runs/l16 --count 50000 --balanced --folder l16/

Image i is sampled from seed + i. A folder or an .npz is made in chunks of --batch images by any number of processes; stopped or
killed, the same command resumes, and every image is the same, to the bit. images.csv in a folder has their classes, seeds and
SHA-256."""

MAX_GRID = 64


@dataclass(frozen=True)
class SampleOptions(SamplingOptions):
    source: Annotated[Path, tyro.conf.arg(name="from")] = tyro.MISSING
    """a run, a converted folder, or one .safetensors file"""
    prompt: tuple[str, ...] = ()
    """words, of a model that is told them; several over and over"""
    numbers: tuple[str, ...] = ()
    """NAME=VALUE, of a model that is told numbers; what is left out is not told"""
    condition: tuple[Path, ...] = ()
    """images, of a model that is told them: photographs, or an .npy file of arrays"""
    tiles: bool = False
    """keep the size of one photograph of --condition, and answer by overlapping tiles of the model's size"""
    answers: int = 4
    """images for each prompt, for --numbers, or for each image of --condition"""
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
    o = parse(SampleOptions, words, "sample", DESCRIPTION)
    out = o.out or (None if o.folder or o.npz else Path("grid.png"))
    if out and out.suffix.lower() not in figures.FORMATS:
        raise ValueError(f"{out} has no picture's name; allowed: {', '.join(figures.FORMATS)}")
    if len({out, o.folder, o.npz} - {None}) < len([p for p in (out, o.folder, o.npz) if p]):
        raise ValueError("out, folder and npz must be different places")
    for place, kind in (out, "file"), (o.npz, "file"), (o.folder, "folder"):
        if place:
            check_vacant(place, kind)
    device = checked_device(o.device)
    generator = ImageGenerator(o.source, device, precision_of(o, device), o.compile)
    recipe = generator.recipe
    size, factor = tiled_size(o, recipe) if o.tiles else (recipe.model.size, 1)
    given = generator.conditions = given_conditions(o, recipe, size)
    classes, count = classes_and_count(o, recipe, given)
    is_main, started, images = rank_and_size()[0] == 0, time.perf_counter(), torch.empty(0)
    with stages(is_main) as show, requests("this batch, kept"):
        show(Progress("reading the model"))
        job = make_job(o, generator, classes, count)
        if o.tiles:
            generator.denoisers[job.ema] = tiled(generator.denoiser(job.ema), size, factor)
        with track_batches([generator.denoiser(job.ema).net], job.sampling, job.batch, show) as show_batches:
            if o.folder or o.npz:
                finish(generate.save_images(generator, job, count, o.folder, o.npz), show_batches)
            if out and is_main:
                title = "the picture" if o.folder or o.npz else "sampling"
                images = finish(
                    picture_images(generator, job, min(count, MAX_GRID) if o.folder or o.npz else count, title), show_batches
                )
    if not is_main:
        return 0
    if out:
        disk.write(out, figures.encode(picture_of(images, o, given, job, recipe), out.suffix))
    seconds = time.perf_counter() - started
    s = job.sampling
    print(f"{count} images in {seconds:.1f} s: {s.solver}, {s.steps} steps, guidance {s.guidance:g}, {job.precision}")
    print(shlex.join(str(place) for place in (out, o.folder, o.npz) if place))
    return 0


def classes_and_count(o: SampleOptions, recipe: Recipe, given: Given | None) -> tuple[list[int], int]:
    """The classes over and over, and how many images; ValueError for what does not fit."""
    total = recipe.model.classes or 0
    if o.balanced and o.classes:
        raise ValueError("--balanced samples all classes; leave --classes out")
    shown_at_once = total if o.balanced or o.folder or o.npz else min(total, 16)
    if o.balanced and given:
        raise ValueError("--balanced is for classes alone; leave it out where words, numbers or images are asked for")
    classes = parse_classes(o.classes, recipe) or ([] if given else list(range(shown_at_once))) or [NULL_CLASS]
    cycle = math.lcm(len(given), len(classes)) if given else 0
    several = cycle * o.answers if given else max(16 // len(classes), 1) * len(classes)
    count = o.count if o.count is not None else several
    for name, value in ("answers", o.answers), ("count", count), ("batch", o.batch):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be 1 or more")
    if o.balanced and count % len(classes):
        near = max(count // len(classes), 1) * len(classes)
        raise ValueError(f"count is {count}, which is not equally many of {len(classes)} classes; {near} is")
    return classes, count


def make_job(o: SampleOptions, generator: ImageGenerator, classes: Sequence[int], count: int) -> SampleJob:
    """The job that the options ask for, no batch larger than the count."""
    return generator.make_job(o.ema, classes, sampling_of(o, generator.recipe), seed=o.seed, batch=min(o.batch, count))


def picture_of(images: Tensor, o: SampleOptions, given: Given | None, job: SampleJob, recipe: Recipe) -> figures.Image.Image:
    """One picture of all images."""
    return grid_of_answers(images, o, given, job, recipe) if given else labelled_grid(images, job, recipe)


def picture_images(generator: ImageGenerator, job: SampleJob, count: int, title: str) -> Job[Tensor]:
    """Sample the first images of a job, uint8; half a picture is not worth keeping."""
    batches = []
    for chunk in range(job.n_chunks(count)):
        if requested():
            raise KeyboardInterrupt
        yield Progress(title, chunk * job.batch, count)
        batches.append(generator.sample_chunk(job, chunk))
    yield Progress(title, count, count)
    return generator.denoiser(job.ema).normalization.to_uint8(torch.cat(batches)[:count])


def check_vacant(place: Path, kind: str) -> None:
    """ValueError or OSError now, rather than after the work, for a place that cannot take the result."""
    disk.check_writable(place)
    if kind == "file" and place.is_dir():
        raise IsADirectoryError(f"{place} is a folder; give the name of a file")
    if kind == "folder" and place.exists() and (not place.is_dir() or (any(place.iterdir()) and not (place / JOB).exists())):
        raise FileExistsError(f"{place} exists and is not an empty folder; give a new one")


def tiled_size(o: SampleOptions, recipe: Recipe) -> tuple[tuple[int, int], int]:
    """Height and width of answers by tiles, and how much larger than the photograph that is."""
    if len(o.condition) != 1 or o.condition[0].suffix.lower() in SUFFIXES:
        raise ValueError(f"--tiles is for one photograph; --condition has {' '.join(map(str, o.condition)) or 'none'}")
    factor = open_task(recipe.training.task, recipe.shape).factor if recipe.training.task else 1
    height, width = photo_size(o.condition[0])
    return (height * factor, width * factor), factor


def given_conditions(o: SampleOptions, recipe: Recipe, size: tuple[int, int]) -> Given | None:
    """Words, numbers and images of the options as conditions; ValueError for what the model is not told."""
    entries: dict[str, Tensor] = {}
    if o.prompt:
        if not recipe.model.text_length:
            raise ValueError(f"prompt is {o.prompt[0]!r}, but this model is not told words; it has {has_instead(recipe)}")
        entries["text"] = recipe.told.text(o.prompt, recipe.model.text_length)
    if o.numbers:
        if not recipe.told.columns:
            raise ValueError(f"numbers is {o.numbers[0]!r}, but this model is not told numbers; it has {has_instead(recipe)}")
        numbers = dict(map(named_number, o.numbers))
        if len(numbers) < len(o.numbers):
            raise ValueError(f"numbers has {' '.join(o.numbers)}; each name once")
        entries["vector"] = recipe.told.vector(numbers)[None]
    if o.condition:
        entries["image"] = torch.cat([read_told(path, recipe, size) for path in o.condition])
    if not entries:
        return None
    return Given(nothing_told(recipe) | entries)  # as where it was dropped in training


def has_instead(recipe: Recipe) -> str:
    """The things that a model can be asked for."""
    a = recipe.model
    told = [("classes", a.classes), ("words (--prompt)", a.text_length), ("numbers (--numbers)", a.vector)]
    return ", ".join([name for name, there in [*told, ("images (--condition)", a.image_channels)] if there]) or "no condition"


def named_number(word: str) -> tuple[str, float]:
    name, _, value = word.partition("=")
    with suppress(ValueError):
        if math.isfinite(float(value)):
            return name, float(value)
    raise ValueError(f"numbers has {word!r}; allowed: NAME=VALUE, such as area=3000")


def grid_of_answers(images: Tensor, o: SampleOptions, given: Given, job: SampleJob, recipe: Recipe) -> figures.Image.Image:
    """A grid with a column for each of what was asked for: images first, then the answers below each other."""
    columns = min(math.lcm(len(given), len(job.classes)), len(images))
    names = o.prompt or [path.stem for path in o.condition]
    if not names or len(given) % len(names) or len(given) == 1 < columns:
        names = [class_name(job.label(i), recipe) for i in range(columns)]
    if o.condition:
        told = given.at(range(columns))["image"]
        images = torch.cat([figures.as_image(told, images.shape[1]), images])
    return figures.image_grid(images, columns, top=[names[i % len(names)] for i in range(columns)])


def class_name(label: int, recipe: Recipe) -> str:
    return "" if label < 0 else recipe.class_names[label] if recipe.class_names else str(label)


def labelled_grid(images: Tensor, job: SampleJob, recipe: Recipe) -> figures.Image.Image:
    """A grid with whole cycles of the classes in each row, and their names above."""
    cycle = len(job.classes)
    columns = min(len(images), cycle * max(1, 8 // cycle) if cycle <= 16 else 8)
    words = [class_name(job.label(i), recipe) for i in range(columns)]
    return figures.image_grid(images, columns, top=words if cycle <= columns else [])
