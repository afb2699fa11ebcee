"""Numbered tasks shared by several processes, which end with the process that started them, however it ends.

A `concurrent.futures.ProcessPoolExecutor` neither passes on progress nor ends when its parent is killed.
"""

import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

Item = TypeVar("Item")
SECONDS_TO_END = 10.0
"""Time for a process without further tasks to end by itself, and to clear up after its libraries, before it is ended."""
Task = Callable[[int], Iterator[Item]]
"""Runs one task by its number; yields its progress, or other values for the caller of the pool."""


def run_in_pool(tasks: Sequence[Task[Item]], numbers: Sequence[int], module: str) -> Generator[Item, None, None]:
    """Run the numbered tasks in one process for each of `tasks`, the next number going to the next free process.

    Yields what the tasks yield, except what is false. With one process, that is this one. module: where `tasks` are defined;
    it is imported once rather than once a process. An error in any process is raised here; then, as when the generator is
    closed, all processes are ended.
    """
    if len(tasks) <= 1:
        for number in numbers:
            yield from tasks[0](number)
        return
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([module])
        start_forkserver()
    waiting = iter(numbers)
    processes: dict[Connection, Any] = {}
    ending: list[Any] = []
    try:
        for task in tasks:
            here, there = context.Pipe()
            process = context.Process(target=worker, args=(there, task), daemon=False)
            process.start()
            there.close()
            processes[here] = process
            here.send(next(waiting, None))
        while processes:
            for pipe in wait(list(processes)):
                assert isinstance(pipe, Connection)
                try:
                    message = pipe.recv()
                except (EOFError, ConnectionResetError) as error:
                    raise ValueError("a process at work died (out of memory?); the same command resumes") from error
                if isinstance(message, Exception):
                    raise message
                if message:
                    yield message
                elif (number := next(waiting, None)) is not None:
                    pipe.send(number)
                else:
                    pipe.send(None)  # its end
                    ending.append(processes.pop(pipe))
        for process in ending:
            process.join(SECONDS_TO_END)
    finally:
        for process in [*ending, *processes.values()]:
            process.terminate()
        for process in [*ending, *processes.values()]:
            process.join()


def start_forkserver() -> None:
    """Start the server that forks processes, with Ctrl-C blocked: it imports modules for seconds before it ignores that."""
    from multiprocessing import forkserver

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker(pipe: Connection, task: Task[Any]) -> None:
    """Run the tasks whose numbers come through the pipe; send back what they yield, and 0 after each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the process that started this one, which ends it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # that process is gone
        while (number := pipe.recv()) is not None:
            try:
                for item in task(number):
                    if item:
                        pipe.send(item)
            except Exception as error:
                known = isinstance(error, ValueError | OSError)
                pipe.send(error if known else RuntimeError(f"{type(error).__name__}: {error}"))
                return
            pipe.send(0)
