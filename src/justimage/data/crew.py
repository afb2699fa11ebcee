"""Numbered pieces of work done by several processes, which end with the one that started them, however it ends."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

Make = Callable[[int], Iterator[int]]
"""Does one piece; yields amounts (1 or more) as it gets on."""


def made(make: Make, todo: Sequence[int], count: int, module: str) -> Iterator[int]:
    """Do the pieces of todo with `count` processes, each given one after the other; yields the amounts of all.

    One process is this one. module: where `make` is from, imported once rather than once a process. An error in any
    process is raised here, and ends them.
    """
    if count <= 1:
        for k in todo:
            yield from make(k)
        return
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([module])
    left = iter(todo)
    crew: dict[Connection, Any] = {}
    try:
        for _ in range(count):
            here, there = context.Pipe()
            process = context.Process(target=work, args=(there, make), daemon=True)
            process.start()
            there.close()
            crew[here] = process
            here.send(next(left, None))
        while crew:
            for pipe in wait(list(crew)):
                assert isinstance(pipe, Connection)
                try:
                    message = pipe.recv()
                except (EOFError, ConnectionResetError) as error:
                    raise ValueError("a process at work died (out of memory?); the same command goes on") from error
                if isinstance(message, Exception):
                    raise message
                if message:
                    yield message
                elif (k := next(left, None)) is not None:
                    pipe.send(k)
                else:
                    crew.pop(pipe).terminate()
    finally:
        for process in crew.values():
            process.terminate()
        for process in crew.values():
            process.join()


def work(pipe: Connection, make: Make) -> None:
    """One process: does the pieces whose numbers come through the pipe; sends amounts, and 0 after each piece."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the affair of the process that was started, which ends this
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # that process is gone
        while (k := pipe.recv()) is not None:
            try:
                for amount in make(k):
                    if amount:
                        pipe.send(amount)
            except (ValueError, OSError) as error:
                pipe.send(error)
                return
            pipe.send(0)
