"""Standard output and error as pipes whose reader may go away before the command ends: `justimage sample ... | head`."""

import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class ReaderGone(BaseException):
    """Nobody reads what is written any more. No Exception: what handles an error of the work must not take it for one."""


class Pipe(io.FileIO):
    """A pipe to write to. Once its reader is gone, what is written is dropped; the first time `Unread` is raised, unless the
    command goes on."""

    def __init__(self, descriptor: int, goes_on: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.goes_on = goes_on

    def write(self, content: Any) -> int | None:
        try:
            return super().write(content)
        except BrokenPipeError:
            nothing = os.open(os.devnull, os.O_WRONLY)
            for descriptor in [d for d in (1, 2) if os.path.sameopenfile(d, self.fileno())]:
                os.dup2(nothing, descriptor)  # nor may what Python writes when it ends, or a library in C, meet it again
            os.close(nothing)
            if not self.goes_on:
                raise ReaderGone from None
            return len(content)


@contextmanager
def closed_pipe_guard(goes_on: bool) -> Iterator[None]:
    """A block, and the rest of the process, for which a closed pipe is no error; at its end everything is written."""
    for name in "stdout", "stderr":
        stream = getattr(sys, name)
        with suppress(OSError, ValueError, AttributeError):  # there is none, or it is no file
            mode = os.fstat(stream.fileno()).st_mode
            if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
                raw = Pipe(stream.fileno(), goes_on)
                buffer: Any = raw if stream.write_through else io.BufferedWriter(raw)  # as Python, -u, would open it
                how = {n: getattr(stream, n) for n in ("encoding", "errors", "line_buffering", "write_through")}
                setattr(sys, name, io.TextIOWrapper(buffer, **how))
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
