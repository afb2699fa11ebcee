"""What one of several processes does in the tests of worlds: `torchrun --nproc-per-node N -m tests.world OUT draws losses ...`.

Each part is a function that `test_distributed.py` also calls alone, as a world of one. OUT/RANK.json is what it found.
"""

import atexit
import hashlib
import json
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from justimage import checkpoint, data, distributed, log, parallelize, run as runs, training
from justimage.conditions import text_bytes
from justimage.diffusion import Batch, Diffusion
from justimage.dropout import dropout_layers
from justimage.evaluation import online
from justimage.evaluation.scores import gaussian
from justimage.features import Extractor
from justimage.normalization import Normalization
from justimage.recipe import Recipe, with_values
from justimage.run import budget
from tests.test_training import digest, small

STEPS = 24
THREADS_LEFT = 17


def source() -> data.ArraySource:
    digits = data.digits()
    return replace(digits, images=digits.images[:100], labels=digits.labels[:100])


def sha(*tensors: Tensor) -> str:
    return hashlib.sha256(b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors)).hexdigest()[:16]


def draws(out: Path) -> dict[str, str]:
    """Of each position in ten steps: a hash of its image, label, t, noise, drop and dropout keys."""
    recipe, found, at = small(total_images=80).resolve(source()), {}, []
    recipe = replace(recipe, diffusion=replace(recipe.diffusion, label_drop=0.5))
    draw = training.draw

    def noted(process: Diffusion, seed: int, position: int, x: Tensor) -> Any:
        at.append(position)
        return draw(process, seed, position, x)

    def hashed(diffusion: Diffusion, net: Any, batch: Batch) -> Tensor:
        x, y, t, eps, drop = batch
        assert isinstance(y, Tensor)
        keys = torch.stack([layer.keys for layer in dropout_layers(state.denoiser.net)])  # pyright: ignore[reportArgumentType]
        for i in range(len(x)):
            found[str(at[-1] + i)] = sha(x[i], y[i], t[i], eps[i], drop[i], keys[:, i])
        return diffusion.loss(net, batch)

    state = training.init_state(recipe)
    with mock.patch.object(training, "draw", noted):
        for _ in training.train(recipe, source(), state, loss=hashed):
            pass
    return found


def changed(recipe: Recipe, **changes: Any) -> Recipe:
    return replace(recipe, parallelism=replace(recipe.parallelism, **changes))


def losses(out: Path) -> dict[str, list[list[float]]]:
    """Loss and gradient norm of STEPS steps, by how the network is divided and the batch is cut."""
    return losses_of({
        "ddp": {},
        "fsdp": {"parallel": "fsdp"},
        "ddp parts": {"grad_accumulation": 2},
        "fsdp parts": {"parallel": "fsdp", "grad_accumulation": 2},
        "fsdp recomputed": {"parallel": "fsdp", "activation_checkpointing": True},
        "bf16 ddp": {"precision": "bf16"},
        "bf16 fsdp": {"precision": "bf16", "parallel": "fsdp"},
    })  # fmt: skip


def losses_across_nodes(out: Path) -> dict[str, list[list[float]]]:
    """The same by processes of which each two are taken for a node."""
    with nodes_of(2):
        return losses_of({
            "hsdp": {"parallel": "hsdp"},
            "hsdp parts": {"parallel": "hsdp", "grad_accumulation": 2},
            "bf16 hsdp": {"precision": "bf16", "parallel": "hsdp"},
        })  # fmt: skip


def compiled(out: Path) -> dict[str, Any]:
    """Losses with compiled blocks, and how many graphs were made; with the real compiler (ddp) where OUT/inductor exists."""
    backend, modes = ("inductor", ["ddp"]) if (out / "inductor").exists() else ("aot_eager", ["ddp", "fsdp"])
    found: dict[str, Any] = {}
    with mock.patch.object(torch, "compile", partial(torch.compile, backend=backend)):
        for mode in modes:
            torch._dynamo.utils.counters.clear()
            found |= losses_of({mode: {"parallel": mode, "compile": True}}, STEPS // 2)
            found[f"{mode} graphs"] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return found


@contextmanager
def nodes_of(processes: int) -> Iterator[None]:
    """Within the block so many neighbouring processes are one node's."""
    with mock.patch.dict(os.environ, LOCAL_WORLD_SIZE=str(processes)):
        yield


class Held(TorchDispatchMode):
    """Counts the bytes of tensors that are on the CPU at once, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        if type(result) in (Tensor, nn.Parameter) and result.device.type == "cpu" and "empty" in str(func):
            size = result.numel() * result.element_size()
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(result.untyped_storage(), self.leave, size)
        return result

    def leave(self, size: int) -> None:
        self.now -= size


def first_weights(out: Path) -> dict[str, Any]:
    """By mode: a hash of each weight before the first step, and how many times the network's bytes were held on the way."""
    found = {}
    for mode in "ddp", "fsdp", "hsdp":
        recipe = changed(small(), parallel=mode)
        recipe = with_values(recipe, ema=(), sample_ema=0).resolve(source())
        with nodes_of(2), Held() as held:
            state = training.init_state(recipe)
        weights = [p.full_tensor() if isinstance(p, DTensor) else p for p in state.denoiser.net.parameters()]
        buffers = [b for _, b in state.denoiser.net.named_buffers()]
        total = sum(w.numel() * w.element_size() for w in weights)
        kept = [parallelize.to_local(p) for p in state.denoiser.net.parameters() if isinstance(p, DTensor)]  # made out of sight
        most = held.most + sum(q.numel() * q.element_size() for q in kept)
        found[mode] = {"hashes": [sha(w) for w in [*weights, *buffers]], "held": most / total}
    return found


def told_source(image: bool) -> data.ToldSource:
    """Digits that are told words and numbers, or images."""
    digits = source()
    texts = torch.stack([text_bytes(f"a {label}", 3) for label in digits.labels.tolist()])
    vectors = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    if image:
        return data.ToldSource(digits, data.Told(), True, "told", digits, np.arange(100)[::-1].copy())
    return data.ToldSource(digits, data.Told(), True, "told", vectors=vectors, texts=texts)


def told_losses(out: Path) -> dict[str, list[list[float]]]:
    """Loss and gradient norm of STEPS steps of trainings that are told more than a class."""
    found = {}
    for name, told, changes in (
        ("words and numbers", told_source(image=False), {}),
        ("words and numbers, sharded", told_source(image=False), {"parallel": "fsdp"}),
        ("images", told_source(image=True), {}),
        ("a task", source(), {"task": "inpaint"}),
    ):
        recipe = small(8 * STEPS, **changes).resolve(told)
        state = training.init_state(recipe)
        found[name] = [[s.loss, s.gradient_norm] for s in training.train(recipe, told, state)]
    return found


def losses_of(cases: dict[str, dict[str, Any]], steps: int = STEPS) -> dict[str, list[list[float]]]:
    found = {}
    for name, changes in cases.items():
        recipe = changed(small(total_images=8 * steps, precision=changes.pop("precision", "fp32")), **changes).resolve(source())
        state = training.init_state(recipe)
        found[name] = [[s.loss, s.gradient_norm] for s in training.train(recipe, source(), state)]
    return found


def watched(out: Path) -> dict[str, dict[str, float]]:
    """Scores on the way of a training, of 150 images: each process draws its part, the last passes are of nobody's."""

    def means(images: Tensor) -> tuple[Tensor, None]:
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1), None

    extractor, found = Extractor("means", "means", 4, means), {}
    online_fid = online.OnlineFID(extractor, gaussian([means(source().images)[0]]))
    for mode in "ddp", "fsdp":
        recipe = changed(small(total_images=80), parallel=mode).resolve(source())
        recipe = with_values(recipe, count=150)
        found[mode] = online.online_scores(recipe, source(), training.init_state(recipe), online_fid, lambda: None)
    return found


def resumes(out: Path) -> int:
    """Go on with the run in OUT/run as DDP for 16 steps, as FSDP for 16, as DDP again for 16, with previews on the way; four
    processes as HSDP, FSDP, HSDP.

    How many weights, divided over the processes, are those of the model that a person loads from their checkpoint.
    """
    same, world = 0, distributed.init("cpu")
    for images, mode in zip(
        (256, 384, 512), ("ddp", "fsdp", "ddp") if world.size == 2 else ("hsdp", "fsdp", "hsdp"), strict=True
    ):
        recipe = changed(logged(images), parallel=mode)
        recipe = with_values(recipe, preview_every=40, preview_count=2)
        with nodes_of(2):
            run = runs.open_run(recipe, out / "run", "cpu")
        for _ in runs.steps(run):
            pass
        if mode == "fsdp":
            loaded = checkpoint.load(out / "run", ema=0).net.parameters()
            pairs = zip(run.state.denoiser.net.parameters(), loaded, strict=True)
            same = sum(torch.equal(p.full_tensor(), q) for p, q in pairs)  # pyright: ignore[reportAttributeAccessIssue]
    return same


def goes_on(out: Path) -> list[str]:
    """By mode: a hash of the weights after 16 steps; and after as many, the last ten of them by a process that resumed."""
    found = []
    for mode in "ddp", "fsdp":
        for name, stops in ("whole", (16,)), ("parts", (6, 16)):
            weights = []
            for steps in stops:
                recipe = with_values(logged(384), total_images=24 * steps, batch=24, lr_schedule="constant", parallel=mode)
                run = runs.open_run(recipe, out / f"{mode}-{name}", "cpu")
                for _ in runs.steps(run):
                    pass
                weights = [parallelize.to_local(p) for p in run.state.denoiser.net.parameters()]
            found.append(sha(*weights))
    return found


class Forgetful(nn.Module):
    """Draws one of its tensors, and leaves another as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn, self.left = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.ones(4, 4))

    def init_weights(self) -> None:
        nn.init.normal_(self.drawn)


def refused(out: Path) -> list[str]:
    """What is said of networks whose weights sharding would lose."""
    found = []
    there = Forgetful()
    for make in Forgetful, lambda: there:
        try:
            parallelize.build_network(make, distributed.init("cpu"), "fsdp")
        except ValueError as error:
            found.append(str(error))
    return found


def own_optimizer(out: Path) -> list[list[float]]:
    """Loss and gradient norm of 24 steps by an optimizer of one's own, whose state is divided anew after 8 and 16 of them."""
    found = []
    for images, mode in (64, "ddp"), (128, "fsdp"), (192, "ddp"):
        amsgrad = lambda parameters: torch.optim.AdamW(parameters, amsgrad=True, weight_decay=0.1)
        run = runs.open_run(changed(logged(images), parallel=mode), out / "own", "cpu", optimizer=amsgrad)
        found += [[s.loss, s.gradient_norm] for s in runs.steps(run)]
    return found


def logged(images: int) -> Recipe:
    recipe = small(total_images=images)
    return with_values(recipe, log_every=1, save_every=64)


@contextmanager
def spoilt(what: str, state: training.TrainState, number: float, when: Callable[[], bool]) -> Iterator[None]:
    """Within the block some number of the step is not finite, wherever `when` says so."""

    def spoil(x: Tensor) -> Tensor:
        return torch.full_like(x, number) if when() else x

    error, normalize = Diffusion.error, Normalization.normalize
    if what == "image":
        with mock.patch.object(Normalization, "normalize", lambda self, images: spoil(normalize(self, images))):
            yield
    elif what == "loss":
        with mock.patch.object(Diffusion, "error", lambda *a: error(*a) + spoil(torch.zeros(()))):
            yield
    else:

        def hook(module: Any, args: Any, output: Tensor) -> Tensor:
            if what == "activation":
                return output * spoil(torch.ones(()))
            output.register_hook(lambda gradient: gradient * spoil(torch.ones(())))
            return output

        handle = state.denoiser.net.blocks[1].register_forward_hook(hook)  # pyright: ignore
        try:
            yield
        finally:
            handle.remove()


def not_finite(out: Path) -> list[dict[str, Any]]:
    """Every kind of number that is not finite, in one process or all: where each process ended, how fast, and in what state."""
    found = []
    for mode in "ddp", "fsdp":
        recipe = changed(small(total_images=80), parallel=mode).resolve(source())
        for what in "image", "activation", "gradient", "loss":
            for who in (0, -1) if what == "image" else (1, -1):
                state = training.init_state(recipe)
                world, before, began = state.world, [], 0.0
                mine = who in (world.rank, -1) or world.size == 1
                number = float("inf") if what == "loss" else float("nan")
                with spoilt(what, state, number, lambda s=state, m=mine: m and s.images_seen == 24):
                    try:
                        for _ in training.train(recipe, source(), state):
                            before, began = digest(state), time.perf_counter()
                        ended = "never"
                    except training.NonFiniteError as error:
                        ended = str(error)
                same = all(torch.equal(a, b) for a, b in zip(before, digest(state), strict=True))
                found.append({
                    "case": [mode, what, who], "ended": ended, "at": state.images_seen, "untouched": same,
                    "seconds": time.perf_counter() - began,
                })  # fmt: skip
    return found


def policies(out: Path) -> dict[str, Any]:
    """Runs that leave a step out, or go back and leave it out: what was logged, and what the state came to."""
    found = {}
    for policy in "skip", "rollback":
        recipe = logged(96)
        recipe = with_values(recipe, on_nonfinite=policy, save_every=16)
        run = runs.open_run(recipe, out / policy, "cpu")
        with spoilt("activation", run.state, float("nan"), lambda r=run: r.state.images_seen == 40 and r.world.rank == 0):
            for _ in runs.steps(run):
                pass
        lines = [(line["images_seen"], line["loss"]) for line in log.records(out / policy / "metrics.jsonl")]
        found[policy] = {"passed over": run.state.skipped_steps, "lines": lines, "weights": sha(*digest(run.state))}
    return found


def budgets(out: Path) -> list[list[Any]]:
    """Of a run by a budget, begun, and then continued: its length, what each step had seen, and the weights."""
    found = []
    with mock.patch.multiple(budget, MEASURED_SECONDS=0.1, MIN_STEPS=1):
        for seconds in 1.0, 1.5:
            run = runs.open_run(small(budget=seconds), out / "budget", "cpu")
            seen = [step.images_seen for step in runs.steps(run)]
            found.append([run.recipe.training.total_images, seen, sha(*digest(run.state))])
    return found


def gathered(out: Path) -> list[str]:
    """Names and hashes of the weights in the newest checkpoint of OUT/run, whole."""
    tensors = checkpoint.load_group(checkpoint.list_checkpoints(out / "run")[-1], "model")
    return [f"{n} {list(t.shape)}" for n, t in tensors.items()]


def main() -> None:
    out, parts = Path(sys.argv[1]), sys.argv[2:]
    world = distributed.init("cpu")
    found = {part: globals()[part](out) for part in parts}
    (out / f"{world.rank}.json").write_text(json.dumps(found))


def no_thread_of_a_group_is_left() -> None:
    """Called last of all, when PyTorch is already disconnected."""
    if any("gloo" in place.read_text() for place in Path("/proc/self/task").glob("*/comm")):
        os._exit(THREADS_LEFT)


if __name__ == "__main__":
    if not sys.argv[2:]:  # after DDP, PyTorch 2.13 keeps the default group and its threads
        atexit.register(no_thread_of_a_group_is_left)
    main()
