"""Photographs and arrays that a person gives, read as a model sees its images."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from justimage.data import Crop, decode
from justimage.data.arrays import SUFFIXES, open_array_file
from justimage.data.images import upright_size
from justimage.normalization import Normalization, from_uint8
from justimage.recipe import Recipe
from justimage.tasks import open_task


def read_photo(path: Path, shape: tuple[int, int, int], any_size: bool = False) -> Tensor:
    """A photograph, cropped and scaled to (1, channels, height, width), in [-1, 1]; ValueError for one far smaller, unless any
    size is allowed."""
    channels, height, width = shape
    with reading(path):
        content = io.BytesIO(path.read_bytes())
        with Image.open(content) as image:
            there = upright_size(image)
        smallest, size = min(there[0] / height, there[1] / width), f"{there[1]} x {there[0]}"
        if smallest < 0.5 and not any_size:
            hint = f"justimage edit --upscale {max(2, round(1 / smallest))} enlarges it"
            raise ValueError(f"{path} is {size}, far smaller than {width} x {height}; {hint}")
        pixels = decode(content, Crop((height, width), channels, upscale=True))
    return from_uint8(torch.from_numpy(pixels)[None])


def photo_size(path: Path) -> tuple[int, int]:
    """Height and width of a photograph as it is shown."""
    with reading(path), Image.open(path) as image:
        return upright_size(image)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within the block, one line for whatever a damaged picture raises."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a readable image") from error
    except ValueError:
        raise
    except OSError as error:
        if error.filename:
            raise
        raise ValueError(f"{path}: {error}") from error  # Pillow's, of a damaged picture
    except Exception as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


def read_told(path: Path, recipe: Recipe, size: tuple[int, int] | None = None) -> Tensor:
    """The images of a file as a model is told them, (n, ...): of its task, or of what lay beside its images. size: height and
    width of the answers [the model's own]."""
    a, word, (height, width) = recipe.model, recipe.training.task, size or recipe.model.size
    if not a.image_channels:
        raise ValueError(f"{path} is an image, and this model is not told any")
    if path.suffix.lower() in SUFFIXES:
        return read_arrays(path, recipe)
    if word:
        task = open_task(word, (a.channels, height, width))
        if task.given is None:
            raise ValueError(f"{path} does not say what is missing in it: justimage edit --mask")
        return task.given(read_photo(path, (a.channels, height // task.factor, width // task.factor)))
    if recipe.told.normalization != Normalization():
        raise ValueError(f"{path} is a picture, and this model is told floats; give an .npy file")
    return read_photo(path, (a.image_channels, height, width), any_size=True)


def read_arrays(path: Path, recipe: Recipe) -> Tensor:
    """The images of a file of arrays as a model is told them; ValueError for others than it is told."""
    if recipe.training.task:
        raise ValueError(f"{path} is a file of arrays; for the task {recipe.training.task} give pictures")
    source, a, told = open_array_file(path), recipe.model, recipe.told
    shape = (a.image_channels, *a.size)
    if source.shape != shape or source.floats != bool(told.normalization.mean):
        kinds = [f"{'floats' if floats else 'uint8'} of {' x '.join(map(str, s))}" for floats, s in (
            (source.floats, source.shape), (bool(told.normalization.mean), shape)
        )]  # fmt: skip
        raise ValueError(f"{path} has {kinds[0]}; this model is told {kinds[1]} (channels x height x width)")
    return told.image(torch.stack([source[i][0] for i in range(len(source))]))
