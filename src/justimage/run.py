"""A run: a training in a directory, which begins or goes on there, keeps its metrics, draws previews and saves checkpoints."""

import json
import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from justimage import checkpoint, data, pictures, randomness, recipe as recipes, sampling, training
from justimage.data import Source
from justimage.recipe import Recipe
from justimage.training import State, Step

PREVIEW_TIME = 0.3
"""The fixed t at which previews show a denoised picture."""


@dataclass
class Run:
    """A training and its directory."""

    directory: Path
    recipe: Recipe
    source: Source
    state: State
    resumed: bool
    window: list[Step] = field(default_factory=list)
    """steps since the last line of metrics"""
    clock: float = field(default_factory=time.perf_counter)
    saved_at: int = -1
    board: Any = None

    def event(self, kind: str, **facts: Any) -> None:
        append(
            self.directory / "events.jsonl",
            {"event": kind, "time": round(time.time(), 3), "images_seen": self.state.images_seen} | facts,
        )

    def log(self) -> None:
        """One line of metrics for the steps since the last: here, and only here, the device is waited for."""
        if not self.window:
            return
        loss = torch.stack([s.loss for s in self.window]).double().mean().item()
        norm = self.window[-1].gradient_norm.item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            kept = f"the last checkpoint is at {self.saved_at} images" if self.saved_at > 0 else "no checkpoint was made yet"
            raise ValueError(
                f"the loss became {loss:g} (gradient norm {norm:g}) before {self.state.images_seen} images; {kept}. "
                f"Lower --learning-rate, or set --gradient-clip 1"
            )
        elapsed = time.perf_counter() - self.clock
        line = {
            "images_seen": self.state.images_seen,
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": self.window[-1].learning_rate,
            "images_per_second": round(len(self.window) * self.recipe.training.batch / elapsed, 2),
        }
        append(self.directory / "metrics.jsonl", line)
        if self.board:
            for key, value in line.items():
                self.board.add_scalar(key, value, self.state.images_seen)
        self.window, self.clock = [], time.perf_counter()

    def save(self) -> None:
        """A checkpoint of this moment, unless there is one."""
        self.log()
        if self.saved_at != self.state.images_seen:
            s, start = self.state, time.perf_counter()
            checkpoint.save(
                self.directory, self.recipe, s.model.net, s.optimizer, s.ema, s.images_seen, self.source.fingerprint
            )
            self.saved_at = s.images_seen
            self.event("saved", seconds=round(time.perf_counter() - start, 3))
            self.clock += time.perf_counter() - start

    def preview(self) -> None:
        """Pictures from the same seeds and images every time, drawn with the average that the recipe samples with."""
        start = time.perf_counter()
        sheet, denoised = preview(self.recipe, self.source, self.state)
        folder = self.directory / "samples"
        checkpoint.write(folder / f"{self.state.images_seen:09d}-grid.png", pictures.png(sheet))
        checkpoint.write(folder / f"{self.state.images_seen:09d}-denoised.png", pictures.png(denoised))
        self.clock += time.perf_counter() - start


def append(file: Path, line: dict[str, Any]) -> None:
    with open(file, "a") as opened:
        opened.write(json.dumps(line) + "\n")


def preview(recipe: Recipe, source: Source, state: State) -> tuple[Any, Any]:
    """A grid of samples, a class a column where there are few, and real images denoised in one step at PREVIEW_TIME."""
    model, s, net = state.model, recipe.sampling, state.model.net
    device = next(net.parameters()).device
    dtype = torch.bfloat16 if recipe.training.precision == "bf16" else None
    count, classes = recipe.upkeep.preview_count, model.classes
    columns = min(count, classes or 8, 10)
    shown = [i * (classes // columns) for i in range(columns)] if classes else [-1] * columns
    labels = [shown[i % columns] for i in range(count)]
    shown_first = [source[i * len(source) // 8][0] for i in range(8)]
    clean = torch.stack(shown_first)
    with state.ema.lend(net, s.use_ema):
        images = sampling.sample(
            model, labels, 0, guidance=s.guidance, interval=s.interval, steps=s.steps, solver=s.solver, dtype=dtype,
        )  # fmt: skip
        noisy, predicted = denoise(model, clean.to(device), PREVIEW_TIME)
    names = [recipe.class_names[c] for c in shown] if recipe.class_names else []
    return pictures.grid(images, columns, top=names), pictures.denoising(clean, noisy.cpu(), predicted.cpu(), PREVIEW_TIME)


@torch.no_grad()
def denoise(model: sampling.Model, clean: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """uint8 images with noise at t, and what the network, told no class, takes them for."""
    x = sampling.from_uint8(clean)
    eps = torch.stack([randomness.image_noise(i, model.shape) for i in range(len(x))]).to(x.device) * model.process.noise_scale
    z = model.process.noisy(x, eps, t)
    training = model.net.training
    output = model.net.eval()(z, torch.full((len(z),), t, device=z.device), None)
    model.net.train(training)
    return sampling.to_uint8(z), sampling.to_uint8(model.process.denoised(output.float(), z, t))


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def open_run(
    recipe: Recipe,
    directory: str | Path,
    device: torch.device | str | None = None,
    decoding: Callable[[int, int], None] | None = None,
) -> Run:
    """The run in a directory: begun there, or, where it has a checkpoint, restored exactly.

    decoding is called with the number of images read into memory so far and in all. Raises ValueError or OSError, in one
    line and before anything is written, for a recipe or data that contradict the run, unusable data, or damaged checkpoints.
    """
    directory = Path(directory)
    if not recipe.data:
        raise ValueError("no data is given; say where the images are: --data FOLDER, --data FILE.zip, or --data digits")
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file; a run needs a directory")
    source = data.open_source(recipe.data, recipe.network.size, recipe.network.channels, recipe.training.enlarge)
    recipe = recipe.complete(source)
    stored = directory / "recipe.json"
    if stored.exists():
        old = recipes.from_json(json.loads(stored.read_text()), place=str(stored))
        if differences := recipes.contradictions(recipe, old):
            raise ValueError(
                f"{directory} was begun with another recipe: {'; '.join(differences)}. Use its values, or another --out"
            )
    elif directory.exists() and any(directory.iterdir()):
        raise ValueError(f"{directory} is not empty and holds no run; give another --out")
    newest = checkpoint.newest(directory, set_aside=True)
    total = len(source)
    source = data.in_memory(source, (lambda done: decoding(done, total)) if decoding else None)
    state = training.begin(recipe, device or default_device())
    if newest:
        facts = json.loads((newest / "state.json").read_text())
        if facts["fingerprint"] != source.fingerprint:
            raise ValueError(f"{recipe.data} is not the data that {directory} was trained on (its files or classes changed)")
        checkpoint.restore(newest, state.model.net, state.optimizer, state.ema)
        state.images_seen = facts["images_seen"]
    directory.mkdir(parents=True, exist_ok=True)
    checkpoint.write(stored, json.dumps(recipes.to_json(recipe), indent=1).encode())
    run = Run(directory, recipe, source, state, newest is not None, saved_at=state.images_seen if newest else -1)
    forget_after(directory / "metrics.jsonl", state.images_seen)
    run.board = tensorboard(directory)
    run.event("resumed" if newest else "begun")
    return run


def forget_after(file: Path, images_seen: int) -> None:
    """Drop the lines of metrics that a crash left behind its last checkpoint: those steps are done again."""
    if file.exists():
        lines = [
            line
            for line in file.read_text().splitlines()
            if line.endswith("}") and json.loads(line)["images_seen"] <= images_seen
        ]
        checkpoint.write(file, "".join(f"{line}\n" for line in lines).encode())


def tensorboard(directory: Path) -> Any:
    """A TensorBoard writer, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory / "tensorboard"))


def steps(run: Run) -> Generator[Step, None, None]:
    """The run's remaining steps, with metrics, previews and checkpoints on the way; closed early, it saves."""
    upkeep, batch = run.recipe.upkeep, run.recipe.training.batch
    run.clock = time.perf_counter()
    try:
        for step in training.train(run.recipe, run.source, run.state):
            run.window.append(step)
            seen = step.images_seen

            def passed(every: int, seen: int = seen) -> bool:
                return seen // every > (seen - batch) // every

            if passed(upkeep.log_every * batch):
                run.log()
            if passed(upkeep.save_every):
                run.save()
            if passed(upkeep.preview_every):
                run.preview()
            yield step
    except GeneratorExit:  # closed between two steps
        run.save()
        run.event("stopped")
        raise
    run.save()
    run.event("finished")


def train(recipe: Recipe, out: str | Path, device: torch.device | str | None = None) -> Generator[Step, None, None]:
    """Train by a recipe in the directory `out`, beginning or going on there: `for step in justimage.train(...): ...`.

    Yields a `Step` (images_seen, loss, gradient_norm, learning_rate) after each update; leaving the loop saves.
    """
    yield from steps(open_run(recipe, out, device))
