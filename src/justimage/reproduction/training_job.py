"""A work of most experiments: a recipe trained, and scored at its best guidance."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from justimage import checkpoint, disk, log, recipe as recipes, run as runs
from justimage.chunks import single_threaded
from justimage.evaluation import report
from justimage.evaluation.feature_sampler import FeatureSampler
from justimage.evaluation.search import HIGH, LOW, Search, Setting, Trial
from justimage.generate import ImageGenerator, SampleJob
from justimage.recipe import Checkpointing, Recipe, with_values
from justimage.reproduction import Lab, Result, Talk, hash_of, scoring
from justimage.reproduction.scales import Scale
from justimage.stopping import Stopped
from justimage.training import NonFiniteError

TRAINING_SHARE = 0.6
"""The fraction of a work that training is taken for."""
SAMPLES_KEPT = 10
"""Images kept to be shown."""
STOPPED = "stopped as asked; the same command goes on where it was"


@dataclass(frozen=True)
class TrainAndScore:
    """A recipe, trained and scored."""

    recipe: Recipe
    resize: int | None = None
    """side to which images are scaled before they are compared; None for what the scale says"""
    sampling_t_clip: float | None = None
    emas: tuple[float, ...] = ()
    """averages to choose from [all]"""
    full_grid: bool = False
    """score every guidance, with as many images as the search takes"""
    classes: tuple[int, ...] = ()
    """those shown in a grid, a row each; some images of all where it is empty"""

    def group(self, lab: Lab) -> str:
        """Of all works that share this training: how it is drawn and kept does not decide what is learnt, unless it ends early
        by what was drawn."""
        free = {"data", "parallelism"}
        if not self.recipe.checkpoint.patience:
            free |= {"sampling", "logging", "checkpoint", "evaluation"}
        stored = recipes.to_json(self.recipe)
        return hash_of({k: v for k, v in stored.items() if k not in free}, lab.environment_key)

    @property
    def title(self) -> str:
        a, p = self.recipe.model, self.recipe.diffusion
        return f"{a.width} wide, /{a.patch_size} at {a.size[0]}, {p.prediction}-pred, {p.loss_space}-loss"

    def key(self, lab: Lab) -> str:
        s = lab.scale
        drawn = [
            self.reference_size,
            self.sampling_t_clip,
            self.emas,
            self.full_grid,
            self.classes,
            recipes.to_json(self.recipe)["sampling"],
        ]
        return hash_of(self.group(lab), drawn, self.feature_size(s), vars(s.scoring), s.features, s.reference, s.classifier)

    @property
    def reference_size(self) -> int:
        """Side of the images when they are compared with real ones of that side."""
        return self.resize or self.recipe.model.size[0]

    def feature_size(self, scale: Scale) -> int:
        """Side to which both are then scaled for the network that reads them."""
        return self.reference_size if self.resize or scale.features else scale.scoring.feature_size or self.reference_size

    def run_dir(self, lab: Lab) -> Path:
        """The folder of the training."""
        return lab.root / "runs" / self.group(lab)

    def do(self, lab: Lab, talk: Talk) -> Result:
        began = time.perf_counter()
        found: Result = {}
        try:
            self.train(lab, talk)
        except NonFiniteError as error:  # a finding, too
            found = {"diverged": str(error)}
        trained = time.perf_counter() - began
        if "diverged" not in found:
            found = self.score(lab, feature_sampler(lab, self, talk))
        return found | {
            "losses": [[line["images_seen"], line["loss"]] for line in losses(self.run_dir(lab))],
            "run": str(self.run_dir(lab).relative_to(lab.root)),
            "seconds": round(time.perf_counter() - began, 1),
            "seconds_of_training": round(trained, 1),
        }

    def train(self, lab: Lab, talk: Talk) -> None:
        """Train, or go on, until the recipe's end."""
        place, total = self.run_dir(lab), self.recipe.training.total_images
        if finished(place):
            return

        def decoding(what: str, done: int, of: int) -> None:
            if talk.stop():
                raise Stopped(STOPPED)
            talk.tell(f"reading images, {done:,} of {of:,}", 0.0)

        run = runs.open_run(self.recipe, place, lab.device, on_progress=decoding)
        began, first = time.perf_counter(), run.state.images_seen
        for step in runs.steps(run):
            if talk.stop():
                continue  # it ends by itself, saved
            speed = (step.images_seen - first) / (time.perf_counter() - began)
            left = f"{(total - step.images_seen) / speed:.0f} s left"
            words = f"training, {step.images_seen:,} of {total:,}, {speed:,.0f} images/s, {left}"
            talk.tell(words, TRAINING_SHARE * min(step.images_seen / total, 1.0))
        if not finished(place):
            raise Stopped(STOPPED)

    def job(self, examiner: FeatureSampler) -> SampleJob:
        generator, own = examiner.generator, self.recipe.sampling
        recipe = generator.recipe
        clip = own.t_clip if self.sampling_t_clip is None else self.sampling_t_clip
        sampling = replace(own, guidance=own.guidance if recipe.model.classes else 1.0, t_clip=clip)
        precision = "fp32" if generator.device.type == "cpu" else self.recipe.training.precision
        return generator.make_job(
            recipe.training.sample_ema, sampling=sampling, precision="fp32" if precision == "fp32" else "bf16"
        )

    def score(self, lab: Lab, examiner: FeatureSampler) -> Result:
        """The best guidance and average, and all scores there."""
        s, artist = lab.scale.scoring, examiner.generator
        job, curve = self.job(examiner), []
        if artist.recipe.model.classes:
            emas = self.emas or artist.emas
            search = Search(examiner, job, s.search_count, emas, [job.sampling.interval], LOW, HIGH, s.step)
            best = best_setting(search, s.coarse_to_fine, self.full_grid)
            job = replace(
                job, weights=artist.weights(best.setting.ema), ema=best.setting.ema,
                sampling=replace(job.sampling, guidance=best.guidance),
            )  # fmt: skip
            curve = [
                {
                    "guidance": f.guidance,
                    "ema": f.setting.ema,
                    "images": f.count,
                    "fid": f.fid.value,
                    "deviation": f.fid.std,
                    "inception_score": f.inception_score.value if f.inception_score else None,
                }
                for f in sorted(search.trials.values(), key=lambda f: (f.setting.ema, f.guidance, f.count))
            ]
        drawn = examiner.features(job, s.count, "scoring")
        with single_threaded():
            found = report.score(drawn, examiner.reference, bool(examiner.extractor.class_names))
        kept = lab.result_dir(self)
        save_images(kept / "samples.npz", *self.images(artist, job))
        return {name: score.value for name, score in found.items()} | {
            "deviations": {name: score.std for name, score in found.items()},
            "guidance": job.sampling.guidance,
            "ema": job.ema,
            "curve": curve,
            "images_scored": s.count,
            "parameters": sum(p.numel() for p in artist.denoiser(job.ema).net.parameters()),
            "class_names": list(artist.recipe.class_names),
        }

    def images(self, artist: ImageGenerator, job: SampleJob) -> tuple[Tensor, list[int]]:
        """Images to be shown, uint8, and their classes: one of each of ten, or eight of each class asked for."""
        total = artist.recipe.model.classes or 0
        shown = tuple(c for c in self.classes if c < total) or tuple(range(min(total, SAMPLES_KEPT))) or (-1,)
        job = replace(job, classes=shown)
        numbers = range(8 * len(shown) if self.classes else SAMPLES_KEPT)
        return artist.denoiser(job.ema).normalization.to_uint8(artist.sample_indices(job, numbers)), [
            job.label(i) for i in numbers
        ]


def seeds(recipe: Recipe, count: int) -> tuple[TrainAndScore, ...]:
    """The same training with several seeds."""
    return tuple(TrainAndScore(with_values(recipe, seed=seed)) for seed in range(count))


def best_setting(search: Search, cheap: bool, whole: bool) -> Trial:
    """The best of every guidance, of the cheap search, or down the grid from a guidance of 2."""
    if whole:
        return search.full_grid()
    if cheap or len(search.emas) > 1:
        return search.coarse_to_fine()
    middle = round((2.0 - search.low) / search.step)
    return search.hill_climb(search.evaluate_full(Setting(search.emas[0], search.intervals[0], middle)), (2, 1))


def finished(run: Path) -> bool:
    """Whether a training came to its end."""
    events = [line.get("event") for line in log.records(run / "events.jsonl")]
    return bool(events) and events[-1] in ("finished", "finished early")


def best_of(run: Path, section: Checkpointing) -> Path:
    """A run, for its newest checkpoint; or the best one by a number that it watches to end early (App. A, "early stop")."""
    saved = {int(folder.name): folder for folder in checkpoint.list_checkpoints(run)}
    best = (
        log.best_of(list(saved), log.monitored_values(run, section.monitor, section.monitor_mode)) if section.monitor else None
    )
    return run if best is None else saved[best]


def losses(run: Path) -> Iterator[dict[str, Any]]:
    return (line for line in log.records(run / "metrics.jsonl") if "loss" in line)


def feature_sampler(lab: Lab, work: TrainAndScore, talk: Talk) -> FeatureSampler:
    """What looks at a trained network's images."""
    device, run, seen = torch.device(lab.device), work.run_dir(lab), [0]
    artist = ImageGenerator(best_of(run, work.recipe.checkpoint), device)
    compared, channels = work.reference_size, work.recipe.model.channels

    def progress(what: str, done: int, total: int) -> None:
        seen[0] += 1
        talk.tell(f"{what}, {done:,} of {total:,}", TRAINING_SHARE + (1 - TRAINING_SHARE) * seen[0] / (seen[0] + 12))

    space = scoring.extractor(lab, compared, work.feature_size(lab.scale))
    real = scoring.reference(lab, space, compared, channels, stop=talk.stop)
    resize = (compared, compared) if (compared, compared) != work.recipe.model.size else None
    return FeatureSampler(artist, space, real, run / "evaluations", resize, progress, talk.stop)


def save_images(path: Path, images: Tensor, classes: list[int]) -> None:
    with disk.replacing(path) as aside, open(aside, "wb") as file:
        np.savez(file, allow_pickle=False, images=images.numpy(), classes=np.array(classes))


def images_of(lab: Lab, work: TrainAndScore) -> tuple[Tensor, list[int]] | None:
    """The images that a work keeps to be shown, and their classes; None where the training diverged."""
    path = lab.result_dir(work) / "samples.npz"
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["images"]), arrays["classes"].tolist()
