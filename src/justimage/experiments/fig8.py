"""Figs. 8 to 11: uncurated images by class, at the guidance of the best score."""

from justimage import pictures
from justimage.laboratory import Cell, Claim, Experiment, Table
from justimage.laboratory.scales import Scale
from justimage.laboratory.trained import Trained, images_of

CLASSES = (  # of ImageNet, in the order of the figures
    12, 14, 42, 81, 107, 108, 110, 117, 130, 279, 288, 309, 349, 397, 425, 448, 453, 458, 495, 500,
    658, 661, 718, 724, 725, 757, 779, 780, 829, 853, 873, 900, 911, 913, 927, 930, 946, 947, 975, 989,
)  # fmt: skip


def cells(s: Scale) -> list[Cell]:
    shown = CLASSES if s.name == "paper" else tuple(range(10))
    work = Trained(s.recipe("G/16", 600), classes=shown)
    return [Cell("G/16", "FID", (work,), 1.82), Cell("G/16", "guidance", (work,), 2.2, "guidance")]


def claims(table: Table) -> list[Claim]:
    cell = table.cells[0]
    agreement = table.found(cell)[0].get("agreement")
    if agreement is None:
        return []
    words = f"{agreement:.1%}, by a classifier of the real images"
    return [Claim("images show the class that they were asked for (nine in ten)", agreement > 0.9, words)]


def picture(table: Table) -> bytes:
    (work,) = table.cells[0].works
    assert isinstance(work, Trained)
    images, classes = images_of(table.lab, work), work.classes
    rows = [image for k in range(len(classes)) for image in range(k, len(images), len(classes))]
    return pictures.png(pictures.grid(images[rows], len(images) // len(classes), left=[f"class {c}" for c in classes]))


EXPERIMENT = Experiment(
    title="uncurated images by class (Figs. 8 to 11)",
    expects="Every image drawn is shown, a class a row, at the guidance of the best FID rather than a higher one.",
    cells=cells,
    claims=claims,
    picture=picture,
)
