"""A training in its directory, and what happens after each of its steps."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from justimage import checkpoint, disk, figures, log
from justimage.checkpoint import Initial
from justimage.data import Source
from justimage.diffusion import Diffusion
from justimage.distributed import World
from justimage.evaluation import online
from justimage.evaluation.copies import CopyWatch
from justimage.evaluation.online import OnlineFID
from justimage.log import Log
from justimage.preview import preview
from justimage.recipe import Recipe
from justimage.run.checkpoints import Checkpoints
from justimage.run.metrics import Metrics
from justimage.stopping import StopFile, requested
from justimage.training import Loss, NonFiniteError, Step, TrainState
from justimage.tuning import Tuning

MANY_COPIES = 0.2
"""Share of a preview's samples from which on they are said to copy the training set; of new images it is about 0.01."""
MAX_SKIPS = 10
"""Steps that are not finite, one after the other or since one checkpoint, before a run ends."""


@dataclass
class Run:
    """A training and its directory; `metrics` and `checkpoints` keep it on disk."""

    directory: Path
    recipe: Recipe
    source: Source
    state: TrainState
    tuning: Tuning
    """how it is computed on this device, and why"""
    loss: Loss = Diffusion.loss
    online_fid: OnlineFID | None = None
    """scores a few samples during training"""
    initial: Initial | None = None
    """the trained weights that it begins from"""
    warnings: list[str] = field(default_factory=list)
    """what a person should know before it begins"""
    resumed: bool = False
    ended_early: bool = False
    """whether it ended because the monitored number did not improve"""
    previewed_at: int = -1
    lock: Any = None
    heartbeat: Callable[[], object] = lambda: None
    """tells the watchdog that work continues, in what takes longer than a step"""
    copies: CopyWatch | None = None
    """tells whether samples copy images of a small set"""
    on_warning: Callable[[str], object] = lambda what: None
    """receives what a person should know while it runs"""
    on_progress: Callable[[str, int, int], object] = lambda what, done, total: None
    """receives what takes longer than a step, how much of it is done, and of how much"""

    def __post_init__(self) -> None:
        self.events, self.stop_file = Log(self.directory / "events.jsonl"), StopFile(self.directory)
        self.metrics = Metrics(self.directory, self.recipe, self.world)
        best = self.metrics.early_stop.best_checkpoint
        self.checkpoints = Checkpoints(self.directory, self.recipe, self.state, best, self.log_event)

    @property
    def world(self) -> World:
        return self.state.world

    def log_event(self, kind: str, **facts: Any) -> None:
        if self.world.is_main:
            self.events.add({"event": kind, "time": round(time.time(), 3), "images_seen": self.state.images_seen} | facts)

    def restore(self, folder: Path) -> None:
        """Return to a verified checkpoint."""
        facts = self.checkpoints.restore(folder)
        self.metrics.reset(list(facts.get("window", [])))
        self.resumed = True

    def facts(self) -> dict[str, Any]:
        """Facts of the run in a checkpoint, beside the state of training."""
        return {"fingerprint": self.source.fingerprint, "window": self.metrics.losses}

    def save(self) -> None:
        with self.metrics.paused():
            self.checkpoints.save(**self.facts())

    def save_now(self) -> None:
        self.checkpoints.save_now(**self.facts())

    def on_step(self, step: Step) -> None:
        """Do what is due after a step."""
        r, batch = self.recipe, self.recipe.training.batch
        self.metrics.window.append(step)
        self.checkpoints.poll()

        def passed(every: int) -> bool:
            return step.images_seen // every > (step.images_seen - batch) // every

        if passed(r.logging.log_every * batch) or step.images_seen >= r.training.total_images:
            self.log_metrics()  # before a checkpoint of this moment, with which the run would be complete
        if self.online_fid and r.evaluation.every and passed(r.evaluation.every):
            self.evaluate(self.online_fid)
        if passed(r.checkpoint.save_every):
            self.save()
        if passed(r.logging.preview_every):
            self.preview()

    def log_metrics(self) -> None:
        self.metrics.log_steps()
        self.ended_early |= self.metrics.early_stop.out_of_patience

    def evaluate(self, online_fid: OnlineFID) -> None:
        """A line of metrics with the scores of a few samples."""
        with self.metrics.paused():
            found = online.online_scores(self.recipe, self.source, self.state, online_fid, self.heartbeat)
            self.metrics.write({"images_seen": self.state.images_seen} | {name: round(v, 6) for name, v in found.items()})
        self.ended_early |= self.metrics.early_stop.out_of_patience

    def preview(self) -> None:
        """Samples from the same seeds, and the same images denoised, with the average that the recipe samples with."""
        self.previewed_at, seen = self.state.images_seen, self.state.images_seen

        def sampled(done: int) -> None:
            self.heartbeat()
            self.on_progress("preview", done, self.recipe.logging.preview_count)

        with self.metrics.paused():
            samples, denoised, images = preview(self.recipe, self.source, self.state, sampled)
            self.watch_copies(images)
            if self.world.is_main:
                folder = self.directory / "samples"
                try:
                    disk.write(folder / f"{seen:09d}-grid.png", figures.encode_png(samples))
                    disk.write(folder / f"{seen:09d}-denoised.png", figures.encode_png(denoised))
                except OSError as error:
                    self.log_event("no preview", error=str(error))
            self.metrics.add_image("samples", np.asarray(samples), seen)
            self.metrics.add_image("denoised", np.asarray(denoised), seen)

    def watch_copies(self, images: Tensor) -> None:
        """Say so, or end, where many samples copy a training image."""
        if self.copies is None:
            return
        share, limit = self.copies.share(images), self.recipe.checkpoint.stop_at_copies
        if share >= MANY_COPIES:
            self.log_event("copies", share=share)
            self.on_warning(
                f"{share:.0%} of the samples copy a training image: the set is being memorised; train for shorter, with more "
                "images, with --dropout 0.1, or end by it: --stop-at-copies 0.2"
            )
        self.ended_early |= limit is not None and share >= limit

    def memorised_before(self, images_seen: int) -> bool:
        """Whether it has ended, at a checkpoint of so many images, because samples copied its images."""
        limit = self.recipe.checkpoint.stop_at_copies
        if limit is None:
            return False
        events = [e for e in log.records(self.directory / "events.jsonl") if e.get("event") == "copies"]
        return any(log.finite_number(e.get("share")) >= limit and (log.images_of(e) or 0) <= images_seen for e in events)

    def should_stop(self) -> bool:
        """Whether this process wants to end: asked to, by a STOP file, out of patience, or unable to save."""
        stop_file = self.world.is_main and self.stop_file.exists()
        return requested() or stop_file or self.ended_early or self.checkpoints.failing

    def handle_nonfinite(self, error: NonFiniteError) -> None:
        """Skip the next step, which is not finite, as the recipe says, or raise; all processes do the same."""
        s, policy, position = self.state, self.recipe.checkpoint.on_nonfinite, self.state.images_seen
        self.log_event("not finite", error=str(error), policy=policy)
        hint = "lower --learning-rate, set --gradient-clip 1, or skip such steps: --on-nonfinite skip"
        if policy == "stop":
            raise NonFiniteError(f"{error}; {hint} (what was trained before is saved)")
        if policy == "rollback":
            self.roll_back(error, hint)
        s.skipped_steps.append(position)
        batch, in_a_row = self.recipe.training.batch, 0
        while position - in_a_row * batch in s.skipped_steps:
            in_a_row += 1
        if in_a_row >= MAX_SKIPS:
            raise NonFiniteError(f"{error}, as in the {in_a_row - 1} steps before; {hint}")

    def roll_back(self, error: NonFiniteError, hint: str) -> None:
        """Return to the newest checkpoint; the steps skipped so far stay skipped."""
        s, c = self.state, self.checkpoints
        c.poll(wait=True)
        if c.saved_at < 0 or c.rollbacks >= MAX_SKIPS:
            raise NonFiniteError(f"{error}, and rolling back did not help {c.rollbacks} times; {hint}")
        folder = next(f for f in checkpoint.list_checkpoints(self.directory) if int(f.name) == c.saved_at)
        self.world.on_main(lambda: checkpoint.verify(folder) and None)  # a result would have to be JSON
        skipped = s.skipped_steps
        self.restore(folder)
        s.skipped_steps, c.rollbacks = skipped, c.rollbacks + 1
        if self.world.is_main:
            self.metrics.resume(c.saved_at)

    def close(self) -> None:
        self.checkpoints.saver.close()
        if self.lock:
            self.lock.close()
        self.metrics.close()
