"""Tables 7 to 9: parameters, multiply-adds and the configuration, counted from the presets; nothing is trained."""

from PIL import Image, ImageDraw, ImageFont

from justimage import pictures
from justimage.laboratory import Cell, Claim, Experiment, Table
from justimage.laboratory.counted import Counted
from justimage.laboratory.scales import PAPER as PAPERS_SCALE, Scale
from justimage.laboratory.writing import number

PAPER = {  # parameters in M and GFLOPs (Tables 5, 7, 8); depth, width, heads, bottleneck, dropout, in-context start (Table 9)
    "B/16": (131, 25, 12, 768, 12, 128, 0, 4), "L/16": (459, 88, 24, 1024, 16, 128, 0, 8),
    "H/16": (953, 182, 32, 1280, 16, 256, 0.2, 10), "G/16": (2000, 383, 40, 1664, 16, 256, 0.2, 10),
    "B/32": (133, 26, 12, 768, 12, 128, 0, 4), "L/32": (462, 89, 24, 1024, 16, 128, 0, 8),
    "H/32": (956, 183, 32, 1280, 16, 256, 0.2, 10), "G/32": (2000, 384, 40, 1664, 16, 256, 0.2, 10),
    "B/64": (141, 30, 12, 768, 12, 128, 0, 4),
}  # fmt: skip
SHOWN = {
    "params M": "parameters_m", "GFLOPs": "gflops", "depth": "depth", "width": "width", "heads": "heads",
    "bottleneck": "bottleneck", "dropout": "dropout", "in-context start": "context_start",
}  # fmt: skip


def cells(s: Scale) -> list[Cell]:
    """The same at every scale."""
    return [
        Cell(name, column, (Counted(PAPERS_SCALE.recipe(name).network),), paper, shows)
        for name, row in PAPER.items()
        for (column, shows), paper in zip(SHOWN.items(), row, strict=True)
    ]


def claims(table: Table) -> list[Claim]:
    off = {
        (c.row, c.column): abs(table(c.row, c.column) / c.paper - 1)
        for c in table.cells
        if c.paper and c.column in ("params M", "GFLOPs")
    }
    (row, column), most = max(off.items(), key=lambda item: item[1])
    exact = [c for c in table.cells if c.column not in ("params M", "GFLOPs")]
    odd = [f"{c.row} {c.column}" for c in exact if table(c.row, c.column) != c.paper]
    return [
        Claim("parameters and GFLOPs are the paper's within 2 %", most < 0.02, f"farthest: {row}, {column}, {most:.1%}"),
        Claim("the configuration is Table 9's", not odd, ", ".join(odd) or f"{len(exact)} numbers equal"),
    ]


def picture(table: Table) -> bytes:
    """Sizes and costs as bars."""
    font = ImageFont.load_default(size=14)
    sheet = Image.new("RGB", (640, 30 * len(table.rows) + 10), pictures.PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, row in enumerate(table.rows):
        size, top = table(row, "params M"), 10 + 30 * i
        pen.text((60, top + 9), row, pictures.INK, font, anchor="rm")
        pen.rectangle((70, top, 70 + size / 6, top + 18), "#1f4e8c")
        words = f"{number(size)} M, {number(table(row, 'GFLOPs'))} GFLOPs"
        pen.text((78 + size / 6, top + 9), words, pictures.INK, font, anchor="lm")
    return pictures.png(sheet)


EXPERIMENT = Experiment(
    title="parameters, GFLOPs and configurations",
    expects="Counts from the networks as they are built, beside the paper's.",
    cells=cells,
    claims=claims,
    picture=picture,
    notes="GFLOPs are multiply-adds of one forward pass, as in the paper. B/64's 30 are not what this gives: docs/method.md.",
)
