"""Photographs and arrays that a person gives, read as a model sees its images."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from justimage.data import Crop, decode
from justimage.data.arrays import SUFFIXES, open_array_file
from justimage.normalization import Normalization, from_uint8
from justimage.recipe import Recipe
from justimage.tasks import open_task


def read_photo(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """A photograph, cropped and scaled to (1, channels, height, width), in [-1, 1]; ValueError for one far smaller."""
    channels, height, width = shape
    with reading(path):
        content = io.BytesIO(path.read_bytes())
        with Image.open(content) as image:
            smallest = min(image.height / height, image.width / width)
            size = f"{image.width} x {image.height}"
        if smallest < 0.5:
            hint = f"justimage edit --upscale {max(2, round(1 / smallest))} enlarges it"
            raise ValueError(f"{path} is {size}, far smaller than {width} x {height}; {hint}")
        pixels = decode(content, Crop((height, width), channels, upscale=True))
    return from_uint8(torch.from_numpy(pixels)[None])


def photo_size(path: Path) -> tuple[int, int]:
    """Height and width of a photograph as it is shown."""
    with reading(path), Image.open(path) as image:
        width, height = ImageOps.exif_transpose(image).size
    return height, width


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within the block, one line for whatever a damaged picture raises."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a readable image") from error
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


def read_told(path: Path, recipe: Recipe, size: tuple[int, int] | None = None) -> Tensor:
    """The images of a file as a model is told them, (n, ...): of its task, or of what lay beside its images. size: height and
    width of the answers [the model's own]."""
    a, word, (height, width) = recipe.model, recipe.training.task, size or recipe.model.size
    if not a.image_channels:
        raise ValueError(f"{path} is an image, and this model is not told any")
    if path.suffix.lower() in SUFFIXES:
        images = torch.stack([image for image, _ in map(open_array_file(path).__getitem__, range(len(open_array_file(path))))])
        return fitting(path, recipe.told.image(images) if not word else recipe.normalization.normalize(images), recipe)
    if word:
        task = open_task(word, (a.channels, height, width))
        if task.given is None:
            raise ValueError(f"{path} does not say what is missing in it: justimage edit --mask")
        return task.given(read_photo(path, (a.channels, height // task.factor, width // task.factor)))
    if recipe.told.normalization != Normalization():
        raise ValueError(f"{path} is a picture, and this model is told floats; give an .npy file")
    return read_photo(path, (a.image_channels, height, width))


def fitting(path: Path, images: Tensor, recipe: Recipe) -> Tensor:
    """Images of the shape that a model is told; ValueError for others."""
    shape = (recipe.model.image_channels, *recipe.model.size)
    if tuple(images.shape[1:]) != shape:
        found, asked = (" x ".join(map(str, s)) for s in (images.shape[1:], shape))
        raise ValueError(f"{path} has images of {found}; this model is told {asked} (channels x height x width)")
    return images
