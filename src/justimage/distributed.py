"""One process or many by the same calls, started alone or by torchrun: who they are, and how they agree.

One process is a world of one, in which every call here is trivial, so no other file asks how many processes there are.
parallelize.py divides a network among them.
"""

import atexit
import ctypes
import gc
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

Parallel = Literal["ddp", "fsdp", "hsdp"]
T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)
PEER_GRACE = 2.0
"""Seconds that a process has to notice by itself that a peer is gone, and to report it in more detail."""


class RemoteError(RuntimeError):
    """An error raised in another process, with its exit code there."""

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class World:
    """The processes that train together, as seen by one of them."""

    device: torch.device
    rank: int = 0
    size: int = 1
    control_group: Any = None
    """group for short messages between hosts"""
    checkpoint_group: Any = None
    """group for the threads that write checkpoints: on the training's own group their collectives would deadlock"""
    heartbeat_group: Any = None
    """group in which each process watches the next one"""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes what is written once."""
        return self.rank == 0

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def shard_count(self, mode: Parallel) -> int:
        """Shards of each weight: one (ddp), one a process (fsdp), or one a process of a node (hsdp)."""
        node = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        return {"ddp": 1, "fsdp": self.size, "hsdp": node}[mode]

    def all_reduce(self, numbers: Tensor) -> Tensor:
        """Sum a tensor on the device over all processes."""
        if self.size > 1:
            dist.all_reduce(numbers)
        return numbers

    def gather(self, value: Any, group: Any = None) -> list[Any]:
        """Gather every process's value (JSON), in order of rank."""
        if self.size == 1:
            return [value]
        texts: list[Any] = [None] * self.size
        dist.all_gather_object(texts, json.dumps(value), group=group or self.control_group)
        return [json.loads(text) for text in texts]

    def on_main(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0 and broadcast its JSON result; an error there is raised on every rank."""
        result, failure = None, None
        if self.is_main:
            try:
                result = action()
            except (ValueError, OSError) as error:
                failure = error
        result_there, message, code = self.gather([result, str(failure or ""), getattr(failure, "exit_code", None)])[0]
        if failure:
            raise failure
        if message:
            raise RemoteError(message, code)
        return result_there if result is None else result

    def broadcast_from_main(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0 and broadcast its result by pickle; an error in either is raised on every rank."""
        made: list[Any] = []
        self.on_main(lambda: made.append(action()))
        if self.size > 1:
            made = made or [None]
            with self.all_or_none():
                dist.broadcast_object_list(made, group=self.control_group)
        return made[0]

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """A block that succeeds in all processes or in none: where one fails, the others raise `RemoteError` at its end."""
        failure = None
        try:
            yield
        except (ValueError, OSError) as error:
            failure = error
        failures = self.gather([str(failure or ""), getattr(failure, "exit_code", None)])
        if failure:
            raise failure
        for message, code in failures:
            if message:
                raise RemoteError(message, code)

    @contextmanager
    def watch_peers(self, lost: Callable[[], object]) -> Iterator[None]:
        """A block in which `lost` is called, from a thread of every process, when a peer is gone and this one does not notice.

        On GPUs a collective whose peer has died may never return, and the process that waits in it receives no signal.
        """
        if self.size == 1:
            yield
            return
        over, said = threading.Event(), threading.Lock()

        def tell(gone: float) -> None:
            if said.acquire(blocking=False):  # once: the peer reads no more
                with suppress(RuntimeError):
                    dist.send(torch.tensor([gone]), (self.rank - 1) % self.size, self.heartbeat_group)

        def listen() -> None:
            gone = torch.ones(1)
            with suppress(RuntimeError):
                dist.recv(gone, (self.rank + 1) % self.size, self.heartbeat_group)
            if gone.item():
                tell(1.0)
                if not over.wait(PEER_GRACE):
                    lost()

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        left = 1.0  # by a failure of this process alone, of which the others know nothing
        try:
            yield
            left = 0.0
        except (GeneratorExit, ValueError, OSError, RemoteError):  # which all share
            left = 0.0
            raise
        finally:
            over.set()
            tell(left)
            if not left:
                listener.join(5 * PEER_GRACE)  # until the next one leaves, too: a connection must not close under a thread

    def assert_same(self, what: str, value: Any) -> None:
        """Raise ValueError where the processes have different values."""
        values = self.gather(value)
        if odd := next((i for i, v in enumerate(values) if v != values[0]), 0):
            raise ValueError(f"{what} differs between processes: {values[0]} in the first, {values[odd]} in number {odd}")


def find_device(name: torch.device | str | None = None) -> torch.device:
    """Return the device of that name, or the best there is; under torchrun each process takes the one of its local rank."""
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name or best)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return device


def preferred_precision(device: torch.device) -> Literal["fp32", "bf16"]:
    """The precision in which the device multiplies matrices fastest: bf16 on a GPU or a CPU with instructions for it."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    able = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}  # older versions do not tell
    return "bf16" if any(able.get(f"{name}_bf16") for name in ("avx512", "amx", "arm")) else "fp32"


def backends() -> list[str]:
    """The ways by which processes can talk to each other with this build of PyTorch."""
    found = {"nccl": dist.is_nccl_available, "gloo": dist.is_gloo_available} if dist.is_available() else {}
    return [name for name, there in found.items() if there()]


def rank_and_size() -> tuple[int, int]:
    """(rank, world size) from the environment, without initialising torch.distributed."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def init(name: torch.device | str | None = None) -> World:
    """Return the world that torchrun's environment describes, or a world of one. The first call connects the processes."""
    device = find_device(name)
    if device.type == "cpu":
        keep_freed_memory()
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return World(device)
    return init_once(device)


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Let glibc keep what this process frees for what it allocates next: each step frees and allocates all activations, and the
    system's clearing of new pages takes up to a fifth of it. Elsewhere do nothing."""
    with suppress(OSError, TypeError, AttributeError):
        glibc = ctypes.CDLL(None).mallopt
        glibc(-1, -1)  # M_TRIM_THRESHOLD, none
        glibc(-4, 0)  # M_MMAP_MAX


@lru_cache(maxsize=1)
def init_once(device: torch.device) -> World:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        store, rank, size = rendezvous_store()
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        atexit.register(shutdown)
    talk, saving, ring = (dist.new_group(backend="gloo", timeout=t) for t in (TIMEOUT, TIMEOUT, timedelta(days=3650)))
    return World(device, dist.get_rank(), dist.get_world_size(), talk, saving, ring)


def rendezvous_store() -> tuple[PrefixStore, int, int]:
    """Return a store that only these processes write to, the rank, and the world size.

    torchrun keeps one store through all restarts (PyTorch 2.13), with the addresses of dead processes. The number of restarts
    does not tell them apart, because each node counts its own. So every process writes a name chosen now, and rank 0 answers
    until all others have heard it: only live processes can answer to such a name.
    """
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    first = me = uuid.uuid4().hex
    if rank:
        store.set(f"justimage/name/{rank}", me)
        first = store.get(f"justimage/answer/{me}").decode()
        store.add(f"justimage/heard/{first}", 1)
    else:
        deadline = time.monotonic() + TIMEOUT.total_seconds()
        while store.add(f"justimage/heard/{me}", 0) < size - 1:
            if time.monotonic() > deadline:
                raise RemoteError(f"not all of {size} processes connected within {TIMEOUT}")
            for other in range(1, size):
                if store.check([f"justimage/name/{other}"]):
                    store.set(f"justimage/answer/{store.get(f'justimage/name/{other}').decode()}", me)
            time.sleep(0.01)
    return PrefixStore(f"justimage/{first}", store), rank, size


def shutdown() -> None:
    """Disconnect from the other processes, and let the control groups' threads end: one that releases a tensor while the
    interpreter ends aborts the process."""
    if dist.is_initialized():
        dist.destroy_process_group()
    init_once.cache_clear()
    gc.collect()


def restarts_left() -> int:
    """Restarts that torchrun has left; 0 without torchrun."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) - int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def is_restart() -> bool:
    """Whether a launcher (torchrun, SLURM) restarted this command."""
    return any(int(os.environ.get(n) or 0) > 0 for n in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
