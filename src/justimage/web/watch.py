"""Watch: a training as it runs, from the files of its directory; and the demo, started from the page."""

import atexit
import html
import io
import math
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import IO, Any

from PIL import Image

from justimage import disk, figures, log
from justimage.recipe import from_json
from justimage.web.models import Models
from justimage.web.show import QUIET, note, picture, refusals, whole

MAX_PREVIEW_BYTES = 2**26
SHOWN_METRICS = {
    "loss": "loss", "images_per_second": "images/s", "fid": "FID", "copies": "copies",
    "data_wait": "share spent waiting for data", "memory_gb": "memory, GB", "learning_rate": "learning rate",
}  # fmt: skip
"""Of the last lines of a run's metrics, and how they are called here."""


def run_directory(models: Models, name: str) -> Path:
    """The directory of a run of this page; ValueError for any other."""
    if name not in models.runs:
        raise ValueError(f"run {str(name)[:200]!r} is not one of this page's; allowed: {', '.join(models.runs) or 'none yet'}")
    return Path(name).expanduser()


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """A run's metrics so far."""
    return [line for line in log.records(run / "metrics.jsonl") if log.images_of(line) is not None]


def state(run: Path, metrics: list[dict[str, Any]]) -> str:
    """How far a training is, how fast, and how long it will take, in a sentence."""
    total = from_json(disk.read_json(run / "recipe.json")).training.total_images
    seen = log.images_of(metrics[-1]) if metrics else 0
    assert seen is not None
    last, began = "", None
    for event in log.records(run / "events.jsonl"):
        last = str(event.get("event", ""))
        began = began or event.get("time")
    share = f"{seen:,} of {total:,} images ({min(seen / total, 1):.0%})"
    if last in ("finished", "finished early", "stopped", "failed"):
        return f"{last}: {share}"
    speeds = [v for line in metrics[-5:] if math.isfinite(v := log.finite_number(line.get("images_per_second"))) and v > 0]
    if not speeds:
        return f"begun: {share}"
    speed = sum(speeds) / len(speeds)
    return f"training: {share}, {speed:,.0f} images/s, about {duration((total - seen) / speed)} left"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def latest(metrics: list[dict[str, Any]]) -> list[list[str]]:
    """The newest value of each number, with its name."""
    found: dict[str, float] = {}
    for line in metrics:
        found |= {name: v for name in line if name in SHOWN_METRICS and math.isfinite(v := log.finite_number(line[name]))}
    return [[SHOWN_METRICS[name], f"{value:.4g}"] for name, value in found.items()]


def previews(run: Path) -> list[Path]:
    """Grids of samples from the same seeds, as training went on."""
    return sorted(f for f in (run / "samples").glob("*-grid.png") if f.is_file() and not f.is_symlink())


def preview_at(run: Path, number: int) -> tuple[Image.Image | None, str]:
    """One of a run's previews, from 1, with its caption; none where there is none yet."""
    files = previews(run)
    if not files:
        return None, "no preview yet"
    file = files[min(max(number, 1), len(files)) - 1]
    if file.stat().st_size > MAX_PREVIEW_BYTES:
        raise ValueError(f"{file.name} is too large to be a preview")
    seen = file.name.split("-")[0]
    with Image.open(file) as opened:
        return opened.convert("RGB"), f"after {int(seen):,} images" if seen.isdigit() else file.stem


def curve(metrics: list[dict[str, Any]]) -> Image.Image | None:
    """The loss so far; nothing before the second line, or without matplotlib."""
    if len([m for m in metrics if "loss" in m]) < 2:
        return None
    png = figures.loss_curve(metrics)
    return Image.open(io.BytesIO(png)) if png else None


class Demo:
    """The training of `justimage demo` in a process of its own, one at a time, stopped with the page: it resumes."""

    def __init__(self, home: Path) -> None:
        self.home, self.starting = home, Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.output: IO[bytes] | None = None

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Begin, or resume; nothing where it runs already."""
        with self.starting:
            if self.running:
                return
            disk.check_writable(self.home / "demo")
            self.output = tempfile.TemporaryFile()  # noqa: SIM115
            command = [sys.executable, "-m", "justimage", "demo", "--out", "demo"]
            self.process = subprocess.Popen(command, cwd=self.home, stdout=self.output, stderr=subprocess.STDOUT)
            atexit.register(self.stop)

    def stop(self) -> None:
        """Let it save and end."""
        if self.process is not None and self.running:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(30)

    def said(self) -> str:
        """Its error, where it failed; else nothing."""
        if self.process is None or self.output is None or self.process.poll() in (None, 0):
            return ""
        self.output.seek(0)
        told = self.output.read()[-2000:].decode(errors="replace").strip().splitlines()
        return f"the demo ended with code {self.process.poll()}: {told[-1] if told else ''}"


def layout(models: Models, demo: Demo) -> Any:
    """Put the tab's fields on the page; returns the refreshing event's function, inputs and outputs."""
    import gradio as gr

    with gr.Row():
        run = gr.Dropdown(models.runs, value=next(iter(models.runs), None), label="Training", scale=4, elem_id="run")
        kind = "secondary" if models.runs else "primary"
        train = gr.Button("Train the demo: digits, in minutes", variant=kind, elem_id="train", scale=1, size="md")
    line = gr.HTML(note(""), elem_id="watch-line")
    with gr.Row():
        with gr.Column(min_width=300):
            loss = gr.HTML(picture(None, "the loss, once there are two lines of metrics"), elem_id="loss")
            table = gr.HTML("", elem_id="metrics")
        with gr.Column(min_width=300):
            at = gr.Slider(
                1, 2, 1, step=1, label="Preview", info="the same seeds each time", elem_id="preview-at", visible=False
            )
            shown = gr.HTML(picture(None, "no preview yet"), elem_id="preview")
    seen = gr.State("")

    def refresh(name: Any, at: Any, seen: str) -> tuple[Any, ...]:
        """All that is new since the last time; nothing is sent again that stayed the same."""
        with refusals():
            names = models.runs
            name = name if name in names else next(iter(names), None)
            chooser = gr.Dropdown(names, value=name)
            if name is None:
                words = "the demo begins" if demo.running else demo.said() or "no training here yet"
                return chooser, note(words), *[gr.skip()] * 4, seen
            place = run_directory(models, name)
            metrics, files = metrics_of(place), previews(place)
            words = state(place, metrics) + (f"; {said}" if (said := demo.said()) else "")
            mark = f"{name} {len(metrics)} {len(files)} {words}"
            if mark == seen:
                return *[gr.skip()] * 6, seen
            last = len(files)
            before = whole(at, "preview", 1, 10**6)
            follow = not seen.startswith(f"{name} ") or before >= last - 1  # stay at the newest, unless one looks back
            number = last if follow else min(int(before), last)
            rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in latest(metrics))
            grid = picture(*preview_at(place, max(number, 1)), lossless=True, pixels=False)
            return (
                chooser, note(words), picture(curve(metrics), "training loss over images seen", lossless=True, pixels=False),
                gr.Slider(1, max(last, 2), max(number, 1), step=1, visible=last > 1),
                grid, f'<table class="ji-table">{rows}</table>', mark,
            )  # fmt: skip

    def look(name: Any, at: Any) -> str:
        with refusals():
            return picture(
                *preview_at(run_directory(models, name), whole(at, "preview", 1, 10**6)), lossless=True, pixels=False
            )

    def start() -> str:
        with refusals():
            demo.start()
            return note("the demo begins: PyTorch is loading, then the loss will show here")

    options: dict[str, Any] = dict(**QUIET, concurrency_id="watch", concurrency_limit=4)
    outputs = [run, line, loss, at, shown, table, seen]
    run.input(refresh, [run, at, seen], outputs, **options)
    at.input(look, [run, at], shown, trigger_mode="always_last", **options)
    train.click(start, None, line, **options)
    return refresh, [run, at, seen], outputs, options, train
