"""Figures of experiments: samples arranged as the table is; and curves and points, which are None without matplotlib."""

import math
from collections.abc import Sequence
from statistics import fmean
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
    high = max([image.height for image, _ in tiles], default=0) + below
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


def lines(
    panels: Sequence[tuple[str, str, Sequence[Line]]], size: tuple[float, float] = (9, 3.8), yscale: str = "linear"
) -> bytes | None:
    """Panels of curves, each with the labels of its axes."""

    def plot(figure: Any) -> None:
        for axes, (x, y, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for name, xs, ys in curves:
                axes.plot(xs, ys, marker="o" if len(xs) < 40 else "", markersize=4, linewidth=1.4, label=name)
            axes.set(xlabel=x, ylabel=y, yscale=yscale)
            axes.grid(alpha=0.3)
            if len(curves) > 1:
                axes.legend(fontsize=8)

    return figures.plot_png(plot, size)


def by_row(table: Table) -> bytes | None:
    """The columns of a table as curves over its rows, ours beside the paper's: with several seeds the mean, the least and the
    most."""

    def paper(cell: Cell) -> list[float]:
        return [cell.paper] if cell.paper else []

    def plot(figure: Any) -> None:
        from matplotlib.ticker import NullFormatter

        for axes, words, numbers in zip(figure.subplots(1, 2), ("ours", "the paper's"), (table.numbers, paper), strict=True):
            for column in table.columns:
                cells = {x: cell for x, row in enumerate(table.rows) if (cell := table.grid.get((row, column)))}
                found = {x: values for x, cell in cells.items() if (values := [v for v in numbers(cell) if math.isfinite(v)])}
                means = [fmean(values) for values in found.values()]
                below = [mean - min(values) for mean, values in zip(means, found.values(), strict=True)]
                above = [max(values) - mean for mean, values in zip(means, found.values(), strict=True)]
                if found:
                    axes.errorbar([*found], means, [below, above], marker="o", markersize=4, linewidth=1.4, label=column)
            axes.set(ylabel=f"FID, {words}", yscale="log", xlim=(-0.4, len(table.rows) - 0.6))
            axes.set_xticks(range(len(table.rows)), table.rows, rotation=30)
            low, high = axes.get_ylim()
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}" if high < 10 * low else NullFormatter())
            axes.grid(alpha=0.3, which="both")
            if len(axes.get_legend_handles_labels()[0]) > 1:
                axes.legend(fontsize=8)

    return figures.plot_png(plot, (9, 3.8))


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
