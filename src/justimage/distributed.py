"""One process or many by the same calls: plain PyTorch, DDP, FSDP2 or HSDP, started alone or by torchrun.

One process is a world of one, in which every call here is trivial, so nobody else asks how many there are. What is
applied to a network from outside - sharding, compilation, activation checkpointing - is applied here, and the network does
not know. Optimizer, averages and checkpoints work on `local` tensors: whole ones, or this process's rows of them.
"""

import atexit
import json
import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

Parallel = Literal["ddp", "fsdp", "hsdp"]
T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)
PEER_GRACE = 2.0
"""Seconds in which a process may notice by itself that another one is gone, and say more about it."""


class RemoteError(RuntimeError):
    """An error of another process of this world, with the exit code that it has there."""

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class World:
    """The processes that train together, as one of them sees it."""

    device: torch.device
    rank: int = 0
    size: int = 1
    control_group: Any = None
    """group for short messages between hosts"""
    checkpoint_group: Any = None
    """group for the threads that write checkpoints; with the training's own collectives they would wait for each other"""
    heartbeat_group: Any = None
    """group in which each process notices when the next one is gone"""

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def shard_count(self, mode: Parallel) -> int:
        """Into how many parts weights are divided: over all processes (fsdp), or those of a node (hsdp)."""
        node = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        return {"ddp": 1, "fsdp": self.size, "hsdp": node}[mode]

    def all_reduce(self, numbers: Tensor) -> Tensor:
        """The sum over all processes of a tensor on the device."""
        if self.size > 1:
            dist.all_reduce(numbers)
        return numbers

    def gather(self, value: Any, group: Any = None) -> list[Any]:
        """Every process's value, in order of rank; anything that JSON can say."""
        if self.size == 1:
            return [value]
        texts: list[Any] = [None] * self.size
        dist.all_gather_object(texts, json.dumps(value), group=group or self.control_group)
        return [json.loads(text) for text in texts]

    def on_main(self, action: Callable[[], T]) -> T:
        """What the action returns in the first process (JSON), for all; where it fails, all fail alike."""
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
        """What the action returns in the first process, for all, as pickle hands it on; where that or this fails, all fail."""
        made: list[Any] = []
        self.on_main(lambda: made.append(action()))
        if self.size > 1:
            made = made or [None]
            with self.all_or_none():
                dist.broadcast_object_list(made, group=self.control_group)
        return made[0]

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """A block in which no process goes on alone: where it fails in one, the others raise `Elsewhere` at its end."""
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
        """A block in which `lost` is called in every process, from a thread, when one is gone and this one does not notice.

        Among GPUs a collective whose partner has died may never return, and the process that waits in it hears no signal.
        """
        if self.size == 1:
            yield
            return
        over, told = threading.Event(), threading.Lock()

        def tell(gone: float) -> None:
            if told.acquire(blocking=False):  # once: nobody listens to more
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
        try:
            yield
        finally:
            over.set()
            tell(0.0)
            listener.join(5 * PEER_GRACE)  # until the next one leaves, too: connections must not end under a thread that waits

    def assert_same(self, what: str, value: Any) -> None:
        """ValueError where the processes differ in a value."""
        values = self.gather(value)
        if odd := next((i for i, v in enumerate(values) if v != values[0]), 0):
            raise ValueError(f"{what} differs between processes: {values[0]} in the first, {values[odd]} in number {odd}")


def find_device(name: torch.device | str | None = None) -> torch.device:
    """The device of that name, or the best there is; under torchrun each process takes the one of its local rank."""
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return device


def rank_and_size() -> tuple[int, int]:
    """This process's number among those that were started together, and theirs; it need not speak to them."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def init(name: torch.device | str | None = None) -> World:
    """The world that torchrun's environment tells of, or a world of one. The first call connects the processes."""
    device = find_device(name)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return World(device)
    return init_once(device)


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
    """A store that only these processes write to, the rank, and how many they are.

    torchrun keeps one store through all restarts (PyTorch 2.13), with the addresses of processes that are dead. The number of
    restarts does not tell them apart, as each node counts its own. So every process says its name, chosen now, and the first
    one answers until all the others have heard from it; nobody but the living can answer to such a name.
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
                raise RemoteError(f"not all of {size} processes came within {TIMEOUT}")
            for other in range(1, size):
                if store.check([f"justimage/name/{other}"]):
                    store.set(f"justimage/answer/{store.get(f'justimage/name/{other}').decode()}", me)
            time.sleep(0.01)
    return PrefixStore(f"justimage/{first}", store), rank, size


def shutdown() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def restarts_left() -> int:
    """How often torchrun would still start this again; 0 without torchrun."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) - int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def is_restart() -> bool:
    """Whether a launcher (torchrun, SLURM) has started the same command before."""
    return any(int(os.environ.get(n) or 0) > 0 for n in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def build_network(
    make: Callable[[], nn.Module], world: World, mode: Parallel = "ddp", **how: Any
) -> tuple[nn.Module, Callable[..., Any]]:
    """The network that `make` makes, on this process's device, and what to call in training in place of it.

    Its weights are the same however many processes share it: those that PyTorch's generator draws in one. Where it is sharded
    and knows how to `initialise` itself, no process ever holds the whole of it: it is made on the meta device, and then drawn
    tensor by tensor, of which each process keeps its rows. how: options of `parallel`.
    """
    if mode == "ddp" or world.size == 1:
        net = make().to(world.device).train()
        return net, parallelize(net, world, mode, **how)
    with torch.device("meta"), InitShards():
        net = make().train()
    if not hasattr(net, "initialise"):
        raise ValueError(f"a {type(net).__name__} cannot be sharded: it has no method initialise, to draw its weights in place")
    called = parallelize(net, world, mode, **how)
    net.to_empty(device=world.device)
    with InitShards():
        net.initialise()  # pyright: ignore[reportCallIssue]
    return net, called


class InitShards(TorchDispatchMode):
    """Within the block a random fill of a tensor draws all of it on the CPU, as in one process; of a sharded one the rows of
    this process are kept, of one on the meta device nothing is but the generator's progress."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in RANDOM or not (isinstance(args[0], DTensor) or args[0].is_meta):
            return func(*args, **kwargs or {})
        tensor = args[0]
        whole = func(torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu"), *args[1:], **kwargs or {})
        if isinstance(tensor, DTensor):
            its = shard_of(tensor)
            its.tensor.copy_(whole[its.start :][: its.tensor.shape[0]])
        return tensor


RANDOM = (torch.ops.aten.uniform_.default, torch.ops.aten.normal_.default)


def parallelize(
    net: nn.Module,
    world: World,
    mode: Parallel = "ddp",
    compile: bool = False,
    activation_checkpointing: bool = False,
    bf16: bool = False,
    unused: bool = False,
) -> Callable[..., Any]:
    """What to call in training in place of `net`, which is changed in place and stays the network to sample with.

    mode: with several processes, whole copies (ddp), every tensor divided by rows (fsdp, FSDP2, a unit a block), or divided
    within a node and copied across nodes (hsdp). bf16: blocks are gathered as bfloat16, which they compute in. unused: some
    weights may have no gradient.
    """
    blocks = list(getattr(net, "blocks", []))
    if compile:
        prepare_compiler()
    for block in blocks:
        if compile:  # a graph for each of the two lengths of the sequence, and no third one for any length
            block.forward = torch.compile(block.forward, dynamic=False)
        if activation_checkpointing:  # outside what is compiled; dropout needs no generator's state to be computed again
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    if world.size == 1:
        return net
    if mode != "ddp":
        mesh = mesh_for(world, mode)
        half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=half if bf16 else MixedPrecisionPolicy())
        fully_shard(net, mesh=mesh, reshard_after_forward=True)  # else a preview would leave its average's weights gathered
        return net
    with warnings.catch_warnings():  # newer versions call the first of these otherwise
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            net,
            device_ids=[world.device] if world.device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=unused,
        )


def prepare_compiler() -> None:
    """Forget what was compiled before: all blocks share one piece of code, of which Dynamo keeps 8 graphs and then, silently,
    makes no more. And leave DDP's buckets to its hooks, which work between blocks: Dynamo would cut each block at them."""
    import torch._dynamo

    torch.compiler.reset()
    torch._dynamo.config.optimize_ddp = False


def mesh_for(world: World, mode: Parallel) -> DeviceMesh:
    """All processes in a row, or, for hsdp on several nodes, a row a node."""
    shards = world.shard_count(mode)
    if world.size % shards:
        raise ValueError(f"hsdp needs as many processes on every node; there are {world.size} in all and {shards} on this one")
    if shards == world.size:
        return init_device_mesh(world.device.type, (shards,))
    return init_device_mesh(world.device.type, (world.size // shards, shards), mesh_dim_names=("replicate", "shard"))


def use_deterministic(device: torch.device) -> None:
    """From now on compute on a GPU by algorithms whose result does not depend on which thread comes first: slower."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cuda.enable_mem_efficient_sdp(False)  # its backward pass adds in any order, whatever is asked for


def no_sync_until(net: Callable[..., Any], last: bool) -> Any:
    """A block whose backward pass leaves gradients unreduced until the last part of a batch."""
    if isinstance(net, FSDPModule):
        net.set_requires_gradient_sync(last)
        net.set_is_last_backward(last)
    elif isinstance(net, DistributedDataParallel) and not last:
        return net.no_sync()
    return nullcontext()


class Shard(NamedTuple):
    """A tensor, or the rows of one that this process holds."""

    tensor: Tensor
    start: int
    shape: list[int]
    """of the whole tensor"""
    is_writer: bool
    """whether this process is the one to write it"""


@torch.no_grad()
def to_local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor; it shares its memory."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def local_shard(tensor: Tensor, world: World) -> Shard:
    """This process's part of a tensor, and where it lies in the whole."""
    return shard_of(tensor) if isinstance(tensor, DTensor) else Shard(to_local(tensor), 0, list(tensor.shape), world.is_main)


def shard_of(tensor: DTensor) -> Shard:
    """FSDP2 divides the first dimension, rounding up, along the mesh's last one; what lies across the first are copies."""
    mesh = tensor.device_mesh
    height = -(-tensor.shape[0] // mesh.size(mesh.ndim - 1))
    start = min(mesh.get_local_rank(mesh.ndim - 1) * height, tensor.shape[0])
    return Shard(to_local(tensor), start, list(tensor.shape), mesh.ndim == 1 or mesh.get_local_rank(0) == 0)


def shard_count(net: nn.Module) -> int:
    """Into how many parts, each in another process, the network's tensors are divided; the first so many processes have all."""
    mesh = next((p.device_mesh for p in net.parameters() if isinstance(p, DTensor)), None)
    return mesh.size(mesh.ndim - 1) if mesh else 1
