"""The laboratory: each work done once, by however many processes, stopped or killed; and what is written of it."""

import io
import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from justimage import figures
from justimage.diffusion import Diffusion
from justimage.experiments import experiment
from justimage.experiments.fig2 import BLUR
from justimage.recipe import with_values
from justimage.reproduction import Cell, Experiment, Job, Lab, Result, Table, Talk, better, scales
from justimage.reproduction.plots import tiles
from justimage.reproduction.runner import read_result, run_jobs, told
from justimage.reproduction.scales import LAPTOP
from justimage.reproduction.scoring import fingerprint, train_classifier
from justimage.reproduction.tables import format_number, write
from justimage.reproduction.toy_job import CURVE_POINTS, POINTS, ToyJob, blur_distances, curve, distances, toy
from justimage.reproduction.training_job import TrainAndScore
from justimage.stopping import Stopped

ROOT = Path(__file__).parents[1]

TINY = replace(
    LAPTOP,
    scoring=replace(LAPTOP.scoring, searched=16, count=32, step=1.0),
    images={200: 128, 600: 128},
    sizes={size: dict(numbers, width=16, depth=2, context_start=1) for size, numbers in LAPTOP.sizes.items()},
    training=replace(LAPTOP.training, warmup=64),
    sampling=replace(LAPTOP.sampling, steps=2),
    upkeep=replace(LAPTOP.upkeep, save_every=64),
    classifier=dict(width=4, features=16, images=256, batch=32),
)  # fmt: skip


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A laboratory in which only the classifier is."""
    lab = Lab(tmp_path_factory.mktemp("lab"), TINY, fingerprint=fingerprint(TINY))
    assert train_classifier(lab, 32, lambda done, total: None) is not None
    assert train_classifier(lab, 32, lambda done, total: None) is None
    return lab.root


def laboratory(read: Path, place: Path) -> Lab:
    shutil.copytree(read, place)
    return Lab(place, TINY, fingerprint=fingerprint(TINY))


def everything(lab: Lab, works: list[Job], crew: int) -> dict[str, Result]:
    missing = {w.key(lab) for w in works if read_result(lab, w) is None}
    news = list(run_jobs(works, lab, ["cpu"] * crew))
    assert {n.identity for n in news if n.result is not None} == missing
    timeless = {"seconds", "seconds_of_training", "machine", "date"}
    found = {w.key(lab): read_result(lab, w) or {} for w in works}
    return {name: {k: v for k, v in result.items() if k not in timeless} for name, result in found.items()}


def pair() -> list[Job]:
    base = TINY.recipe("B/16")
    plain, v = TrainAndScore(base), TrainAndScore(with_values(base, prediction="v"))
    return [plain, v, TrainAndScore(base, sampling_t_clip=0.0), replace(plain, whole=True)]


def test_works_are_the_same_by_one_process_and_by_two_and_are_done_once(read: Path, tmp_path: Path) -> None:
    one, two = laboratory(read, tmp_path / "one"), laboratory(read, tmp_path / "two")
    first = everything(one, pair(), 1)
    assert first == everything(two, pair(), 2)
    assert len(list((one.root / "runs").iterdir())) == 2 and len(first) == 4  # three works share a training
    before = {f: f.stat().st_mtime_ns for f in one.root.rglob("*") if f.is_file()}
    assert list(run_jobs(pair(), one, ["cpu"])) == []
    assert before == {f: f.stat().st_mtime_ns for f in one.root.rglob("*") if f.is_file()}
    scores = first[pair()[0].key(one)]
    assert scores["fid"] > 0 and scores["guidance"] in (1, 2, 3, 4)
    assert [seen for seen, _ in scores["losses"]] == [128]  # one line, of all its steps
    assert len(first[pair()[3].key(one)]["curve"]) == 4  # every guidance of the grid


def test_a_work_that_is_stopped_goes_on_to_the_same_result(read: Path, tmp_path: Path) -> None:
    whole, parts = laboratory(read, tmp_path / "whole"), laboratory(read, tmp_path / "parts")
    work = pair()[0]
    expected = everything(whole, [work], 1)
    stops = 0
    for limit in range(1, 30):  # each time it says a little more before it is stopped
        said = iter(range(limit))
        talk = Talk(lambda what, fraction, said=said: next(said, None), lambda said=said: said.__length_hint__() == 0)
        try:
            work.do(parts, talk)
            break
        except Stopped:
            stops += 1
    assert stops >= 3
    assert everything(parts, [work], 1) == expected


def test_what_is_found_is_written_beside_the_papers(read: Path, tmp_path: Path) -> None:
    """Every kind of picture; the tables are Markdown with a number in each cell, the JSON strict."""
    lab = laboratory(read, tmp_path / "lab")
    for name in ("fig6", "fig7", "fig8", "table5"):
        e = experiment(name)
        table = Table(e.cells(TINY), lab)
        works = {w.key(lab): w for c in table.cells for w in c.jobs}
        table.results.update(everything(lab, list(works.values()), 2))
        claims = write(name, e, table, lab.root / name, 1.0, f"justimage reproduce {name}")
        assert len(claims) == len(e.claims(table)) > 0
        lines = (lab.root / name / "table.md").read_text().splitlines()
        rows = [line for line in lines if line.startswith("| ")]
        assert len(rows) == 1 + len(table.rows)
        assert all(row.count("**") == 2 * len(table.columns) for row in rows[1:])
        stored = json.loads((lab.root / name / "table.json").read_text(), parse_constant=pytest.fail)
        assert len(stored["cells"]) == len(table.cells) and all(cell["ours"][0] is not None for cell in stored["cells"])
        with Image.open(lab.root / name / "picture.png") as picture:
            assert min(picture.size) > 100 and len(np.unique(np.asarray(picture.convert("L")))) > 10
    sheet = np.asarray(Image.open(lab.root / "fig8" / "picture.png"))
    assert sheet.shape[0] > 10 * 64  # ten classes below each other
    assert "fig8: uncurated" in (lab.root / "README.md").read_text()


AGAIN = """
import sys
from pathlib import Path
from justimage.reproduction import Lab
from justimage.reproduction.scoring import fingerprint
from tests.test_laboratory import TINY, everything, pair

if __name__ == "__main__":
    everything(Lab(Path(sys.argv[1]), TINY, fingerprint=fingerprint(TINY)), pair(), 2)
"""


def test_killed_with_all_its_processes_it_goes_on_to_the_same_results(read: Path, tmp_path: Path) -> None:
    """SIGKILL at several moments, from the first steps to the scores; then the same command."""
    whole, parts = laboratory(read, tmp_path / "whole"), laboratory(read, tmp_path / "parts")
    expected = everything(whole, pair(), 2)
    (tmp_path / "again.py").write_text(AGAIN)
    killed = 0
    for wait in (0.1, 0.4, 0.8, 1.2, 600.0):
        child = subprocess.Popen(
            [sys.executable, tmp_path / "again.py", parts.root], env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        there = {f for f in parts.root.rglob("*") if f.is_file()}
        while child.poll() is None and there >= {f for f in parts.root.rglob("*") if f.is_file()}:
            time.sleep(0.05)  # until it works
        try:
            assert child.wait(wait) == 0
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            killed += 1
            time.sleep(1)  # its workers notice at their next news
    assert killed >= 2
    assert everything(parts, pair(), 1) == expected


def test_a_training_that_diverges_is_a_finding(read: Path, tmp_path: Path) -> None:
    """Its cell is infinite, so that what claims to be better is; the others are as they are."""
    lab = laboratory(read, tmp_path / "lab")
    base = TINY.recipe("B/16")
    wild = with_values(base, learning_rate=1e38, warmup=0, gradient_clip=None, not_finite="stop")
    table = Table([Cell("wild", "FID", (TrainAndScore(wild),)), Cell("tame", "FID", (TrainAndScore(base),))], lab)
    works = [work for cell in table.cells for work in cell.jobs]
    table.results.update(everything(lab, works, 1))
    assert table("wild", "FID") == math.inf and "became nan" in table.found(table.cells[0])[0]["diverged"]
    assert better("tame is better", table, ("tame", "FID"), ("wild", "FID")).holds
    own = Experiment("wildness", "", lambda s: [], lambda t: [better("x", t, ("tame", "FID"), ("wild", "FID"))], tiles)
    assert write("wild", own, table, lab.root / "wild", 1.0, "none")[0].holds
    assert "| wild | **inf** |" in (lab.root / "wild" / "table.md").read_text()


def test_ones_own_images_in_colour_and_few_classes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for i in range(120):
        place = tmp_path / "photos" / ("cats" if i % 2 else "dogs") / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(place)
    scale = scales.with_data(TINY, str(tmp_path / "photos"))
    lab = Lab(tmp_path / "lab", scale, fingerprint=fingerprint(scale))
    assert lab.fingerprint == fingerprint(scales.with_data(TINY, f"{tmp_path}/photos/"))
    train_classifier(lab, 32, lambda done, total: None)
    e = experiment("fig8")
    table = Table(e.cells(scale), lab)
    table.results.update(everything(lab, list(table.cells[0].jobs), 1))
    assert table.found(table.cells[0])[0]["class_names"] == ["cats", "dogs"]
    small = TrainAndScore(scale.recipe("B/4"))  # 8 x 8, compared with real ones of that size
    assert everything(lab, [small], 1)[small.key(lab)]["fid"] > 0
    write("fig8", e, table, lab.root / "fig8", 1.0, "justimage reproduce fig8")
    with Image.open(lab.root / "fig8" / "picture.png") as picture:
        assert 2 * 64 < picture.height < 3 * 64 + 40  # two classes, not ten
    flat = scales.with_data(TINY, str(tmp_path / "photos" / "cats"))
    with pytest.raises(ValueError, match="has no classes"):
        fingerprint(flat)


def test_a_difference_within_the_noise_is_no_verdict() -> None:
    """Two deviations of it decide; over seeds the deviation is theirs."""
    lab = Lab(Path("nowhere"), LAPTOP)
    works = [[toy(D, p) for D in (2, 8, 16)] for p in ("x", "v")]
    table = Table([Cell(name, "FID", tuple(row)) for name, row in zip("ab", works, strict=True)], lab)

    def verdict(a: list[float], b: list[float]) -> str:
        for row, values in zip(works, (a, b), strict=True):
            table.results.update({w.key(lab): {"fid": v} for w, v in zip(row, values, strict=True)})
        return better("a is better", table, ("a", "FID"), ("b", "FID")).verdict

    assert verdict([1.0, 1.1, 0.9], [2.0, 2.1, 1.9]) == "holds"
    assert verdict([2.0, 2.1, 1.9], [1.0, 1.1, 0.9]) == "does not hold here"
    assert verdict([1.0, 2.0, 0.5], [1.2, 2.2, 0.8]) == "cannot be told here"


def test_a_decay_has_all_its_digits_and_a_measure_three() -> None:
    for lacking in range(1, 1000):
        for decay in (1 - lacking / 10**digits for digits in (5, 6, 9)):
            assert float(format_number(decay)) == pytest.approx(decay, abs=1e-12)
    assert [format_number(n) for n in (0.9996, 0.99, 1.0, 0.5944, 12.345, 1023.7, -0.8)] == [
        "0.9996", "0.99", "1", "0.594", "12.3", "1,024", "-0.8",
    ]  # fmt: skip


LOG = [640, 1280, 1296, 1936, 2576, 3216, 3217, 3857]
"""Images seen at the lines of a log: two of them after 16 images and after one."""


def test_a_running_mean_weights_each_line_with_the_images_that_it_covers() -> None:
    loss = [2.0, 1.0, 9.0, 0.5, 0.4, 0.3, 50.0, 0.2]
    images = np.repeat(loss, np.diff(LOG, prepend=0))
    for span in (640, 700, 2000, 10_000):
        found = figures.running_mean(LOG, loss, span)
        assert np.allclose(found, [images[max(0, end - span) : end].mean() for end in LOG])
    assert np.allclose(figures.running_mean(LOG, loss), figures.running_mean(LOG, loss, 640))  # never less than a line
    whole = [640, 1280, 1920]
    assert np.allclose(figures.running_mean(whole, loss[:3]), loss[:3])


def test_a_short_line_moves_the_curve_by_its_share_at_most() -> None:
    assert np.allclose(figures.running_mean(LOG, [0.7] * len(LOG)), 0.7)
    notched = [0.7] * len(LOG)
    notched[2] -= 0.5
    moved = 0.7 - figures.running_mean(LOG, notched)
    assert pytest.approx(moved.max()) == 0.5 * 16 / 640 and moved.min() > -1e-12


@pytest.mark.parametrize("size", [(662, 152), (256, 256), (90, 200)])
def test_previews_fill_the_page_below_the_curve(size: tuple[int, int]) -> None:
    """Four of one colour each, all whole; together most of what is below the curve; no higher than it, unless in one row."""
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 0, 250)]
    previews = [(f"after {i}", Image.new("RGB", size, colour)) for i, colour in enumerate(colours)]
    metrics = [{"images_seen": n, "loss": 1 / n} for n in LOG] + [{"images_seen": 9999, "fid": 3.0}]
    alone, page = (figures.loss_curve([*metrics, {"images_seen": 9999, "loss": math.nan}], shown) for shown in ((), previews))
    assert alone and page
    top, whole = (np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in (alone, page))
    assert (whole[: len(top)] == top).all()
    under = whole[len(top) :]
    parts = [(under == colour).all(-1) for colour in colours]
    assert len({part.sum() for part in parts}) == 1 and parts[0].any()
    rows = {int(part.any(1).argmax()) for part in parts}
    assert sum(part.mean() for part in parts) > 0.6 and (len(under) <= len(top) or len(rows) == 1)


def test_whoever_stops_listening_stops_the_work() -> None:
    def endless(talk: Talk) -> Result:
        while not talk.stop():
            talk.tell("on and on", 0.5)
        raise Stopped("stopped")

    listening = told(endless)
    assert next(listening) == ("on and on", 0.5)
    listening.close()


@dataclass(frozen=True)
class Broken:
    """A work that cannot be done."""

    title = "broken"

    def group(self, lab: Lab) -> str:
        return "broken"

    def identity(self, lab: Lab) -> str:
        return "broken"

    def do(self, lab: Lab, talk: Talk) -> Result:
        raise ValueError("this cannot be done")


@pytest.mark.parametrize("crew", [1, 2])
def test_an_error_in_a_work_reaches_whoever_asked_for_it(tmp_path: Path, crew: int) -> None:
    lab = Lab(tmp_path, TINY)
    with pytest.raises(ValueError, match="this cannot be done"):
        list(run_jobs([Broken(), toy(2, "x")][: crew or 1], lab, ["cpu"] * crew))
    assert read_result(lab, Broken()) is None


SPACING = 0.0032
"""At most, between two of the places that stand for the curve."""


def test_points_lie_evenly_along_the_curve_from_end_to_end() -> None:
    points = curve(torch.linspace(0, 1, CURVE_POINTS).double())
    steps = points.diff(dim=0).norm(dim=1)
    assert steps.max() < SPACING and steps.max() / steps.min() < 1.1
    assert [round(float(points[end].norm()), 6) for end in (0, -1)] == [0.4, 2.0]


def test_points_on_the_curve_have_no_distance_and_others_theirs() -> None:
    buried = ToyJob(512)
    P = buried.projection()
    assert torch.allclose(P.T @ P, torch.eye(2), atol=1e-6)
    random = torch.Generator().manual_seed(1)
    on, off = curve(torch.rand(100, generator=random)), torch.randn(100, 512, generator=random)
    off = 0.3 * torch.nn.functional.normalize(off - off @ P @ P.T, dim=1)
    assert distances(on @ P.T, P)[0].max() < SPACING / 2 + 1e-5
    assert torch.allclose(distances(on @ P.T + off, P)[0], torch.full((100,), 0.3), atol=1e-4)
    outwards = on * (1 + 0.05 / on.norm(dim=1, keepdim=True))
    assert 0.03 < distances(outwards @ P.T, P)[0].mean() < 0.051
    everywhere = curve(torch.linspace(0, 1, CURVE_POINTS)) @ P.T
    assert max(way.max() for way in distances(everywhere, P)) < 1e-5
    assert torch.allclose(distances(everywhere + off[:1], P)[1], torch.tensor(0.3), atol=1e-4)  # not in the plane, no cover


def test_distances_in_the_plane_are_those_of_it_buried() -> None:
    points = 2 * torch.randn(300, 2, generator=torch.Generator().manual_seed(2))
    P = ToyJob(64).projection()
    for there, flat in zip(distances(points @ P.T, P), distances(points, torch.eye(2)), strict=True):
        assert torch.allclose(there, flat, atol=1e-5)


@pytest.mark.parametrize("part", [(0.5, 1.0), (0.0, 0.9), (0.1, 1.0), (0.7, 0.7)])
def test_a_part_of_the_curve_is_near_it_and_does_not_cover_it(part: tuple[float, float]) -> None:
    """By the bounds of Fig. 2; and points that cover it while some stray fail the other way."""
    near, covered = blur_distances(BLUR)
    assert near == pytest.approx(BLUR * math.sqrt(2 / math.pi), rel=0.05) and covered < near
    assert f"blurred: {format_number(near)} and {format_number(covered)}." in experiment("fig2").notes
    u = torch.linspace(*part, POINTS)
    to, of = (float(way.mean()) for way in distances(curve(u), torch.eye(2)))
    assert to < near / 10 and of > 1.5 * covered
    strays = curve(torch.linspace(0, 1, POINTS))
    strays[:: POINTS // 200] += 1.0
    to, of = (float(way.mean()) for way in distances(strays, torch.eye(2)))
    assert to > near and of < covered


def test_a_short_toy_is_the_same_again(tmp_path: Path) -> None:
    short = ToyJob(8, Diffusion(prediction="v"), steps=5, batch=8)
    lab = Lab(tmp_path, LAPTOP)
    first, again = short.do(lab, Talk()), short.do(lab, Talk())
    assert {k: v for k, v in first.items() if k != "seconds"} == {k: v for k, v in again.items() if k != "seconds"}
