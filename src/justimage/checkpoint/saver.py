"""Saving while training goes on, and restoring: a training's state to a checkpoint and back, in any number of processes."""

import json
import time
from collections.abc import Callable, Mapping
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
from justimage.checkpoint.model import check_shapes
from justimage.checkpoint.shards import CorruptCheckpoint, Groups, Reader, publish_shards, read_state, staging_dir, write_shard
from justimage.distributed import Shard, World, local_shard
from justimage.ema import EMA
from justimage.recipe import Recipe

HOST_BLOCK = 2**30
"""Bytes of host memory that are pinned at once."""
ALIGNMENT = 64
"""Bytes at whose multiples tensors begin there."""


class SaveFailed(OSError):
    """Checkpoints that could not be written, several times in a row."""


def sharded_state_dict(net: nn.Module, optimizer: Optimizer, ema: EMA, world: World) -> dict[str, dict[str, Shard]]:
    """This process's rows of every tensor that a training has to save, by group."""
    weights = {n: local_shard(p, world) for n, p in net.named_parameters()}
    groups = {"model": weights, "optimizer": {}}
    for n, p in net.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor):
                groups["optimizer"][f"{key}.{n}"] = local_shard(value, world)
    for e, average in ema.averages.items():
        groups[f"ema-{e}"] = {n: its._replace(tensor=a) for (n, its), a in zip(weights.items(), average, strict=True)}
    return groups


def optimizer_numbers(net: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Everything in an optimizer's state that is not a tensor: numbers and words by parameter, and the settings of its groups."""
    each = {
        f"{key}.{n}": value
        for n, p in net.named_parameters()
        for key, value in optimizer.state.get(p, {}).items()
        if not isinstance(value, Tensor)
    }
    settings = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]
    found = {"state": each, "groups": settings}
    try:
        return json.loads(json.dumps(found, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the optimizer's state cannot be saved: {error}; allowed: tensors, finite numbers and words"
        ) from error


def restore(folder: Path, net: nn.Module, optimizer: Optimizer, ema: EMA, world: World) -> None:
    """Put a verified checkpoint's tensors into a training's state, strictly: each process its own rows."""
    reader = Reader(folder)
    now = sharded_state_dict(net, optimizer, ema, world)
    del now["optimizer"]
    for group, named in now.items():
        check_shapes({n: r.shape for n, r in named.items()}, reader.shapes(group), folder / group)
        for n, r in named.items():
            fill(r, reader, group, n)
    restore_optimizer(reader, net, optimizer, world)


@torch.no_grad()
def fill(shard: Shard, reader: Reader, group: str, name: str) -> None:
    """Read this process's rows of a tensor into it."""
    shard.tensor.copy_(reader.read_rows(group, name, shard.start, shard.tensor.shape[0] if shard.shape else None))


def restore_optimizer(reader: Reader, net: nn.Module, optimizer: Optimizer, world: World) -> None:
    """The state of each parameter, whatever the optimizer keeps there: divided like the parameter where it has its shape."""
    parameters, states = dict(net.named_parameters()), {}
    group_of = {p: group for group in optimizer.param_groups for p in group["params"]}
    for name, shape in reader.shapes("optimizer").items():
        key, _, n = name.partition(".")
        p = parameters.get(n)
        like_param = p is not None and list(p.shape) == shape
        if p is None or p not in group_of or (isinstance(optimizer, torch.optim.Adam) and shape and not like_param):
            raise CorruptCheckpoint(
                f"{reader.folder} has an optimizer state {disk.printable(name)} {shape} of no such parameter"
            )
        dtype = reader.dtype("optimizer", name)
        if like_param:
            value = torch.empty_like(p, dtype=dtype, requires_grad=False)
        else:  # PyTorch's optimizers keep their counts of steps on the host unless they are fused
            on_host = not shape and not (group_of[p].get("fused") or group_of[p].get("capturable"))
            value = torch.empty(shape, dtype=dtype, device="cpu" if on_host else world.device)
        fill(local_shard(value, world), reader, "optimizer", name)
        states.setdefault(p, {})[key] = value
    numbers = read_state(reader.folder).get("optimizer", {"state": {}, "groups": []})
    for name, value in numbers["state"].items():
        key, _, n = name.partition(".")
        if n in parameters:
            states.setdefault(parameters[n], {})[key] = value
    optimizer.state.clear()
    optimizer.state.update(states)
    for group, settings in zip(optimizer.param_groups, numbers["groups"], strict=False):
        group |= {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items() if k in group}


def allocate_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Room on the host for a copy of each tensor, in few large pieces of memory, pinned for tensors on a GPU.

    PyTorch rounds every pinned piece up to a power of two and keeps it: tensor by tensor, H/16 would take 40 GB for 23.
    """
    sizes, places = {n: t.numel() * t.element_size() for n, t in tensors.items()}, {}
    for names in pack(sizes):
        apart = [-(-sizes[n] // ALIGNMENT) * ALIGNMENT for n in names]
        piece = torch.empty(sum(apart), dtype=torch.uint8, pin_memory=tensors[names[0]].is_cuda)
        for n, part in zip(names, piece.split(apart), strict=True):
            places[n] = part[: sizes[n]].view(tensors[n].dtype).view(tensors[n].shape)
    return places


def pack(sizes: Mapping[str, int]) -> list[list[str]]:
    """Names of tensors, in their order, in groups of about PIECE bytes."""
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
    """An event on a GPU's stream, now; None elsewhere."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class SaveResult(NamedTuple):
    """What became of one save: images seen, seconds that training waited and that it took, and what went wrong."""

    images_seen: int
    blocked: float
    seconds: float
    error: str = ""


@dataclass
class Saver:
    """Writes a run's checkpoints in a thread; training waits only for the copy to the host.

    Every process writes its own rows into one folder; when all are done, the first one publishes it. All learn the same
    outcome of every save. An error leaves what was published as it is.
    """

    run: Path
    world: World
    best_checkpoint: Callable[[], int | None] = lambda: None
    """images seen at the checkpoint to keep beside the newest"""
    host_copies: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """the copy of each group, kept for the next save: new memory costs more than copying"""
    pending: Future[SaveResult] | None = None

    def __post_init__(self) -> None:
        on_device = partial(torch.cuda.set_device, self.world.device) if self.world.device.type == "cuda" else None
        self.thread = ThreadPoolExecutor(1, initializer=on_device)  # a thread begins on the first GPU

    def save(self, groups: Groups, recipe: Recipe, state: dict[str, Any], parts: int = 1) -> list[SaveResult]:
        """Begin to save, from `parts` processes; what became of the save before, for which this waits."""
        began = time.perf_counter()
        before = self.poll(wait=True)
        moments = [cuda_event(self.world.device)]
        copied = {g: self.copy(g, named) for g, named in groups.items()}
        moments.append(cuda_event(self.world.device))
        blocked = time.perf_counter() - began
        self.pending = self.thread.submit(self.write, copied, recipe, state, parts, moments, blocked)
        return before

    def copy(self, group: str, named: Mapping[str, Shard]) -> dict[str, Shard]:
        """What this process is to write of a group, copied to the host: on a GPU queued behind the step."""
        mine = {n: r.tensor.detach() for n, r in named.items() if r.is_writer}
        if group not in self.host_copies or self.host_copies[group].keys() != mine.keys():
            self.host_copies[group] = allocate_host(mine)
        for n, tensor in mine.items():
            self.host_copies[group][n].copy_(tensor, non_blocking=True)
        return {n: r._replace(tensor=self.host_copies[group].get(n, r.tensor)) for n, r in named.items()}

    def write(
        self, groups: Groups, recipe: Recipe, state: dict[str, Any], parts: int, moments: list[Any], blocked: float
    ) -> SaveResult:
        """In the thread: every process its part, then the first one the whole."""
        began, seen, world = time.perf_counter(), state["images_seen"], self.world
        folder = checkpoint_dir(self.run, seen)
        if moments[1]:
            moments[1].synchronize()
            blocked = max(blocked, moments[0].elapsed_time(moments[1]) / 1e3)  # the next step queues behind the copies

        def prepare() -> None:
            disk.remove(staging_dir(folder))
            disk.mkdir(staging_dir(folder))

        def write() -> None:
            if not all(r.tensor.isfinite().all() for r in groups["model"].values() if r.is_writer):
                raise ValueError("weights are not finite; nothing was saved of them")
            if world.rank < parts:
                write_shard(folder, groups, recipe, world.rank, parts)

        def finish() -> None:
            publish_shards(folder, recipe, state, parts)
            with suppress(OSError):  # it is published; what could not be removed is removed after the next save
                prune(self.run, recipe.checkpoint.keep_checkpoints, self.best_checkpoint())

        error = ""
        for action, everyone in ((prepare, False), (write, True), (finish, False)):
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
        """What became of the save in hand, once: nothing while it is being written, unless one waits."""
        if self.pending is None or not (wait or self.pending.done()):
            return []
        outcome, self.pending = self.pending.result(), None
        return [outcome]

    def close(self) -> None:
        self.thread.shutdown(wait=True)
