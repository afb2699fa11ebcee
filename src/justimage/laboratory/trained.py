"""A work of most experiments: a recipe trained, and scored at its best guidance."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from justimage import checkpoint, disk, log, pictures, recipe as recipes, run as runs
from justimage.drawing import Artist, Drawing
from justimage.evaluation import report
from justimage.evaluation.examiner import Examiner
from justimage.evaluation.search import HIGH, LOW, Found, Search, Setting
from justimage.features import open_features
from justimage.laboratory import Lab, Result, Talk, hashed
from justimage.laboratory.judging import features, reference
from justimage.recipe import Recipe
from justimage.stopping import Stopped
from justimage.units import single_threaded

TRAINING = 0.6
"""The fraction of a work that training is taken for."""
SHOWN = 10
"""Images kept to be shown."""


@dataclass(frozen=True)
class Trained:
    """A recipe, trained and scored."""

    recipe: Recipe
    resize: int | None = None
    """side to which images are scaled before they are compared; None for what the scale says"""
    sampling_clip: float | None = None
    emas: tuple[float, ...] = ()
    """averages to choose from [all]"""
    whole: bool = False
    """score every guidance, with as many images as the search takes"""
    classes: tuple[int, ...] = ()
    """those shown in a grid, a row each; some images of all where it is empty"""

    @property
    def group(self) -> str:
        """Of all works that share this training: how it is drawn and kept does not decide what is learnt."""
        stored = recipes.to_json(self.recipe)
        return hashed({k: v for k, v in stored.items() if k not in ("sampling", "machine", "upkeep")})

    @property
    def title(self) -> str:
        a, p, t = self.recipe.network, self.recipe.process, self.recipe.training
        return f"{a.width} wide, /{a.patch_size} at {a.size[0]}, {p.prediction}-pred, {p.loss}-loss" + (
            f", seed {t.seed}" if t.seed else ""
        )

    def identity(self, lab: Lab) -> str:
        s = lab.scale
        drawn = [self.resize, self.sampling_clip, self.emas, self.whole, self.classes, recipes.to_json(self.recipe)["sampling"]]
        return hashed(self.group, drawn, vars(s.scoring), s.features, s.reference, s.classifier)

    def place(self, lab: Lab) -> Path:
        """The folder of the training."""
        return lab.place / "runs" / self.group

    def do(self, lab: Lab, talk: Talk) -> Result:
        began = time.perf_counter()
        self.train(lab, talk)
        trained = time.perf_counter() - began
        with scored(lab, self, talk) as examiner:
            found = self.score(lab, examiner)
        total = time.perf_counter() - began
        return found | {"seconds": round(total, 1), "seconds_of_training": round(trained, 1)}

    def train(self, lab: Lab, talk: Talk) -> None:
        """Train, or go on, until the recipe's end."""
        place, total = self.place(lab), self.recipe.training.images
        if finished(place):
            return
        run = runs.open_run(self.recipe, place, lab.device)
        run.asked = talk.stop
        began, first = time.perf_counter(), run.state.images_seen
        for step in runs.steps(run):
            if talk.stop():
                continue  # it ends by itself, saved
            speed = (step.images_seen - first) / (time.perf_counter() - began)
            left = f"{(total - step.images_seen) / speed:.0f} s left"
            words = f"training, {step.images_seen:,} of {total:,}, {speed:,.0f} images/s, {left}"
            talk.tell(words, TRAINING * min(step.images_seen / total, 1.0))
        if not finished(place):
            raise Stopped("stopped as asked; the same command goes on where it was")

    def job(self, examiner: Examiner) -> Drawing:
        artist, s = examiner.artist, examiner.artist.recipe.sampling
        own = self.recipe.sampling
        cpu = artist.device.type == "cpu"
        return artist.job(
            s.use_ema, guidance=1.0 if not artist.recipe.network.classes else own.guidance, interval=own.interval,
            solver=own.solver, steps=own.steps, sampling_clip=self.sampling_clip, precision="fp32" if cpu else "bf16",
        )  # fmt: skip

    def score(self, lab: Lab, examiner: Examiner) -> Result:
        """The best guidance and average, and all scores there."""
        s, artist = lab.scale.scoring, examiner.artist
        job, curve = self.job(examiner), []
        if artist.recipe.network.classes:
            emas = self.emas or artist.averages
            search = Search(examiner, job, s.searched, emas, [job.interval], LOW, HIGH, s.step)
            best = sought(search, s.cheap, self.whole)
            job = replace(
                job, weights=artist.weights(best.setting.ema), ema=best.setting.ema, guidance=best.guidance
            ).without_idle_settings()
            curve = [
                {
                    "guidance": f.guidance,
                    "ema": f.setting.ema,
                    "images": f.count,
                    "fid": f.fid.value,
                    "deviation": f.fid.deviation,
                    "inception_score": f.inception_score.value if f.inception_score else None,
                }
                for f in sorted(search.found.values(), key=lambda f: (f.setting.ema, f.guidance, f.count))
            ]
        drawn = examiner.features(job, s.count, "scoring")
        with single_threaded():
            found = report.score(drawn, examiner.reference, bool(examiner.extractor.class_names))
        kept = lab.kept(self)
        images = self.images(artist, job)
        disk.write(kept / "samples.png", pictures.png(pictures.grid(images, len(self.classes) or len(images))))
        save_images(kept / "samples.npz", images)
        return {name: finite(score.value) for name, score in found.items()} | {
            "deviations": {name: finite(score.deviation) for name, score in found.items()},
            "guidance": job.guidance,
            "ema": job.ema,
            "curve": curve,
            "images_scored": s.count,
            "parameters": sum(p.numel() for p in artist.model(job.ema).net.parameters()),
            "losses": [[line["images_seen"], line["loss"]] for line in losses(self.place(lab))],
            "run": str(self.place(lab).relative_to(lab.place)),
        }

    def images(self, artist: Artist, job: Drawing) -> Tensor:
        """Images to be shown, uint8: one of each of ten classes, or eight of each class asked for."""
        total = artist.recipe.network.classes or 1
        shown = self.classes or tuple(range(min(total, SHOWN)))
        job = replace(job, classes=shown) if artist.recipe.network.classes else job
        count = 8 * len(shown) if self.classes else SHOWN
        return artist.model(job.ema).units.visible(artist.again(job, range(count)))


def sought(search: Search, cheap: bool, whole: bool) -> Found:
    """The best of every guidance, of the cheap search, or down the grid from a guidance of 2."""
    if whole:
        return search.full()
    if cheap or len(search.emas) > 1:
        return search.cheap()
    middle = round((2.0 - search.low) / search.step)
    return search.downhill(search.whole(Setting(search.emas[0], search.intervals[0], middle)), (2, 1))


def finite(value: float | None) -> float | None:
    """The number, where it is one: JSON has no others."""
    return float(value) if value is not None and math.isfinite(value) else None


def finished(run: Path) -> bool:
    """Whether a training came to its end."""
    events = [line.get("event") for line in log.records(run / "events.jsonl")]
    return bool(events) and events[-1] in ("finished", "finished early")


def best_of(run: Path, watch: str) -> Path:
    """A run, for its newest checkpoint; or the best one by a number that it watches to end early (App. A, "early stop")."""
    saved = {int(folder.name): folder for folder in checkpoint.published(run)}
    best = log.best_of(list(saved), log.watched(run, watch)) if watch else None
    return run if best is None else saved[best]


def losses(run: Path) -> Iterator[dict[str, Any]]:
    return (line for line in log.records(run / "metrics.jsonl") if "loss" in line)


@contextmanager
def scored(lab: Lab, work: Trained, talk: Talk) -> Iterator[Examiner]:
    """What looks at a trained network's images."""
    device, run = torch.device(lab.device), work.place(lab)
    own = work.recipe.network
    side = work.resize or lab.scale.scoring.judged or own.size[0]
    extractor = open_features(features(lab, side), device)
    artist, seen = Artist(best_of(run, work.recipe.upkeep.watch), device), [0]

    def progress(what: str, done: int, total: int) -> None:
        seen[0] += 1
        talk.tell(f"{what}, {done:,} of {total:,}", TRAINING + (1 - TRAINING) * seen[0] / (seen[0] + 12))

    real = reference(lab, side, own.channels, extractor, talk.stop)
    resize = (side, side) if (side, side) != own.size else None
    yield Examiner(artist, extractor, real, run / "evaluations", resize, progress, talk.stop)


def save_images(path: Path, images: Tensor) -> None:
    with disk.replacing(path) as aside, open(aside, "wb") as file:
        np.savez(file, allow_pickle=False, images=images.numpy())


def images_of(lab: Lab, work: Trained) -> Tensor:
    """The images that a work keeps to be shown."""
    with np.load(lab.kept(work) / "samples.npz", allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["images"])
