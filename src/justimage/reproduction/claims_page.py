"""The claims of all experiments on one page, with a forest plot of those that are about a ratio."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from justimage import disk, figures
from justimage.reproduction.intervals import Interval
from justimage.reproduction.scales import SCALES

Margin = tuple[str, Interval, float | None, bool | None]
"""A claim, how many times its number is beyond the bound, the paper's, and whether it holds."""
COLORS = {True: "#2e7d32", False: "#c62828", None: "#8a8a8a"}
FOREST = (
    "How many times each number is on its claim's side of the bound, with 95 % intervals (97 % at a second look): right of the "
    "line a claim holds. "
    "Diamonds are the paper's numbers; claims without a ratio are in the table alone"
)


def write_claims(folder: Path) -> None:
    """Write claims.md and claims.png of the experiments that a folder holds; and, where it is one of several scales', into the
    folder above them the same of all experiments, each at the largest scale that it was run at."""
    write_page(folder, stored_tables(folder))
    scales = [beside for name in SCALES if (beside := folder.parent / name).is_dir()]
    if folder.name in SCALES and len(scales) > 1:
        write_page(folder.parent, {name: path for scale in scales for name, path in stored_tables(scale).items()})


def stored_tables(folder: Path) -> dict[str, Path]:
    """The files NAME.json of a folder, by name."""
    return {path.stem: path for path in folder.glob("*.json")}


def write_page(folder: Path, tables: dict[str, Path]) -> None:
    """Write claims.md: how many of the claims hold, a forest plot (claims.png) of those about a ratio, and a table of all."""
    lines = ["| | claim | here |", "|---|---|---|"]
    margins, verdicts = list[Margin](), Counter[bool | None]()
    for name, path in sorted(tables.items(), key=lambda item: numbers_as_such(item[0])):
        page = path.with_suffix(".md").relative_to(folder)
        title = name if path.parent == folder else f"{name}, {path.parent.name}"
        for c in disk.read_json(path).get("claims", []):
            verdicts[c["holds"]] += 1
            lines.append(f"| [{title}]({page.as_posix()}) | {c['sentence']} | {c['verdict']}: {c['evidence']} |")
            if c.get("margin") and None not in c["margin"]:
                margins.append((f"{title}: {c['sentence']}", Interval(*c["margin"]), c["paper_margin"], c["holds"]))
    hold, do_not, inconclusive = (verdicts[verdict] for verdict in (True, False, None))
    counts = f"Hold: {hold}; do not hold: {do_not}; inconclusive: {inconclusive}; in all {verdicts.total()}."
    picture = forest(margins) if margins else None
    if picture:
        disk.write(folder / "claims.png", picture)
        lines = [f"![{FOREST}](claims.png)", "", f"{FOREST}.", "", *lines]
    disk.write(folder / "claims.md", "\n".join(["# Claims", "", counts, "", *lines, ""]).encode())


def numbers_as_such(name: str) -> list[str]:
    """A key that sorts table2 before table10."""
    return [part.zfill(9) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def forest(margins: Sequence[Margin]) -> bytes | None:
    """Claims below each other: each margin with its interval, and the paper's."""

    def plot(figure: Any) -> None:
        from matplotlib.ticker import LogLocator, NullLocator

        axes = figure.subplots()
        for y, (_, interval, paper, holds) in enumerate(margins):
            axes.hlines(y, interval.low, interval.high, color=COLORS[holds], linewidth=2)
            axes.plot(interval.value, y, "o", color=COLORS[holds], markersize=5)
            if paper:
                axes.plot(paper, y, "D", color="#999999", markersize=4, markerfacecolor="none")
        axes.axvline(1, color="#333333", linewidth=0.8)
        axes.set(xscale="log", xlabel="times beyond the bound of the claim", ylim=(len(margins) - 0.5, -0.5))
        axes.xaxis.set_major_locator(LogLocator(subs=(0.5, 0.7, 1, 1.5, 2, 3)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_yticks(range(len(margins)), [words for words, *_ in margins], fontsize=8)

    return figures.plot_png(plot, (11, 1 + 0.24 * len(margins)))
