"""Ways to stop long work early: a signal, a file called STOP in a run's directory, or a watchdog when training hangs."""

import faulthandler
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

EXIT_HUNG = 70
"""Exit code of a run that hangs."""
STDERR = 2
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Stopped(ValueError):
    """Raised by work that a person asked to stop."""

    exit_code = 75


class Requests(list[str]):
    """Names of the signals that asked to stop, in order of arrival."""


CURRENT: list[Requests] = []
"""The requests of each open `requests` block. Signals belong to the process, so any code in it may ask `requested`."""


def requested() -> bool:
    """Return whether a signal asked this process to stop."""
    return any(CURRENT)


def check() -> None:
    """Raise `Stopped` if a signal asked this process to stop."""
    if requested():
        raise Stopped("stopped as asked; the same command resumes where it was")


@contextmanager
def requests(after: str = "this step, saved") -> Iterator[Requests]:
    """Within the block record Ctrl-C, SIGTERM and SIGUSR1 instead of dying; a second Ctrl-C interrupts at once, unsaved.

    after: the unit of work that is finished first, named in the message."""
    asked = Requests()

    def note(number: int, frame: Any) -> None:
        if number == signal.SIGINT and asked:
            raise KeyboardInterrupt
        if not asked:
            again = "; Ctrl-C once more stops at once, unsaved" if number == signal.SIGINT else ""
            print(f"\nstopping after {after}{again}", file=sys.stderr, flush=True)
        asked.append(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    CURRENT.append(asked)
    try:
        yield asked
    finally:
        CURRENT.pop()
        for number, handler in before.items():
            signal.signal(number, handler)


class StopFile:
    """The file RUN/STOP. As long as a person leaves it there, the run does not start."""

    def __init__(self, directory: Path) -> None:
        self.path, self.looked, self.found = directory / "STOP", 0.0, False

    def exists(self) -> bool:
        """Return whether the file exists, as of at most a second ago."""
        now = time.monotonic()
        if now - self.looked > 1:
            self.looked, self.found = now, self.path.exists()
        return self.found


def exit_peer_lost() -> None:
    """End the process because a peer is gone, whatever the main thread waits for."""
    print("justimage: error: another process is gone\n", end="", file=sys.__stderr__, flush=True)
    os._exit(EXIT_HUNG)


class Watchdog:
    """Ends the process, with every thread's stack on stderr, when no heartbeat comes for `seconds` (0: never)."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.beaten, self.over = seconds, time.monotonic(), threading.Event()
        self.armed, self.waits = -math.inf, False

    def heartbeat(self) -> None:
        self.beaten = time.monotonic()
        if self.seconds and self.beaten - self.armed > 1:  # arming takes milliseconds where all cores are busy
            self.armed = self.beaten  # the fallback if Python itself is stuck, and with it the thread below
            with suppress(ValueError, OSError):
                faulthandler.dump_traceback_later(self.seconds + 30, exit=True, file=STDERR)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A block of somebody else's, which may take as long as it wants."""
        self.waits = True
        try:
            yield
        finally:
            self.heartbeat()
            self.waits = False

    def watch(self) -> None:
        while not self.over.wait(min(1.0, self.seconds / 4)):
            if self.waits:
                faulthandler.cancel_dump_traceback_later()
                self.armed = -math.inf
            elif time.monotonic() - self.beaten > self.seconds:
                print(f"justimage: error: no step for {self.seconds:g} s; it hangs here:", file=sys.__stderr__, flush=True)
                with suppress(ValueError, OSError):
                    faulthandler.dump_traceback(file=STDERR, all_threads=True)
                os._exit(EXIT_HUNG)

    @contextmanager
    def run(self) -> Iterator["Watchdog"]:
        self.heartbeat()
        if self.seconds:
            threading.Thread(target=self.watch, daemon=True).start()
        try:
            yield self
        finally:
            self.over.set()
            faulthandler.cancel_dump_traceback_later()
