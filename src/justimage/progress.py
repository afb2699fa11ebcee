"""Progress of long work: a job is a generator that yields how far it is, and returns its result.

The caller that drives a job shows its progress, or ignores it; a job passes on another's by `yield from`. A job that is closed
early keeps what it has on disk, and resumes when it is started again.
"""

from collections.abc import Callable, Generator
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Progress(NamedTuple):
    """A description of the current work, how much of it is done, and the total (0: unknown)."""

    what: str
    done: float = 0.0
    total: float = 0.0


Job = Generator[Progress, None, T]


def finish(job: Job[T], show: Callable[[Progress], object] = lambda progress: None) -> T:
    """Run a job to its end and return its result; `show` receives its progress."""
    while True:
        try:
            show(next(job))
        except StopIteration as end:
            return end.value
