"""Save a training's state in the background, and restore it, in any number of processes."""

import reprlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from justimage import disk
from justimage.checkpoint.history import checkpoint_dir, prune
from justimage.checkpoint.model import check_shapes, named_weights
from justimage.checkpoint.shards import (
    SAFETENSORS_TYPES,
    Groups,
    Reader,
    is_plain,
    publish_shards,
    read_state,
    staging_dir,
    write_shard,
)
from justimage.distributed import World
from justimage.ema import EMA
from justimage.parallelize import Shard, local_shard
from justimage.recipe import Recipe

HOST_BLOCK = 2**30
"""Bytes of host memory pinned at once."""
ALIGNMENT = 64
"""Bytes; tensors begin there at multiples."""
NOT_SAVED = {"params", "lr", "foreach", "fused", "capturable", "differentiable"}
"""Settings of an optimizer's group that follow from the network, the recipe or the device."""
SAVABLE = "allowed: plain tensors, numbers and words, by parameters of the network and names without a dot"


class SaveFailed(OSError):
    """Checkpoints could not be written, several times in a row."""

    exit_code = 74


def sharded_state_dict(net: nn.Module, optimizer: Optimizer, ema: EMA, world: World) -> dict[str, dict[str, Shard]]:
    """This process's rows of every tensor that a training has to save, by group."""
    weights = {n: local_shard(tensor, world) for n, tensor in named_weights(net).items()}
    state = {n: local_shard(value, world) for n, value in optimizer_state(net, optimizer) if isinstance(value, Tensor)}
    groups = {"model": weights, "optimizer": dict(sorted(state.items()))}
    for e, average in ema.averages.items():  # of the parameters; buffers are as they are
        averaged = {n: weights[n]._replace(tensor=a) for (n, _), a in zip(net.named_parameters(), average, strict=True)}
        groups[f"ema-{e}"] = weights | averaged
    return groups


def optimizer_state(net: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Any]]:
    """Every entry of an optimizer's state, as KEY.PARAMETER and its value; ValueError for one that a checkpoint cannot hold."""
    names: dict[Any, str] = {p: n for n, p in net.named_parameters()}
    for p, entries in optimizer.state.items():
        for key, value in entries.items():
            tensor = isinstance(value, Tensor) and value.dtype in SAFETENSORS_TYPES
            if p not in names or not isinstance(key, str) or "." in key or not (tensor or is_plain(value)):
                raise ValueError(f"the optimizer's state {key!r}, {type(value).__name__}, cannot be saved; {SAVABLE}")
            yield f"{key}.{names[p]}", value


def optimizer_numbers(net: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Entries of an optimizer's state that are not tensors: numbers and words by parameter, and the settings of its groups."""
    numbers = {n: value for n, value in optimizer_state(net, optimizer) if not isinstance(value, Tensor)}
    settings = [{k: v for k, v in group.items() if k not in NOT_SAVED and not callable(v)} for group in optimizer.param_groups]
    if unsavable := [k for group in settings for k, v in group.items() if not is_plain(v)]:
        raise ValueError(f"the optimizer's setting {unsavable[0]!r} cannot be saved; allowed: numbers, words and functions")
    return {"state": numbers, "groups": settings}


def restore(folder: Path, net: nn.Module, optimizer: Optimizer, ema: EMA, world: World) -> None:
    """Copy a verified checkpoint's tensors into a training's state, strictly: each process its own rows."""
    reader, fresh = Reader(folder), not optimizer.state
    if fresh:
        init_optimizer_state(optimizer)
    groups = sharded_state_dict(net, optimizer, ema, world)
    del groups["optimizer"]
    for group, named in groups.items():
        check_shapes({n: shard.shape for n, shard in named.items()}, reader.shapes(group), folder / group)
        for n, shard in named.items():
            reader.copy_rows(group, n, shard)
    restore_optimizer(reader, net, optimizer, world, strict=fresh)


def init_optimizer_state(optimizer: Optimizer) -> None:
    """Let an optimizer create its state by a step with gradients and rates of 0: only it knows the device, the type and the
    sharding of its tensors (PyTorch's own distributed checkpoints do so, too). Weights are read afterwards."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # training sets it before each step
        for p in group["params"]:
            p.grad = torch.zeros_like(p) if p.requires_grad else None
    optimizer.step()
    optimizer.zero_grad()


def restore_optimizer(reader: Reader, net: nn.Module, optimizer: Optimizer, world: World, strict: bool) -> None:
    """Fill the state of an optimizer; where nothing was saved of a parameter, it has none, as when it was saved.

    strict: ValueError where something that the optimizer creates in its first step was not saved.
    """
    folder, created = reader.folder, dict(optimizer_state(net, optimizer))
    saved = read_state(folder).get("optimizer", {"state": {}, "groups": []})
    shapes, numbers = reader.shapes("optimizer"), saved["state"]
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    parameters = {n: p for n, p in net.named_parameters() if p in trained}
    with_state = {name.partition(".")[2] for name in shapes | numbers}
    if unknown := sorted(with_state - parameters.keys()):
        raise ValueError(f"{folder} has an optimizer state of {disk.printable(unknown[0])}, which is not trained")
    if strict and (missing := [n for n in created if n.partition(".")[2] in with_state and n not in shapes | numbers]):
        raise ValueError(f"{folder} has no optimizer state {missing[0]}; it was saved by another optimizer")
    optimizer.state.clear()
    there = shapes | numbers
    for name in [n for n in created if n in there] + [n for n in there if n not in created]:  # in the optimizer's own order
        key, _, n = name.partition(".")
        value = created.get(name)
        if name in numbers:
            value = like(numbers[name], value, f"{folder}: optimizer state {name}")
        elif isinstance(value, Tensor):
            shard = local_shard(value, world)
            if shard.shape != shapes[name]:
                raise ValueError(f"{folder} has an optimizer state {name} of {shapes[name]}, not {shard.shape}")
            reader.copy_rows("optimizer", name, shard)
        else:  # an optimizer may create it after its first step
            value = reader.read_rows("optimizer", name).to(parameters[n].device)
        optimizer.state[parameters[n]][key] = value
    restore_settings(folder, optimizer, saved["groups"])


def restore_settings(folder: Path, optimizer: Optimizer, saved: list[dict[str, Any]]) -> None:
    """Set the settings of an optimizer's groups as they were saved: some optimizers change theirs."""
    groups = optimizer.param_groups
    if saved and len(saved) != len(groups):
        raise ValueError(f"{folder} was saved with {len(saved)} groups of parameters; this optimizer has {len(groups)}")
    for group, settings in zip(groups, saved, strict=False):
        for name in settings.keys() & group.keys() - NOT_SAVED:
            group[name] = like(settings[name], group[name], f"{folder}: optimizer setting {name}")


def like(value: Any, current: Any, where: str) -> Any:
    """A saved number or word to replace the current one, a tuple where that is one; ValueError for another kind of value."""
    if isinstance(current, tuple) and isinstance(value, list) and len(value) == len(current):
        return tuple(like(v, c, where) for v, c in zip(value, current, strict=True))
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (value, current))
    if current is None or type(value) is type(current) or numbers:
        return value
    raise ValueError(f"{disk.printable(where)} is {reprlib.repr(value)}, which cannot replace {current!r}")


def allocate_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Allocate host memory for a copy of each tensor, in few large blocks, pinned for tensors on a GPU.

    PyTorch rounds every pinned block up to a power of two and keeps it: tensor by tensor, H/16 would take 40 GB for 23.
    """
    sizes, copies = {n: t.numel() * t.element_size() for n, t in tensors.items()}, {}
    for names in pack(sizes):
        aligned = [-(-sizes[n] // ALIGNMENT) * ALIGNMENT for n in names]
        block = torch.empty(sum(aligned), dtype=torch.uint8, pin_memory=any(tensors[n].is_cuda for n in names))
        for n, room in zip(names, block.split(aligned), strict=True):
            copies[n] = room[: sizes[n]].view(tensors[n].dtype).view(tensors[n].shape)
    return copies


def pack(sizes: Mapping[str, int]) -> list[list[str]]:
    """Names of tensors, in their order, in groups of about HOST_BLOCK bytes."""
    groups: list[list[str]] = []
    room = 0
    for n, size in sizes.items():
        if size > room or not groups:
            groups.append([])
            room = HOST_BLOCK
        groups[-1].append(n)
        room -= size
    return groups


def cuda_event(device: torch.device) -> Any:
    """Record an event on a GPU's stream; None elsewhere."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class SaveResult(NamedTuple):
    """The outcome of a save: images seen, seconds that training waited, seconds that it took, and an error or nothing."""

    images_seen: int
    blocked: float
    seconds: float
    error: str = ""


@dataclass
class Saver:
    """Writes a run's checkpoints in a thread; training waits only for the copy to the host.

    Every process writes its own rows into one folder; when all are done, the main process publishes it. All get the same
    outcome of every save. An error leaves published checkpoints as they are.
    """

    run: Path
    world: World
    best_checkpoint: Callable[[], int | None] = lambda: None
    """images seen at the checkpoint to keep beside the newest"""
    host_copies: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """the copy of each group, reused by the next save: allocating costs more than copying"""
    pending: Future[SaveResult] | None = None

    def __post_init__(self) -> None:
        on_device = partial(torch.cuda.set_device, self.world.device) if self.world.device.type == "cuda" else None
        self.thread = ThreadPoolExecutor(1, initializer=on_device)  # a thread begins on the first GPU

    def save(self, groups: Groups, recipe: Recipe, state: dict[str, Any], shards: int = 1) -> list[SaveResult]:
        """Begin a save by `shards` processes; wait for the one before, and return its outcome."""
        began = time.perf_counter()
        previous = self.poll(wait=True)
        events = [cuda_event(self.world.device)]
        copied = {g: self.copy(g, named) for g, named in groups.items()}
        events.append(cuda_event(self.world.device))
        blocked = time.perf_counter() - began
        self.pending = self.thread.submit(self.write, copied, recipe, state, shards, events, blocked)
        return previous

    def copy(self, group: str, named: Mapping[str, Shard]) -> dict[str, Shard]:
        """Copy what this process writes of a group to the host; on a GPU the copy is queued behind the step."""
        mine = {n: r.tensor.detach() for n, r in named.items() if r.is_writer}
        layout = {n: (tensor.shape, tensor.dtype) for n, tensor in mine.items()}
        if layout != {n: (copy.shape, copy.dtype) for n, copy in self.host_copies.get(group, {}).items()}:
            self.host_copies[group] = allocate_host(mine)
        copies = self.host_copies.get(group, {})
        for n, tensor in mine.items():
            copies[n].copy_(tensor, non_blocking=True)
        return {n: r._replace(tensor=copies.get(n, r.tensor)) for n, r in named.items()}

    def write(
        self, groups: Groups, recipe: Recipe, state: dict[str, Any], shards: int, events: list[Any], blocked: float
    ) -> SaveResult:
        """In the thread: write this process's shard; in the main process then publish the checkpoint."""
        began, seen, world = time.perf_counter(), state["images_seen"], self.world
        folder = checkpoint_dir(self.run, seen)
        if events[1]:
            events[1].synchronize()
            blocked = max(blocked, events[0].elapsed_time(events[1]) / 1e3)  # the next step queues behind the copies

        def prepare() -> None:
            disk.remove(staging_dir(folder))
            disk.mkdir(staging_dir(folder))

        def write() -> None:
            if not all(r.tensor.isfinite().all() for r in groups["model"].values() if r.is_writer):
                raise ValueError("weights are not finite; they were not saved")
            if world.rank < shards:
                write_shard(folder, groups, recipe, world.rank, shards)

        def publish() -> None:
            publish_shards(folder, recipe, state, shards)
            with suppress(OSError):  # it is published; old ones are removed after the next save
                prune(self.run, recipe.checkpoint.keep_checkpoints, self.best_checkpoint())

        error = ""
        for action, everyone in ((prepare, False), (write, True), (publish, False)):
            mine = ""
            if everyone or world.is_main:
                try:
                    action()
                except (ValueError, OSError) as failure:
                    mine = " ".join(str(failure).split())
            if error := next((text for text in world.gather(mine, world.checkpoint_group) if text), ""):
                break
        return SaveResult(seen, round(blocked, 4), round(time.perf_counter() - began, 3), error)

    def poll(self, wait: bool = False) -> list[SaveResult]:
        """The outcome of the pending save, once; none while it is being written, unless `wait`."""
        if self.pending is None or not (wait or self.pending.done()):
            return []
        outcome, self.pending = self.pending.result(), None
        return [outcome]

    def close(self) -> None:
        self.thread.shutdown(wait=True)
