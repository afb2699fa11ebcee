"""Works done on all devices there are, each once, with their progress shown; killed or stopped, the same command goes on."""

import json
import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import NamedTuple

import torch

from justimage import disk
from justimage.crew import made
from justimage.laboratory import Lab, Result, Talk, Work


class News(NamedTuple):
    """Of a work: what it is doing, and the fraction done; with the result when it is."""

    identity: str
    title: str
    what: str
    done: float
    result: Result | None = None


def devices(word: str | None = None) -> list[str]:
    """One for each process: the GPUs, or the cores of a CPU; or the one asked for."""
    if word:
        return [word]
    if torch.cuda.is_available():
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return ["cpu"] * max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def result_of(lab: Lab, work: Work) -> Result | None:
    """What a work found, if it is done."""
    path = lab.kept(work) / "result.json"
    return disk.read_json(path) if path.exists() else None


def done(works: Sequence[Work], lab: Lab, on: Sequence[str]) -> Generator[News, None, None]:
    """Do what is missing, a process a device, and say how it goes; ends with the news of the last result."""
    groups: dict[str, list[Work]] = {}
    for work in {w.identity(lab): w for w in works}.values():
        if result_of(lab, work) is None:
            groups.setdefault(work.group, []).append(work)
    todo = list(groups.values())
    if not todo:
        return
    crew = on[: len(todo)]
    makes = [partial(done_here, todo, replace(lab, device=device), len(crew)) for device in crew]
    yield from made(makes, range(len(todo)), __name__)


def done_here(todo: Sequence[Sequence[Work]], lab: Lab, beside: int, number: int) -> Iterator[News]:
    """Do one group of works in this process, one of `beside` that share the machine."""
    os.environ["LOCAL_WORLD_SIZE"] = str(beside)
    for work in todo[number]:

        def act(talk: Talk, work: Work = work) -> Result:
            if lab.device == "cpu":
                torch.set_num_threads(1)  # so that bits do not depend on the number of cores
            return work.do(lab, talk)

        name, title = work.identity(lab), work.title
        result: Result = {}
        for news in told(act):
            if isinstance(news, dict):
                result = news
            else:
                yield News(name, title, *news)
        disk.write(lab.kept(work) / "result.json", json.dumps(result, indent=1).encode())
        yield News(name, title, "", 1.0, result)


def told(act: Callable[[Talk], Result]) -> Iterator[tuple[str, float] | Result]:
    """What an act tells while a thread of its own does it, and at the end its result. Closed early, it asks the act to stop."""
    queue: SimpleQueue[tuple[str, float] | None] = SimpleQueue()
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(act, Talk(lambda what, done: queue.put((what, done)), stop.is_set))
        future.add_done_callback(lambda _: queue.put(None))
        try:
            yield from iter(queue.get, None)
        finally:
            stop.set()
        yield future.result()
