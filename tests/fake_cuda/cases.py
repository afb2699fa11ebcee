"""What is tried on the fake device: cases by name, each of which returns what it found (JSON), or raises."""

import json
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from justimage import checkpoint, data, figures, preview, sampling, training
from justimage.checkpoint import Saver
from justimage.checkpoint.saver import SaveResult, sharded_state_dict
from justimage.demo import digits as demo
from justimage.diffusion import INTERPOLANTS, Batch, Diffusion, Prediction
from justimage.distributed import World
from justimage.dropout import Dropout
from justimage.evaluation import online
from justimage.evaluation.scores import Gaussian
from justimage.features import Extractor, classifier, inception, open_features
from justimage.normalization import Normalization
from justimage.progress import finish
from justimage.recipe import Recipe, with_values
from justimage.sampling import Denoiser, Sampling
from justimage.solvers import SOLVERS
from justimage.training import Loss
from justimage.transformer import JiT
from tests.fake_cuda.watch import CUDA, aten, fake_cuda
from tests.test_training import small

Found = dict[str, Any]
BATCH = 16
IMAGES = torch.randint(0, 256, (64, 1, 32, 32), dtype=torch.uint8)
PIXELS, FLOATS = (data.ArraySource(images, torch.arange(64) % 4, list("abcd"), "noise") for images in (IMAGES, IMAGES.float()))


def recipe(**changes: Any) -> Recipe:
    """Two blocks, one before and one after the class tokens, in bf16; an average, and a gradient that is clipped."""
    usual = dict(depth=2, precision="bf16", batch=BATCH, total_images=4 * BATCH, gradient_clip=0.1)
    usual |= dict(ema=(100,), sample_ema=100, classes=4)
    return with_values(small(), **usual | changes)


def described(tensors: Iterable[Tensor]) -> list[str]:
    """Where tensors are, and of what types."""
    return sorted({f"{t.device} {str(t.dtype).removeprefix('torch.')}" for t in tensors})


@lru_cache(maxsize=1)
def place() -> tempfile.TemporaryDirectory[str]:
    """For files, until the process ends."""
    return tempfile.TemporaryDirectory()


def counted() -> Found:
    """Some of everything that is counted."""
    with fake_cuda() as watch:
        x, weight = torch.ones(4, device=CUDA), nn.Parameter(torch.ones(4, device=CUDA))
        watch.clear()
        _ = x.cpu(), torch.empty(4).copy_(x), torch.tensor([1.0, 2.0], device=CUDA)
        _ = x.to("cpu", non_blocking=True), torch.empty(4).copy_(x, non_blocking=True), torch.empty(3, pin_memory=True)
        read = x.sum().item(), x.tolist(), bool((x > 0).any()), int(torch.tensor(7))
        for ask in aten.nonzero, partial(aten.equal, x):
            with suppress(DynamicOutputShapeException, DataDependentOutputException):
                ask(x)
        _ = weight.to(torch.bfloat16), torch.zeros(2, 2)
        before = watch.live
        torch.empty(100, dtype=torch.int64, device=CUDA).view(10, 10).t().contiguous()
        return watch.counts() | {
            "read": read, "pinned": watch.pinned, "casts": watch.casts[id(weight)], "fills": len(watch.filled),
            "bytes": [watch.peak - before, watch.live - before], "int64": watch.largest[torch.int64],
        }  # fmt: skip


def drawn_elsewhere() -> Found:
    """A tensor on the host from the device's generator."""
    with fake_cuda():
        return {"shape": torch.randn(4, generator=torch.Generator(CUDA)).shape}


# training


def step(recipe: Recipe, source: data.ArraySource = PIXELS, before: int = 0, loss: Loss = Diffusion.loss) -> Found:
    """A step after some: copies, waits, casts of weights, and fills of as many numbers as a part's images have."""
    with fake_cuda() as watch:
        state = training.init_state(recipe, World(CUDA))
        steps = training.train(recipe, source, state, loss=loss)
        for _ in range(before):
            next(steps)
        watch.clear()
        assert next(steps).images_seen == (before + 1) * BATCH
        tensors = [*state.denoiser.net.parameters(), *(t for its in state.optimizer.state.values() for t in its.values())]
        part = BATCH // (recipe.parallelism.grad_accumulation or 1) * 32 * 32
        return watch.counts() | {
            "state": described(tensors),
            "casts": watch.weights_cast(state.denoiser.net),
            "fills": [list(fill) for fill in watch.filled if fill[0].startswith("training.py") and fill[-1] >= part],
        }


DROPPING = dict(depth=4, dropout=0.2)
STEPS = {
    "bf16": recipe(),
    "fp32": recipe(precision="fp32"),
    "dropout": recipe(**DROPPING),
    "accumulation": recipe(grad_accumulation=2),
    "recomputation": recipe(activation_checkpointing=True, **DROPPING),
    "classifier": recipe(aux_classifier=True),
    "classification loss": recipe(aux_classifier=True, class_loss_weight=100.0),
    "no classes": recipe(classes=0),
    "other layers": recipe(context_tokens=0, norm="layer", mlp="gelu", qk_norm=False, rope=False),
    **{f"{p}, {path}": recipe(prediction=p, interpolant=path) for p in get_args(Prediction) for path in INTERPOLANTS},
}
FLOAT_STEP = replace(recipe(grad_accumulation=2), normalization=Normalization((100.0,), (50.0,)))


def mixed(what: int) -> Found:
    """A step in which one of the tensors of a batch, by its place, was left on the host."""

    def wrong(diffusion: Diffusion, net: Any, batch: Batch) -> Tensor:
        return diffusion.loss(net, Batch(*(q.cpu() if i == what else q for i, q in enumerate(batch))))  # pyright: ignore

    return step(recipe(), loss=wrong)


def dropout() -> Found:
    """Dropout of 128 images in H/16's MLP, in eager mode: the most bytes, and the largest int64 tensor, by its input's."""
    with fake_cuda() as watch:
        layer = Dropout(0.2).train()
        layer.keys = torch.zeros(128, dtype=torch.int64, device=CUDA)
        x = torch.empty(128, 288, 3413, dtype=torch.bfloat16, device=CUDA)
        watch.clear()
        before = watch.live
        layer(x)
        return {"bytes": (watch.peak - before) / (2 * x.numel()), "int64": watch.largest[torch.int64] / x.numel()}


def average() -> Found:
    """An average that takes in the weights and is lent."""
    with fake_cuda() as watch:
        state = training.init_state(recipe(), World(CUDA))
        watch.clear()
        state.ema.update(BATCH, BATCH)
        with state.ema.lend(100):
            return watch.counts() | {"state": described(a for average in state.ema.averages.values() for a in average)}


@lru_cache(maxsize=1)
def run() -> Path:
    """A run of one step, computed on the CPU."""
    run, world, r = Path(place().name, "run"), World(torch.device("cpu")), recipe(precision="fp32")
    state = training.init_state(r, world)
    [done, *_] = training.train(replace(r, training=replace(r.training, total_images=BATCH)), PIXELS, state)
    saver = Saver(run, world)
    saver.save(sharded_state_dict(state.denoiser.net, state.optimizer, state.ema, world), r, {"images_seen": BATCH})
    assert not saver.poll(wait=True)[0].error
    (run / "metrics.jsonl").write_text(json.dumps({"images_seen": BATCH, "loss": done.loss}))
    return run


class Copier(Saver):
    """Copies what is to be saved, and writes nothing; its outcomes' images are how many tensors were left on the device."""

    def write(self, groups: Any, *facts: Any) -> SaveResult:  # pyright: ignore[reportIncompatibleMethodOverride]
        return SaveResult(sum(r.tensor.device.type != "cpu" for named in groups.values() for r in named.values()), 0, 0)


def copied() -> Found:
    """The copy of what is saved, twice."""
    with fake_cuda() as watch:
        r, world, found = recipe(), World(CUDA), []
        state, saver = training.init_state(r, world), Copier(Path(), world)
        next(training.train(r, PIXELS, state))
        groups = sharded_state_dict(state.denoiser.net, state.optimizer, state.ema, world)
        for _ in range(2):
            watch.clear()
            saver.save(groups, r, {"images_seen": BATCH})
            found.append(watch.counts() | {"pinned": watch.pinned, "left": saver.poll(wait=True)[0].images_seen})
        saver.close()
        return {"saves": found, "groups": len(groups), "tensors": sum(map(len, groups.values()))}


def restored() -> Found:
    """The second step after a checkpoint that a CPU has written."""
    r, last = recipe(), checkpoint.list_checkpoints(run())[-1]
    with fake_cuda() as watch:
        state = training.init_state(r, World(CUDA))
        checkpoint.restore(last, state.denoiser.net, state.optimizer, state.ema, state.world)
        steps = training.train(r, PIXELS, state)
        next(steps)
        watch.clear()
        next(steps)
        averages = (a for average in state.ema.averages.values() for a in average)
        tensors = (
            *state.denoiser.net.parameters(),
            *(t for its in state.optimizer.state.values() for t in its.values()),
            *averages,
        )
        return watch.counts() | {"state": described(tensors)}


# sampling


def model(process: Diffusion = Diffusion(), units: Normalization = Normalization()) -> Denoiser:  # noqa: B008
    return Denoiser(JiT(recipe().model).to(CUDA).eval(), process, units)


def trajectory(solver: Any, process: Diffusion, dtype: torch.dtype) -> Found:
    """From the first evaluation of the network to the end, guided but at t = 0."""
    with fake_cuda() as watch:
        noise, y = torch.randn(4, 1, 32, 32, device=CUDA), torch.zeros(4, dtype=torch.int64, device=CUDA)
        settings = Sampling(solver=solver, steps=3, guidance=2.0, interval=(0.1, 0.9))
        points = sampling.trajectory(model(process), noise, y, settings, dtype)
        tensors = [*next(points)[1:]]
        watch.clear()
        for point in points:
            tensors += point[1:]
        return watch.counts() | {"points": len(tensors) // 3, "state": described(tensors)}


KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}
TRAJECTORIES = {
    **{f"{s}, {p}, {k}": (s, Diffusion(prediction=p), KINDS[k]) for s in SOLVERS for p in get_args(Prediction) for k in KINDS},
    **{
        f"heun, {p}, trigonometric": ("heun", Diffusion(prediction=p, interpolant="trigonometric"), KINDS["bf16"])
        for p in ("x", "v")
    },
}
"""Solvers, processes, and what the network computes in."""


def images(units: Normalization = Normalization(), **settings: Any) -> Found:  # noqa: B008
    """A batch of images from seeds, guided."""
    with fake_cuda() as watch:
        drawing = model(units=units)
        watch.clear()
        images = sampling.sample(drawing, [0, 1, 2, 3], 0, Sampling(guidance=2.0, steps=4), **settings)
        return watch.counts() | {"casts": watch.weights_cast(drawing.net), "state": described([images])}


def previewed() -> Found:
    """Previews, up to the pictures."""
    shown: list[Tensor] = []

    def look(*words: Any, **options: Any) -> None:
        shown.extend(q for q in words if isinstance(q, Tensor))

    with fake_cuda() as watch, mock.patch.multiple(figures, image_grid=look, denoising_grid=look):
        state = training.init_state(recipe(), World(CUDA))
        watch.clear()
        preview.preview(recipe(), PIXELS, state)
        return watch.counts() | {"casts": watch.weights_cast(state.denoiser.net), "state": described(shown)}


def demonstrated() -> Found:
    """The demo's report of a run, up to the pictures, on a machine with a GPU."""
    place, shown = run().parent, list[Tensor]()
    reader = mock.Mock(predict=lambda digits: np.zeros(4))
    with (
        fake_cuda() as watch,
        mock.patch.multiple(demo, COUNT=4, train_classifier=lambda: (reader, 1.0), features=lambda images: images),
        mock.patch.multiple(
            figures,
            image_grid=lambda images, *_, **__: shown.append(images),
            encode_png=lambda _: b"",
            loss_curve=lambda *_: None,
        ),
    ):
        report = finish(demo.report(place, *demo.load_run(place)))
        return watch.counts() | {"state": described(shown), "drawn": report["samples"]}


# features


class Reader(nn.Module):
    """Features and logits of pixels. A graph of it names its device three times: a change of type, a range, and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 8)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.float().mean((1, 2)) / 255 + torch.arange(32, device=images.device) * torch.tensor([0.5])
        x = self.linear(x)
        return x, x.softmax(1)


@lru_cache(maxsize=1)
def exported() -> Path:
    path, many = Path(place().name, "reader.pt2"), {"images": {0: torch.export.Dim("n", min=1, max=512)}}
    torch.export.save(torch.export.export(Reader(), (IMAGES[:2],), dynamic_shapes=many), path)
    return path


SHAPE = classifier.ClassifierShape(1, (32, 32), 4, width=4, features=8)


@lru_cache(maxsize=1)
def classified() -> Path:
    path, trainer = (
        Path(place().name, "classifier.safetensors"),
        classifier.ClassifierTrainer(PIXELS, SHAPE, images=16, batch=16),
    )
    assert len(list(trainer.steps())) == 1
    trainer.save(path, 0.5)
    return path


def incepted(path: Path) -> Extractor:
    """Inception with whatever weights it is made with: nothing here depends on them."""
    with mock.patch.object(torch, "load", lambda *words, **options: {}), mock.patch.object(nn.Module, "load_state_dict"):
        return inception.open_weights(path, CUDA, sha256="")


def scored(file: Callable[[], Path], open_file: Callable[[Path], Extractor]) -> Found:
    """A training's average scored on the way."""
    path, r = file(), recipe(count=64)
    with fake_cuda() as watch:
        extractor, state = open_file(path), training.init_state(r, World(CUDA))
        dimension = extractor.extract(IMAGES)[0].shape[1]
        real = Gaussian(torch.zeros(dimension, dtype=torch.float64), torch.eye(dimension, dtype=torch.float64))
        watch.clear()
        return {
            "scores": sorted(online.online_scores(r, PIXELS, state, online.OnlineFID(extractor, real), lambda: None))
        } | watch.counts()


def learned() -> Found:
    """The second step of a classifier's training, and its reading of images that were held out."""
    with fake_cuda() as watch:
        trainer = classifier.ClassifierTrainer(PIXELS, SHAPE, images=64, batch=16, device=CUDA)
        steps = trainer.steps()
        next(steps)
        watch.clear()
        next(steps)
        found = {"step": watch.counts()}
        watch.clear()
        trainer.accuracy()
        return found | {"accuracy": watch.counts(), "state": described(trainer.net.parameters())}


CASES: dict[str, Callable[[], Found]] = {
    "training/counted": counted,
    "training/drawn elsewhere": drawn_elsewhere,
    **{f"training/step: {name}": partial(step, r) for name, r in STEPS.items()},
    "training/step: a second": partial(step, STEPS["dropout"], before=1),
    "training/step: floats, a second": partial(step, FLOAT_STEP, FLOATS, before=1),
    **{
        f"training/mixed: {what}": partial(mixed, i) for i, what in enumerate(("images", "labels", "times", "noise", "dropped"))
    },
    "training/dropout": dropout,
    "training/average": average,
    "training/copied": copied,
    "training/restored": restored,
    **{f"sampling/trajectory: {name}": partial(trajectory, *TRAJECTORIES[name]) for name in TRAJECTORIES},
    "sampling/images: fp32": partial(images, dtype=torch.float32),
    "sampling/images: bf16": partial(images, dtype=torch.bfloat16),
    "sampling/images: by default": images,
    "sampling/images: floats": partial(images, Normalization((10.0,), (4.0,)), dtype=torch.bfloat16),
    "sampling/preview": previewed,
    "sampling/demo": demonstrated,
    "features/scores: exported": partial(scored, exported, lambda path: open_features(str(path), CUDA)),
    "features/scores: classifier": partial(scored, classified, lambda path: open_features(str(path), CUDA)),
    "features/scores: inception": partial(scored, classified, incepted),
    "features/learned": learned,
}
"""By GROUP/WHAT: a group is run in one process."""
