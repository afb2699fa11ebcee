"""A progress bar with speed and time left, or plain lines where there is no terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Advance(Protocol):
    """Tell how far it is; `note` is called only when something is shown."""

    def __call__(self, done: int, total: int, note: Callable[[], str] = ...) -> None: ...


@contextmanager
def bar(title: str, shown: bool = True) -> Iterator[Advance]:
    """Show progress in images while the block runs; nothing before the first call, or where it is not to be shown."""
    console = Console()
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False), console=console,
    )  # fmt: skip
    task, began, first, last = None, 0.0, 0, 0.0

    def advance(done: int, total: int, note: Callable[[], str] = str) -> None:
        nonlocal task, began, first, last
        if not shown:
            return
        now = time.perf_counter()
        if task is None:
            task, began, first = progress.add_task(title, total=total, completed=done, note=""), now, done
            if console.is_terminal:
                progress.start()
            else:
                last = now
        if now - last < (0.5 if console.is_terminal else 10.0) and done < total:
            return
        last = now
        speed = (done - first) / (now - began) if now - began > 0.2 else 0.0
        text = "  ".join(word for word in (note(), f"{speed:.0f} images/s" if speed else "") if word)
        progress.update(task, completed=done, note=text)
        if not console.is_terminal:
            left = f"  {(total - done) / speed:.0f} s left" if speed and done < total else ""
            print(f"{title}: {done:,} of {total:,}  {text}{left}", flush=True)

    try:
        yield advance
    finally:
        if console.is_terminal:
            progress.stop()


@contextmanager
def stages(shown: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """Show progress of one thing after the other, a bar each."""
    with ExitStack() as stack:
        current, advance = "", None

        def progress(what: str, done: int, total: int) -> None:
            nonlocal current, advance
            if what != current:
                stack.close()
                current, advance = what, stack.enter_context(bar(what, shown))
            if advance:
                advance(done, total)

        yield progress
