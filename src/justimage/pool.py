"""Numbered pieces of work done by several processes, which end with the one that started them, however it ends."""

import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

News = TypeVar("News")
Make = Callable[[int], Iterator[News]]
"""Does one piece; yields news as it gets on: amounts, or whatever is true."""


def run_in_pool(makes: Sequence[Make[News]], todo: Sequence[int], module: str) -> Generator[News, None, None]:
    """Do the pieces of todo with one process for each of `makes`, each given one after the other; yields the news of all.

    One process is this one. module: where `makes` are from, imported once rather than once a process. An error in any
    process is raised here, and ends them.
    """
    if len(makes) <= 1:
        for k in todo:
            yield from makes[0](k)
        return
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([module])
    left = iter(todo)
    crew: dict[Connection, Any] = {}
    try:
        for make in makes:
            here, there = context.Pipe()
            process = context.Process(target=worker, args=(there, make), daemon=False)
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


def worker(pipe: Connection, make: Make[Any]) -> None:
    """One process: does the pieces whose numbers come through the pipe; sends news, and 0 after each piece."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the affair of the process that was started, which ends this
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # that process is gone
        while (k := pipe.recv()) is not None:
            try:
                for news in make(k):
                    if news:
                        pipe.send(news)
            except Exception as error:
                kept = isinstance(error, ValueError | OSError)
                pipe.send(error if kept else RuntimeError(f"{type(error).__name__}: {error}"))
                return
            pipe.send(0)
