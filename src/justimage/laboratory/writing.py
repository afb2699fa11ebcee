"""What an experiment found, written down: table.md and table.json, the paper's numbers beside ours, and a picture."""

import json
import math
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch

from justimage import disk
from justimage.laboratory import Cell, Claim, Experiment, Table
from justimage.laboratory.scales import Scale


def machine(device: str) -> str:
    """What computed it, for people."""
    if device.startswith("cuda"):
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{cores} cores, {name or platform.machine()}"


def number(value: float) -> str:
    """Three digits, or all before the point; a dash for none."""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ours(table: Table, cell: Cell) -> str:
    """A number of ours: its deviation over other samples, or the least and most of its seeds."""
    values = table.values(cell.row, cell.column)
    if len(values) > 1:
        return f"**{number(sum(values) / len(values))}** ({number(min(values))} to {number(max(values))})"
    deviation = table.found(cell)[0].get("deviations", {}).get(cell.shows)
    return f"**{number(values[0])}**" + (f" ± {deviation:.1g}" if deviation else "")


def grid(table: Table) -> list[str]:
    """The table in Markdown: in each cell the paper's number, and ours."""
    lines = [f"| | {' | '.join(table.columns)} |", "|---" * (len(table.columns) + 1) + "|"]
    for row in table.rows:
        words = []
        for column in table.columns:
            cell = table.cell(row, column)
            paper = "" if cell is None or cell.paper is None else f"{cell.paper:,g} &#124; "
            words.append("" if cell is None else paper + ours(table, cell))
        lines.append(f"| {row} | {' | '.join(words)} |")
    return lines


def told(claims: list[Claim]) -> list[str]:
    return [f"- **{'holds' if c.holds else 'does not hold here'}**: {c.sentence} ({c.evidence})" for c in claims]


def protocol(scale: Scale) -> str:
    """How a scale trains and scores, in words."""
    s, t = scale.scoring, scale.training
    if scale.name == "paper":
        return "Table 9's recipes; guidance and average by the search over 8,000 images, scores of 50,000"
    space = scale.features or "a classifier trained on the same images"
    return (
        f"{scale.images[200]:,} images, batch {t.batch}, one average of the weights; the best guidance of 1 to 4 by {s.step:g} "
        f"is found with {s.searched:,} images, the score is of {s.count:,}; {scale.sampling.steps} steps of Heun; FID in the "
        f"space of {space}"
        + (f", all images scaled to {s.judged} x {s.judged}" if s.judged else "")
    )  # fmt: skip


def contents(place: Path) -> None:
    """README.md in the folder of all experiments: which are there, and what they claim."""
    lines = ["# Reproduced", ""]
    for path in sorted(place.glob("*/table.json")):
        found = disk.read_json(path)
        facts = found["facts"]
        lines += [f"## [{found['name']}: {found['title']}]({path.parent.name}/table.md)", ""]
        lines += told([Claim(**claim) for claim in found["claims"]])
        lines += ["", f"`{facts['command']}`, {facts['date']}, {facts['seconds_of_works']:,.0f} s of work", ""]
    disk.write(place / "README.md", "\n".join(lines).encode())


def write(name: str, e: Experiment, table: Table, out: Path, seconds: float, command: str) -> list[Claim]:
    """Write table.md, table.json and picture.png into `out`; returns what is claimed."""
    claims, scale = e.claims(table), table.lab.scale
    facts: dict[str, Any] = {
        "command": command,
        "date": date.today().isoformat(),
        "machine": machine(table.lab.device),
        "torch": torch.__version__,
        "seconds_now": round(seconds, 1),
        "seconds_of_works": round(sum(r.get("seconds", 0.0) for r in table.results.values()), 1),
    }
    picture = e.picture(table)
    if picture:
        disk.write(out / "picture.png", picture)
    lines = [f"# {name}: {e.title}", "", f"{e.expects}", ""]
    lines += ["In each cell the paper's number, where it has one, and **ours**.", ""]
    lines += [*grid(table), "", *told(claims), ""]
    lines += [f"![{e.title}](picture.png)", ""] if picture else []
    lines += [e.notes, ""] if e.notes else []
    spent = f"{facts['seconds_of_works']:.0f} s of work in all"
    lines += [f"Scale {scale.name}, data {scale.data}: {protocol(scale)}. ± is the deviation over other samples; with several"]
    lines += [f"seeds, the least and the most. {facts['date']}, {facts['machine']}, torch {facts['torch']}; {spent}.", ""]
    lines += [f"`{command}`", ""]
    stored = {
        "name": name,
        "title": e.title,
        "scale": scale.name,
        "data": scale.data,
        "facts": facts,
        "claims": [c._asdict() for c in claims],
        "cells": [
            {"row": c.row, "column": c.column, "paper": c.paper, "shows": c.shows, "ours": table.found(c)} for c in table.cells
        ],
    }
    disk.write(out / "table.md", "\n".join(lines).encode())
    disk.write(out / "table.json", json.dumps(stored, indent=1, allow_nan=False).encode())
    contents(out.parent)
    return claims
