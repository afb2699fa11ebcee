"""Evaluation: the same digits whoever draws, features and references as they must be, and a search that finds the optimum."""

import json
import re
import shlex
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from justimage import chunks, data, randomness
from justimage.cli.search import drop_options
from justimage.data import Crop
from justimage.demo.images import averaged_pixels
from justimage.evaluation import feature_sampler, online, passes, reference, report, scores, search, search_report, time_grid
from justimage.evaluation.reference import compute_features, open_reference
from justimage.evaluation.scores import Gaussian, Score, gaussian
from justimage.evaluation.search import Search, Setting
from justimage.features import Extractor
from justimage.generate import ImageGenerator, SampleJob
from justimage.progress import Job, Progress, finish
from justimage.recipe import with_values
from justimage.sampling import Sampling, trajectory, with_passes
from tests.test_cli import TINY_TRAINING, justimage
from tests.test_generate import environment

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUSTIMAGE_CACHE", str(tmp_path / "cache"))


def extractor(identity: str = "means", dimension: int = 4) -> Extractor:
    """Means of an image's quarters."""

    def extract(images: Tensor) -> tuple[Tensor, Tensor | None]:
        return nn.functional.adaptive_avg_pool2d(images.float(), 2).mean(1).flatten(1), None

    return Extractor("means", identity, dimension, extract)


def folder(place: Path, classes: str = "ab", each: int = 5, side: int = 16) -> Path:
    for number, name in enumerate(classes):
        for i in range(each):
            (place / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (side, side), (20 * i, 60 * number, 100)).save(place / name / f"{i}.png")
    return place


def test_real_images_are_read_once_and_then_from_the_cache(tmp_path: Path) -> None:
    place, calls = folder(tmp_path / "images"), []
    noted = extractor()
    plain = noted.extract
    noted = replace(noted, extract=lambda images: (calls.append(len(images)), plain(images))[1])
    first = finish(open_reference(str(place), noted, Crop((16, 16))))
    again = finish(open_reference(str(place), noted, Crop((16, 16))))
    assert calls == [10] and torch.equal(first.statistics.covariance, again.statistics.covariance)
    finish(open_reference(str(place), replace(noted, fingerprint="other"), Crop((16, 16))))
    Image.new("RGB", (16, 16), "white").save(place / "a" / "new.png")
    assert finish(open_reference(str(place), noted, Crop((16, 16)))).info["images"] == 11 and calls == [10, 10, 11]


def test_files_of_the_same_names_and_sizes_are_not_taken_for_each_other(tmp_path: Path) -> None:
    means = []
    for brightness in 10, 200:
        for i in range(4):
            (tmp_path / "images").mkdir(exist_ok=True)
            Image.new("RGB", (16, 16), (brightness,) * 3).save(tmp_path / "images" / f"{i}.bmp")
        means.append(finish(open_reference(str(tmp_path / "images"), extractor(), Crop((16, 16)))).statistics.mean.tolist())
    assert means == [[10.0] * 4, [200.0] * 4]


def test_statistics_of_other_features_are_one_line() -> None:
    other = Gaussian(torch.zeros(9).double(), torch.eye(9).double())
    with pytest.raises(ValueError, match="features of dimension 4 are compared with statistics of dimension 9"):
        scores.frechet(gaussian([torch.randn(20, 4)]), other)


def test_features_that_are_not_finite_give_no_number_and_end_no_training() -> None:
    values = torch.randn(20, 4)
    values[3, 2] = torch.inf
    fid, moved = scores.fid([values], gaussian([torch.randn(20, 4)]))
    assert np.isnan(fid.value) and bool(moved.isnan().all())


def test_statistics_come_back_from_a_file(tmp_path: Path) -> None:
    drawn = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    reference.save_statistics(tmp_path / "s.npz", gaussian([drawn]))
    found = finish(open_reference(str(tmp_path / "s.npz"), extractor(), Crop((16, 16))))
    assert torch.equal(found.statistics.covariance, gaussian([drawn]).covariance) and found.source is None
    assert scores.frechet(gaussian([drawn]), found.statistics) == pytest.approx(0, abs=1e-6)


def test_an_npz_with_images_and_statistics_gives_both(tmp_path: Path) -> None:
    """As ADM's reference batches are."""
    images = np.random.RandomState(0).randint(0, 256, (70, 16, 16, 3)).astype(np.uint8)
    np.savez(tmp_path / "adm.npz", arr_0=images, mu=np.arange(4.0), sigma=np.eye(4))
    found = finish(open_reference(str(tmp_path / "adm.npz"), extractor(), Crop((16, 16))))
    assert found.statistics.mean.tolist() == [0, 1, 2, 3] and found.source is not None and len(found.source) == 70
    numbers, values = found.subsample(20)
    assert len(set(numbers.tolist())) == 20 and int(numbers.max()) > 64 > int(numbers.min())  # of both parts of 64
    assert torch.equal(values, extractor().extract(torch.from_numpy(images[numbers].transpose(0, 3, 1, 2)))[0])


def bad_reference(name: str, place: Path) -> str:
    path = place / "bad.npz"
    match name:
        case "missing":
            return str(place / "nothing.npz")
        case "text":
            path.write_bytes(b"mu and sigma")
        case "pickle":
            np.savez(path, mu=np.array([{}], dtype=object), sigma=np.eye(4))
        case "shape":
            np.savez(path, mu=np.zeros(4), sigma=np.eye(5))
        case "not finite":
            np.savez(path, mu=np.full(4, np.nan), sigma=np.eye(4))
        case "not symmetric":
            np.savez(path, mu=np.zeros(4), sigma=np.triu(np.ones((4, 4))))
        case "other features":
            np.savez(path, mu=np.zeros(9), sigma=np.eye(9))
        case "other size":
            np.savez(path, arr_0=np.zeros((4, 8, 8, 3), np.uint8))
        case "no folder":
            return str(place / "nowhere")
        case _:
            (place / "empty").mkdir()
            return str(place / "empty")
    return str(path)


BAD_REFERENCES = {
    "missing": "does not exist", "text": "is no readable .npz", "pickle": "pickled objects", "shape": "no usable statistics",
    "not finite": "no usable statistics", "not symmetric": "not symmetric", "other features": "statistics of 9 numbers",
    "other size": "holds images of 3 x 8 x 8, the model samples 3 x 16 x 16", "no folder": "nowhere", "empty": "empty",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_REFERENCES)
def test_a_reference_that_cannot_be_used_is_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=BAD_REFERENCES[name]) as caught:
        finish(open_reference(bad_reference(name, tmp_path), extractor(), Crop((16, 16))))
    assert "\n" not in str(caught.value)


def test_a_reference_without_one_of_the_classes_is_refused(tmp_path: Path) -> None:
    found = finish(open_reference(str(folder(tmp_path / "ab")), extractor(), Crop((16, 16))))
    job = SampleJob(weights_hash="", ema=0.0, classes=(0, 1, 2))
    with pytest.raises(ValueError, match="has no image of class 'c'"):
        report.check_computable(job, found, ["a", "b", "c"])
    report.check_computable(replace(job, classes=(0, 1)), found, ["a", "b", "c"])
    said = report.warnings(job, 4, found, 4)
    assert any("biased upwards" in w for w in said) and any("not equally many of 3 classes" in w for w in said)


def evaluated(
    run: Path, classifier: Path, out: str, processes: int = 1, count: int = 300, device: str = "cpu"
) -> dict[str, Any]:
    launched = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    words = ["evaluate", str(run), "--reference", "digits", "--features", str(classifier), "--steps", "1", "--guidance", "1.5"]
    words += ["--interval", "0", "1", "--count", str(count), "--out", str(run.parent / out), "--device", device]
    done = subprocess.run(
        [sys.executable, *launched, "-m", "justimage", *words],
        capture_output=True, text=True, timeout=280, env=environment(run, 3 - processes),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (place,) = (run.parent / out).glob(f"*-{count}-*")
    assert {p.name for p in place.iterdir()} == {"grid.png", "neighbours.png", "report.json", "report.md"}
    return json.loads((place / "report.json").read_text())


@pytest.fixture(scope="module")
def reported(run: Path, digits_classifier: Path) -> dict[str, Any]:
    return evaluated(run, digits_classifier, "one")


@pytest.mark.full
def test_two_processes_report_what_one_reports(run: Path, digits_classifier: Path, reported: dict[str, Any]) -> None:
    """The same images and the same scores to the last digit, however many processes and threads."""
    both = evaluated(run, digits_classifier, "two", 2)
    assert both["scores"] == reported["scores"] and both["images_sha256"] == reported["images_sha256"]


@pytest.mark.gpu
def test_a_gpu_samples_the_same_twice_and_nearly_what_the_cpu_samples(
    run: Path, digits_classifier: Path, reported: dict[str, Any]
) -> None:
    first, second = (evaluated(run, digits_classifier, f"gpu-{i}", device="cuda") for i in range(2))
    assert first["scores"] == second["scores"] and first["images_sha256"] == second["images_sha256"]
    fids = [r["scores"]["guided"]["fid"]["value"] for r in (first, reported)]
    assert fids[0] == pytest.approx(fids[1], rel=0.1)


@pytest.mark.full
def test_a_report_has_all_scores_guided_and_not_and_what_decides_them(reported: dict[str, Any]) -> None:
    assert list(reported["scores"]) == ["guided", "unguided"]
    for found in reported["scores"].values():
        assert list(found) == list(report.TITLES) and all(np.isfinite([s["value"], s["std"]]).all() for s in found.values())
    assert reported["sampling"]["sampling"]["guidance"] == 1.5 and reported["sampling"]["sampling"]["steps"] == 1
    assert reported["reference"]["images"] == 1797 and reported["features"]["fingerprint"].startswith("classifier:")


@pytest.mark.full
def test_more_images_reuse_those_sampled_before(run: Path, digits_classifier: Path, reported: dict[str, Any]) -> None:
    kept = {p: p.stat().st_mtime_ns for p in (run.parent / "one" / "chunks").glob("*/0*.npz")}
    assert len(kept) == 2 * 5
    more = evaluated(run, digits_classifier, "one", count=400)
    now = {p: p.stat().st_mtime_ns for p in (run.parent / "one" / "chunks").glob("*/0*.npz")}
    assert len(now) == 2 * 7 and now.items() >= kept.items()
    assert more["scores"]["guided"]["fid"] != reported["scores"]["guided"]["fid"]


def test_resizing_is_antialiased_and_leaves_what_fits() -> None:
    """A checkerboard becomes grey; a plain bicubic would keep its pattern."""
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255
    small = feature_sampler.resize(board.to(torch.uint8)[None, None], (16, 16))
    assert small.shape == (1, 1, 16, 16) and (small.int() - 127).abs().max() <= 3
    assert feature_sampler.resize(small, (16, 16)) is small and feature_sampler.resize(small, None) is small
    with pytest.raises(ValueError, match="not resized"):
        feature_sampler.resize(torch.zeros(1, 1, 4, 4), (8, 8))


class Pretended:
    """In place of a feature sampler: features of a setting are the same numbers, moved by its distance from the best one."""

    class generator:
        weights_hash = staticmethod(lambda ema: f"{ema:g}")

    def __init__(self, best: float, ema: float, dimension: int = 6) -> None:
        self.best, self.ema = best, ema
        self.noise = torch.randn(4096, dimension, generator=torch.Generator().manual_seed(1))
        self.reference = type(
            "Real", (), {"statistics": Gaussian(torch.zeros(dimension).double(), torch.eye(dimension).double())}
        )

    def features(self, job: SampleJob, count: int, title: str) -> Job[dict[str, Tensor]]:
        yield Progress(title, count, count)
        away = (job.sampling.guidance - self.best) / 2
        return {"features": self.noise[:count] * (1 + 0.2 * away) + 0.3 * away + 0.05 * abs(job.ema / self.ema - 1)}


@pytest.mark.parametrize("best", [1.0, 1.3, 2.2, 2.9, 4.0])
@pytest.mark.parametrize("ema", [0.9996, 0.9998, 0.9999])
def test_the_search_finds_what_the_whole_grid_finds_with_a_quarter_of_the_images(best: float, ema: float) -> None:
    emas = [0.9996, 0.9998, 0.9999]
    job = SampleJob(weights_hash="", ema=ema, sampling=Sampling(interval=(0.1, 1.0)))

    def made() -> Search:
        pretended: Any = Pretended(best, ema)
        return Search(pretended, job, 2048, emas, [(0.1, 1.0)])

    cheap, full = made(), made()
    found, wanted = finish(cheap.coarse_to_fine()), finish(full.full_grid())
    assert full.images_sampled == full.grid_images == 93 * 2048
    assert found.setting.ema == wanted.setting.ema and abs(found.guidance - wanted.guidance) <= 0.1 + 1e-9
    assert cheap.images_sampled <= 0.25 * full.grid_images


def test_a_search_says_what_it_cannot_tell_apart_and_what_is_at_the_end() -> None:
    for best, words in (4.6, "at the end of the range"), (2.25, "guidance 1.8 to 2.4 cannot be distinguished from it"):
        pretended: Any = Pretended(best, 0.9998)
        found = Search(pretended, SampleJob(weights_hash="", ema=0.9998), 512, [0.9998, 0.9999], [(0.1, 1.0)])
        said = "\n".join(search_report.summarize(found, finish(found.coarse_to_fine())))
        assert words in said and said.startswith("the best: ema 0.999")


@pytest.mark.full
def test_a_search_on_a_run_resumes_reports_and_is_reused(run: Path, digits_classifier: Path) -> None:
    words = f"search {run} --reference digits --features {digits_classifier} --steps 1 --count 128 --device cpu".split()
    words += ["--guidance-range", "1", "1.6", "0.2", "--interval-values", "0", "1", "--out", str(run.parent / "searched")]

    def once() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "justimage", *words], capture_output=True, text=True, timeout=280, env=environment(run)
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    first, drawn = once(), len(list((run.parent / "searched" / "chunks").glob("*/0*.npz")))
    second = once()
    assert len(list((run.parent / "searched" / "chunks").glob("*/0*.npz"))) == drawn
    assert re.search(r"the best: ema (100|300), guidance", first) and "now try:  justimage evaluate" in first
    lines = [line for line in first.splitlines() if "±" in line]
    assert lines == [line for line in second.splitlines() if "±" in line] and len(lines) >= 5
    (place,) = (run.parent / "searched").glob("*-search-128-*")
    facts = json.loads((place / "search.json").read_text())
    assert facts["images_sampled"] == drawn * 64 and {p.name for p in place.iterdir()} == {
        "search.json",
        "search.md",
        "search.png",
    }


def test_candidates_keep_to_their_passes_and_the_cheapest_good_one_is_recommended() -> None:
    found = passes.candidates(Sampling(guidance=2.0, interval=(0.1, 1.0)), [20, 8])
    assert len(found) == 2 * len(passes.CANDIDATES) and all(s.passes <= 20 for s in found)
    assert [s.passes <= 8 for s in found] == [True] * 5 + [False] * 5 and {s.t_clip for s in found} == {0.0}
    noise = torch.randn(1000, generator=torch.Generator().manual_seed(0))

    def candidate(n: int, fid: float) -> passes.Candidate:
        influence = fid + noise * (1 + 1e-3 * n)  # so that differences have a deviation of their own, of 3e-5 n
        return passes.Candidate(found[0], n, Score(fid, 0.1), influence)

    ways = [candidate(4, 3.0), candidate(8, 1.0005), candidate(8, 2.0), candidate(16, 1.0), candidate(32, 1.1)]
    assert passes.pareto_front(ways) == [ways[0], ways[1], ways[3]]
    assert passes.recommend(ways) == (ways[3], ways[1])
    assert passes.recommend(ways[3:]) == (ways[3], ways[3])


def test_two_ways_to_sample_with_as_many_passes_are_written_down(tmp_path: Path) -> None:
    """As many steps follow from 8 and from 9 passes."""
    sampling, influence = with_passes(Sampling(guidance=2.0), 8), torch.zeros(10)
    ways = [passes.Candidate(sampling, 8, Score(fid, 0.1), influence) for fid in (2.0, 1.0)]
    passes.write_passes(sorted(ways, key=lambda c: c.fid.value), tmp_path, "justimage search")
    assert (tmp_path / "passes.md").read_text().count("| 8 |") == 2


def test_what_to_try_next_keeps_all_but_what_was_searched() -> None:
    words = shlex.split("--full --features f --count 1000 --ema-values 100 300 --device cpu --guidance-range=1,2,1 --seed 3")
    searched = "--count", "--guidance-range", "--ema-values", "--full"
    assert drop_options(words, searched) == ["--features", "f", "--device", "cpu", "--seed", "3"]


def test_fitted_times_end_nearer_to_many_steps_for_no_more_passes(run: Path) -> None:
    """In the mean squared error of their own trajectories, here computed one image at a time by `trajectory`."""
    generator = ImageGenerator(run, CPU)
    start = with_passes(Sampling(guidance=1.5, interval=(0.1, 1.0)), 7)
    job = generator.make_job(sampling=start, batch=16)
    fitted = finish(time_grid.fit_times(generator, job))
    assert fitted.passes <= start.passes and fitted.steps == start.steps and fitted.grid != start.grid
    assert fitted.grid[0] == 0 and fitted.grid[-1] == 1 and fitted.guidance == start.guidance

    def error(sampling: Sampling) -> float:
        total = 0.0
        for i in range(time_grid.IMAGES):
            noise = randomness.image_noise(time_grid.FIRST_SEED + i, (1, 32, 32))[None]
            ends = [
                list(trajectory(generator.denoiser(job.ema), noise, torch.tensor([job.label(i)]), s))[-1].z
                for s in (sampling, replace(start, solver="heun", steps=50, times="linear"))
            ]
            total += (ends[0] - ends[1]).square().mean().item()
        return total

    assert error(fitted) < error(start)


@pytest.mark.full
def test_a_search_compares_solvers_by_passes(run: Path, digits_classifier: Path) -> None:
    words = f"search {run} --reference digits --features {digits_classifier} --steps 1 --count 64 --device cpu".split()
    words += ["--guidance-range", "1", "1", "1", "--passes-values", "3", "5", "--out", str(run.parent / "ways")]
    done = subprocess.run(
        [sys.executable, "-m", "justimage", *words], capture_output=True, text=True, timeout=280, env=environment(run)
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"the fewest passes within two deviations of it: [2-5], (unipc|dpm2|heun) on", done.stdout)
    assert re.search(r"now try:  justimage evaluate .* --solver \w+ --steps \d --times [\w. ]+ --t-clip 0", done.stdout)
    (place,) = (run.parent / "ways").glob("*-search-64-*")
    facts = json.loads((place / "passes.json").read_text())
    assert (
        len(facts["candidates"]) == 12
        and (place / "passes.png").exists()
        and "| 5 | heun |" in (place / "passes.md").read_text()
    )


MISTAKES = {
    "no run": ("evaluate nowhere --reference digits --features digits.safetensors", "nowhere does not exist"),
    "unknown features": ("evaluate run --reference digits --features vgg", "features are 'vgg'"),
    "no inception": ("evaluate run --reference digits", "weights-inception-2015-12-05-6726825d.pth"),
    "one image": ("evaluate run --reference digits --features digits.safetensors --count 1", "count is 1"),
    "unknown class": ("evaluate run --reference digits --features digits.safetensors --classes 11", "class '11'"),
    "unknown ema": ("evaluate run --reference digits --features digits.safetensors --ema 7", "no ema 7"),
    "another size": ("evaluate run --reference digits --features digits.safetensors --resize 16", "trained on images of"),
    "a search with an answer": ("search run --reference digits --features digits.safetensors --guidance 2", "is searched for"),
    "one pass": ("search run --reference digits --features digits.safetensors --passes-values 8 1", "each must be 2 or more"),
    "half a pair": ("search run --reference digits --features digits.safetensors --interval-values 0 1 0.1", "they are pairs"),
    "backwards": ("search run --reference digits --features digits.safetensors --guidance-range 3 1 0.1", "low <= high"),
    "no such part": ("feature-space extract", "there are train, statistics"),
    "no size": ("feature-space train --data photos --out f.safetensors", "needs --image-size"),
    "no classifier's name": ("feature-space train --data digits --out f.pt", "a .safetensors file"),
    "unbalanced": ("sample --from run --count 15 --balanced --folder new", "not equally many of 10 classes"),
    "evaluating with nothing": (
        "train --preset digits --data digits --evaluation.every 100 --out new",
        "--evaluation.features",
    ),
}


@pytest.mark.full
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(mistake: str, run: Path, digits_classifier: Path) -> None:
    words, said = MISTAKES[mistake]
    before = sorted(p.name for p in run.parent.iterdir() if p.name != "cache")
    done = subprocess.run(
        [sys.executable, "-m", "justimage", *words.split()], cwd=run.parent, capture_output=True, text=True, timeout=120,
        env=environment(run) | {"TORCH_HOME": str(run.parent / "no-torch")},
    )  # fmt: skip
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert sorted(p.name for p in run.parent.iterdir() if p.name != "cache") == before


@pytest.mark.full
def test_a_training_that_is_scored_on_the_way_says_so_in_its_metrics_and_stops_early(
    run: Path, digits_classifier: Path
) -> None:
    options = ["--total-images", "96", "--ema", "100", "300", "--sample-ema", "300", "--evaluation.every", "32"]
    options += ["--evaluation.count", "40"]
    options += ["--evaluation.features", str(digits_classifier), "--monitor", "fid", "--patience", "1000", "--out", "scored"]
    done = justimage("train", "--preset", "digits", *TINY_TRAINING, *options, cwd=run.parent)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (run.parent / "scored" / "metrics.jsonl").read_text().splitlines()]
    scored = [line for line in lines if "fid" in line]
    assert [line["images_seen"] for line in scored] == [32, 64, 96]
    assert all(line["fid"] == line["fid_300"] and np.isfinite(line["fid_100"]) for line in scored)


@pytest.mark.full
def test_the_score_on_the_way_is_the_score_of_those_images(digits_classifier: Path) -> None:
    from justimage import sampling, training
    from tests.test_training import small

    source = data.digits()
    recipe = small(total_images=16).resolve(source)
    recipe = with_values(recipe, count=50, features=str(digits_classifier))
    state = training.init_state(recipe)
    online_fid = finish(online.open_online_fid(recipe, source, CPU))
    found = online.online_scores(recipe, source, state, online_fid, lambda: None)
    images = sampling.sample(state.denoiser, [i % 10 for i in range(50)], 0, recipe.sampling, batch=50)
    real = online_fid.extractor.extract(source.batch(np.arange(len(source)))[0])[0]
    wanted = scores.frechet(gaussian([online_fid.extractor.extract(images)[0]]), gaussian([real]))
    assert found[f"fid_{recipe.training.sample_ema:g}"] == found["fid"] == pytest.approx(wanted, rel=1e-3)


class Told(torch.nn.Module):
    """A network of one's own, which takes conditions as its dataset has them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.ones(())), list[torch.Tensor]()

    def forward(self, z: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        self.seen.append(condition)
        return self.weight * condition.mean((1, 2, 3), keepdim=True).expand_as(z)


def test_conditions_of_ones_own_are_given_on_the_way_as_they_are_in_training() -> None:
    from justimage import training
    from tests.test_training import small

    images = torch.randint(0, 256, (40, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    source = data.as_source([(image, torch.full((1, 4, 4), i / 40)) for i, image in enumerate(images)])
    recipe = with_values(small(classes=0, guidance=1.0), count=20).resolve(source)
    net, space = Told(), averaged_pixels()
    state = training.init_state(recipe, net=lambda: net)
    found = online.online_scores(recipe, source, state, online.OnlineFID(space, gaussian([space.extract(images)[0]])), int)
    assert np.isfinite(found["fid"]) and {c.shape[1:] for c in net.seen} == {(1, 4, 4)}
    assert len({float(value) for c in net.seen for value in c.flatten()}) == 40  # spread over the set


def test_unguided_images_have_one_name_whatever_the_interval() -> None:
    jobs = [SampleJob(weights_hash="", ema=0.0, sampling=Sampling(guidance=1.0, interval=i)) for i in ((0.1, 1.0), (0.0, 1.0))]
    assert jobs[0] == jobs[1] and replace(jobs[0], sampling=replace(jobs[0].sampling, interval=(0.2, 0.3))) == jobs[0]
    guided = replace(jobs[0], sampling=Sampling(guidance=1.5, interval=(0.1, 1.0)))
    assert guided.sampling.interval == (0.1, 1.0)


def test_the_grid_of_guidances_is_the_papers() -> None:
    pretended: Any = Pretended(2.0, 0.9999)
    found = Search(pretended, SampleJob(weights_hash="", ema=0.9999), 512, [0.9999], [(0.1, 1.0)])
    assert [found.guidance(at) for at in range(found.last_index + 1)] == [round(1 + i / 10, 1) for i in range(31)]
    here = finish(found.evaluate(Setting(0.9999, (0.1, 1.0), 3), 128))
    assert here.guidance == 1.3 and search.fid_difference(here, here) == Score(0, 0)


def test_a_gpu_reads_two_batches_of_real_images_at_once_whatever_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes the memory of a whole pass through the network."""
    monkeypatch.setattr(chunks, "cpu_count", lambda: 16)
    lock, now, most = threading.Lock(), 0, {"cpu": 0, "cuda": 0}
    for device in most:

        def extract(images: Tensor, device: str = device) -> tuple[Tensor, None]:
            nonlocal now
            with lock:
                now += 1
                most[device] = max(most[device], now)
            time.sleep(0.05)
            with lock:
                now -= 1
            return images.float().flatten(1)[:, :4], None

        source = data.digits()
        finish(compute_features(source, Extractor("first", "first", 4, extract, device=device)))
    assert most["cuda"] == 2 < most["cpu"] <= 16
