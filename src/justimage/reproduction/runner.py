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
from justimage.chunks import cpu_count
from justimage.pool import run_in_pool
from justimage.reproduction import Job, Lab, Result, Talk


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
    return ["cpu"] * cpu_count()


def read_result(lab: Lab, work: Job) -> Result | None:
    """What a work found, if it is done."""
    path = lab.result_dir(work) / "result.json"
    return disk.read_json(path) if path.exists() else None


def run_jobs(works: Sequence[Job], lab: Lab, on: Sequence[str]) -> Generator[News, None, None]:
    """Do what is missing, a process a device, and say how it goes; ends with the news of the last result."""
    groups: dict[str, list[Job]] = {}
    for work in {w.key(lab): w for w in works}.values():
        if read_result(lab, work) is None:
            groups.setdefault(work.group(lab), []).append(work)
    todo = list(groups.values())
    if not todo:
        return
    crew = on[: len(todo)]
    makes = [partial(run_group, todo, replace(lab, device=device), len(crew)) for device in crew]
    yield from run_in_pool(makes, range(len(todo)), __name__)


def run_group(todo: Sequence[Sequence[Job]], lab: Lab, beside: int, number: int) -> Iterator[News]:
    """Do one group of works in this process, one of `beside` that share the machine."""
    os.environ["LOCAL_WORLD_SIZE"] = str(beside)
    for work in todo[number]:

        def act(talk: Talk, work: Job = work) -> Result:
            if lab.device == "cpu":
                torch.set_num_threads(1)  # so that bits do not depend on the number of cores
            else:
                torch.cuda.set_device(lab.device)
            return work.do(lab, talk)

        name = work.key(lab)
        result: Result = {}
        for news in told(act):
            if isinstance(news, dict):
                result = news
            else:
                yield News(name, *news)
        made_by = {"machine": machine_name(lab.device), "torch": torch.__version__, "date": date.today().isoformat()}
        result = jsonable(result | made_by)
        disk.write(lab.result_dir(work) / "result.json", json.dumps(result, indent=1, allow_nan=False).encode())
        yield News(name, "", 1.0, result)


def jsonable(value: Any) -> Any:
    """The same with None for what is no finite number: JSON has no other."""
    if isinstance(value, dict):
        return {k: jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def machine_name(device: str) -> str:
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
