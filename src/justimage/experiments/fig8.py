"""Figs. 8 to 11: uncurated images by class, at the guidance of the best score."""

from PIL import Image, ImageDraw, ImageFont

from justimage import figures
from justimage.reproduction import Cell, Claim, Experiment, Table
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import TrainAndScore, images_of

CLASSES = (  # of ImageNet, in the order of the figures
    12, 14, 42, 81, 107, 108, 110, 117, 130, 279, 288, 309, 349, 397, 425, 448, 453, 458, 495, 500,
    658, 661, 718, 724, 725, 757, 779, 780, 829, 853, 873, 900, 911, 913, 927, 930, 946, 947, 975, 989,
)  # fmt: skip


def cells(s: Scale) -> list[Cell]:
    shown = CLASSES if s.name == "paper" else tuple(range(10))
    work = TrainAndScore(s.recipe("G/16", 600), classes=shown)
    return [Cell("G/16", "FID", (work,), 1.82), Cell("G/16", "guidance", (work,), 2.2, "guidance")]


def claims(table: Table) -> list[Claim]:
    agreement = table.found(table.cells[0])[0].get("agreement")
    if agreement is None:
        return []
    words = f"{agreement:.1%}, by a classifier of the real images"
    return [Claim("images show the class that they were asked for (nine in ten)", agreement > 0.9, words)]


def picture(table: Table) -> bytes | None:
    """A row for each class, its name below."""
    (work,) = table.cells[0].jobs
    found = images_of(table.lab, work) if isinstance(work, TrainAndScore) else None
    if found is None:
        return None
    images, classes = found
    names = table.found(table.cells[0])[0]["class_names"] or classes
    rows = [figures.image_grid(images[[i for i, c in enumerate(classes) if c == k]], 8) for k in dict.fromkeys(classes)]
    width, height = rows[0].width, rows[0].height + 18
    sheet = Image.new("RGB", (width, height * len(rows)), figures.PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for i, (row, k) in enumerate(zip(rows, dict.fromkeys(classes), strict=True)):
        sheet.paste(row, (0, i * height))
        pen.text((4, (i + 1) * height - 17), f"class {k:03d}: {names[k]}", figures.INK, font)
    return figures.encode_png(sheet)


EXPERIMENT = Experiment(
    title="uncurated images by class (Figs. 8 to 11)",
    expects="Every image drawn is shown, a class a row, at the guidance of the best FID rather than a higher one.",
    cells=cells,
    claims=claims,
    figure=picture,
    minutes=5,
)
