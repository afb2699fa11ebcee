"""The claims of all experiments on one page, with a forest plot of those that are about a ratio."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from justimage import disk, figures
from justimage.reproduction.intervals import Interval

Margin = tuple[str, Interval, float | None, bool | None]
"""A claim, how many times its number is beyond the bound, the paper's, and whether it holds."""
COLORS = {True: "#2e7d32", False: "#c62828", None: "#8a8a8a"}
FOREST = (
    "How many times each number is on its claim's side of the bound, with 95 % intervals: right of the line a claim holds. "
    "Diamonds are the paper's numbers; claims without a ratio are in the table alone"
)


def write_claims(folder: Path) -> None:
    """Write claims.md: the claims of all experiments that a folder holds, in one table; and claims.png, a forest plot."""
    lines = ["| | claim | here |", "|---|---|---|"]
    margins: list[Margin] = []
    for path in sorted(folder.glob("*.json")):
        for c in disk.read_json(path).get("claims", []):
            lines.append(f"| [{path.stem}]({path.stem}.md) | {c['sentence']} | {c['verdict']}: {c['evidence']} |")
            if c.get("margin") and None not in c["margin"]:
                margins.append((f"{path.stem}: {c['sentence']}", Interval(*c["margin"]), c["paper_margin"], c["holds"]))
    picture = forest(margins) if margins else None
    if picture:
        disk.write(folder / "claims.png", picture)
        lines = [f"![{FOREST}](claims.png)", "", f"{FOREST}.", "", *lines]
    disk.write(folder / "claims.md", "\n".join(["# Claims", "", *lines, ""]).encode())


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
