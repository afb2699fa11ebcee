"""A fake device, and a count of what is asked of it: copies, waits, casts of weights, and memory."""

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

import justimage
from justimage import data
from justimage.checkpoint.shards import Reader
from justimage.data import Stream
from justimage.features import classifier

aten: Any = torch.ops.aten
CUDA = torch.device("cuda", 0)
HOUSE = str(Path(justimage.__file__).parent) + "/"
READ = (1.0, 0.5)
"""What is read from tensors, then zeros. Of a step: its loss, the gradient's norm, nobody asked to stop, and nothing failed."""
WAITING = (aten.nonzero.default, aten.equal.default, aten.is_nonzero.default, aten._unique2.default, aten.masked_select.default)
"""Operations, besides reading a number, that need an answer from the device."""
FILLING = (aten.zeros.default, aten.ones.default, aten.full.default, aten.zeros_like.default, aten.full_like.default)


class Watch(TorchDispatchMode):
    """Counts what is done within the block, by the function of justimage that does it: "sampling.py:draw"."""

    def __init__(self) -> None:
        super().__init__()
        self.storages, self.live = WeakIdKeyDictionary(), 0
        self.clear()

    def clear(self) -> None:
        """Count anew; memory in use stays."""
        self.blocking: Counter[str] = Counter()
        """copies between host and device for which the host waits"""
        self.queued: Counter[str] = Counter()
        """copies between host and device that it does not wait for"""
        self.waits: Counter[str] = Counter()
        """answers from the device that it waits for"""
        self.casts: Counter[int] = Counter()
        """how often a float32 tensor became bfloat16, by its id"""
        self.filled: Counter[tuple[str, str, int]] = Counter()
        """tensors made of one number, by where, type and size"""
        self.largest: Counter[torch.dtype] = Counter()
        """how many numbers the largest new tensor on the device has, by its type"""
        self.pinned = 0
        """pieces of memory that are pinned"""
        self.peak = self.live
        """most bytes on the device at once"""

    def counts(self) -> dict[str, dict[str, int]]:
        return {"blocking": dict(self.blocking), "queued": dict(self.queued), "waits": dict(self.waits)}

    def weights_cast(self, net: nn.Module) -> dict[str, int]:
        """How often each of a network's weights became bfloat16."""
        return {n: self.casts[id(p)] for n, p in net.named_parameters() if id(p) in self.casts}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is aten._local_scalar_dense.default:
            return self.number(args[0])
        if func in WAITING and args[0].device.type == "cuda":
            self.waits[site()] += 1
        if func in (aten._to_copy.default, aten.copy_.default):
            self.copy(func, args, kwargs)
        if (generator := kwargs.get("generator")) is not None:
            device = torch.device(kwargs.get("device") or args[0].device)
            if generator.device.type != device.type:
                raise RuntimeError(f"a generator on {generator.device} draws a tensor on {device}")
        self.pinned += bool(kwargs.pop("pin_memory", False))
        out = func(*args, **kwargs)
        if func in FILLING:
            self.filled[site(), str(out.dtype).removeprefix("torch."), out.numel()] += 1
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.device.type == "cuda":
                self.hold(tensor)
        return out

    def copy(self, func: Any, args: Any, kwargs: Any) -> None:
        if func is aten.copy_.default:
            source, target = args[1], args[0].device
            queued = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        else:
            source, target = args[0], torch.device(kwargs.get("device") or args[0].device)
            queued = kwargs.get("non_blocking", False)
            if source.dtype == torch.float32 and kwargs.get("dtype") == torch.bfloat16:
                self.casts[id(source)] += 1
        if source.device.type != target.type:
            (self.queued if queued else self.blocking)[f"{site()} to {target.type}"] += 1

    def number(self, tensor: Tensor) -> Any:
        """The number in a tensor: of one on the host the true one, where that is known."""
        if tensor.device.type == "cuda":
            self.waits[site()] += 1
        else:
            try:
                return aten._local_scalar_dense.default(tensor)
            except DataDependentOutputException:
                pass
        return READ[0] if tensor.is_floating_point() else int(READ[0])

    def numbers(self, tensor: Any) -> Any:
        """The numbers in a row of them, for which the host waits once."""
        if not tensor.ndim:
            return tensor.item()
        if tensor.device.type == "cuda":
            self.waits[site()] += 1
        kind = float if tensor.is_floating_point() else int
        return [kind(n) for n, _ in zip_longest(READ, range(len(tensor)), fillvalue=0)][: len(tensor)]

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor's memory until nobody has it."""
        self.largest[tensor.dtype] = max(self.largest[tensor.dtype], tensor.numel())
        storage = tensor.untyped_storage()
        if storage not in self.storages:
            self.storages[storage] = size = storage.nbytes()
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.release, size)

    def release(self, size: int) -> None:
        self.live -= size


def site() -> str:
    """The function of justimage that is being run; "" for what a backward pass does, in a thread of its own."""
    frame = sys._getframe(1)
    while frame and not frame.f_code.co_filename.startswith(HOUSE):
        frame = frame.f_back
    if frame is None:
        return ""
    return f"{frame.f_code.co_filename.removeprefix(HOUSE)}:{frame.f_code.co_qualname.split('.<locals>')[0]}"


class Mode(FakeTensorMode):
    avoid_device_init = True  # pyright: ignore  # whatever torch.cuda.is_available says, below


@contextmanager
def fake_cuda() -> Iterator[Watch]:
    """Within the block tensors have no numbers, and may be on `cuda`."""
    watch = Watch()
    instead: dict[tuple[Any, str], Any] = {
        (nn.Module, "_apply"): apply,  # exchanges a tensor with what it becomes, which fake ones do not allow
        (FakeTensor, "tolist"): lambda tensor: watch.numbers(tensor),  # reads number by number
        (torch.cuda, "is_available"): lambda: True,  # asks the driver, as the two below do
        (torch.cuda, "is_bf16_supported"): lambda: True,
        (torch.cuda, "set_device"): lambda device: None,
        (torch.cuda, "Event"): mock.MagicMock,  # of a stream
        (data, "batches"): batches,  # uses NumPy, and the driver to pin
        (Reader, "read_rows"): real(Reader.read_rows),  # reads a file, as the two below do
        (classifier, "safe_open"): opened,
        (torch.export, "load"): real(torch.export.load),
    }
    with ExitStack() as stack:
        for (owner, name), value in instead.items():
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(Mode(allow_non_fake_inputs=True))
        yield stack.enter_context(watch)


def apply(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    for m in module.modules():
        m._parameters |= {n: nn.Parameter(fn(p.detach()), p.requires_grad) for n, p in m._parameters.items() if p is not None}
        m._buffers |= {n: fn(b) for n, b in m._buffers.items() if b is not None}
    return module


def batches(stream: Stream, starts: Any, size: int, workers: int = 0, pinned: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    assert pinned
    for start in starts:
        yield real(stream.batch)(start, size)


@contextmanager
def opened(path: Path, framework: str) -> Iterator[Any]:
    with safe_open(path, framework) as file:
        tensors = real(lambda: {n: file.get_tensor(n) for n in file.keys()})()  # noqa: SIM118
        yield mock.Mock(metadata=file.metadata, keys=tensors.keys, get_tensor=tensors.get)


def real(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run with tensors that have numbers."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args, **kwargs)

    return run
