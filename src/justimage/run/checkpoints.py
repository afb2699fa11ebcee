"""The checkpoints of a run: saved in the background, retried when a disk fails, restored strictly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from justimage import checkpoint, parallelize
from justimage.checkpoint import SaveFailed, Saver
from justimage.recipe import Recipe
from justimage.training import NonFiniteError, TrainState

MAX_SAVE_FAILURES = 3
"""Saves that fail in a row before a run ends."""


class Checkpoints:
    """Saves a run's state, and knows what became of each save."""

    def __init__(
        self,
        directory: Path,
        recipe: Recipe,
        state: TrainState,
        best: Callable[[list[int]], int | None],
        log_event: Callable[..., None],
    ) -> None:
        self.directory, self.recipe, self.state, self.log_event = directory, recipe, state, log_event
        self.saver = Saver(directory, state.world, lambda: best(self.saved()))
        self.saved_at, self.failures, self.error = -1, 0, ""
        self.rollbacks = 0
        """times that the run went back to the checkpoint at saved_at"""

    def saved(self) -> list[int]:
        """Images seen at each checkpoint there is, oldest first."""
        return [int(folder.name) for folder in checkpoint.list_checkpoints(self.directory)]

    def restore(self, folder: Path) -> dict[str, Any]:
        """Put a verified checkpoint into the state; returns what it says beside its tensors."""
        s, facts = self.state, checkpoint.read_state(folder)
        checkpoint.restore(folder, s.denoiser.net, s.optimizer, s.ema, s.world)
        s.images_seen, s.skipped_steps = facts["images_seen"], list(facts.get("skipped_steps", []))
        self.saved_at = s.images_seen
        return facts

    def save(self, **facts: Any) -> None:
        """Begin to save this moment; training continues meanwhile."""
        s = self.state
        groups = checkpoint.sharded_state_dict(s.denoiser.net, s.optimizer, s.ema, s.world)
        facts |= {"images_seen": s.images_seen, "skipped_steps": s.skipped_steps}
        facts["optimizer"] = checkpoint.optimizer_numbers(s.denoiser.net, s.optimizer)
        self.record(self.saver.save(groups, self.recipe, facts, parallelize.shard_count(s.denoiser.net)))

    def poll(self, wait: bool = False) -> None:
        """Take note of what became of the save in hand."""
        self.record(self.saver.poll(wait))

    def record(self, results: list[checkpoint.SaveResult]) -> None:
        for r in results:
            if r.error:
                self.failures, self.error = self.failures + 1, r.error
                self.log_event("not saved", images_seen=r.images_seen, error=r.error)
            else:
                self.saved_at, self.failures, self.rollbacks = r.images_seen, 0, 0
                self.log_event("saved", images_seen=r.images_seen, blocked=r.blocked, seconds=r.seconds)

    @property
    def failing(self) -> bool:
        return self.failures >= MAX_SAVE_FAILURES

    def save_now(self, **facts: Any) -> None:
        """A checkpoint of this moment, unless there is one, before the run ends; SaveFailed where that is impossible."""
        self.poll(wait=True)
        for _ in range(MAX_SAVE_FAILURES):
            if self.saved_at == self.state.images_seen:
                return
            self.save(**facts)
            self.poll(wait=True)
            if "not finite" in self.error and self.failures:
                raise NonFiniteError(f"{self.error} after {self.state.images_seen} images")
        if self.saved_at != self.state.images_seen:
            raise SaveFailed(
                f"{MAX_SAVE_FAILURES} attempts to save failed: {self.error}; the last checkpoint is at {self.saved_at} images"
            )
