"""What a run keeps while it goes: its metrics and events, its checkpoints, its previews, and what to do about a bad step."""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from justimage import checkpoint, cost, disk, distributed, log, pictures, plan
from justimage.checkpoint import NotSaved, Saver
from justimage.data import Source
from justimage.distributed import World
from justimage.evaluation import watching
from justimage.evaluation.watching import Judge
from justimage.log import Log
from justimage.preview import preview
from justimage.recipe import Recipe
from justimage.stopping import StopFile
from justimage.training import NotFinite, State, Step
from justimage.tuning import Tuning

FAILURES = 3
"""Saves that fail in a row before a run ends."""
LEFT_OUT = 10
"""Steps that are not finite, one after the other or since one checkpoint, before a run ends."""


@dataclass
class Run:
    """A training and its directory."""

    directory: Path
    recipe: Recipe
    source: Source
    state: State
    tuning: Tuning
    """how it is computed on this device, and why"""
    saved_at: int = -1
    """images seen at the newest checkpoint; -1 where there is none"""
    warnings: list[str] = field(default_factory=list)
    """what a person should be told before it goes on"""
    asked: Callable[[], bool] = lambda: False
    """whether this process was asked to stop"""
    lock: Any = None
    window: list[Step] = field(default_factory=list)
    """steps since the last line of metrics"""
    carried: list[float] = field(default_factory=list)
    """losses of the steps before those, which an earlier process did, since that line"""
    clock: float = field(default_factory=time.perf_counter)
    previewed_at: int = -1
    failures: int = 0
    """saves that failed in a row"""
    error: str = ""
    """of the last save"""
    watched: list[tuple[int, float]] = field(default_factory=list)
    """images seen and the watched number, in the leading process"""
    ended_early: bool = False
    """whether it ended because the watched number did not become better"""
    rolled_back: int = 0
    """times that it went back to the checkpoint at saved_at"""
    board: Any = None
    judge: Judge | None = None
    """what scores a few samples on the way"""
    beat: Callable[[], object] = lambda: None
    """says that it goes on, in what takes longer than a step"""
    tell: Callable[[str, int, int], object] = lambda what, done, total: None
    """what takes longer than a step, how much of it is done, and of how much"""

    def __post_init__(self) -> None:
        self.metrics, self.events = Log(self.directory / "metrics.jsonl"), Log(self.directory / "events.jsonl")
        self.stop_file = StopFile(self.directory)
        self.saver = Saver(self.directory, self.world, self.best)
        self.resumed = False

    def restore(self, folder: Path) -> None:
        """The state of a verified checkpoint, and the losses since the last line of metrics before it."""
        s, facts = self.state, checkpoint.read_state(folder)
        checkpoint.restore(folder, s.model.net, s.optimizer, s.ema, s.world)
        s.images_seen, s.passed_over = facts["images_seen"], list(facts.get("passed_over", []))
        self.window, self.carried = [], list(facts.get("window", []))
        self.saved_at, self.resumed = s.images_seen, True

    @property
    def world(self) -> World:
        return self.state.world

    def best(self) -> int | None:
        """Images seen at the checkpoint with the best watched metric."""
        saved = [int(folder.name) for folder in checkpoint.published(self.directory)]
        return log.best_of(saved, list(self.watched))

    def event(self, kind: str, **facts: Any) -> None:
        if self.world.leads:
            self.events.add({"event": kind, "time": round(time.time(), 3), "images_seen": self.state.images_seen} | facts)

    def measure(self) -> None:
        """One line of metrics for the steps since the last; speeds are of those that this process did."""
        if not self.window:
            return
        elapsed, last, losses = time.perf_counter() - self.clock, self.window[-1], self.losses()
        speed = len(self.window) * self.recipe.training.batch / elapsed
        line = {
            "images_seen": self.state.images_seen,
            "loss": sum(losses) / len(losses),
            "gradient_norm": last.gradient_norm,
            "learning_rate": last.learning_rate,
            "images_per_second": round(speed, 2),
            "data_wait": round(sum(s.waited for s in self.window) / elapsed, 4),
            "memory_gb": round(cost.memory_used(self.world.device) / 1e9, 3),
        }
        stated = self.recipe.machine.peak_tflops
        peak = stated * 1e12 if stated else plan.peak_of(self.world.device_name)
        if peak:
            line["mfu"] = round(speed * cost.training_flops(self.recipe.network) / (peak * self.world.size), 4)
        if self.world.leads:
            self.record(line)
        self.window, self.carried, self.clock = [], [], time.perf_counter()

    def losses(self) -> list[float]:
        """Of the steps since the last line of metrics, whoever did them: a line is a function of the images seen alone."""
        return self.carried + [s.loss for s in self.window]

    def record(self, line: dict[str, Any]) -> None:
        """Add a line to the metrics, and take note of the number that is watched in it."""
        self.metrics.add(line)
        self.watched += log.value_in(line, self.recipe.upkeep.watch)
        self.ended_early = self.out_of_patience()
        if self.board:
            with suppress(OSError):
                for key, value in line.items():
                    self.board.add_scalar(key, value, line["images_seen"])

    def out_of_patience(self) -> bool:
        """Whether the watched number has not become better for as many images as the recipe allows (App. A, "early stop")."""
        patience = self.recipe.upkeep.patience
        return patience is not None and log.without_progress(self.watched) >= patience

    def save(self) -> None:
        """Begin to save this moment; training goes on meanwhile."""
        s, began = self.state, time.perf_counter()
        groups = checkpoint.contents(s.model.net, s.optimizer, s.ema, s.world)
        facts = {"images_seen": s.images_seen, "fingerprint": self.source.fingerprint}
        facts |= {"passed_over": s.passed_over, "window": self.losses()}
        self.note(self.saver.save(groups, self.recipe, facts, distributed.shards(s.model.net)))
        self.clock += time.perf_counter() - began

    def note(self, outcomes: list[checkpoint.Outcome]) -> None:
        """Take in what became of saves."""
        for o in outcomes:
            if o.error:
                self.failures, self.error = self.failures + 1, o.error
                self.event("not saved", images_seen=o.images_seen, error=o.error)
            else:
                self.saved_at, self.failures, self.rolled_back = o.images_seen, 0, 0
                self.event("saved", images_seen=o.images_seen, blocked=o.blocked, seconds=o.seconds)

    def save_now(self) -> None:
        """A checkpoint of this moment, unless there is one, before the run ends; NotSaved where it cannot be had."""
        self.note(self.saver.finished(wait=True))
        for _ in range(FAILURES):
            if self.saved_at == self.state.images_seen:
                return
            self.save()
            self.note(self.saver.finished(wait=True))
            if "not finite" in self.error and self.failures:
                raise NotFinite(f"{self.error} after {self.state.images_seen} images")
        if self.saved_at != self.state.images_seen:
            raise NotSaved(
                f"{FAILURES} attempts to save failed: {self.error}; the last checkpoint is at {self.saved_at} images"
            )

    def look(self) -> None:
        """Pictures from the same seeds and images every time, drawn with the average that the recipe samples with."""
        self.previewed_at, began = self.state.images_seen, time.perf_counter()
        sheet, denoised = preview(self.recipe, self.source, self.state, self.drawn)
        if self.world.leads:
            folder = self.directory / "samples"
            try:
                disk.write(folder / f"{self.state.images_seen:09d}-grid.png", pictures.png(sheet))
                disk.write(folder / f"{self.state.images_seen:09d}-denoised.png", pictures.png(denoised))
            except OSError as error:
                self.event("no preview", error=str(error))
        if self.board:
            with suppress(OSError):
                for name, picture in ("samples", sheet), ("denoised", denoised):
                    self.board.add_image(name, np.asarray(picture), self.state.images_seen, dataformats="HWC")
        self.clock += time.perf_counter() - began

    def drawn(self, done: int) -> None:
        """So many images of a preview are drawn."""
        self.beat()
        self.tell("preview", done, self.recipe.upkeep.preview_count)

    def evaluate(self, judge: Judge) -> None:
        """A line of metrics with the scores of a few samples."""
        began = time.perf_counter()
        found = watching.scores(self.recipe, self.state, judge, self.beat)
        if self.world.leads:
            numbers = {name: round(value, 6) for name, value in found.items() if math.isfinite(value)}
            self.record({"images_seen": self.state.images_seen} | numbers)
        self.clock += time.perf_counter() - began

    def after(self, step: Step) -> None:
        """What is due after a step."""
        upkeep, batch = self.recipe.upkeep, self.recipe.training.batch
        self.window.append(step)
        self.note(self.saver.finished())

        def passed(every: int) -> bool:
            return step.images_seen // every > (step.images_seen - batch) // every

        if passed(upkeep.log_every * batch):
            self.measure()
        if self.judge and upkeep.evaluate_every and passed(upkeep.evaluate_every):
            self.evaluate(self.judge)
        if passed(upkeep.save_every):
            self.save()
        if passed(upkeep.preview_every):
            self.look()

    def should_stop(self) -> bool:
        """Whether this process wants to end: asked to, by a STOP file, out of patience, or unable to save."""
        stop_file = self.world.leads and self.stop_file.there()
        return self.asked() or stop_file or self.ended_early or self.failures >= FAILURES

    def leave_out(self, error: NotFinite) -> None:
        """What the recipe says to do about the next step, which is not finite; all processes do the same."""
        s, policy, position = self.state, self.recipe.upkeep.not_finite, self.state.images_seen
        self.event("not finite", error=str(error), policy=policy)
        hint = "lower --learning-rate, set --gradient-clip 1, or leave such steps out: --not-finite skip"
        if policy == "stop":
            raise NotFinite(f"{error}; {hint} (what was trained before is saved)")
        if policy == "rollback":
            self.note(self.saver.finished(wait=True))
            if self.saved_at < 0 or self.rolled_back >= LEFT_OUT:
                raise NotFinite(f"{error}, and going back did not help {self.rolled_back} times; {hint}")
            folder = folder_at(self.directory, self.saved_at)
            self.world.first(lambda: checkpoint.verify(folder) and None)
            before = s.passed_over
            self.restore(folder)
            s.passed_over, self.rolled_back = before, self.rolled_back + 1
            if self.world.leads:
                log.forget_after(self.metrics.file, self.saved_at)
                self.watched = [(seen, value) for seen, value in self.watched if seen <= self.saved_at]
        s.passed_over.append(position)
        batch, run = self.recipe.training.batch, 0
        while position - run * batch in s.passed_over:
            run += 1
        if run >= LEFT_OUT:
            raise NotFinite(f"{error}, as in the {run - 1} steps before; {hint}")


def folder_at(directory: Path, images_seen: int) -> Path:
    return next(f for f in checkpoint.published(directory) if int(f.name) == images_seen)
