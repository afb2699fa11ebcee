"""Figures of experiments: samples arranged as the table is; and curves and points, which are None without matplotlib."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from justimage import figures
from justimage.reproduction import Cell, Table
from justimage.reproduction.tables import format_number
from justimage.reproduction.training_job import load_samples

TILE_COLUMNS, TILE_WIDTH = 5, 250
"""Columns of a cell's samples, and its width in pixels."""
Tile = tuple[Image.Image, str]
"""A picture, and the words below it."""


def grid(rows: dict[str, Sequence[Tile | None]], columns: Sequence[str] = ("",)) -> bytes:
    """A PNG of pictures in labelled rows and columns."""
    font, small = ImageFont.load_default(size=13), ImageFont.load_default(size=12)
    tiles = [tile for row in rows.values() for tile in row if tile]
    wide = max([*(image.width + 16 for image, _ in tiles), *(int(font.getlength(column)) + 12 for column in columns)])
    below = 28 if any(words for _, words in tiles) else 6
    high = max(image.height for image, _ in tiles) + below
    left, top = max(int(font.getlength(row)) for row in rows) + 14, 26 if any(columns) else 6
    page = Image.new("RGB", (left + wide * len(columns), top + high * len(rows)), figures.PAPER)
    pen = ImageDraw.Draw(page)
    for x, column in enumerate(columns):
        pen.text((left + x * wide + wide // 2, 13), column, figures.INK, font, anchor="mm")
    for y, (row, across) in enumerate(rows.items()):
        pen.text((left - 8, top + y * high + (high - below) // 2), row, figures.INK, font, anchor="rm")
        for x, tile in enumerate(across):
            if tile:
                page.paste(tile[0], (left + x * wide + 8, top + y * high))
                pen.text((left + x * wide + wide // 2, top + (y + 1) * high - 15), tile[1], figures.INK, small, anchor="mm")
    return figures.encode_png(page)


def tiles(table: Table) -> bytes:
    """Samples of each cell that shows a FID, where the table has its number, with ours and the paper's below."""

    def tile(cell: Cell) -> Tile | None:
        stored = load_samples(table.lab, cell.jobs[0])
        if stored is None:
            return None
        image = figures.image_grid(stored[0], TILE_COLUMNS)
        words = f"FID {format_number(table.number(cell))}"
        words += f"   (paper: {cell.paper:g})" if cell.paper is not None else ""
        return image.resize((TILE_WIDTH, round(image.height * TILE_WIDTH / image.width))), words

    shown = {(table.row(cell), table.column(cell)): tile(cell) for cell in table.select(metric="fid")}
    columns = list(dict.fromkeys(column for _, column in shown))
    return grid({row: [shown.get((row, column)) for column in columns] for row in table.rows}, columns)


Line = tuple[str, Sequence[float], Sequence[float]]
"""A name, and the x and y of its points."""


def lines(panels: Sequence[tuple[str, str, Sequence[Line]]], size: tuple[float, float] = (9, 3.8), **how: Any) -> bytes | None:
    """Panels of curves, each with the labels of its axes. how: xscale, yscale, ticks."""

    def plot(figure: Any) -> None:
        for axes, (x, y, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for name, xs, ys in curves:
                axes.plot(xs, ys, marker="o" if len(xs) < 40 else "", markersize=4, linewidth=1.4, label=name)
            axes.set(xlabel=x, ylabel=y, xscale=how.get("xscale", "linear"), yscale=how.get("yscale", "linear"))
            if "ticks" in how:
                axes.set_xticks(range(len(how["ticks"])), how["ticks"])
            axes.grid(alpha=0.3)
            if len(curves) > 1:
                axes.legend(fontsize=8)

    return figures.plot_png(plot, size)


def by_row(table: Table) -> bytes | None:
    """The columns of a table as curves over its rows, ours beside the paper's."""

    def curves(number: Callable[[Cell], float | None]) -> list[Line]:
        found: dict[str, list[tuple[int, float]]] = {}
        for (row, column), cell in table.grid.items():
            if (value := number(cell)) is not None:
                found.setdefault(column, []).append((table.rows.index(row), value))
        return [(column, [x for x, _ in points], [y for _, y in points]) for column, points in found.items()]

    panels = [("", "FID, ours", curves(table.number)), ("", "FID, the paper's", curves(lambda cell: cell.paper))]
    return lines([panel for panel in panels if panel[2]], ticks=table.rows, yscale="log")


Cloud = tuple[str, np.ndarray]
"""A title, and points of the plane (n, 2)."""


def clouds(rows: dict[str, list[Cloud]], line: np.ndarray, side: float) -> bytes | None:
    """Rows of panels of points over a line (n, 2), as far as `side` from the middle."""

    def plot(figure: Any) -> None:
        panels = figure.subplots(len(rows), max(map(len, rows.values())), squeeze=False)
        for across, (name, row) in zip(panels, rows.items(), strict=True):
            across[0].set_ylabel(name)
            for axes, (title, points) in zip(across, row, strict=True):
                axes.plot(*line.T, color="#cccccc", linewidth=0.8)
                axes.scatter(*points.T, s=1, color="#1f4e8c")
                axes.set_title(title, fontsize=8)
                if not (abs(points) < side).all(1).any():
                    axes.text(0, -0.9 * side, "none in view", ha="center", fontsize=8)
                axes.set(xlim=(-side, side), ylim=(-side, side), xticks=[], yticks=[], aspect="equal")

    return figures.plot_png(plot, (9, 9.4))
