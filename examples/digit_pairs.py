"""Pictures of two handwritten digits with captions such as "3 left of 7", and a reader that says what a picture shows.

python examples/digit_pairs.py pairs/      writes pairs/images.zip and pairs/captions.csv
python examples/digit_pairs.py pairs/ --score runs/pairs     reads what a model draws for captions that it never saw
"""

import csv
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import justimage
from justimage import data
from justimage.conditions import text_bytes

SIZE = 40
RELATIONS = "left of", "right of", "above", "below", "left of a small", "above a small"
LARGE, SMALL = 17, 12
"""Sides of digits in pixels."""
HELD_OUT = 10
"""One caption in so many is in no picture of the training."""


def captions() -> list[tuple[int, int, int]]:
    """All (first digit, relation, second digit)."""
    return [(a, r, b) for a in range(10) for r in range(len(RELATIONS)) for b in range(10)]


def is_held_out(a: int, r: int, b: int) -> bool:
    """Whether a caption is kept from training: ten of each relation, each digit once in either place."""
    return (a + 3 * r + b) % HELD_OUT == 0


def caption(a: int, r: int, b: int) -> str:
    return f"{a} {RELATIONS[r]} {b}"


def digits(size: int) -> tuple[Tensor, Tensor]:
    """The handwritten digits as floats in [0, 1], (1797, size, size), and their classes."""
    source = data.digits((8, 8))
    images = F.interpolate(source.images.float() / 255, size=(size, size), mode="bicubic", antialias=True)
    return images[:, 0].clamp(0, 1), source.labels


def compose(what: tuple[int, int, int], chance: np.random.Generator, drawn: dict[int, tuple[Tensor, Tensor]]) -> Tensor:
    """A picture of a caption, (SIZE, SIZE) in [0, 1]: digits of any handwriting, a gap and an offset at random."""
    a, r, b = what
    sizes = LARGE, SMALL if "small" in RELATIONS[r] else LARGE
    one, two = (
        images[chance.choice(np.flatnonzero(labels.numpy() == digit))]
        for digit, (images, labels) in ((a, drawn[sizes[0]]), (b, drawn[sizes[1]]))
    )
    if RELATIONS[r] in ("right of", "below"):
        one, two = two, one
    along = "above" not in RELATIONS[r] and "below" not in RELATIONS[r]
    gap = chance.integers(1, SIZE - len(one) - len(two) - 1)
    start = chance.integers(0, SIZE - len(one) - len(two) - gap + 1)
    picture = torch.zeros(SIZE, SIZE)
    for digit, place in ((one, start), (two, start + len(one) + gap)):
        across = (SIZE - len(digit)) // 2 + chance.integers(-3, 4)
        rows, columns = (across, place) if along else (place, across)
        picture[rows : rows + len(digit), columns : columns + len(digit)] = digit
    return picture


def make(folder: Path, count: int, seed: int = 0) -> None:
    """Write pictures and their captions, none of them held out."""
    drawn = {size: digits(size) for size in (LARGE, SMALL)}
    chance = np.random.default_rng(seed)
    known = [what for what in captions() if not is_held_out(*what)]
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for i in range(count):
            what = known[chance.integers(len(known))]
            buffer = io.BytesIO()
            pixels = (255 * compose(what, chance, drawn)).round().to(torch.uint8).numpy()
            Image.fromarray(pixels).save(buffer, "PNG")
            archive.writestr(f"{i:06d}.png", buffer.getvalue())
            rows.append((f"{i:06d}.png", caption(*what)))
    with open(folder / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "text"), *rows])


class Reader:
    """Reads both digits of a picture, and where they are: by the gap between them, and a classifier of single digits."""

    def __init__(self) -> None:
        from sklearn.svm import SVC

        images, labels = [], []
        for size in LARGE, SMALL:
            drawn, of = digits(size)
            images += [self.framed(image) for image in drawn]
            labels += of.tolist()
        self.classifier = SVC(C=10.0).fit(np.stack(images), labels)

    def framed(self, image: Tensor) -> np.ndarray:
        """A digit cut out, on 12 x 12 pixels."""
        ink = image > 0.25
        rows, columns = (ink.any(dim).nonzero()[:, 0] for dim in (1, 0))
        cut = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        side = max(cut.shape)
        down, right = side - cut.shape[0], side - cut.shape[1]
        square = F.pad(cut, (right // 2, right - right // 2, down // 2, down - down // 2))
        return F.interpolate(square[None, None], size=(12, 12), mode="bilinear", antialias=True).flatten().numpy()

    def read(self, picture: Tensor) -> tuple[int, int, int] | None:
        """(First digit, relation, second digit) of a picture in [0, 1], relations "right of" and "below" read as their
        opposites; None where there are not two things side by side."""
        for along in True, False:
            ink = (picture > 0.25).any(0 if along else 1).nonzero()[:, 0]
            gaps = (ink.diff() > 1).nonzero()[:, 0]
            if len(ink) < 2 or not len(gaps):
                continue
            widest = int(ink.diff()[gaps].argmax())
            middle = int(ink[gaps[widest]]) + 1
            parts = picture.tensor_split([middle], 1 if along else 0)
            sizes = [int((part > 0.25).any(1 if along else 0).sum()) for part in parts]
            heights = [int((part > 0.25).any(1).sum()) for part in parts]
            if min(*sizes, *heights) < 3:
                return None
            first, second = self.classifier.predict(np.stack([self.framed(part) for part in parts])).tolist()
            small = " a small" if heights[1] < 0.85 * heights[0] else ""
            relation = ("left of" if along else "above") + small
            return first, RELATIONS.index(relation), second
        return None

    def agrees(self, what: tuple[int, int, int], picture: Tensor) -> bool:
        """Whether a picture shows a caption: both digits, their places and their sizes."""
        a, r, b = what
        shown = {"right of": (b, 0, a), "below": (b, 2, a)}.get(RELATIONS[r], what)
        return self.read(picture) == shown


def score(run: str, answers: int = 4) -> None:
    """The share of samples that show their caption: of captions in training, of held-out ones, and of composed pictures."""
    reader, model = Reader(), justimage.load(run)
    length = model.net.architecture.text_length
    drawn, chance = {size: digits(size) for size in (LARGE, SMALL)}, np.random.default_rng(1)
    real = [(what, compose(what, chance, drawn)) for what in captions()]
    print(f"composed pictures: {np.mean([reader.agrees(*each) for each in real]):.1%} are read as their caption")
    for name, chosen in ("held-out", True), ("known", False):
        asked = [what for what in captions() if is_held_out(*what) == chosen for _ in range(answers if chosen else 1)]
        text = torch.stack([text_bytes(caption(*what), length) for what in asked])
        pictures = justimage.sample(model, {"text": text}, seeds=0)[:, 0].float() / 255
        right = np.array([reader.agrees(*each) for each in zip(asked, pictures, strict=True)])
        print(f"{name} captions: {right.mean():.1%} of {len(right)} samples show theirs")
        for r, relation in enumerate(RELATIONS):
            print(f"  {relation:16s}{right[[what[1] == r for what in asked]].mean():.1%}")


if __name__ == "__main__":
    if "--score" in sys.argv:
        score(sys.argv[sys.argv.index("--score") + 1])
    else:
        make(Path(sys.argv[1]), 20_000)
