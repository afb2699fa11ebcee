"""The demo of handwritten digits: what a model trained on them draws, judged by a classifier that has seen only real ones."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from justimage import checkpoint, data, disk, figures, sampling
from justimage.demo.pictures import write_pictures
from justimage.progress import Job, Progress
from justimage.recipe import Recipe
from justimage.sampling import Denoiser

COUNT = 1000
BATCH = 100
DENOISED = 2, 3, 5, 8
"""Digits that are shown on their way from noise."""


def check_installed() -> None:
    """ValueError, before any work, where the demo's extra packages are missing."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ValueError("the demo needs scikit-learn: pip install 'justimage[demo]'") from error


def features(images: Tensor) -> Any:
    """Digits (n, 1, 32, 32) uint8 averaged down to their native 8 x 8, with 16 levels, as the classifier reads them."""
    return (F.adaptive_avg_pool2d(images.float(), 8) / 255 * 16).flatten(1).numpy()


def train_classifier(seed: int = 0) -> tuple[Any, float]:
    """A classifier trained on two thirds of the real digits, and how many of the held-out third it reads correctly."""
    from sklearn.svm import SVC

    real = data.digits()
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
    x, y = features(real.images[order]), real.labels[order].numpy()
    split = len(real) * 2 // 3
    classifier = SVC(gamma=0.001, C=10).fit(x[:split], y[:split])  # pyright: ignore[reportArgumentType]
    return classifier, float(classifier.score(x[split:], y[split:]))


def load_run(out: Path) -> tuple[Recipe, Denoiser]:
    """The recipe and the model of the run in out/run."""
    run = out / "run"
    return checkpoint.read_recipe(checkpoint.resolve(run)), checkpoint.load(run, device="cpu")


def report(out: Path, recipe: Recipe, model: Denoiser) -> Job[dict[str, Any]]:
    """Sample COUNT digits, write the pictures and report.json into `out`, and return the report."""
    labels, batches = [i % 10 for i in range(COUNT)], []
    yield Progress("sampling digits", 0, COUNT)
    for batch in sampling.sample_batches(model, labels, 0, recipe.sampling, batch=BATCH):
        batches.append(batch)
        yield Progress("sampling digits", BATCH * len(batches), COUNT)
    yield Progress("classifying them, and drawing the way from noise to digits")
    images = torch.cat(batches)
    classifier, held_out = train_classifier()
    accuracy = (torch.from_numpy(classifier.predict(features(images))) == torch.tensor(labels)).double().mean().item()
    names = [str(i) for i in range(10)]
    disk.write(out / "samples.png", figures.encode_png(figures.image_grid(images[:100], 10, top=names)))
    metrics = write_pictures(out, model, DENOISED)
    facts = {
        "samples": COUNT,
        "accuracy_on_samples": accuracy,
        "accuracy_on_held_out_real_digits": held_out,
        "images_seen": metrics[-1]["images_seen"],
        "final_loss": metrics[-1]["loss"],
        "sampling": asdict(recipe.sampling) | {"ema": recipe.training.sample_ema, "seeds": [0, COUNT - 1]},
        "torch": torch.__version__,
    }
    disk.write(out / "report.json", json.dumps(facts, indent=1).encode())
    return facts


def summary(facts: dict[str, Any]) -> str:
    return (
        f"a classifier trained only on real digits recognises {facts['accuracy_on_samples']:.1%} of {facts['samples']:,} "
        f"samples as the requested digit\n({facts['accuracy_on_held_out_real_digits']:.1%} of real digits that it never saw)"
    )
