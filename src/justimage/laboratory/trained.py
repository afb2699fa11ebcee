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
from justimage.drawing import Artist, Drawing
from justimage.evaluation import report
from justimage.evaluation.examiner import Examiner
from justimage.evaluation.search import HIGH, LOW, Found, Search, Setting
from justimage.laboratory import Lab, Result, Talk, hashed, judging
from justimage.laboratory.scales import Scale
from justimage.recipe import Recipe, changed
from justimage.stopping import Stopped
from justimage.training import NotFinite
from justimage.units import single_threaded

TRAINING = 0.6
"""The fraction of a work that training is taken for."""
SHOWN = 10
"""Images kept to be shown."""
STOPPED = "stopped as asked; the same command goes on where it was"


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

    def group(self, lab: Lab) -> str:
        """Of all works that share this training: how it is drawn and kept does not decide what is learnt, unless it ends early
        by what was drawn."""
        free = {"data", "machine"} | (set() if self.recipe.upkeep.patience else {"sampling", "upkeep"})
        stored = recipes.to_json(self.recipe)
        return hashed({k: v for k, v in stored.items() if k not in free}, lab.circumstances)

    @property
    def title(self) -> str:
        a, p = self.recipe.network, self.recipe.process
        return f"{a.width} wide, /{a.patch_size} at {a.size[0]}, {p.prediction}-pred, {p.loss}-loss"

    def identity(self, lab: Lab) -> str:
        s = lab.scale
        drawn = [
            self.compared,
            self.sampling_clip,
            self.emas,
            self.whole,
            self.classes,
            recipes.to_json(self.recipe)["sampling"],
        ]
        return hashed(self.group(lab), drawn, self.read(s), vars(s.scoring), s.features, s.reference, s.classifier)

    @property
    def compared(self) -> int:
        """Side of the images when they are compared with real ones of that side."""
        return self.resize or self.recipe.network.size[0]

    def read(self, scale: Scale) -> int:
        """Side to which both are then scaled for the network that reads them."""
        return self.compared if self.resize or scale.features else scale.scoring.judged or self.compared

    def place(self, lab: Lab) -> Path:
        """The folder of the training."""
        return lab.place / "runs" / self.group(lab)

    def do(self, lab: Lab, talk: Talk) -> Result:
        began = time.perf_counter()
        found: Result = {}
        try:
            self.train(lab, talk)
        except NotFinite as error:  # a finding, too
            found = {"diverged": str(error)}
        trained = time.perf_counter() - began
        if "diverged" not in found:
            found = self.score(lab, examiner(lab, self, talk))
        return found | {
            "losses": [[line["images_seen"], line["loss"]] for line in losses(self.place(lab))],
            "run": str(self.place(lab).relative_to(lab.place)),
            "seconds": round(time.perf_counter() - began, 1),
            "seconds_of_training": round(trained, 1),
        }

    def train(self, lab: Lab, talk: Talk) -> None:
        """Train, or go on, until the recipe's end."""
        place, total = self.place(lab), self.recipe.training.images
        if finished(place):
            return

        def decoding(done: int, of: int) -> None:
            if talk.stop():
                raise Stopped(STOPPED)
            talk.tell(f"reading images, {done:,} of {of:,}", 0.0)

        run = runs.open_run(self.recipe, place, lab.device, decoding)
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
            raise Stopped(STOPPED)

    def job(self, examiner: Examiner) -> Drawing:
        artist, s = examiner.artist, examiner.artist.recipe.sampling
        own = self.recipe.sampling
        precision = "fp32" if artist.device.type == "cpu" else self.recipe.training.precision
        return artist.job(
            s.use_ema, guidance=1.0 if not artist.recipe.network.classes else own.guidance, interval=own.interval,
            solver=own.solver, steps=own.steps, sampling_clip=self.sampling_clip, precision=precision,
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
        save_images(kept / "samples.npz", *self.images(artist, job))
        return {name: score.value for name, score in found.items()} | {
            "deviations": {name: score.deviation for name, score in found.items()},
            "guidance": job.guidance,
            "ema": job.ema,
            "curve": curve,
            "images_scored": s.count,
            "parameters": sum(p.numel() for p in artist.model(job.ema).net.parameters()),
            "class_names": list(artist.recipe.class_names),
        }

    def images(self, artist: Artist, job: Drawing) -> tuple[Tensor, list[int]]:
        """Images to be shown, uint8, and their classes: one of each of ten, or eight of each class asked for."""
        total = artist.recipe.network.classes or 0
        shown = tuple(c for c in self.classes if c < total) or tuple(range(min(total, SHOWN))) or (-1,)
        job = replace(job, classes=shown)
        numbers = range(8 * len(shown) if self.classes else SHOWN)
        return artist.model(job.ema).units.visible(artist.again(job, numbers)), [job.label(i) for i in numbers]


def seeds(recipe: Recipe, count: int) -> tuple[Trained, ...]:
    """The same training with several seeds."""
    return tuple(Trained(changed(recipe, seed=seed)) for seed in range(count))


def sought(search: Search, cheap: bool, whole: bool) -> Found:
    """The best of every guidance, of the cheap search, or down the grid from a guidance of 2."""
    if whole:
        return search.full()
    if cheap or len(search.emas) > 1:
        return search.cheap()
    middle = round((2.0 - search.low) / search.step)
    return search.downhill(search.whole(Setting(search.emas[0], search.intervals[0], middle)), (2, 1))


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


def examiner(lab: Lab, work: Trained, talk: Talk) -> Examiner:
    """What looks at a trained network's images."""
    device, run, seen = torch.device(lab.device), work.place(lab), [0]
    artist = Artist(best_of(run, work.recipe.upkeep.watch), device)
    compared, channels = work.compared, work.recipe.network.channels

    def progress(what: str, done: int, total: int) -> None:
        seen[0] += 1
        talk.tell(f"{what}, {done:,} of {total:,}", TRAINING + (1 - TRAINING) * seen[0] / (seen[0] + 12))

    space = judging.space(lab, compared, work.read(lab.scale))
    real = judging.reference(lab, space, compared, channels, stop=talk.stop)
    resize = (compared, compared) if (compared, compared) != work.recipe.network.size else None
    return Examiner(artist, space, real, run / "evaluations", resize, progress, talk.stop)


def save_images(path: Path, images: Tensor, classes: list[int]) -> None:
    with disk.replacing(path) as aside, open(aside, "wb") as file:
        np.savez(file, allow_pickle=False, images=images.numpy(), classes=np.array(classes))


def images_of(lab: Lab, work: Trained) -> tuple[Tensor, list[int]] | None:
    """The images that a work keeps to be shown, and their classes; None where the training diverged."""
    path = lab.kept(work) / "samples.npz"
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["images"]), arrays["classes"].tolist()
