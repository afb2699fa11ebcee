"""Standard output and error as pipes whose reader may go away before the command ends: `justimage sample ... | head`."""

import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class ReaderGone(BaseException):
    """The reader of the output is gone. Not an Exception: handlers of ordinary errors must not catch it."""


class Pipe(io.FileIO):
    """A pipe to write to. Once its reader is gone, output is dropped; the first time, `ReaderGone` is raised unless the command
    is unattended."""

    def __init__(self, descriptor: int, unattended: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.unattended = unattended

    def write(self, content: Any) -> int | None:
        try:
            return super().write(content)
        except BrokenPipeError:
            devnull = os.open(os.devnull, os.O_WRONLY)
            for descriptor in [d for d in (1, 2) if os.path.sameopenfile(d, self.fileno())]:
                os.dup2(devnull, descriptor)  # for Python's own writes at exit, and for libraries in C
            os.close(devnull)
            if not self.unattended:
                raise ReaderGone from None
            return len(content)


@contextmanager
def closed_pipe_guard(unattended: bool) -> Iterator[None]:
    """For the block and the rest of the process, treat a closed pipe as no error; flush at the end of the block."""
    for name in "stdout", "stderr":
        stream = getattr(sys, name)
        with suppress(OSError, ValueError, AttributeError):  # no such stream, or not a file
            mode = os.fstat(stream.fileno()).st_mode
            if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
                raw = Pipe(stream.fileno(), unattended)
                buffer: Any = raw if stream.write_through else io.BufferedWriter(raw)  # as Python opens it with -u
                options = {n: getattr(stream, n) for n in ("encoding", "errors", "line_buffering", "write_through")}
                setattr(sys, name, io.TextIOWrapper(buffer, **options))
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
