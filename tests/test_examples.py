"""The examples' own measures: a reader reads what was composed, a slant is the slant, and what is held out is nowhere."""

import csv
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from justimage.experiments import experiment
from justimage.recipe import with_values
from justimage.reproduction import Lab, Table
from justimage.reproduction.scales import OVERNIGHT

pytest.importorskip("sklearn")


def example(name: str) -> Any:
    place = Path(__file__).parents[1] / "examples" / f"{name}.py"
    specification = importlib.util.spec_from_file_location(name, place)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_a_reader_reads_what_was_composed_and_nothing_else() -> None:
    pairs = example("digit_pairs")
    reader, chance = pairs.Reader(), np.random.default_rng(0)
    drawn = {size: pairs.digits(size) for size in (pairs.LARGE, pairs.SMALL)}
    shown = [(what, pairs.compose(what, chance, drawn)) for what in pairs.captions()[::7]]
    assert np.mean([reader.agrees(*each) for each in shown]) > 0.98
    others = [(b, r, a) if a != b else ((a + 1) % 10, r, b) for (a, r, b), _ in shown]
    assert not any(reader.agrees(other, picture) for other, (_, picture) in zip(others, shown, strict=True))
    assert reader.read(torch.zeros(pairs.SIZE, pairs.SIZE)) is None


def test_captions_held_out_are_in_no_picture(tmp_path: Path) -> None:
    pairs = example("digit_pairs")
    pairs.make(tmp_path, 300)
    held_out = {pairs.caption(*what) for what in pairs.captions() if pairs.is_held_out(*what)}
    with open(tmp_path / "captions.csv") as file:
        written = [row["text"] for row in csv.DictReader(file)]
    assert len(held_out) == 60 and len(written) == 300 and not held_out & set(written)


def test_a_slant_is_the_slant_of_a_line(tmp_path: Path) -> None:
    slanted = example("slanted_digits")
    images = torch.zeros(3, slanted.SIZE, slanted.SIZE)
    for image, slope in zip(images, (-0.5, 0.0, 0.5), strict=True):
        for row in range(8, 25):
            image[row, round(16 - slope * (row - 16))] = 1.0
    assert slanted.slants(images).tolist() == pytest.approx([-0.5, 0.0, 0.5], abs=0.03)
    slanted.make(tmp_path)
    with open(tmp_path / "numbers.csv") as file:
        rows = list(csv.DictReader(file))
    kept = [float(row["slant"]) for row in rows if row["file"][0] in "38"]
    assert max(kept) < max(float(row["slant"]) for row in rows) and len(rows) > 1600


def test_the_experiment_on_the_length_of_training_shares_the_trainings_of_table_13() -> None:
    """What it adds is B/16, a quarter and four times as long; equal precision does not fulfil its claim."""
    lab = Lab(Path("nowhere"), OVERNIGHT)
    longer, paper = Table(example("longer").EXPERIMENT, lab), Table(experiment("table13"), lab)
    theirs = {job.group(lab) for cell in paper.cells for job in cell.jobs}
    added = {job.group(lab): job.recipe for cell in longer.cells for job in cell.jobs if job.group(lab) not in theirs}
    assert sorted(recipe.training.total_images for recipe in added.values()) == [60_000] * 3 + [960_000]
    for rise, holds in ((0.0, False), (0.2, True)):
        for cell in longer.cells:
            longest = cell.params["times"] == 4
            for job in cell.jobs:
                longer.results.setdefault(job.key(lab), {})[cell.metric] = 0.5 + rise * longest
        assert [claim.holds for claim in longer.experiment.claims(longer)] == [holds]


def test_the_experiment_on_in_context_tokens_shares_the_trainings_and_scores_of_table_5() -> None:
    """Ten seeds of two networks that differ in the tokens alone; the paper's numbers fulfil its claim, equal ones do not."""
    lab = Lab(Path("nowhere"), OVERNIGHT)
    table, paper = Table(example("in_context").EXPERIMENT, lab), Table(experiment("table5"), lab)
    without, tokens = table.cells
    scored = paper.cell(network="B/16", metric="fid")
    assert [job.key(lab) for job in tokens.jobs[:6]] == [job.key(lab) for job in scored.jobs]
    assert [with_values(a.recipe, context_tokens=0) for a in tokens.jobs] == [b.recipe for b in without.jobs]
    assert len(without.jobs) == 10 and tokens.paper and without.paper
    for fid, holds in ((tokens.paper, True), (without.paper, False)):
        for cell, mean in ((tokens, fid), (without, without.paper)):
            for seed, job in enumerate(cell.jobs):
                noise = 1 + 0.01 * (seed * (2 if cell is tokens else 3) % 5)
                table.results[job.key(lab)] = {"fid": noise * mean}
        assert [claim.holds for claim in table.experiment.claims(table)] == [holds]
