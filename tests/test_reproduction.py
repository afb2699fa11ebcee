"""The experiments' jobs: each run once, by any number of processes, stopped or killed; and what is written of them."""

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
from PIL import Image

from justimage import figures, progress
from justimage.experiments import experiment
from justimage.progress import Progress, finish
from justimage.recipe import with_values
from justimage.reproduction import Cell, Experiment, Job, Lab, Result, Table, better, scales
from justimage.reproduction.plots import tiles
from justimage.reproduction.real_job import RealImages
from justimage.reproduction.runner import devices, read_result, run_jobs
from justimage.reproduction.scales import LAPTOP
from justimage.reproduction.scoring import ensure_classifier, fingerprint_of_data
from justimage.reproduction.tables import format_cell, format_number, write_results
from justimage.reproduction.toy_job import ToyJob
from justimage.reproduction.training_job import TrainAndScore
from justimage.stopping import CURRENT, Requests, Stopped

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[1]

TINY = replace(
    LAPTOP,
    scoring=replace(LAPTOP.scoring, search_count=16, count=32, step=1.0),
    images={200: 128, 600: 128},
    sizes={size: dict(numbers, width=16, depth=2, context_start=1) for size, numbers in LAPTOP.sizes.items()},
    training=replace(LAPTOP.training, warmup=64),
    sampling=replace(LAPTOP.sampling, steps=2),
    checkpoint=replace(LAPTOP.checkpoint, save_every=64),
    classifier=dict(width=4, features=16, images=256, batch=32),
)  # fmt: skip


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a lab that holds only the classifier."""
    lab = Lab(tmp_path_factory.mktemp("lab"), TINY, fingerprint=fingerprint_of_data(TINY))
    assert finish(ensure_classifier(lab, 32)) is not None
    assert finish(ensure_classifier(lab, 32)) is None
    return lab.root


def lab_at(place: Path, classifier: Path) -> Lab:
    shutil.copytree(classifier, place)
    return Lab(place, TINY, fingerprint=fingerprint_of_data(TINY))


def run_all(lab: Lab, jobs: list[Job], processes: int) -> dict[str, Result]:
    """The results of all jobs by their keys, without times."""
    missing = {job.key(lab) for job in jobs if read_result(lab, job) is None}
    updates = list(run_jobs(jobs, lab, ["cpu"] * processes))
    assert {u.key for u in updates if u.result is not None} == missing
    assert all(0 <= u.progress.done <= u.progress.total for u in updates if u.progress.total)
    times = {"seconds", "seconds_of_training", "machine", "date"}
    results = {job.key(lab): read_result(lab, job) or {} for job in jobs}
    return {key: {k: v for k, v in result.items() if k not in times} for key, result in results.items()}


def jobs_of_two_trainings() -> list[Job]:
    base = TINY.recipe("B/16")
    plain, v = TrainAndScore(base), TrainAndScore(with_values(base, prediction="v"))
    return [plain, v, TrainAndScore(base, sampling_t_clip=0.0), replace(plain, full_grid=True)]


def test_jobs_are_the_same_by_one_process_and_by_two_and_are_run_once(classifier: Path, tmp_path: Path) -> None:
    one, two = lab_at(tmp_path / "one", classifier), lab_at(tmp_path / "two", classifier)
    jobs = jobs_of_two_trainings()
    first = run_all(one, jobs, 1)
    assert first == run_all(two, jobs, 2)
    assert len(list((one.root / "runs").iterdir())) == 2 and len(first) == 4  # three jobs share a training
    before = {f: f.stat().st_mtime_ns for f in one.root.rglob("*") if f.is_file()}
    assert list(run_jobs(jobs, one, ["cpu"])) == []
    assert before == {f: f.stat().st_mtime_ns for f in one.root.rglob("*") if f.is_file()}
    scores = first[jobs[0].key(one)]
    assert scores["fid"] > 0 and scores["guidance"] in (1, 2, 3, 4)
    assert [seen for seen, _ in scores["losses"]] == [128]  # one line, of all its steps
    assert len(first[jobs[3].key(one)]["curve"]) == 4  # every guidance of the grid


@pytest.mark.parametrize("how", ["closed", "requested"])
def test_a_job_that_is_stopped_resumes_to_the_same_result(
    how: str, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed by whoever follows it, or by a person's request, each time after one more step of its progress."""
    whole, parts = lab_at(tmp_path / "whole", classifier), lab_at(tmp_path / "parts", classifier)
    job = jobs_of_two_trainings()[0]
    expected = run_all(whole, [job], 1)
    asked = Requests()
    monkeypatch.setattr("justimage.stopping.CURRENT", [*CURRENT, asked])
    stops = 0
    for limit in range(1, 30):
        running = run_jobs([job], parts, ["cpu"])
        try:
            for _ in range(limit):
                next(running)
            if how == "closed":
                running.close()
            else:
                asked.append("SIGTERM")
                list(running)
        except StopIteration:
            break
        except Stopped:
            pass
        asked.clear()
        if read_result(parts, job):
            break
        stops += 1
    assert stops >= 3
    assert run_all(parts, [job], 1) == expected


def test_real_images_are_scored_like_samples(classifier: Path, tmp_path: Path) -> None:
    """All of them are at no distance from themselves; scaled up from very few pixels, they are far from what they were."""
    lab = lab_at(tmp_path / "lab", classifier)
    jobs = [RealImages(side, 32, 10_000) for side in (32, 64, 4)]
    found = run_all(lab, jobs, 1)
    themselves, scaled_down, scaled_up = (found[job.key(lab)]["fid"] for job in jobs)
    assert max(abs(themselves), scaled_down) < 0.01 * scaled_up, (themselves, scaled_down, scaled_up)
    assert {result["images_scored"] for result in found.values()} == {1797}


def test_results_are_written_beside_the_papers(classifier: Path, tmp_path: Path) -> None:
    """Every kind of figure; the tables are Markdown with a number in each cell, the JSON strict."""
    lab = lab_at(tmp_path / "lab", classifier)
    for name in ("fig6", "fig7", "fig8", "table5"):
        table = Table(experiment(name), lab)
        jobs = {job.key(lab): job for cell in table.cells for job in cell.jobs}
        table.results.update(run_all(lab, list(jobs.values()), 2))
        claims = write_results(name, table, lab.root, 1.0, f"justimage reproduce {name}")
        assert len(claims) == len(table.experiment.claims(table)) > 0
        lines = (lab.root / f"{name}.md").read_text().splitlines()
        rows = [line for line in lines if line.startswith("| ")]
        assert lines[0].startswith(f"# {name}: ") and f"]({name}.png)" in "".join(lines) and len(rows) == 1 + len(table.rows)
        assert all(row.count("**") == 2 * len(table.columns) for row in rows[1:])
        stored = json.loads((lab.root / f"{name}.json").read_text(), parse_constant=pytest.fail)
        assert len(stored["cells"]) == len(table.cells) and all(cell["ours"][0] is not None for cell in stored["cells"])
        with Image.open(lab.root / f"{name}.png") as picture:
            assert min(picture.size) > 100 and len(np.unique(np.asarray(picture.convert("L")))) > 10
    sheet = np.asarray(Image.open(lab.root / "fig8.png"))
    assert sheet.shape[0] > 10 * 64  # ten classes below each other
    assert "| [fig8](fig8.md) | images show the class" in (lab.root / "claims.md").read_text()


AGAIN = """
import sys
from pathlib import Path
from justimage.reproduction import Lab
from justimage.reproduction.scoring import fingerprint_of_data
from tests.test_reproduction import TINY, jobs_of_two_trainings, run_all

if __name__ == "__main__":
    run_all(Lab(Path(sys.argv[1]), TINY, fingerprint=fingerprint_of_data(TINY)), jobs_of_two_trainings(), 2)
"""


def test_killed_with_all_its_processes_the_command_resumes_to_the_same_results(classifier: Path, tmp_path: Path) -> None:
    """SIGKILL at several moments, from the first steps to the scores; then the same command."""
    whole, parts = lab_at(tmp_path / "whole", classifier), lab_at(tmp_path / "parts", classifier)
    expected = run_all(whole, jobs_of_two_trainings(), 2)
    (tmp_path / "again.py").write_text(AGAIN)
    killed = 0
    for wait in (0.1, 0.2, 0.4, 0.8, 600.0):
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
        child = subprocess.Popen([sys.executable, tmp_path / "again.py", parts.root], env=env)
        there = {f for f in parts.root.rglob("*") if f.is_file()}
        while child.poll() is None and there >= {f for f in parts.root.rglob("*") if f.is_file()}:
            time.sleep(0.05)  # until it works
        try:
            assert child.wait(wait) == 0
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            killed += 1
            time.sleep(1)  # its workers notice at their next progress
    assert killed >= 3
    assert run_all(parts, jobs_of_two_trainings(), 1) == expected


def test_a_training_that_diverges_is_a_result(classifier: Path, tmp_path: Path) -> None:
    """Its cell is infinite, so that the other is better; the others are as they are."""
    lab = lab_at(tmp_path / "lab", classifier)
    base = TINY.recipe("B/16")
    wild = with_values(base, learning_rate=1e38, warmup=0, gradient_clip=None, on_nonfinite="stop")
    e = Experiment(
        "divergence", "",
        lambda s: [Cell({"name": "wild"}, [TrainAndScore(wild)]), Cell({"name": "tame"}, [TrainAndScore(base)])],
        lambda t: [better("tame is better", t, t.cell(name="tame"), t.cell(name="wild"))],
        tiles, row="{name}", column="FID",
    )  # fmt: skip
    table = Table(e, lab)
    table.results.update(run_all(lab, [job for cell in table.cells for job in cell.jobs], 1))
    assert table(name="wild") == math.inf and "became nan" in table.results_of(table.cells[0])[0]["diverged"]
    assert write_results("wild", table, lab.root, 1.0, "none")[0].holds
    assert "| wild | **inf** |" in (lab.root / "wild.md").read_text()


def test_a_folder_of_images_in_colour_with_few_classes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for i in range(120):
        place = tmp_path / "photos" / ("cats" if i % 2 else "dogs") / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(place)
    scale = scales.with_data(TINY, str(tmp_path / "photos"))
    lab = Lab(tmp_path / "lab", scale, fingerprint=fingerprint_of_data(scale))
    assert lab.fingerprint == fingerprint_of_data(scales.with_data(TINY, f"{tmp_path}/photos/"))
    finish(ensure_classifier(lab, 32))
    table = Table(experiment("fig8"), lab)
    table.results.update(run_all(lab, list(table.cells[0].jobs), 1))
    assert table.results_of(table.cells[0])[0]["class_names"] == ["cats", "dogs"]
    small = TrainAndScore(scale.recipe("B/4"))  # 8 x 8, compared with real ones of that size
    assert run_all(lab, [small], 1)[small.key(lab)]["fid"] > 0
    write_results("fig8", table, lab.root, 1.0, "justimage reproduce fig8")
    with Image.open(lab.root / "fig8.png") as picture:
        assert 2 * 64 < picture.height < 3 * 64 + 40  # two classes, not ten
    flat = scales.with_data(TINY, str(tmp_path / "photos" / "cats"))
    with pytest.raises(ValueError, match="has no classes"):
        fingerprint_of_data(flat)


def test_a_decay_has_all_its_digits_and_a_measure_three() -> None:
    assert [format_number(n) for n in (0.999178, 0.99, 1.0, 0.5944, 12.345, 1023.7, -0.8)] == [
        "0.999", "0.99", "1", "0.594", "12.3", "1,024", "-0.8",
    ]  # fmt: skip
    job = TrainAndScore(TINY.recipe("B/16"))
    cells = [Cell({"of": metric}, [job], 0.9996, metric) for metric in ("ema_1", "beta_2", "fid")]
    table = Table(Experiment("", "", lambda s: cells, lambda t: [], lambda t: None, "{of}", ""), Lab(Path("nowhere"), TINY))
    table.results[job.key(table.lab)] = {"ema_1": 0.99996, "beta_2": 0.999999, "fid": 0.99996, "deviations": {}}
    assert [format_cell(table, cell).partition("**")[2] for cell in cells] == ["0.99996**", "0.999999**", "1**"]


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


@dataclass(frozen=True)
class FakeJob:
    """A job that fails after some progress, or never ends."""

    fails: bool
    title = "fake"

    def group(self, lab: Lab) -> str:
        return f"fake {self.fails}"

    def key(self, lab: Lab) -> str:
        return self.group(lab)

    def run(self, lab: Lab) -> progress.Job[Result]:
        yield Progress("here", os.getpid(), 0)
        if self.fails:
            raise ValueError("this cannot be done")
        while True:
            yield Progress("on and on", 1, 2)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_in_a_job_reaches_whoever_asked_for_it(tmp_path: Path, processes: int) -> None:
    lab = Lab(tmp_path, TINY)
    with pytest.raises(ValueError, match="this cannot be done"):
        list(run_jobs([FakeJob(True), FakeJob(False)][:processes], lab, ["cpu"] * processes))
    assert read_result(lab, FakeJob(True)) is None


def test_several_jobs_share_a_gpu_where_asked_for() -> None:
    assert devices("cuda:1", at_once=3) == ["cuda:1"] * 3
    assert devices("cpu", at_once=3) == devices("cpu")


def test_closing_ends_the_processes(tmp_path: Path) -> None:
    jobs: list[Job] = [FakeJob(False), ToyJob(2)]
    running = run_jobs(jobs, Lab(tmp_path, TINY), ["cpu"] * 2)
    child = next(int(u.progress.done) for u in running if u.progress.what == "here")
    assert child != os.getpid()
    running.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
