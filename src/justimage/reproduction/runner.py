"""Runs jobs on all devices there are, each once, with their progress; stopped or killed, the same command resumes."""

import json
import math
import os
import platform
from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from justimage import disk
from justimage.chunks import cpu_count, single_threaded
from justimage.pool import run_in_pool
from justimage.progress import Progress
from justimage.reproduction import Job, Lab, Result, map_progress


class Update(NamedTuple):
    """The progress of one of several jobs; with its result once that is stored."""

    key: str
    progress: Progress
    result: Result | None = None


def devices(word: str | None = None, at_once: int = 1) -> list[str]:
    """One for each process: the GPUs, or the one asked for, each `at_once` times; or the cores of a CPU."""
    if word and word != "cpu":
        return [word] * at_once
    if not word and torch.cuda.is_available():
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())] * at_once
    return ["cpu"] * cpu_count()


def read_result(lab: Lab, job: Job) -> Result | None:
    """The stored result of a job; None where it has none yet."""
    path = lab.result_dir(job) / "result.json"
    return disk.read_json(path) if path.exists() else None


def run_jobs(jobs: Sequence[Job], lab: Lab, on: Sequence[str]) -> Generator[Update, None, None]:
    """Run the jobs that have no result, with one process for each device in `on`; closed early, end them."""
    groups: dict[str, list[Job]] = {}
    for job in {job.key(lab): job for job in jobs}.values():
        if read_result(lab, job) is None:
            groups.setdefault(job.group(lab), []).append(job)
    used = on[: len(groups)]
    tasks = [partial(run_group, list(groups.values()), replace(lab, device=device), len(used)) for device in used]
    if groups:
        yield from run_in_pool(tasks, range(len(groups)), __name__)


def run_group(groups: Sequence[Sequence[Job]], lab: Lab, processes: int, number: int) -> Iterator[Update]:
    """Run one group of jobs in this process, one of several on this machine."""
    os.environ["LOCAL_WORLD_SIZE"] = str(processes)
    for job in groups[number]:
        key = job.key(lab)
        # one thread, so that bits do not depend on the number of cores, nor processes on a GPU wait for each other's threads
        with single_threaded(), nullcontext() if lab.device == "cpu" else torch.cuda.device(lab.device):
            result = yield from map_progress(job.run(lab), partial(Update, key))
        origin = {"machine": machine_name(lab.device), "torch": torch.__version__, "date": date.today().isoformat()}
        result = jsonable(result | origin)
        disk.write(lab.result_dir(job) / "result.json", json.dumps(result, indent=1, allow_nan=False).encode())
        yield Update(key, Progress("", 1, 1), result)


def jsonable(value: Any) -> Any:
    """The same value with None for floats that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {k: jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def machine_name(device: str) -> str:
    """A device's name, for people."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores, {name or platform.machine()}"
