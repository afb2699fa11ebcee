"""The job of most experiments: train a recipe, and score it at its best guidance."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from justimage import checkpoint, disk, log, progress, recipe as recipes, run as runs, stopping
from justimage.chunks import single_threaded
from justimage.evaluation import report
from justimage.evaluation.feature_sampler import FeatureSampler
from justimage.evaluation.search import HIGH, LOW, Search, Setting, Trial
from justimage.generate import BATCH, ImageGenerator, Precision, SampleJob
from justimage.progress import Progress
from justimage.recipe import Checkpointing, Recipe, with_values
from justimage.reproduction import Job, Lab, Result, hash_of, map_progress, scoring
from justimage.reproduction.scales import Scale, Scoring
from justimage.stopping import Stopped
from justimage.training import NonFiniteError

TRAINING_SHARE = 0.6
"""Share of a job's progress that is given to training; scoring gets the rest."""
SHOWN = 10
"""Samples stored for figures, where no classes are asked for."""
SHOWN_OF_CLASS = 8
"""Samples stored of each class that is asked for."""


@dataclass(frozen=True)
class TrainAndScore:
    """A recipe, trained and scored."""

    recipe: Recipe
    resize: int | None = None
    """side to which samples are scaled before they are compared with real images of that side (App. B.4)"""
    sampling_t_clip: float | None = None
    """t_clip while sampling, instead of the recipe's"""
    emas: tuple[float, ...] = ()
    """averages to choose from [all]"""
    full_grid: bool = False
    """score every guidance of the grid, with as many images as the search takes"""
    classes: tuple[int, ...] = ()
    """classes to store SHOWN_OF_CLASS samples of; by default one sample of each of the first ten classes"""
    scored: Scoring | None = None
    """how it is scored [as the scale says]"""

    def group(self, lab: Lab) -> str:
        """A hash of what decides the training. How it is computed, sampled and stored does not, unless it ends early by the
        scores of samples."""
        stored = recipes.to_json(self.recipe)
        free = {"data", "parallelism"}
        if not self.recipe.checkpoint.patience:
            free |= {"sampling", "logging", "checkpoint", "evaluation"}
            del stored["training"]["sample_ema"]
        return hash_of({k: v for k, v in stored.items() if k not in free}, lab.environment_key)

    @property
    def title(self) -> str:
        a, d = self.recipe.model, self.recipe.diffusion
        return f"{a.width} wide, /{a.patch_size} at {a.size[0]}, {d.prediction}-pred, {d.loss_space}-loss"

    def key(self, lab: Lab) -> str:
        s, how, stored = lab.scale, self.scored_as(lab.scale), recipes.to_json(self.recipe)
        sampled = [self.reference_size, self.sampling_t_clip, self.emas, self.full_grid, self.classes]
        sampled += [stored["sampling"], stored["training"]["sample_ema"], self.first_seed(s)]
        return hash_of(self.group(lab), sampled, self.feature_size(s), vars(how), s.features, s.reference, s.classifier)

    @property
    def reference_size(self) -> int:
        """Side at which samples are compared with real images."""
        return self.resize or self.recipe.model.size[0]

    def scored_as(self, scale: Scale) -> Scoring:
        """How it is scored at a scale."""
        return self.scored or scale.scoring

    def feature_size(self, scale: Scale) -> int:
        """Side to which both are then scaled for the feature extractor."""
        return self.reference_size if self.resize or scale.features else scale.scoring.feature_size or self.reference_size

    def run(self, lab: Lab) -> progress.Job[Result]:
        try:
            yield from map_progress(run_training_job(self.recipe, lab.run_dir(self), lab.device), of_training)
            result: Result = {}
        except NonFiniteError as error:  # a result, too
            result = {"diverged": str(error)}
        began = time.perf_counter()
        if not result:
            steps = count(1)
            result = yield from map_progress(self.score(lab), lambda p: of_scoring(p, next(steps)))
        return result | {
            "losses": [[line["images_seen"], line["loss"]] for line in logged_losses(lab.run_dir(self))],
            "run": str(lab.run_dir(self).relative_to(lab.root)),
            "seconds": round(time.perf_counter() - began, 1),  # of scoring
            "seconds_of_training": round(log.seconds_of_run(lab.run_dir(self)), 1),
        }

    def score(self, lab: Lab) -> progress.Job[Result]:
        """Find the best guidance and average, compute all scores there, and store some samples."""
        s, sampler = self.scored_as(lab.scale), (yield from self.feature_sampler(lab))
        generator, job, curve = sampler.generator, self.sample_job(sampler.generator, lab), []
        if generator.recipe.model.classes:
            emas = self.emas or generator.emas
            search = Search(sampler, job, s.search_count, emas, [job.sampling.interval], LOW, HIGH, s.step)
            best = yield from best_setting(search, s.coarse_to_fine, self.full_grid)
            sampling = replace(job.sampling, guidance=best.guidance)
            job = replace(job, weights_hash=generator.weights_hash(best.setting.ema), ema=best.setting.ema, sampling=sampling)
            curve = guidance_curve(search)
        samples = yield from sampler.features(job, s.count, "scoring")
        with single_threaded():
            scores = report.score_all(samples, sampler.reference, bool(sampler.extractor.class_names))
        self.save_samples(lab, generator, job)
        return {name: score.value for name, score in scores.items()} | {
            "deviations": {name: score.std for name, score in scores.items()},
            "guidance": job.sampling.guidance,
            "ema": job.ema,
            "curve": curve,
            "images_scored": s.count,
            "parameters": sum(p.numel() for p in generator.denoiser(job.ema).net.parameters()),
            "class_names": list(generator.recipe.class_names),
        }

    def feature_sampler(self, lab: Lab) -> progress.Job[FeatureSampler]:
        """Open the trained network and the reference to score it against."""
        run, side = lab.run_dir(self), self.reference_size
        device = torch.device(lab.device)
        precision: Precision = "fp32" if self.recipe.training.precision == "fp32" else "bf16"
        compiled = device.type == "cpu" and self.recipe.parallelism.compile
        generator = ImageGenerator(checkpoint_to_score(run, self.recipe.checkpoint), device, precision, compiled)
        extractor = scoring.extractor(lab, side, self.feature_size(lab.scale))
        reference = yield from scoring.reference(lab, extractor, side, self.recipe.model.channels)
        resize = (side, side) if (side, side) != self.recipe.model.size else None
        return FeatureSampler(generator, extractor, reference, run / "evaluations", resize)

    def first_seed(self, scale: Scale) -> int:
        """The seed of the first sample: networks trained with one seed are sampled from the same noise."""
        return self.recipe.training.seed * self.scored_as(scale).count

    def sample_job(self, generator: ImageGenerator, lab: Lab) -> SampleJob:
        """The samples to score, before the best guidance and average are known."""
        recipe, sampling = generator.recipe, self.recipe.sampling
        if self.sampling_t_clip is not None:
            sampling = replace(sampling, t_clip=self.sampling_t_clip)
        if not recipe.model.classes:
            sampling = replace(sampling, guidance=1.0)
        batch = BATCH if lab.device == "cpu" else lab.scale.gpu_batch
        return generator.make_job(recipe.training.sample_ema, None, sampling, seed=self.first_seed(lab.scale), batch=batch)

    def save_samples(self, lab: Lab, generator: ImageGenerator, job: SampleJob) -> None:
        """Store the images that figures show, uint8, with their classes."""
        total = generator.recipe.model.classes or 0
        classes = tuple(c for c in self.classes if c < total) or tuple(range(min(total, SHOWN))) or job.classes
        job = replace(job, classes=classes)
        indices = range(SHOWN_OF_CLASS * len(classes) if self.classes else SHOWN)
        images = generator.denoiser(job.ema).normalization.to_uint8(generator.sample_indices(job, indices))
        store_samples(lab, self, images, [job.label(i) for i in indices])


def store_samples(lab: Lab, job: Job, images: Tensor, classes: Sequence[int]) -> None:
    """Store the images that figures show of a job, uint8, with their classes."""
    with disk.replacing(lab.result_dir(job) / "samples.npz") as aside, open(aside, "wb") as file:
        np.savez(file, allow_pickle=False, images=images.numpy(), classes=np.array(classes))


def load_samples(lab: Lab, job: Job) -> tuple[Tensor, list[int]] | None:
    """The images that a job stored for figures, and their classes; None where it stored none, as its training diverged."""
    path = lab.result_dir(job) / "samples.npz"
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["images"]), arrays["classes"].tolist()


def with_seeds(recipe: Recipe, seeds: int, **options: Any) -> list[TrainAndScore]:
    """The same training with the seeds 0, 1, ...; `options` as of TrainAndScore."""
    return [TrainAndScore(with_values(recipe, seed=seed), **options) for seed in range(seeds)]


def run_training_job(recipe: Recipe, folder: Path, device: str, **given: Any) -> progress.Job[None]:
    """Train in a folder, or resume there, to the recipe's end; closed early, save. given: data, net, ... for `justimage.train`.

    Yields the fraction of the training that is done, of 1.
    """
    if finished(folder):
        return
    yield Progress("reading images")
    total, first, began = recipe.training.total_images, -1, 0.0
    steps = runs.train(recipe, folder, device=device, on_progress=lambda *_: stopping.check(), **given)
    with closing(steps):
        for step in steps:
            seen, now = step.images_seen, time.perf_counter()
            if first < 0:
                first, began = seen, now
            speed = (seen - first) / (now - began + 1e-9)
            pace = f", {speed:,.0f} images/s, {(total - seen) / speed:.0f} s left" if speed else ""
            yield Progress(f"training, {seen:,} of {total:,}{pace}", min(seen / total, 1.0), 1)
    if not finished(folder):
        stopping.check()
        raise Stopped(f"{folder / 'STOP'} asks this training to stop; remove it to resume")


def of_training(p: Progress) -> Progress:
    """The progress of training as that of the whole job."""
    return p._replace(done=TRAINING_SHARE * p.done, total=1)


def of_scoring(p: Progress, step: int) -> Progress:
    """The progress of scoring as that of the whole job, which comes closer to its end with every step, as none knows how many
    there will be."""
    done = TRAINING_SHARE + (1 - TRAINING_SHARE) * step / (step + 12)
    return Progress(f"{p.what}, {p.done:,.0f} of {p.total:,.0f}" if p.total else p.what, done, 1)


def best_setting(search: Search, coarse_to_fine: bool, full_grid: bool) -> progress.Job[Trial]:
    """The best guidance and average: of the full grid, by the cheap search, or down the grid from a guidance of 2."""
    if full_grid:
        return (yield from search.full_grid())
    if coarse_to_fine or len(search.emas) > 1:
        return (yield from search.coarse_to_fine())
    middle = round((2.0 - search.low) / search.step)
    start = yield from search.evaluate(Setting(search.emas[0], search.intervals[0], middle), search.count)
    return (yield from search.hill_climb(start, (2, 1)))


def guidance_curve(search: Search) -> list[dict[str, Any]]:
    """Every setting that a search has scored, by average, guidance and number of images."""
    return [
        {
            "guidance": trial.guidance,
            "ema": trial.setting.ema,
            "images": trial.count,
            "fid": trial.fid.value,
            "deviation": trial.fid.std,
            "inception_score": trial.inception_score.value if trial.inception_score else None,
        }
        for trial in sorted(search.trials.values(), key=lambda t: (t.setting.ema, t.guidance, t.count))
    ]


def finished(run: Path) -> bool:
    """Whether a training came to its end."""
    events = [line.get("event") for line in log.records(run / "events.jsonl")]
    return bool(events) and events[-1] in ("finished", "finished early")


def checkpoint_to_score(run: Path, section: Checkpointing) -> Path:
    """The run, for its newest checkpoint; or the best checkpoint by the number that it monitors (App. A, "early stop")."""
    saved = {int(folder.name): folder for folder in checkpoint.list_checkpoints(run)}
    monitored = log.monitored_values(run, section.monitor, section.monitor_mode) if section.monitor else []
    best = log.best_of(list(saved), monitored)
    return run if best is None else saved[best]


def logged_losses(run: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's metrics that have a loss."""
    return (line for line in log.records(run / "metrics.jsonl") if "loss" in line)
