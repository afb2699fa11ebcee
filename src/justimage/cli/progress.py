"""A progress bar with speed and time left, or plain lines where there is no terminal, from before the first result on."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock
from typing import Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from justimage.sampling import SOLVERS, Sampling

Report = Callable[[str, float, int], None]
"""Told what is being done, how many images of it are done, and of how many: of 0 where nothing tells how far it is."""
ALMOST = 0.999
"""Of what is being drawn, the most that counts as done before it is."""


class Advance(Protocol):
    """Tell how far it is; `note` is called only when something is shown."""

    def __call__(self, done: float, total: int, note: Callable[[], str] = ...) -> None: ...


@contextmanager
def stage(what: str, shown: bool = True) -> Iterator[None]:
    """Say what is being done while the block runs, where nothing tells how far it is."""
    console = Console()
    if shown and console.is_terminal:
        with console.status(f"{what} ..."):
            yield
        return
    if shown:
        print(f"{what} ...", flush=True)
    yield


@contextmanager
def bar(title: str, total: int | None = None, shown: bool = True) -> Iterator[Advance]:
    """Show progress in images while the block runs, at once where their total is known, else from the first call on.

    Threads may tell it together; a fraction of an image moves the bar.
    """
    console = Console()
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False), console=console,
    )  # fmt: skip
    task, began, first, last, lock = None, 0.0, 0.0, float("-inf"), RLock()

    def advance(done: float, total: int, note: Callable[[], str] = str) -> None:
        nonlocal task, began, first, last
        if not shown:
            return
        with lock:
            now = time.perf_counter()
            if task is None:
                task, began, first = progress.add_task(title, total=total, note=""), now, done
                if console.is_terminal:
                    progress.start()
            if now - last < (0.5 if console.is_terminal else 10.0) and done < total:
                return
            last = now
            speed = (done - first) / (now - began) if now - began > 0.2 else 0.0
            pace = f"{speed:.0f} images/s" if speed >= 10 else f"{speed:.2g} images/s" if speed else ""
            text = "  ".join(word for word in (note(), pace) if word)
            progress.update(task, completed=done, total=total, note=text)
            if not console.is_terminal:
                left = f"  {(total - done) / speed:.0f} s left" if speed and done < total else ""
                print(f"{title}: {int(done):,} of {total:,}  {text}{left}".rstrip(), flush=True)

    try:
        if total is not None:
            advance(0, total)
        yield advance
    finally:
        if console.is_terminal:
            progress.stop()


@contextmanager
def stages(shown: bool = True) -> Iterator[Report]:
    """Show progress of one thing after the other, each by a bar or as a `stage`."""
    with ExitStack() as stack:
        current, advance = ("", False), None

        def progress(what: str, done: float, total: int) -> None:
            nonlocal current, advance
            if (what, total > 0) != current:
                stack.close()
                shows = bar(what, shown=shown) if total else stage(what, shown)
                current, advance = (what, total > 0), stack.enter_context(shows)
            if advance:
                advance(done, total)

        yield progress


@contextmanager
def track_batches(nets: Iterable[nn.Module], sampling: Sampling, batch: int, progress: Report) -> Iterator[Report]:
    """Progress that moves within a batch, too: a batch on a CPU may take minutes.

    What is yielded is told of whole batches of `batch` images; between them the networks' forward passes are counted, in
    whichever threads, as many of which as the solver makes draw a batch.
    """
    lock, each = RLock(), forward_passes(sampling)
    what, total, first, most, passes = "", 0, 0.0, 0.0, 0

    def batches(title: str, done: float, of: int) -> None:
        nonlocal what, total, first, most, passes
        with lock:
            if (title, of) != (what, total) or done < first:
                what, total, first, most, passes = title, of, done, done, 0
            most = max(most, done)  # batches that threads draw together end together, and are told one after the other
            progress(title, most, of)

    def passed(*_: object) -> None:
        nonlocal most, passes
        with lock:
            passes += 1
            if most < total:
                most = max(most, min(first + passes / each * batch, ALMOST * total))
                progress(what, most, total)

    hooks = [net.register_forward_hook(passed) for net in nets]
    try:
        yield batches
    finally:
        for hook in hooks:
            hook.remove()


def forward_passes(sampling: Sampling) -> int:
    """How often a solver evaluates a velocity in so many steps: counted, on a velocity of 0."""
    count = 0

    def still(z: Tensor, t: float) -> tuple[Tensor, Tensor]:
        nonlocal count
        count += 1
        return z, z

    for _ in SOLVERS[sampling.solver](still, torch.zeros(()), sampling.grid):
        pass
    return count
