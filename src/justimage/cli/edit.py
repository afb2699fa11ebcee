"""justimage edit."""

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from torch import Tensor

from justimage import disk, editing, figures
from justimage.cli.options import checked_device, parse
from justimage.cli.photographs import photo_size, read_photo, reading
from justimage.cli.progress import bar
from justimage.cli.sample import check_vacant
from justimage.cli.sampling_options import parse_classes
from justimage.conditions import NULL_CLASS
from justimage.data.images import MODES
from justimage.generate import ImageGenerator
from justimage.normalization import to_uint8
from justimage.recipe import Recipe
from justimage.sampling import Denoiser, Sampling
from justimage.tiles import tiled

DESCRIPTION = """Edit a photograph with a trained model, without training.

One task: --strength varies it; --mask draws what is white in the mask anew; --upscale, --colourise and --deblur find images
that look like it when scaled down, grey or blurred; --invert takes it to noise and back; --to-class draws it as another class
from the same noise; --between goes to another photograph.

examples:
  justimage edit room.jpg --from runs/rooms --strength 0.6 --class kitchen
  justimage edit room.jpg --from runs/rooms --mask hole.png --answers 6 --out filled.png
  justimage edit small.png --from runs/rooms --upscale 4
  justimage edit old.jpg --from runs/rooms --colourise
  justimage edit large.jpg --from runs/rooms --colourise --tiles
  justimage edit room.jpg --from runs/rooms --class bedroom --to-class kitchen
  justimage edit room.jpg --from runs/rooms --between other.jpg --answers 9 --out way.gif

Writes one picture: what was given, then the answers. The photograph is cropped to the model's shape and scaled to its size,
unless there are --tiles."""

TASKS = "strength", "mask", "upscale", "colourise", "deblur", "invert", "to_class", "between"

TRAINED = {"mask": "inpaint", "upscale": "upscale", "colourise": "colour", "deblur": "deblur"}
"""Options, and the tasks of networks that were trained to do the same."""


@dataclass(frozen=True)
class EditOptions:
    photo: tyro.conf.Positional[Path]
    """the photograph"""
    source: Annotated[Path, tyro.conf.arg(name="from")] = tyro.MISSING
    """a run, a converted folder, or one .safetensors file"""
    strength: float | None = None
    """vary it: the share of the way back to noise, above 0 to 1"""
    mask: Path | None = None
    """draw anew what is white in this picture, of the photograph's size; black stays as it is, to the pixel"""
    upscale: int | None = None
    """times larger than the photograph is taken to be; divides the model's size"""
    colourise: bool = False
    """find its colours"""
    deblur: float | None = None
    """sharpen what a Gaussian of so many of the model's pixels has blurred"""
    invert: bool = False
    """take it to noise and back, and say how exactly"""
    to_class: str | None = None
    """draw it as this class, from the same noise"""
    between: Path | None = None
    """another photograph to go to, through noise"""
    tiles: bool = False
    """keep the photograph's size, and draw by overlapping tiles of the model's size"""
    class_name: Annotated[str, tyro.conf.arg(name="class")] = "-1"
    """the photograph's class, a number or a name; -1 for none"""
    answers: int = 4
    """images to find; --invert and --to-class find one"""
    guidance: float | None = None
    """scale of classifier-free guidance [the recipe's where a class is given; of --to-class 1]"""
    steps: int = 24
    """steps of the solver; of inversion four times as many passes"""
    repeats: int = 3
    """of a mask: how often each step is made, so that the new adapts to the known"""
    seed: int = 0
    """of the first answer"""
    ema: float | None = None
    """the average of the weights [the recipe's]"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps [cuda if there is one]"""
    out: Path = Path("edit.png")
    """the picture; a .gif shows the answers one after another"""


@dataclass(frozen=True)
class Edit:
    """A task, and the model that does it."""

    o: EditOptions
    recipe: Recipe
    denoiser: Denoiser
    device: torch.device
    label: int
    """the photograph's class"""
    sampling: Sampling

    @property
    def condition(self) -> Tensor:
        """Of the answers."""
        return torch.full((self.o.answers,), self.label, device=self.device)

    @property
    def passes(self) -> int:
        """Of inversion, which has to be exact."""
        return 4 * self.o.steps

    def repeated(self, images: Tensor) -> Tensor:
        """One image, or what is known of it, for each answer."""
        return images.expand(self.o.answers, -1, -1, -1).to(self.device)

    def told(self, known: editing.Measurement, y: Tensor) -> dict[str, Tensor] | None:
        """The condition of a network that was trained for this task; None for another one."""
        o = self.o
        option = next(name for name in TRAINED if getattr(o, name))
        name, _, number = self.recipe.training.task.partition(":")
        asked = {"upscale": o.upscale, "deblur": o.deblur}.get(option)
        if name != TRAINED[option] or asked != (float(number) if number else None):
            return None
        mask = [known.forward(torch.ones(1, 1, *self.denoiser.shape[1:]))] if o.mask else []
        image = torch.cat([known.inverse(y) if o.upscale else y, *mask], 1)
        return {"classes": self.condition, "image": self.repeated(image)}

    def noise_of(self, x: Tensor) -> Tensor:
        return editing.to_noise(self.denoiser, x.to(self.device), self.condition[: len(x)], self.passes)

    def image_of(self, noise: Tensor, label: int | None = None, guidance: float = 1.0) -> Tensor:
        classes = torch.full((len(noise),), self.label if label is None else label, device=self.device)
        return editing.from_noise(self.denoiser, noise, classes, self.passes, guidance)


def main(words: Sequence[str]) -> int:
    o = parse(EditOptions, words, "edit", DESCRIPTION)
    task = check_options(o)
    if o.out.suffix.lower() not in (*figures.FORMATS, ".gif"):
        raise ValueError(f"{o.out} has no picture's name; allowed: {', '.join(figures.FORMATS)}, .gif")
    check_vacant(o.out, "file")
    generator = ImageGenerator(o.source, checked_device(o.device))
    e = editor(o, generator)
    shown, found = {"invert": there_and_back, "to_class": as_class, "between": way}.get(task, answers)(e)
    write_picture(o, shown, found)
    return 0


def editor(o: EditOptions, generator: ImageGenerator) -> Edit:
    """The task of the options with a model; ValueError for what the model cannot do."""
    usual = generator.emas[0] if generator.checkpoint.is_file() else generator.recipe.training.sample_ema
    denoiser = generator.denoiser(usual if o.ema is None else o.ema)
    if denoiser.normalization.mean:
        raise ValueError(f"{o.source} draws floats, not pixels; edit its arrays in Python (justimage.editing)")
    if o.tiles:
        factor = o.upscale or 1
        height, width = photo_size(o.photo)
        denoiser = tiled(denoiser, (height * factor, width * factor), factor)
    label = (parse_classes([o.class_name], generator.recipe) or [NULL_CLASS])[0]
    guidance = o.guidance if o.guidance is not None else generator.recipe.sampling.guidance if label >= 0 else 1.0
    sampling = Sampling("sde", o.steps, "logsnr", guidance, generator.recipe.sampling.interval, t_clip=0.0)
    return Edit(o, generator.recipe, denoiser, generator.device, label, sampling)


def check_options(o: EditOptions) -> str:
    """The task; ValueError or OSError for anything that does not fit."""
    asked = [name for name in TASKS if (value := getattr(o, name)) is not None and value is not False]  # 0 is a value
    if len(asked) != 1:
        given = " and ".join(f"--{name.replace('_', '-')}" for name in asked) or "no task"
        raise ValueError(f"{given}: give one of {', '.join('--' + name.replace('_', '-') for name in TASKS)}")
    for name, low, high in (("answers", 1, 64), ("steps", 2, 1000), ("repeats", 1, 100)):
        if not low <= getattr(o, name) <= high:
            raise ValueError(f"{name} is {getattr(o, name)}; allowed: {low} to {high}")
    if o.guidance is not None and asked[0] in ("invert", "between"):
        raise ValueError(f"--{asked[0]} goes to noise and back without guidance; leave --guidance out")
    if o.strength is not None and not 0 < o.strength <= 1:
        raise ValueError(f"strength is {o.strength:g}; allowed: above 0 to 1")
    if o.upscale is not None and o.upscale < 2:
        raise ValueError(f"upscale is {o.upscale}; allowed: 2 or more")
    if o.deblur is not None and not 0 < o.deblur <= 100:
        raise ValueError(f"deblur is {o.deblur:g}; allowed: above 0 to 100")
    return asked[0]


def read(path: Path, denoiser: Denoiser, factor: int = 1) -> Tensor:
    """A photograph as the network sees it, (1, channels, height, width), `factor` times smaller."""
    channels, height, width = denoiser.shape
    return read_photo(path, (channels, height // factor, width // factor))


def measured(o: EditOptions, denoiser: Denoiser) -> tuple[editing.Measurement, Tensor]:
    """The measurement that is known of the image, and its value."""
    channels, height, width = denoiser.shape
    if o.upscale is not None:
        if o.upscale < 2 or height % o.upscale or width % o.upscale:
            common = math.gcd(height, width)
            allowed = ", ".join(str(n) for n in range(2, common + 1) if common % n == 0)
            raise ValueError(f"upscale is {o.upscale}; the model's images are {width} x {height}, allowed: {allowed}")
        return editing.averages(o.upscale), read(o.photo, denoiser, o.upscale)
    x = read(o.photo, denoiser)
    if o.colourise:
        if channels != 3:
            raise ValueError(f"{o.source} draws images of {channels} channel; colours need 3")
        known = editing.grey(channels)
        return known, known.forward(x)
    if o.deblur is not None:
        return editing.blur(o.deblur, (height, width)), x
    assert o.mask
    known = editing.known_pixels(1 - read_mask(o.mask, (height, width), photo_size(o.photo)))
    return known, known.forward(x)


def read_mask(path: Path, size: tuple[int, int], photo: tuple[int, int]) -> Tensor:
    """A mask of 0 and 1, of the model's size (height, width), where one of the photograph's is cropped like it. ValueError for
    one of more tones than two, or of another shape."""
    with reading(path):
        pixels = torch.from_numpy(np.array(Image.open(path).convert(MODES[1])))
    if not bool(((pixels == 0) | (pixels == 255)).all()):
        raise ValueError(f"{path} has grey tones; a mask is black where the photograph stays, and white where it is drawn anew")
    height, width = pixels.shape
    if (height, width) == photo:
        pixels = centre(pixels, size)
        height, width = pixels.shape
    if abs(math.log(width / height * size[0] / size[1])) > 0.05:
        raise ValueError(
            f"{path} is {width} x {height}; allowed: the photograph's {photo[1]} x {photo[0]}, or the "
            f"shape of the model's {size[1]} x {size[0]}"
        )
    covered = F.adaptive_max_pool2d if min(height / size[0], width / size[1]) > 1 else F.interpolate
    return covered(pixels[None, None].float() / 255, size)[0, 0]


def centre(pixels: Tensor, shape: tuple[int, int]) -> Tensor:
    """The largest part of that shape, at the centre of an image (height, width)."""
    scale = min(pixels.shape[0] / shape[0], pixels.shape[1] / shape[1])
    height, width = (max(1, round(side * scale)) for side in shape)
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def answers(e: Edit) -> tuple[Tensor, Tensor]:
    """Images that fit what is known, or variations."""
    shown, steps, total = answer_steps(e)
    return shown, last_step(steps, total)


def answer_steps(e: Edit) -> tuple[Tensor, Iterator[Tensor], int]:
    """The image as it was given, the answers as they are predicted step by step, and how many steps there are."""
    o, denoiser, seeds = e.o, e.denoiser, range(e.o.seed, e.o.seed + e.o.answers)
    if o.strength is not None:
        shown, total = read(o.photo, denoiser), e.sampling.steps
        sampling = replace(e.sampling, solver="unipc")
        return shown, editing.vary(denoiser, e.repeated(shown), o.strength, e.condition, seeds, sampling), total
    known, y = measured(o, denoiser)
    repeats = o.repeats if o.mask else 1
    shown, total = y if o.deblur else known.inverse(y), e.sampling.steps * repeats
    condition = e.told(known, y) or e.condition
    return shown, editing.complete(denoiser, known, e.repeated(y), condition, seeds, e.sampling, repeats=repeats), total


def last_step(steps: Iterator[Tensor], total: int) -> Tensor:
    """The last of the steps, with their progress shown."""
    x = torch.empty(0)
    with bar("editing") as advance:
        for number, step in enumerate(steps):
            x = step
            advance(min(number, total), total)
        advance(total, total)
    return x


def there_and_back(e: Edit) -> tuple[Tensor, Tensor]:
    """The photograph after inversion and back."""
    x = read(e.o.photo, e.denoiser)
    noise = e.noise_of(x)
    back = e.image_of(noise)
    levels = 127.5 * (back.cpu() - x).square().mean().sqrt().item()
    print(f"to noise and back, {e.passes} passes each: an error of {levels:.3f} of 255 (rms)")
    print(f"the noise has a deviation of {noise.std():.2f}, the model's own {e.denoiser.diffusion.noise_scale:.2f}")
    return x, back


def as_class(e: Edit) -> tuple[Tensor, Tensor]:
    """The photograph as another class, from the same noise."""
    other = parse_classes([e.o.to_class or ""], e.recipe)[0]
    x = read(e.o.photo, e.denoiser)
    return x, e.image_of(e.noise_of(x), other, 1.0 if e.o.guidance is None else e.o.guidance)


def way(e: Edit) -> tuple[Tensor, Tensor]:
    """Images between two photographs, both ends among them."""
    first, second = (read(path, e.denoiser) for path in (e.o.photo, e.o.between or e.o.photo))
    return first, e.image_of(editing.between(e.noise_of(first)[0], e.noise_of(second)[0], e.o.answers))


def write_picture(o: EditOptions, shown: Tensor, found: Tensor) -> None:
    """The picture of what was given and the answers."""
    given, images = to_uint8(shown).cpu(), to_uint8(found).cpu()
    if o.out.suffix.lower() == ".gif":
        scale = figures.display_scale(images)
        frames = [figures.to_pil(image, scale).convert("RGB") for image in images]
        buffer = io.BytesIO()
        frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=120, loop=0)
        disk.write(o.out, buffer.getvalue())
    else:
        sheet = figures.image_grid(torch.cat([given, images]), 1 + len(images), top=["given", *[""] * len(images)])
        disk.write(o.out, figures.encode(sheet, o.out.suffix))
    print(f"{len(images)} in {o.out}")
