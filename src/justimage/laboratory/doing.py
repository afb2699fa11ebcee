"""Works done on all devices there are, each once, with their progress shown; killed or stopped, the same command goes on."""

import json
import math
import os
import platform
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch

from justimage import disk
from justimage.crew import made
from justimage.laboratory import Lab, Result, Talk, Work
from justimage.units import cores


class News(NamedTuple):
    """Of a work: what it is doing, and the fraction done; with the result when it is."""

    identity: str
    what: str
    done: float
    result: Result | None = None


def devices(word: str | None = None) -> list[str]:
    """One for each process: the GPUs, or the cores of a CPU; or the one GPU asked for."""
    if word and word != "cpu":
        return [word]
    if not word and torch.cuda.is_available():
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return ["cpu"] * cores()


def result_of(lab: Lab, work: Work) -> Result | None:
    """What a work found, if it is done."""
    path = lab.kept(work) / "result.json"
    return disk.read_json(path) if path.exists() else None


def done(works: Sequence[Work], lab: Lab, on: Sequence[str]) -> Generator[News, None, None]:
    """Do what is missing, a process a device, and say how it goes; ends with the news of the last result."""
    groups: dict[str, list[Work]] = {}
    for work in {w.identity(lab): w for w in works}.values():
        if result_of(lab, work) is None:
            groups.setdefault(work.group(lab), []).append(work)
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
            else:
                torch.cuda.set_device(lab.device)
            return work.do(lab, talk)

        name = work.identity(lab)
        result: Result = {}
        for news in told(act):
            if isinstance(news, dict):
                result = news
            else:
                yield News(name, *news)
        made_by = {"machine": machine(lab.device), "torch": torch.__version__, "date": date.today().isoformat()}
        result = numbers(result | made_by)
        disk.write(lab.kept(work) / "result.json", json.dumps(result, indent=1, allow_nan=False).encode())
        yield News(name, "", 1.0, result)


def numbers(value: Any) -> Any:
    """The same with None for what is no finite number: JSON has no other."""
    if isinstance(value, dict):
        return {k: numbers(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [numbers(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def machine(device: str) -> str:
    """What computes, for people."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{there} cores, {name or platform.machine()}"


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
