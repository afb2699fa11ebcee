"""The precision that will be fast, the compiler that torch.compile needs, and a short measurement of both.

The measurement runs in a process of its own (`python -m justimage.machine.speed`), which is ended when its time is up: a
compiler that hangs or crashes takes nothing else with it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from justimage.machine.finding import Finding, reason

SECONDS = 10.0
"""Of the measurement, at most."""
COMPILERS = ("g++", "clang++", "cl")
LINUX_COMPILER = "apt-get install g++"
INSTALL = {"linux": LINUX_COMPILER, "darwin": "xcode-select --install", "win32": "install the C++ Build Tools of Visual Studio"}


def precision() -> Iterator[Finding]:
    """The precision in which trainings and samples are fast on the best device."""
    import torch

    from justimage.distributed import World, find_device, preferred_precision
    from justimage.recipe import preset
    from justimage.tuning import choose_tuning

    device = find_device()
    if device.type == "cpu":
        chosen, able = preferred_precision(device), getattr(torch.cpu, "get_capabilities", dict)()
        names = [name for name in ("avx512_bf16", "amx_bf16", "arm_bf16") if able.get(name)]
        why = f"this CPU has instructions for it ({', '.join(names)})" if names else "this CPU has no instructions for bf16"
    else:
        chosen = choose_tuning(preset("digits"), World(device), lambda what: None).precision
        why = f"{device} {'has' if chosen == 'bf16' else 'has no'} instructions for bf16"
    facts = {"device": str(device), "precision": chosen}
    yield Finding("precision", "ok" if chosen == "bf16" else "note", f"{chosen} on {device}: {why}", facts=facts)


def compiler() -> Iterator[Finding]:
    """A C++ compiler and Python's headers, and Triton for a GPU: torch.compile needs them."""
    named = os.environ.get("CXX")
    found = next((path for name in ([named] if named else COMPILERS) if (path := shutil.which(name))), None)
    facts: dict[str, object] = {"compiler": found, "CXX": named}
    slower = "torch.compile does not work, and what it makes faster is computed uncompiled"
    if named and not found:
        yield Finding("C++ compiler", "missing", f"CXX is {named}, which is not there: {slower}", "unset CXX", facts)
    elif not found:
        advice = INSTALL.get(sys.platform, LINUX_COMPILER)
        yield Finding("C++ compiler", "missing", f"none of {', '.join(COMPILERS)}: {slower}", advice, facts)
    else:
        yield Finding("C++ compiler", "ok", f"{found}{described(found)}", facts=facts)
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if found and not headers.exists():
        advice = f"apt-get install python{sys.version_info.major}.{sys.version_info.minor}-dev"
        yield Finding("Python.h", "missing", f"{headers} is not there: {slower}", advice, {"headers": False})
    yield from triton()


def described(compiler: str) -> str:
    """The first line that a compiler says of itself."""
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=20)
        return f", {done.stdout.splitlines()[0].strip()}" if done.returncode == 0 and done.stdout.strip() else ""
    return ""


def triton() -> Iterator[Finding]:
    """Triton, where there is a GPU to compile for."""
    import torch

    if not torch.cuda.is_available():
        return
    try:
        import triton  # pyright: ignore[reportMissingImports]
    except Exception as error:
        text = f"cannot be imported, so that nothing is compiled for a GPU: {reason(error)}"
        yield Finding("Triton", "missing", text, "pip install triton", {"triton": None})
        return
    yield Finding("Triton", "ok", triton.__version__, facts={"triton": triton.__version__})


def training_speed() -> Iterator[Finding]:
    """Images/s of T/8 at 32 x 32, the network of the demo, forwards and backwards, in each way to compute."""
    speeds, cut_short = speeds_within(SECONDS)
    facts = {"network": "T/8", "images_per_second": speeds, "cut_short": cut_short}
    if not speeds:
        advice = "justimage doctor again, when nothing else is computing"
        yield Finding("training", "note", f"nothing could be measured: {cut_short}", advice, facts)
        return
    each = ", ".join(f"{way} {images:,.0f} images/s" for way, images in speeds.items())
    text = f"T/8 at 32 x 32, forwards and backwards: {each}" + (f"; {cut_short}" if cut_short else "")
    text += f"; {max(speeds, key=lambda way: speeds[way])} is fastest"
    yield Finding("training", "ok" if "compiled" in str(speeds) else "note", text, facts=facts)


def speeds_within(seconds: float) -> tuple[dict[str, float], str]:
    """Images/s by way to compute, and why that is not all; empty where it is."""
    speeds: dict[str, float] = {}
    late = threading.Event()
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, "-m", "justimage.machine.speed"]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True)
        timer = threading.Timer(seconds, end, (child, late))
        timer.start()
        try:
            for line in child.stdout or ():
                with suppress(ValueError):
                    speeds |= json.loads(line)
            code = child.wait()
        except BaseException:
            end(child, late)
            raise
        finally:
            timer.cancel()
        errors.seek(0)
        said = errors.read().strip().splitlines()
    if late.is_set():
        return speeds, f"stopped after {seconds:g} s" + (
            ", before it was compiled: the first time takes longer" if speeds else ""
        )
    return speeds, "" if code == 0 else f"it ended with code {code}: {' '.join(said[-1:])[:300]}"


def end(child: subprocess.Popen[str], late: threading.Event) -> None:
    """End a process, and the compilers that it started."""
    late.set()
    with suppress(OSError):
        os.killpg(child.pid, signal.SIGKILL) if hasattr(os, "killpg") else child.kill()


def main() -> None:
    """Measure, printing each speed as soon as it is known."""
    from justimage import tuning
    from justimage.distributed import World, find_device, preferred_precision
    from justimage.recipe import preset, with_values

    world = World(find_device())
    recipe = with_values(preset("digits"), total_images=10**9)
    for way in dict(compile=False), dict(compile=True, precision=preferred_precision(world.device)):
        print(json.dumps(tuning.measure(with_values(recipe, **way), world, lambda what: None)), flush=True)


if __name__ == "__main__":
    main()
