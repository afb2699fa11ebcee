"""The devices to compute on: GPUs, this CPU, and whether several processes can talk to each other."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from justimage.machine.finding import GB, Finding, reason

CPUINFO, CPU_LIMIT = Path("/proc/cpuinfo"), Path("/sys/fs/cgroup/cpu.max")
FREE = 0.5
"""Share of a GPU's memory below which others are said to use it."""
CUDA_BUILD = "install PyTorch's build for CUDA, as pytorch.org says for this system"


def gpus() -> Iterator[Finding]:
    """Each GPU that PyTorch can use, or why there is none."""
    import torch

    listed = driver()
    if torch.backends.mps.is_available():
        yield Finding("mps", "note", "a GPU of Apple's; training on it has not been tried by the authors", facts={"mps": True})
    elif not torch.cuda.is_available():
        yield no_gpu(listed)
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        try:
            yield gpu(i, listed)
        except Exception as error:
            yield Finding(f"cuda:{i}", "missing", f"is there and cannot be used: {reason(error)}", "see nvidia-smi; restart it")


def gpu(index: int, listed: str) -> Finding:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    name, (major, minor) = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
    facts = {"name": name, "memory": total, "free": free, "capability": f"{major}.{minor}", "driver": listed or None}
    text = f"{name}, {free / GB:.1f} of {total / GB:.1f} GB free, compute capability {major}.{minor}" + (
        f", driver {listed}" if listed else ""
    )
    built = [int(arch.removeprefix("sm_").rstrip("af")) for arch in torch.cuda.get_arch_list() if arch.startswith("sm_")]
    if built and not torch.version.hip and 10 * major + minor < min(built):
        advice = "an older PyTorch, or a newer GPU"
        return Finding(f"cuda:{index}", "missing", f"{text}; this PyTorch has no code for it", advice, facts)
    if free < FREE * total:
        return Finding(f"cuda:{index}", "note", f"{text}: other processes hold the rest", "nvidia-smi shows them", facts)
    return Finding(f"cuda:{index}", "ok", text, facts=facts)


def no_gpu(listed: str) -> Finding:
    """Why PyTorch finds no GPU."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    facts = {"driver": listed or None, "CUDA_VISIBLE_DEVICES": visible}
    if not listed:
        return Finding("GPU", "note", "none: trainings and samples are computed on the CPU", facts=facts)
    if visible is not None and not visible.strip().strip("-1"):
        return Finding("GPU", "note", f"hidden by CUDA_VISIBLE_DEVICES={visible}", "unset CUDA_VISIBLE_DEVICES", facts)
    if not torch.version.cuda:
        text = f"there is one of NVIDIA's (driver {listed}), but this PyTorch is built for CPUs"
        return Finding("GPU", "missing", text, CUDA_BUILD, facts)
    try:
        torch.cuda.init()
        why = "PyTorch finds none"
    except Exception as error:
        why = reason(error)
    return Finding(
        "GPU", "missing", f"there is one of NVIDIA's (driver {listed}) that PyTorch cannot use: {why}", CUDA_BUILD, facts
    )


def driver() -> str:
    """The version of NVIDIA's driver; empty where there is none."""
    command = shutil.which("nvidia-smi")
    if not command:
        return ""
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
        return done.stdout.split("\n")[0].strip() if done.returncode == 0 else ""
    return ""


def processor() -> Iterator[Finding]:
    """The CPU: its name, the cores that this process may use, and the threads that PyTorch takes."""
    import torch

    cores, limit, threads = cores_allowed(), cores_limit(), torch.get_num_threads()
    usable = min(cores, limit or cores)
    able = [name for name, there in sorted(getattr(torch.cpu, "get_capabilities", dict)().items()) if there is True]
    facts = {"name": cpu_name(), "cores": cores, "limit": limit, "threads": threads, "capabilities": able}
    text = f"{cpu_name()}, {counted(cores, 'core')}" + (f", of which {limit:g} may be used" if limit and limit < cores else "")
    text += f"; PyTorch takes {counted(threads, 'thread')}"
    set_to = os.environ.get("OMP_NUM_THREADS")
    if threads > usable + 0.5:
        advice = f"export OMP_NUM_THREADS={max(1, int(usable))}: more threads than cores wait for each other"
        yield Finding("CPU", "note", text, advice, facts)
    elif threads < int(usable) and set_to:
        yield Finding("CPU", "note", f"{text}, as OMP_NUM_THREADS is {set_to}", f"export OMP_NUM_THREADS={int(usable)}", facts)
    else:
        yield Finding("CPU", "ok", text, facts=facts)


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def cores_allowed() -> int:
    """Cores on which this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_limit() -> float | None:
    """Cores' worth of time that a container allows; None for no limit."""
    with suppress(OSError, ValueError):
        quota, period = CPU_LIMIT.read_text().split()
        return int(quota) / int(period)  # "max" for none
    return None


def cpu_name() -> str:
    with suppress(OSError):
        for line in CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        with suppress(OSError, subprocess.SubprocessError):
            query = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    return platform.processor() or platform.machine()


def processes() -> Iterator[Finding]:
    """The ways in which several processes can talk."""
    import torch

    from justimage.distributed import backends

    found = backends()
    facts = {"backends": found}
    if torch.cuda.is_available() and "nccl" not in found:
        advice = "several GPUs need NCCL, which PyTorch's builds for Linux have"
        yield Finding("processes", "note", f"without nccl; there is {', '.join(found) or 'nothing'}", advice, facts)
    elif not found:
        yield Finding("processes", "note", "this PyTorch has no way for several processes to train together", facts=facts)
    else:
        yield Finding("processes", "ok", f"several can train together, by {', '.join(found)}", facts=facts)
