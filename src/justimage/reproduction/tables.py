"""What an experiment found, written down: table.md and table.json, the paper's numbers beside ours, and a picture."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from justimage import disk
from justimage.reproduction import Cell, Claim, Experiment, Table
from justimage.reproduction.runner import jsonable
from justimage.reproduction.training_job import TrainAndScore


def format_number(value: float) -> str:
    """Three digits, or all before the point; just below one, as of decays, three of what lacks; a dash for none."""
    if math.isnan(value):
        return "-"
    if 0.99 <= value < 1:
        return f"{1 - float(f'{1 - value:.3g}'):.12g}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def format_cell(table: Table, cell: Cell) -> str:
    """A number of ours: its deviation over other samples, or the least and most of its seeds."""
    values = table.values(cell.row, cell.column)
    if len(values) > 1:
        return f"**{format_number(sum(values) / len(values))}** ({format_number(min(values))} to {format_number(max(values))})"
    deviation = table.noise(cell.row, cell.column)
    return f"**{format_number(values[0])}**" + (f" ± {deviation:.1g}" if deviation else "")


def results_table(table: Table) -> list[str]:
    """The table in Markdown: in each cell the paper's number, and ours."""
    lines = [f"| | {' | '.join(table.columns)} |", "|---" * (len(table.columns) + 1) + "|"]
    for row in table.rows:
        words = []
        for column in table.columns:
            cell = table.cell(row, column)
            paper = "" if cell is None or cell.paper is None else f"{cell.paper:,g} &#124; "
            words.append("" if cell is None else paper + format_cell(table, cell))
        lines.append(f"| {row} | {' | '.join(words)} |")
    return lines


def claims_list(claims: list[Claim]) -> list[str]:
    lines = []
    for c in claims:
        why = f" Why it might be: {c.why}." if c.why and c.holds is not True else ""
        lines.append(f"- **{c.verdict}**: {c.sentence} ({c.evidence}).{why}")
    return lines


def protocol(table: Table) -> str:
    """How the works of a table were trained and scored, in words."""
    scale = table.lab.scale
    trained = [work for cell in table.cells for work in cell.jobs if isinstance(work, TrainAndScore)]
    if not trained:
        return f"Scale {scale.name}; the same at every scale."
    s, recipes = scale.scoring, [work.recipe for work in trained]

    def listed(numbers: Iterable[float]) -> str:
        return ", ".join(f"{n:,g}" for n in sorted(set(numbers)))

    space = scale.features or "a classifier trained on the same images"
    search = f"the best guidance of 1 to 4 by {s.step:g} is found with {s.search_count:,} images, a score is of {s.count:,}"
    scaled = sorted({work.feature_size(scale) for work in trained if work.feature_size(scale) != work.reference_size})
    return (
        f"Scale {scale.name}, data {scale.data}: trained on {listed(r.training.total_images for r in recipes)} images in batches of "
        f"{listed(r.training.batch for r in recipes)}, averages {listed(e for r in recipes for e in r.training.ema)}; "
        f"{search}; {listed(r.sampling.steps for r in recipes)} steps of Heun; FID in the space of {space}"
        + (f", which reads images scaled to {scaled[0]} x {scaled[0]}" if scaled else "")
        + ". ± is the deviation over other samples; with several seeds, the mean, the least and the most."
    )


def table_of_contents(place: Path) -> None:
    """README.md in the folder of all experiments: which are there, and what they claim."""
    lines = ["# Reproduced", ""]
    for path in sorted(place.glob("*/table.json")):
        found = disk.read_json(path)
        facts = found["facts"]
        lines += [f"## [{found['name']}: {found['title']}]({path.parent.name}/table.md)", ""]
        lines += claims_list([Claim(c["sentence"], c["holds"], c["evidence"], c["why"]) for c in found["claims"]])
        lines += ["", f"`{facts['command']}`, {facts['date']}, {facts['seconds_of_works']:,.0f} s of work", ""]
    disk.write(place / "README.md", "\n".join(lines).encode())


def write(name: str, e: Experiment, table: Table, out: Path, seconds: float, command: str) -> list[Claim]:
    """Write table.md, table.json and picture.png into `out`; returns what is claimed."""
    claims, results = e.claims(table), table.results.values()

    def made_by(what: str) -> str:
        return ", ".join(sorted({str(r[what]) for r in results if what in r}))

    facts: dict[str, Any] = {
        "command": command,
        "date": made_by("date"),
        "machine": made_by("machine"),
        "torch": made_by("torch"),
        "seconds_of_works": round(sum(r.get("seconds", 0.0) for r in results), 1),
        "seconds_of_this_command": round(seconds, 1),
    }
    picture = e.figure(table)
    if picture:
        disk.write(out / "picture.png", picture)
    else:
        disk.remove(out / "picture.png")  # of another time
    lines = [f"# {name}: {e.title}", "", f"{e.expects}", ""]
    lines += ["In each cell the paper's number, where it has one, and **ours**.", ""]
    lines += [*results_table(table), "", *claims_list(claims), ""]
    lines += [f"![{e.title}](picture.png)", ""] if picture else []
    lines += [e.notes, ""] if e.notes else []
    spent = f"{facts['seconds_of_works']:,.0f} s of work, without trainings that were there before"
    lines += [protocol(table), "", f"`{command}`, {facts['date']}, {facts['machine']}, torch {facts['torch']}; {spent}.", ""]
    stored = {
        "name": name,
        "title": e.title,
        "scale": table.lab.scale.name,
        "data": table.lab.scale.data,
        "facts": facts,
        "claims": [c._asdict() | {"verdict": c.verdict} for c in claims],
        "cells": [
            {"row": c.row, "column": c.column, "paper": c.paper, "shows": c.shows, "ours": table.values(c.row, c.column)}
            | {"results": [work.key(table.lab) for work in c.jobs]}
            for c in table.cells
        ],
        "results": table.results,
    }
    disk.write(out / "table.md", "\n".join(lines).encode())
    disk.write(out / "table.json", json.dumps(jsonable(stored), indent=1, allow_nan=False).encode())
    table_of_contents(out.parent)
    return claims
