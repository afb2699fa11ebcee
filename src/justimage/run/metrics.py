"""The numbers of a run: lines of metrics.jsonl, TensorBoard, and the one that is monitored to end early."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from justimage import cost, log, plan
from justimage.distributed import World
from justimage.log import Log
from justimage.recipe import Recipe
from justimage.recipe.sections import Checkpointing
from justimage.training import Step


@dataclass
class EarlyStop:
    """Decides by a monitored number which checkpoint is the best, and when training no longer improves (App. A)."""

    section: Checkpointing
    values: list[tuple[int, float]] = field(default_factory=list)
    """images seen and the monitored number, the smaller the better"""

    def observe(self, line: dict[str, Any]) -> None:
        self.values += log.monitored_value(line, self.section.monitor, self.section.monitor_mode)

    @property
    def out_of_patience(self) -> bool:
        patience = self.section.patience
        return patience is not None and log.images_since_best(self.values) >= patience

    def best_checkpoint(self, saved: list[int]) -> int | None:
        """Of checkpoints by images seen, the best."""
        return log.best_of(saved, list(self.values))


class Metrics:
    """Lines of metrics, each a mean over the steps since the last; speeds are of the steps that this process did.

    A line is a function of images seen alone, whichever process wrote it: the losses since the last line are saved with every
    checkpoint.
    """

    def __init__(self, directory: Path, recipe: Recipe, world: World) -> None:
        self.recipe, self.world, self.file = recipe, world, Log(directory / "metrics.jsonl")
        self.directory, self.early_stop, self.tensorboard = directory, EarlyStop(recipe.checkpoint), None
        self.reset()

    def reset(self, losses: list[float] | None = None) -> None:
        """Begin a new line, with the losses that earlier processes left for it."""
        self.window: list[Step] = []
        self.earlier_losses, self.clock = losses or [], time.perf_counter()

    def resume(self, images_seen: int) -> None:
        """Continue the files after a checkpoint: what a crash wrote after it is dropped."""
        section = self.recipe.checkpoint
        log.truncate_after(self.file.file, images_seen)
        self.early_stop.values = log.monitored_values(self.directory, section.monitor, section.monitor_mode)

    def open_tensorboard(self, images_seen: int) -> None:
        """Write to TensorBoard, too, where it is installed."""
        with suppress(ImportError):
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter(str(self.directory / "tensorboard"), purge_step=images_seen + 1)

    @property
    def losses(self) -> list[float]:
        """Of all steps since the last line."""
        return self.earlier_losses + [step.loss for step in self.window]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A block whose time does not count as training."""
        began = time.perf_counter()
        yield
        self.clock += time.perf_counter() - began

    def log_steps(self) -> None:
        """One line for the steps since the last."""
        if not self.window:
            return
        elapsed, last, losses = time.perf_counter() - self.clock, self.window[-1], self.losses
        speed = len(self.window) * self.recipe.training.batch / elapsed
        line = {
            "images_seen": last.images_seen,
            "loss": sum(losses) / len(losses),
            "gradient_norm": last.gradient_norm,
            "learning_rate": last.learning_rate,
            "images_per_second": round(speed, 2),
            "data_wait": round(sum(s.data_seconds for s in self.window) / elapsed, 4),
            "memory_gb": round(cost.memory_used(self.world.device) / 1e9, 3),
        }
        stated = self.recipe.logging.peak_tflops
        peak = stated * 1e12 if stated else plan.peak_of(self.world.device_name)
        if peak and not self.recipe.custom:
            line["mfu"] = round(speed * cost.training_flops(self.recipe.model) / (peak * self.world.size), 4)
        self.write(line)
        self.reset()

    def write(self, line: dict[str, Any]) -> None:
        """Add a line, on the main process."""
        if not self.world.is_main:
            return
        self.file.add({name: v for name, v in line.items() if not isinstance(v, float) or math.isfinite(v)})
        self.early_stop.observe(line)
        if self.tensorboard:
            with suppress(OSError):
                for key, value in line.items():
                    self.tensorboard.add_scalar(key, value, line["images_seen"])

    def add_image(self, name: str, pixels: Any, images_seen: int) -> None:
        """A picture (height, width, channels) for TensorBoard."""
        if self.tensorboard:
            with suppress(OSError):
                self.tensorboard.add_image(name, pixels, images_seen, dataformats="HWC")

    def close(self) -> None:
        if self.tensorboard:
            self.tensorboard.close()
