"""A run: a training in a directory, which begins or goes on there, keeps its metrics, draws previews and saves checkpoints."""

import json
import math
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from justimage import checkpoint, data, pictures, randomness, recipe as recipes, sampling, training
from justimage.data import Source
from justimage.process import Model, to_uint8
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
    window: list[Step] = field(default_factory=list)
    """steps since the last line of metrics"""
    clock: float = field(default_factory=time.perf_counter)
    saved_at: int = -1
    """images seen at the newest checkpoint; -1 where there is none"""
    previewed_at: int = -1
    board: Any = None
    warnings: list[str] = field(default_factory=list)
    """what a person should be told before it goes on"""

    @property
    def resumed(self) -> bool:
        return self.saved_at >= 0

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
            another = (
                f" (with another --out: the checkpoint at {self.saved_at} images keeps its recipe)" if self.resumed else ""
            )
            raise ValueError(
                f"the loss became {loss:g} (gradient norm {norm:g}) before {self.state.images_seen} images; "
                f"lower --learning-rate, or set --gradient-clip 1{another}"
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
            if not all(p.isfinite().all() for p in s.model.net.parameters()):
                raise ValueError(f"weights are not finite after {s.images_seen} images; nothing was saved of them")
            checkpoint.save(
                self.directory, self.recipe, s.model.net, s.optimizer, s.ema, s.images_seen, self.source.fingerprint
            )
            self.saved_at = s.images_seen
            self.event("saved", seconds=round(time.perf_counter() - start, 3))
            self.clock += time.perf_counter() - start

    def preview(self) -> None:
        """Pictures from the same seeds and images every time, drawn with the average that the recipe samples with."""
        self.previewed_at, start = self.state.images_seen, time.perf_counter()
        sheet, denoised = preview(self.recipe, self.source, self.state)
        folder = self.directory / "samples"
        checkpoint.write(folder / f"{self.state.images_seen:09d}-grid.png", pictures.png(sheet))
        checkpoint.write(folder / f"{self.state.images_seen:09d}-denoised.png", pictures.png(denoised))
        if self.board:
            for name, picture in ("samples", sheet), ("denoised", denoised):
                self.board.add_image(name, np.asarray(picture), self.state.images_seen, dataformats="HWC")
        self.clock += time.perf_counter() - start


def append(file: Path, line: dict[str, Any]) -> None:
    """Add a line to a log. One that a crash tore stays, on a line of its own."""
    with open(file, "ab+") as log:
        if log.tell():
            log.seek(-1, os.SEEK_END)
            if log.read(1) != b"\n":
                log.write(b"\n")
        log.write(json.dumps(line).encode() + b"\n")


def preview(recipe: Recipe, source: Source, state: State) -> tuple[Any, Any]:
    """A grid of samples, a class a column where there are few, and real images denoised in one step at PREVIEW_TIME."""
    model, s, net = state.model, recipe.sampling, state.model.net
    device = next(net.parameters()).device
    dtype = torch.bfloat16 if recipe.training.precision == "bf16" else None
    count, classes = recipe.upkeep.preview_count, model.classes
    columns = min(count, classes or 8, 10)
    shown = [i * (classes // columns) for i in range(columns)] if classes else [-1] * columns
    labels = [shown[i % columns] for i in range(count)]
    clean = torch.stack([source[i * len(source) // 8][0] for i in range(8)])
    with state.ema.lend(net, s.use_ema), torch.compiler.set_stance("force_eager"):  # other shapes would be compiled again
        images = sampling.sample(
            model, labels, 0, guidance=s.guidance, interval=s.interval, steps=s.steps, solver=s.solver, dtype=dtype,
        )  # fmt: skip
        noisy, predicted = denoise(model, clean.to(device), PREVIEW_TIME, dtype)
    names = [recipe.class_names[c] for c in shown] if recipe.class_names else []
    images, clean = model.units.visible(images), model.units.visible(clean)
    return pictures.grid(images, columns, top=names), pictures.denoising(clean, noisy.cpu(), predicted.cpu(), PREVIEW_TIME)


@torch.no_grad()
def denoise(model: Model, clean: Tensor, t: float, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Images with noise at t, and what the network, told no class, takes them for; both to be shown."""
    x = model.units.inside(clean)
    eps = torch.stack([randomness.image_noise(i, model.shape) for i in range(len(x))]).to(x.device) * model.process.noise_scale
    z = model.process.noisy(x, eps, t)
    nobody = torch.full(z.shape[:1], -1, device=z.device)
    with sampling.evaluating(model.net):
        v = sampling.velocity(model, nobody, dtype=dtype)(z, t)
    return to_uint8(z), to_uint8(model.process.behind(v, z, t))


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
    checkpoint.writable(directory / "recipe.json")
    source = data.open_source(recipe.data, recipe.network.size, recipe.network.channels, recipe.training.enlarge)
    recipe = recipe.complete(source)
    refuse_another(directory, recipe)
    total = len(source)
    source = data.in_memory(source, (lambda done: decoding(done, total)) if decoding else None)
    damage: list[tuple[Path, str]] = []
    newest = checkpoint.newest(directory, damaged=lambda folder, error: damage.append((folder, str(error))))
    if newest is None and (last := last_saved(directory)):
        raise ValueError(f"{directory} had a checkpoint at {last} images, and has none now; put it back, or give another --out")
    state = training.begin(recipe, device or default_device())
    if newest:
        facts = json.loads((newest / "state.json").read_text())
        if facts["fingerprint"] != source.fingerprint:
            raise ValueError(f"{recipe.data} is not the data that {directory} was trained on (its files or classes changed)")
        checkpoint.restore(newest, state.model.net, state.optimizer, state.ema)
        state.images_seen = facts["images_seen"]
    checkpoint.write(directory / "recipe.json", json.dumps(recipes.to_json(recipe), indent=1).encode())
    run = Run(directory, recipe, source, state, saved_at=state.images_seen if newest else -1)
    for folder, error in damage:
        checkpoint.set_aside(folder)
        run.event("damaged", what=error)
        run.warnings.append(f"{error}; set aside, and gone on from {newest}")
    forget_after(directory / "metrics.jsonl", state.images_seen)
    run.event("resumed" if newest else "begun")
    return run


def refuse_another(directory: Path, recipe: Recipe) -> None:
    """ValueError where the directory holds something else than a run by this recipe; before a checkpoint any may begin."""
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file; a run needs a directory")
    stored = directory / "recipe.json"
    if not stored.exists():
        if directory.exists() and any(not p.name.startswith(".tmp-") for p in directory.iterdir()):
            raise ValueError(f"{directory} is not empty and holds no run; give another --out")
    elif checkpoint.published(directory) or last_saved(directory):
        try:
            old = recipes.from_json(json.loads(stored.read_text()))
        except ValueError as error:
            raise ValueError(f"{stored} is not a recipe: {error}") from error
        if differences := "; ".join(recipes.contradictions(recipe, old)):
            raise ValueError(f"{directory} was begun with another recipe: {differences}. Use its values, or another --out")


def records(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log; one that a crash tore is passed over."""
    for line in file.read_text().splitlines() if file.exists() else []:
        with suppress(ValueError):
            yield json.loads(line)


def last_saved(directory: Path) -> int | None:
    """Images seen at the last checkpoint that a run's events tell of."""
    saved = [e["images_seen"] for e in records(directory / "events.jsonl") if e["event"] == "saved"]
    return saved[-1] if saved else None


def forget_after(file: Path, images_seen: int) -> None:
    """Drop the lines of metrics that a crash left behind its last checkpoint: those steps are done again."""
    if file.exists():
        kept = [json.dumps(line) + "\n" for line in records(file) if line["images_seen"] <= images_seen]
        checkpoint.write(file, "".join(kept).encode())


def tensorboard(directory: Path, images_seen: int) -> Any:
    """A TensorBoard writer that goes on after images_seen, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory / "tensorboard"), purge_step=images_seen + 1)


def steps(run: Run) -> Generator[Step, None, None]:
    """The run's remaining steps, with metrics, previews and checkpoints on the way; closed early, it saves."""
    upkeep, batch = run.recipe.upkeep, run.recipe.training.batch
    run.board, run.clock = tensorboard(run.directory, run.state.images_seen), time.perf_counter()
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
    except (GeneratorExit, ValueError, OSError):  # closed between two steps, or a bad image: the last step's state is whole
        run.save()
        run.event("stopped")
        raise
    finally:
        if run.board:
            run.board.close()
    run.save()
    if run.previewed_at != run.state.images_seen:
        run.preview()
    run.event("finished")


def train(recipe: Recipe, out: str | Path, device: torch.device | str | None = None) -> Generator[Step, None, None]:
    """Train by a recipe in the directory `out`, beginning or going on there: `for step in justimage.train(...): ...`.

    Yields a `Step` (images_seen, loss, gradient_norm, learning_rate) after each update; leaving the loop saves.
    """
    yield from steps(open_run(recipe, out, device))
