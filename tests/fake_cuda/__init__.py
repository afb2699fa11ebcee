"""A CUDA device on a machine without one: `python -m tests.fake_cuda STEP/BF16 ...` prints what each case found, as JSON.

PyTorch's FakeTensorMode makes tensors that have a device, a shape and a type, and no numbers. With `device.cpp` loaded before
PyTorch they may be on `cuda` in a build for CPUs, too: forward and backward passes, autocast, optimizers and generators run as
they would on a GPU, an operation that mixes devices raises, and `watch.py` counts what makes the host wait or costs memory.

What cannot be seen this way: kernels, their results and their speed; which of several kernels cuBLAS, cuDNN and attention
choose; the code that the compiler writes for CUDA; NCCL; streams and events; what pinned memory really costs.
"""

import importlib.util
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("device.cpp")
LIBRARY = "fake_cuda.so"


def lacking() -> str:
    """What this machine has not, or has too much of, to build the device; empty where it can."""
    torch = importlib.util.find_spec("torch")
    assert torch and torch.origin
    if (Path(torch.origin).parent / "lib" / "libtorch_cuda.so").exists():
        return "this build of PyTorch has a CUDA of its own"
    return "" if shutil.which("g++") else "no g++ to build the device with"


def build(folder: Path) -> Path:
    """Compile the device into a library in a folder, which `ctypes.CDLL` is to load before PyTorch is imported."""
    torch = importlib.util.find_spec("torch")
    assert torch and torch.origin
    place, library = Path(torch.origin).parent, folder / LIBRARY
    include = [f"-I{place / 'include'}", f"-I{place / 'include/torch/csrc/api/include'}"]
    link = [f"-L{place / 'lib'}", f"-Wl,-rpath,{place / 'lib'}", "-ltorch_cpu", "-lc10"]
    subprocess.run(["g++", "-std=c++20", "-shared", "-fPIC", *include, SOURCE, "-o", library, *link], check=True)
    return library
