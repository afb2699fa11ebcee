"""Applied to a network from outside: sharding (DDP, FSDP2, HSDP), compilation, activation checkpointing.

The network does not know. Averages and checkpoints work on local tensors (`to_local`): whole ones, or this process's rows of
sharded ones.
"""

import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from justimage.distributed import Parallel, World
from justimage.layers import use_plain_attention


def build_network(
    make: Callable[[], nn.Module], world: World, mode: Parallel = "ddp", **how: Any
) -> tuple[nn.Module, Callable[..., Any]]:
    """Build the network that `make` returns, on this process's device; return it and what to call in training instead of it.

    First weights are those that PyTorch's generator draws in one process, at any world size. A sharded network with a method
    `init_weights` never exists whole: it is made on the meta device and filled tensor by tensor, of which each process keeps
    its rows. ValueError for one whose weights that would lose: a network that is there already, or one whose `init_weights`
    leaves something as it is. how: options of `parallelize`.
    """
    if mode == "ddp" or world.size == 1:
        net = make().to(world.device).train()
        return net, parallelize(net, world, mode, **how)
    with torch.device("meta"), InitShards():
        net = make().train()
    if not hasattr(net, "init_weights"):
        raise ValueError(
            f"a {type(net).__name__} cannot be sharded: it has no method init_weights, to draw its weights in place"
        )
    if not all(p.is_meta for p in net.parameters()):
        raise ValueError(
            f"this {type(net).__name__} has its weights already, and {mode} draws them in place: give a function that makes it"
        )
    name, called = type(net).__name__, parallelize(net, world, mode, **how)
    net.to_empty(device=world.device)
    tensors = {path: to_local(t) for path, t in (*net.named_parameters(), *net.named_buffers()) if t.is_floating_point()}
    for tensor in tensors.values():
        tensor.fill_(torch.nan)
    with InitShards():
        net.init_weights()  # pyright: ignore[reportCallIssue]
    if unset := [path for path, tensor in tensors.items() if tensor.isnan().any()]:
        raise ValueError(f"init_weights of {name} leaves {unset[0]} as it is; for {mode} it must fill everything")
    return net, called


class InitShards(TorchDispatchMode):
    """Within the block a random fill draws the whole tensor on the CPU, as in one process. Of a sharded tensor the rows of this
    process are kept; of one on the meta device only the generator's progress."""

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
    deterministic: bool = False,
) -> Callable[..., Any]:
    """Shard, compile and checkpoint `net` in place; return what to call in training instead of it.

    mode: with several processes, full replicas (ddp), every tensor sharded by rows (fsdp: FSDP2, a unit a block), or sharded
    within a node and replicated across nodes (hsdp). bf16: blocks are gathered as bfloat16, which they compute in. unused: some
    weights may get no gradient. deterministic: a process that resumes adds gradients in the order of one that goes on.
    """
    exact = world.size > 2 and (deterministic or world.device.type == "cpu")  # the sum of two has no order
    blocks = list(getattr(net, "blocks", []))
    if compile:
        prepare_compiler()
        if world.device.type == "cpu":
            use_plain_attention(net)
    for block in blocks:
        if compile:  # one graph for each of the two sequence lengths, and no dynamic third one
            block.forward = torch.compile(block.forward, dynamic=False)
        if activation_checkpointing:  # outside the compiled code; recomputed dropout needs no generator state
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    if world.size == 1:
        return net
    if mode != "ddp":
        mesh = mesh_for(world, mode)
        half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=half if bf16 else MixedPrecisionPolicy())
        fully_shard(net, mesh=mesh, reshard_after_forward=True)  # else a preview would leave the weights of an average gathered
        return net
    with warnings.catch_warnings():  # newer versions call the first of these otherwise
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            net,
            device_ids=[world.device] if world.device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=unused or exact,  # else the second step adds in another order than the first
        )


def prepare_compiler() -> None:
    """Reset the compiler: all blocks share one piece of code, of which Dynamo keeps 8 graphs and then silently falls back to
    eager. And switch off its DDP optimizer, which would split each compiled block at a bucket; hooks between blocks suffice."""
    import torch._dynamo

    torch.compiler.reset()
    torch._dynamo.config.optimize_ddp = False


def mesh_for(world: World, mode: Parallel) -> DeviceMesh:
    """Return the device mesh: one dimension, or for hsdp on several nodes (node, process of the node)."""
    shards = world.shard_count(mode)
    if world.size % shards:
        raise ValueError(f"hsdp needs as many processes on every node; there are {world.size} in all and {shards} on this one")
    if shards == world.size:
        return init_device_mesh(world.device.type, (shards,))
    return init_device_mesh(world.device.type, (world.size // shards, shards), mesh_dim_names=("replicate", "shard"))


def use_deterministic(device: torch.device) -> None:
    """Use deterministic algorithms on a GPU from now on: slower."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cuda.enable_mem_efficient_sdp(False)  # its backward pass adds in any order, whatever the flag says


def no_sync_until(net: Callable[..., Any], last: bool) -> Any:
    """A block whose backward pass leaves gradients unreduced until the last microbatch of a step."""
    if isinstance(net, FSDPModule):
        net.set_requires_gradient_sync(last)
        net.set_is_last_backward(last)
    elif isinstance(net, DistributedDataParallel) and not last:
        return net.no_sync()
    return nullcontext()


class Shard(NamedTuple):
    """The rows of a tensor that this process holds; of an unsharded one all."""

    tensor: Tensor
    start: int
    shape: list[int]
    """of the full tensor"""
    is_writer: bool
    """whether this process writes them to a checkpoint"""


@torch.no_grad()
def to_local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, sharing its memory."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def local_shard(tensor: Tensor, world: World) -> Shard:
    """Return this process's part of a tensor, and its place in the full one."""
    return shard_of(tensor) if isinstance(tensor, DTensor) else Shard(to_local(tensor), 0, list(tensor.shape), world.is_main)


def shard_of(tensor: DTensor) -> Shard:
    """Return the local rows of a sharded tensor. FSDP2 shards dimension 0, rounding up, along the mesh's last dimension; along
    the first there are replicas."""
    mesh = tensor.device_mesh
    height = -(-tensor.shape[0] // mesh.size(mesh.ndim - 1))
    start = min(mesh.get_local_rank(mesh.ndim - 1) * height, tensor.shape[0])
    return Shard(to_local(tensor), start, list(tensor.shape), mesh.ndim == 1 or mesh.get_local_rank(0) == 0)


def shard_count(net: nn.Module) -> int:
    """Return the number of shards of the network's tensors; the first so many processes hold all of them."""
    mesh = next((p.device_mesh for p in net.parameters() if isinstance(p, DTensor)), None)
    return mesh.size(mesh.ndim - 1) if mesh else 1
