"""An experiment written down: NAME.md with the paper's numbers beside ours, NAME.json with all results, and NAME.png."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from justimage import disk
from justimage.reproduction import Cell, Claim, Table
from justimage.reproduction.claims_page import write_claims
from justimage.reproduction.intervals import Z
from justimage.reproduction.runner import jsonable
from justimage.reproduction.training_job import TrainAndScore

DECAYS = "ema_", "beta_"
"""Metrics whose numbers differ from 1 by little."""


def format_number(value: float) -> str:
    """Three digits, or all before the point; a dash for nan."""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def format_cell(table: Table, cell: Cell) -> str:
    """The paper's number, and ours with its deviation over other samples, or the least and most of its seeds."""
    paper = "" if cell.paper is None else f"{cell.paper:,g} &#124; "
    numbers = table.numbers(cell)
    if cell.metric.startswith(DECAYS):
        return f"{paper}**{numbers[0]:g}**"
    if len(numbers) > 1:
        spread = f" ({format_number(min(numbers))} to {format_number(max(numbers))})"
    else:
        spread = f" ± {table.noise(cell):.1g}" if table.noise(cell) else ""
    return f"{paper}**{format_number(sum(numbers) / len(numbers))}**{spread}"


def results_table(table: Table) -> list[str]:
    """The table in Markdown."""
    lines = [f"| | {' | '.join(table.columns)} |", "|---" * (len(table.columns) + 1) + "|"]
    for row in table.rows:
        cells = [table.grid.get((row, column)) for column in table.columns]
        lines.append(f"| {row} | {' | '.join('' if cell is None else format_cell(table, cell) for cell in cells)} |")
    return lines


def claims_list(claims: Sequence[Claim]) -> list[str]:
    """The claims in Markdown, with their verdicts."""
    reasons = [f" Why it might be: {c.why}." if c.why and c.holds is not True else "" for c in claims]
    return [f"- **{c.verdict}**: {c.sentence} ({c.evidence}).{why}" for c, why in zip(claims, reasons, strict=True)]


def power_text(claims: Sequence[Claim]) -> str:
    """The effects that the seeds of each claim tell, and how many the paper's takes, in Markdown; empty with one seed."""
    lines = [
        f"| {c.sentence} | {c.noise.deviation:.1%}, {c.noise.freedom} | {c.margin.high / c.margin.value - 1:.1%} "
        + (f"| {c.paper_margin - 1:.1%} | {c.seeds or 'over 100'} |" if c.paper_margin and c.paper_margin > 1 else "| | |")
        for c in claims
        if c.noise and c.margin and c.margin.low < c.margin.high
    ]
    if not lines:
        return ""
    head = (
        "Power: how much seeds deviate, what all cells of a seed have in common left out, and its degrees of freedom; how far "
        "beyond its bound a claim must be to be told; how far the paper's numbers are, and the seeds that tell that four times "
        "in five."
    )
    columns = "| claim | between seeds | told from | in the paper | seeds |"
    return "\n".join([head, "", columns, "|---|---|---|---|---|", *lines])


def protocol_text(table: Table) -> str:
    """How the jobs of a table were trained and scored, in words."""
    scale = table.lab.scale
    jobs = [job for cell in table.cells for job in cell.jobs if isinstance(job, TrainAndScore)]
    if not jobs:
        return f"Scale {scale.name}; the same at every scale."
    recipes, scorings = [job.recipe for job in jobs], [job.scored_as(scale) for job in jobs]

    def join(numbers: Iterable[float]) -> str:
        return ", ".join(f"{n:,g}" for n in sorted(set(numbers)))

    space = scale.features or "a classifier trained on the same images"
    searched, counts = join(s.search_count for s in scorings), join(s.count for s in scorings)
    search = f"the best guidance of 1 to 4 by {scale.scoring.step:g} is found with {searched} images, a score is of {counts}"
    scaled = sorted({job.feature_size(scale) for job in jobs if job.feature_size(scale) != job.reference_size})
    solvers = ", ".join(sorted({r.sampling.solver for r in recipes}))
    images, batches = join(r.training.total_images for r in recipes), join(r.training.batch for r in recipes)
    level = 95 if table.z == Z else 97
    return (
        f"Scale {scale.name}, data {scale.data}: trained on {images} images in batches of {batches}, "
        f"averages {join(e for r in recipes for e in r.training.ema)}; "
        f"{search}; {join(r.sampling.steps for r in recipes)} steps of {solvers}; FID in the space of {space}"
        + (f", which reads images scaled to {scaled[0]} x {scaled[0]}" if scaled else "")
        + ". ± is the deviation over other samples; with several seeds, the mean, the least and the most. In a claim, numbers "
        f"are geometric means of the seeds that both cells have, and the {level} % interval of a ratio follows it."
    )


def seconds_of_work(results: Iterable[dict[str, Any]]) -> float:
    """Of all trainings, each once, and of all scores; a training counts wherever it was run first."""
    found = list(results)
    trainings = {r["run"]: r.get("seconds_of_training") or 0.0 for r in found if "run" in r}
    return sum(trainings.values()) + sum(r.get("seconds") or 0.0 for r in found)


def write_results(name: str, table: Table, folder: Path, seconds: float, command: str) -> list[Claim]:
    """Write NAME.md, NAME.json and NAME.png into a folder, and claims.md; returns the claims."""
    e, results = table.experiment, table.results.values()
    claims, figure = e.claims(table), e.figure(table)

    def every(fact: str) -> str:
        return ", ".join(sorted({str(r[fact]) for r in results if fact in r}))

    facts: dict[str, Any] = {
        "command": command,
        "date": every("date"),
        "machine": every("machine"),
        "torch": every("torch"),
        "seconds_of_jobs": round(seconds_of_work(results), 1),
        "seconds_of_this_command": round(seconds, 1),
    }
    stored = {
        "name": name,
        "title": e.title,
        "scale": table.lab.scale.name,
        "data": table.lab.scale.data,
        "facts": facts,
        "claims": [c._asdict() | {"verdict": c.verdict} for c in claims],
        "cells": [
            {"row": row, "column": column, "params": c.params, "metric": c.metric, "paper": c.paper, "ours": table.numbers(c)}
            | {"results": [job.key(table.lab) for job in c.jobs]}
            for (row, column), c in table.grid.items()
        ],
        "results": table.results,
    }
    if figure:
        disk.write(folder / f"{name}.png", figure)
    else:
        disk.remove(folder / f"{name}.png")  # of an earlier time
    spent, minutes = f"{facts['seconds_of_jobs']:,.0f} s of work", facts["seconds_of_jobs"] / 120
    if table.lab.device == "cpu":
        spent += f", {minutes:.1f} minutes on two cores" if minutes < 60 else f", {minutes / 60:.1f} hours on two cores"
    paragraphs = [
        f"# {name}: {e.title}",
        e.expects,
        "In each cell the paper's number, where it has one, and **ours**.",
        "\n".join(results_table(table)),
        "\n".join(claims_list(claims)),
        f"![{e.title}]({name}.png)" if figure else "",
        e.notes,
        power_text(claims),
        protocol_text(table),
        f"`{command}`, {facts['date']}, {facts['machine']}, torch {facts['torch']}; {spent}.",
    ]
    disk.write(folder / f"{name}.md", ("\n\n".join(p for p in paragraphs if p) + "\n").encode())
    disk.write(folder / f"{name}.json", json.dumps(jsonable(stored), allow_nan=False).encode())
    write_claims(folder)
    return claims
