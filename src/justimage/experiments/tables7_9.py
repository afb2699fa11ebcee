"""Tables 7 to 9: parameters, multiply-adds and the whole configuration, from the presets; nothing is trained."""

from PIL import Image, ImageDraw, ImageFont

from justimage import figures
from justimage.reproduction import Cell, Claim, Experiment, Table
from justimage.reproduction.cost_job import CountCost
from justimage.reproduction.scales import PAPER as PAPERS, Scale
from justimage.reproduction.tables import format_number

NETWORKS = "B/16", "L/16", "H/16", "G/16", "B/32", "L/32", "H/32", "G/32", "B/64"
COUNTED = {  # in millions, and 10^9 multiply-adds (Tables 5, 7, 8)
    "parameters_m": (131, 459, 953, 2000, 133, 462, 956, 2000, 141),
    "gflops": (25, 88, 182, 383, 26, 89, 183, 384, 30),
}
BY_SIZE = {  # Table 9, of B, L, H, G
    "depth": (12, 24, 32, 40), "width": (768, 1024, 1280, 1664), "heads": (12, 16, 16, 16),
    "bottleneck": (128, 128, 256, 256), "dropout": (0, 0, 0.2, 0.2), "context_start": (4, 8, 10, 10),
}  # fmt: skip
ALIKE = {  # Table 9, of all
    "context_tokens": 32, "epochs": 600, "warmup_epochs": 5, "batch": 1024, "learning_rate": 2e-4,
    "beta_1": 0.9, "beta_2": 0.95,
    "ema_1": 0.9996, "ema_2": 0.9998, "ema_3": 0.9999, "mu": -0.8, "sigma": 0.8, "clip": 0.05, "label_drop": 0.1, "steps": 50,
    "interval_from": 0.1, "interval_to": 1.0,
}  # fmt: skip


def paper(name: str) -> dict[str, float]:
    """The paper's column for a network."""
    size, patch, place = "BLHG".index(name[0]), int(name[2:]), NETWORKS.index(name)
    counted = {what: row[place] for what, row in COUNTED.items()}
    own = {"image_size": 16 * patch, "patch_size": patch, "noise_scale": 16 * patch / 256}
    return counted | {what: row[size] for what, row in BY_SIZE.items()} | own | ALIKE


def cells(s: Scale) -> list[Cell]:
    """The same at every scale."""
    works = {name: CountCost(PAPERS.recipe(name, 600)) for name in NETWORKS}
    return [
        Cell(what.replace("_", " "), name, (work,), value, what)
        for name, work in works.items()
        for what, value in paper(name).items()
    ]


def claims(table: Table) -> list[Claim]:
    off = {(c.row, c.column): abs(table(c.row, c.column) / c.paper - 1) for c in table.cells if c.shows in COUNTED and c.paper}
    (row, column), most = max(off.items(), key=lambda item: item[1])
    exact = [c for c in table.cells if c.shows not in COUNTED]
    odd = [f"{c.row} of {c.column}" for c in exact if table(c.row, c.column) != c.paper]
    why = "see docs/method.md for B/64"
    return [
        Claim("parameters and GFLOPs are the paper's within 2 %", most < 0.02, f"farthest: {row} of {column}, {most:.1%}", why),
        Claim("the configuration is Table 9's", not odd, ", ".join(odd) or f"{len(exact)} numbers equal"),
    ]


def picture(table: Table) -> bytes:
    """Sizes and costs as bars."""
    font = ImageFont.load_default(size=14)
    sheet = Image.new("RGB", (640, 30 * len(NETWORKS) + 10), figures.PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, name in enumerate(NETWORKS):
        size, top = table("parameters m", name), 10 + 30 * i
        pen.text((60, top + 9), name, figures.INK, font, anchor="rm")
        pen.rectangle((70, top, 70 + size / 6, top + 18), "#1f4e8c")
        words = f"{format_number(size)} M, {format_number(table('gflops', name))} GFLOPs"
        pen.text((78 + size / 6, top + 9), words, figures.INK, font, anchor="lm")
    return figures.encode_png(sheet)


EXPERIMENT = Experiment(
    title="parameters, GFLOPs and configurations",
    expects="Counts from the networks as they are built, and every number of Table 9, beside the paper's.",
    cells=cells,
    claims=claims,
    figure=picture,
    notes="GFLOPs are multiply-adds of one forward pass, as in the paper. Of H and G Table 9's epochs are those planned.",
    minutes=0.2,
)
