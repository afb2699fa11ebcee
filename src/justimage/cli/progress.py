"""A progress bar with speed and time left, or plain lines where there is no terminal, from before the first result on."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress as RichProgress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import nn

from justimage.progress import Progress
from justimage.sampling import Sampling

Show = Callable[[Progress], None]
"""Shows progress; a total of 0 means that nobody knows how far it is."""
ALMOST = 0.999
"""The largest share shown as done before the work is complete."""


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
    progress = RichProgress(
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
def stages(shown: bool = True) -> Iterator[Show]:
    """Show the progress of one thing after another, each by a bar or as a `stage`."""
    with ExitStack() as stack:
        current, advance = ("", False), None

        def show(p: Progress) -> None:
            nonlocal current, advance
            if (p.what, p.total > 0) != current:
                stack.close()
                display = bar(p.what, shown=shown) if p.total else stage(p.what, shown)
                current, advance = (p.what, p.total > 0), stack.enter_context(display)
            if advance:
                advance(p.done, int(p.total))

        yield show


@contextmanager
def track_batches(nets: Iterable[nn.Module], sampling: Sampling, batch: int, show: Show) -> Iterator[Show]:
    """Progress that also moves within a batch, which may take minutes on a CPU.

    Yields what to show whole batches of `batch` images with; between these the networks' forward passes are counted, in any
    thread: a batch takes as many as the solver makes.
    """
    lock, each = RLock(), sampling.evaluations
    what, total, first, most, passes = "", 0.0, 0.0, 0.0, 0

    def show_batches(p: Progress) -> None:
        nonlocal what, total, first, most, passes
        with lock:
            if (p.what, p.total) != (what, total) or p.done < first:
                what, total, first, most, passes = p.what, p.total, p.done, p.done, 0
            most = max(most, p.done)  # batches sampled together in threads end together, and are reported one by one
            show(Progress(p.what, most, p.total))

    def passed(*_: object) -> None:
        nonlocal most, passes
        with lock:
            passes += 1
            if most < total:
                most = max(most, min(first + passes / each * batch, ALMOST * total))
                show(Progress(what, most, total))

    hooks = [net.register_forward_hook(passed) for net in nets]
    try:
        yield show_batches
    finally:
        for hook in hooks:
            hook.remove()
