"""Handwritten digits with two numbers each, measured on them: how much they slant, and how much ink they have.

python examples/slanted_digits.py slanted/                   writes slanted/images/CLASS/*.png and slanted/numbers.csv
python examples/slanted_digits.py slanted/ --score runs/slanted     measures what a model draws for slants it was asked for

The digits 3 and 8 that slant to the right more than most are kept from training.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import justimage
from justimage import checkpoint, data

SIZE = 32
HELD_OUT = 3, 8
"""Digits of which those that slant to the right are kept from training."""


def slants(images: Tensor) -> np.ndarray:
    """How far digits (n, SIZE, SIZE) in [0, 1] lean to the right, as columns a row: the regression of column on row."""
    place = torch.arange(SIZE, dtype=torch.float32)
    ink = images.double() / images.double().sum((1, 2), keepdim=True).clamp(min=1e-6)
    row, column = (ink.sum(2) * place).sum(1), (ink.sum(1) * place).sum(1)
    rows, columns = place[None, :, None] - row[:, None, None], place[None, None, :] - column[:, None, None]
    return -((ink * rows * columns).sum((1, 2)) / (ink * rows.square()).sum((1, 2)).clamp(min=1e-6)).numpy()


def inks(images: Tensor) -> np.ndarray:
    """The mean of each digit's pixels."""
    return images.double().mean((1, 2)).numpy()


def digits() -> tuple[Tensor, np.ndarray]:
    source = data.digits((SIZE, SIZE))
    return source.images[:, 0].float() / 255, source.labels.numpy()


def is_held_out(labels: np.ndarray, slant: np.ndarray) -> np.ndarray:
    return np.isin(labels, HELD_OUT) & (slant > np.median(slant))


def make(folder: Path) -> None:
    """Write all digits but those held out, and their numbers."""
    images, labels = digits()
    slant, ink = slants(images), inks(images)
    rows = []
    for i in np.flatnonzero(~is_held_out(labels, slant)).tolist():
        name = f"{labels[i]}/{i:04d}.png"
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * images[i]).round().byte().numpy()).save(folder / "images" / name)
        rows.append((name, f"{slant[i]:.4f}", f"{ink[i]:.4f}"))
    with open(folder / "numbers.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "slant", "ink"), *rows])


def score(run: str, each: int = 10) -> None:
    """The correlation of the slant asked for and the one measured, of digits of all slants and of those held out."""
    model, told = justimage.load(run), checkpoint.read_recipe(checkpoint.resolve(run)).told
    (mean, _), (std, _) = told.mean, told.std
    asked = np.linspace(mean - 1.5 * std, mean + 1.5 * std, 7)
    for name, classes in ("all slants in training", [c for c in range(10) if c not in HELD_OUT]), ("held out", HELD_OUT):
        wanted = [(c, s) for c in classes for s in asked for _ in range(each)]
        condition = {
            "classes": torch.tensor([c for c, _ in wanted]),
            "vector": torch.stack([told.vector({"slant": s}) for _, s in wanted]),
        }
        found = slants(justimage.sample(model, condition, seeds=0)[:, 0].float() / 255)
        slant = np.array([s for _, s in wanted])
        print(f"{name}: asked and measured slant correlate with {np.corrcoef(slant, found)[0, 1]:.2f}; for each asked:")
        print("  " + "  ".join(f"{s:+.2f} -> {found[slant == s].mean():+.2f}" for s in asked))


if __name__ == "__main__":
    if "--score" in sys.argv:
        score(sys.argv[sys.argv.index("--score") + 1])
    else:
        make(Path(sys.argv[1]))
