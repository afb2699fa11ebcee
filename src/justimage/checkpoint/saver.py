"""Saving while training goes on, and restoring: a training's state to a checkpoint and back, in any number of processes."""

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

from justimage import disk
from justimage.checkpoint.history import folder_of, retain
from justimage.checkpoint.model import refuse_misfits
from justimage.checkpoint.shards import Groups, Reader, aside_of, publish_parts, write_part
from justimage.distributed import Rows, World, rows
from justimage.ema import EMA
from justimage.recipe import Recipe

PIECE = 2**30
"""Bytes of host memory that are pinned at once."""
ALIGNED = 64
"""Bytes at whose multiples tensors begin there."""
ADAM = ("step", "exp_avg", "exp_avg_sq")


class NotSaved(OSError):
    """Checkpoints that could not be written, several times in a row."""


def contents(net: nn.Module, optimizer: torch.optim.Adam, ema: EMA, world: World) -> dict[str, dict[str, Rows]]:
    """This process's rows of everything that a training has to save."""
    names = [n for n, _ in net.named_parameters()]
    weights = {n: rows(p, world) for n, p in net.named_parameters()}

    def beside(n: str, tensor: Tensor) -> Rows:
        """A tensor divided as the weights of that name are, or a number that all processes have."""
        return weights[n]._replace(tensor=tensor) if tensor.ndim else Rows(tensor, 0, [], world.leads)

    groups = {"model": weights}
    states = zip(names, optimizer.param_groups[0]["params"], strict=True)
    groups["adam"] = {f"{key}.{n}": beside(n, t) for n, p in states for key, t in optimizer.state[p].items()}
    for n, average in ema.averages.items():
        groups[f"ema-{n}"] = {name: beside(name, a) for name, a in zip(names, average, strict=True)}
    return groups


def restore(folder: Path, net: nn.Module, optimizer: torch.optim.Adam, ema: EMA, world: World) -> None:
    """Put a verified checkpoint's tensors into a training's state, strictly: each process its own rows."""
    reader = Reader(folder)
    now = contents(net, optimizer, ema, world)
    now["adam"] = {}
    for n, p in net.named_parameters():
        found = [key for key in ADAM if f"{key}.{n}" in reader.shapes("adam")]  # none: it never had a gradient
        if found:
            its, number = rows(p, world), torch.zeros((), device=world.device)
            now["adam"][f"step.{n}"] = its._replace(tensor=number, shape=[])
            for key in ADAM[1:]:
                now["adam"][f"{key}.{n}"] = its._replace(tensor=torch.empty_like(its.tensor))
    for group, named in now.items():
        refuse_misfits({n: r.shape for n, r in named.items()}, reader.shapes(group), folder / group)
        for n, r in named.items():
            with torch.no_grad():
                r.tensor.copy_(reader.rows(group, n, r.start, r.tensor.shape[0] if r.shape else None))
    for (n, _), p in zip(net.named_parameters(), optimizer.param_groups[0]["params"], strict=True):
        optimizer.state[p] = {key: now["adam"][f"{key}.{n}"].tensor for key in ADAM if f"{key}.{n}" in now["adam"]}


def places_for(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Room on the host for a copy of each tensor, in few large pieces of memory, pinned for tensors on a GPU.

    PyTorch rounds every pinned piece up to a power of two and keeps it: tensor by tensor, H/16 would take 40 GB for 23.
    """
    sizes, places = {n: t.numel() * t.element_size() for n, t in tensors.items()}, {}
    for names in pieces(sizes):
        apart = [-(-sizes[n] // ALIGNED) * ALIGNED for n in names]
        piece = torch.empty(sum(apart), dtype=torch.uint8, pin_memory=tensors[names[0]].is_cuda)
        for n, part in zip(names, piece.split(apart), strict=True):
            places[n] = part[: sizes[n]].view(tensors[n].dtype).view(tensors[n].shape)
    return places


def pieces(sizes: Mapping[str, int]) -> list[list[str]]:
    """Names of tensors, in their order, in groups of about PIECE bytes."""
    groups: list[list[str]] = []
    room = 0
    for n, size in sizes.items():
        if size > room or not groups:
            groups.append([])
            room = PIECE
        groups[-1].append(n)
        room -= size
    return groups


def moment(device: torch.device) -> Any:
    """An event on a GPU's stream, now; None elsewhere."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class Outcome(NamedTuple):
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
    best: Callable[[], int | None] = lambda: None
    """images seen at the checkpoint to keep beside the newest"""
    host: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """the copy of each group, kept for the next save: new memory costs more than copying"""
    pending: Future[Outcome] | None = None

    def __post_init__(self) -> None:
        on_device = partial(torch.cuda.set_device, self.world.device) if self.world.device.type == "cuda" else None
        self.thread = ThreadPoolExecutor(1, initializer=on_device)  # a thread begins on the first GPU

    def save(self, groups: Groups, recipe: Recipe, state: dict[str, Any], parts: int = 1) -> list[Outcome]:
        """Begin to save, from `parts` processes; what became of the save before, for which this waits."""
        began = time.perf_counter()
        before = self.finished(wait=True)
        moments = [moment(self.world.device)]
        copied = {g: self.copy(g, named) for g, named in groups.items()}
        moments.append(moment(self.world.device))
        blocked = time.perf_counter() - began
        self.pending = self.thread.submit(self.write, copied, recipe, state, parts, moments, blocked)
        return before

    def copy(self, group: str, named: Mapping[str, Rows]) -> dict[str, Rows]:
        """What this process is to write of a group, copied to the host: on a GPU queued behind the step."""
        mine = {n: r.tensor.detach() for n, r in named.items() if r.mine}
        if group not in self.host or self.host[group].keys() != mine.keys():
            self.host[group] = places_for(mine)
        for n, tensor in mine.items():
            self.host[group][n].copy_(tensor, non_blocking=True)
        return {n: r._replace(tensor=self.host[group].get(n, r.tensor)) for n, r in named.items()}

    def write(
        self, groups: Groups, recipe: Recipe, state: dict[str, Any], parts: int, moments: list[Any], blocked: float
    ) -> Outcome:
        """In the thread: every process its part, then the first one the whole."""
        began, seen, world = time.perf_counter(), state["images_seen"], self.world
        folder = folder_of(self.run, seen)
        if moments[1]:
            moments[1].synchronize()
            blocked = max(blocked, moments[0].elapsed_time(moments[1]) / 1e3)  # the next step queues behind the copies

        def prepare() -> None:
            disk.remove(aside_of(folder))
            disk.make(aside_of(folder))

        def write() -> None:
            if not all(r.tensor.isfinite().all() for r in groups["model"].values() if r.mine):
                raise ValueError("weights are not finite; nothing was saved of them")
            if world.rank < parts:
                write_part(folder, groups, recipe, world.rank, parts)

        def finish() -> None:
            publish_parts(folder, recipe, state, parts)
            with suppress(OSError):  # it is published; what could not be removed is removed after the next save
                retain(self.run, recipe.upkeep.keep, self.best())

        error = ""
        for action, everyone in ((prepare, False), (write, True), (finish, False)):
            mine = ""
            if everyone or world.leads:
                try:
                    action()
                except (ValueError, OSError) as failure:
                    mine = " ".join(str(failure).split())
            if error := next((text for text in world.gather(mine, world.saving) if text), ""):
                break
        return Outcome(seen, round(blocked, 4), round(time.perf_counter() - began, 3), error)

    def finished(self, wait: bool = False) -> list[Outcome]:
        """What became of the save in hand, once: nothing while it is being written, unless one waits."""
        if self.pending is None or not (wait or self.pending.done()):
            return []
        outcome, self.pending = self.pending.result(), None
        return [outcome]

    def close(self) -> None:
        self.thread.shutdown(wait=True)
