"""Pictures of what experiments found, for people: samples arranged as the table is, and curves."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from justimage import figures
from justimage.reproduction import Table
from justimage.reproduction.tables import format_number
from justimage.reproduction.training_job import TrainAndScore, images_of

TILE = 5
"""Columns of a cell's samples."""


def tiles(table: Table, columns: Sequence[str] = ()) -> bytes:
    """Each cell's samples where the table has its number, with ours and the paper's below."""
    columns = columns or table.columns
    font, small = ImageFont.load_default(size=13), ImageFont.load_default(size=12)
    sheets = {}
    for c in table.cells:
        work = c.jobs[0]
        found = images_of(table.lab, work) if isinstance(work, TrainAndScore) and c.column in columns else None
        if found is not None:
            samples = figures.image_grid(found[0], TILE)
            width = TILE * 50
            sheets[c.row, c.column] = samples.resize((width, round(samples.height * width / samples.width)))
    wide = max([TILE * 50 + 16, *(int(font.getlength(column)) + 12 for column in columns)])
    high = max(s.height for s in sheets.values()) + 28
    before = max(int(font.getlength(row)) for row in table.rows) + 14
    sheet = Image.new("RGB", (before + wide * len(columns), 26 + high * len(table.rows)), figures.PAPER)
    pen = ImageDraw.Draw(sheet)
    for x, column in enumerate(columns):
        pen.text((before + x * wide + wide // 2, 13), column, figures.INK, font, anchor="mm")
    for y, row in enumerate(table.rows):
        pen.text((before - 8, 26 + y * high + (high - 28) // 2), row, figures.INK, font, anchor="rm")
        for x, column in enumerate(columns):
            cell = table.cell(row, column)
            if cell and (row, column) in sheets:
                sheet.paste(sheets[row, column], (before + x * wide + 8, 26 + y * high))
                words = f"FID {format_number(table(row, column))}" if cell.shows == "fid" else format_number(table(row, column))
                words += f"   (paper: {cell.paper:g})" if cell.paper is not None else ""
                pen.text((before + x * wide + wide // 2, 26 + (y + 1) * high - 15), words, figures.INK, small, anchor="mm")
    return figures.encode_png(sheet)


def tiles_of(*columns: str) -> Callable[[Table], bytes]:
    """The samples of some columns only."""
    return lambda table: tiles(table, columns)


Line = tuple[str, Sequence[float], Sequence[float]]
"""A name, and where its points are."""


def lines(panels: Sequence[tuple[str, str, Sequence[Line]]], size: tuple[float, float] = (9, 3.8), **how: Any) -> bytes | None:
    """Panels of curves, each with the words at its axes; None without matplotlib. how: xscale, yscale, ticks."""

    def draw(figure: Any) -> None:
        for axes, (x, y, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for name, xs, ys in curves:
                axes.plot(xs, ys, marker="o" if len(xs) < 40 else "", markersize=4, linewidth=1.4, label=name)
            axes.set(xlabel=x, ylabel=y, xscale=how.get("xscale", "linear"), yscale=how.get("yscale", "linear"))
            if "ticks" in how:
                axes.set_xticks(range(len(how["ticks"])), how["ticks"])
            axes.grid(alpha=0.3)
            if len(curves) > 1:
                axes.legend(fontsize=8)

    return figures.plot_png(draw, size)


Cloud = tuple[str, np.ndarray]
"""Words, and points of the plane (n, 2)."""


def clouds(rows: dict[str, list[Cloud]], line: np.ndarray, side: float) -> bytes | None:
    """Rows of panels of points over a line (n, 2), as far as `side` from the middle; None without matplotlib."""

    def draw(figure: Any) -> None:
        panels = figure.subplots(len(rows), max(map(len, rows.values())), squeeze=False)
        for across, (name, row) in zip(panels, rows.items(), strict=True):
            across[0].set_ylabel(name)
            for axes, (words, points) in zip(across, row, strict=True):
                axes.plot(*line.T, color="#cccccc", linewidth=0.8)
                axes.scatter(*points.T, s=1, color="#1f4e8c")
                axes.set_title(words, fontsize=8)
                if not (abs(points) < side).all(1).any():
                    axes.text(0, -0.9 * side, "none in view", ha="center", fontsize=8)
                axes.set(xlim=(-side, side), ylim=(-side, side), xticks=[], yticks=[], aspect="equal")

    return figures.plot_png(draw, (9, 9.4))


def by_row(ylabel: str = "FID") -> Callable[[Table], bytes | None]:
    """A picture of columns as curves over the rows, in the table's order, ours beside the paper's."""

    def picture(table: Table) -> bytes | None:
        def curve(column: str, values: dict[str, float | None]) -> Line:
            there = [(i, values[row]) for i, row in enumerate(table.rows) if values.get(row) is not None]
            return column, [i for i, _ in there], [v for _, v in there if v is not None]

        mine, paper = [], []
        for column in table.columns:
            cells = [c for c in table.cells if c.column == column]
            mine.append(curve(column, {c.row: table(c.row, column) for c in cells}))
            if any(c.paper is not None for c in cells):
                paper.append(curve(column, {c.row: c.paper for c in cells}))
        panels = [("", f"{ylabel}, ours", mine)] + ([("", f"{ylabel}, the paper's", paper)] if paper else [])
        return lines(panels, ticks=table.rows, yscale="log")

    return picture
