"""The demo of somebody's own images: what a model trained on them draws, judged by a classifier that has seen only real ones.

Without classes there is no judge and no guidance; samples are then compared with real images by their pixels.
"""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from justimage import checkpoint, data, disk, log
from justimage.data import Source
from justimage.demo.pictures import write_pictures
from justimage.distributed import preferred_precision
from justimage.evaluation import copies, report as reports
from justimage.evaluation.feature_sampler import FeatureSampler
from justimage.evaluation.reference import open_reference
from justimage.evaluation.search import Search, Setting
from justimage.features import Extractor, open_features
from justimage.features.classifier import ClassifierShape, ClassifierTrainer, read_classifier
from justimage.generate import ImageGenerator, SampleJob
from justimage.progress import Job, Progress
from justimage.recipe import normalization_of

JUDGE_IMAGES, JUDGE_BATCH, JUDGE_WIDTH, JUDGE_FEATURES = (30_000, 100_000), 32, 16, 64
"""Of the judge: images to train on, at least and at most (twice the set), its batch, channels of its first stage, numbers of
its last hidden layer."""
MIN_IMAGES_A_CLASS = 10
"""Of the smallest class, below which no judge can learn the classes."""
SEARCH_COUNT, COUNT = 500, 1_000
"""Images for each guidance that is tried, and for the scores."""
LOW, HIGH, STEP, FIRST = 1.0, 3.0, 0.5, 1.5
"""Guidances that are tried, and the first of them."""
COPIES_OF_REAL = 0.01
"""Share of real images that count as copies of others: the distance that makes a copy is chosen so."""


def judged(out: Path, device: torch.device) -> Job[dict[str, Any]]:
    """Judge the run in out/run, and write pictures and report.json into `out`; returns the report."""
    run = out / "run"
    generator = ImageGenerator(run, device, preferred_precision(device))
    recipe = generator.recipe
    source = data.open_source(recipe.data, recipe.crop)
    judge = yield from ensure_judge(source, recipe.training.flip, out / "judge.safetensors", device)
    extractor = open_features(str(judge), device) if judge else averaged_pixels()
    reference = yield from open_reference(recipe.data, extractor, recipe.crop)
    sampler = FeatureSampler(generator, extractor, reference, run / "evaluations")
    job = generator.make_job()
    if judge and recipe.model.classes:
        job = yield from best_guidance(sampler, job)
    found = yield from reports.evaluate(sampler, job, COUNT, out)
    classes = [*dict.fromkeys(job.classes)][:4]
    write_pictures(out, checkpoint.load(run, job.ema, device), (classes * 4)[:4])
    metadata = read_classifier(judge)[0] if judge else None
    scores = next(iter(found["scores"].values()))
    facts = {
        "samples": COUNT,
        "guidance": job.sampling.guidance,
        "class_accuracy": scores["class_accuracy"]["value"] if metadata and "class_accuracy" in scores else None,
        "judge_on_held_out_real_images": metadata.held_out_accuracy if metadata else None,
        "copies": scores["memorization"]["value"],
        "copies_of_real_images": COPIES_OF_REAL,
        "images_seen": int(generator.checkpoint.name),
        "final_loss": list(log.records(run / "metrics.jsonl"))[-1].get("loss"),
    }
    disk.write(out / "report.json", json.dumps(facts | {"evaluation": found}, indent=1).encode())
    return facts


def ensure_judge(source: Source, flip: bool, path: Path, device: torch.device) -> Job[Path | None]:
    """A classifier of the images, trained where there is none yet; None where they have no classes that it could learn."""
    labels = Counter(int(label) for label in getattr(source, "labels", []))
    names = source.class_names
    few = len(source) < 1.5 * JUDGE_BATCH or min((labels[i] for i in range(len(names))), default=0) < MIN_IMAGES_A_CLASS
    if len(names) < 2 or few:
        return None
    if path.exists() and read_classifier(path)[0].fingerprint == source.fingerprint:
        return path
    source = yield from data.cache_in_ram(source)
    channels, *size = source.shape
    shape = ClassifierShape(channels, (size[0], size[1]), len(names), JUDGE_WIDTH, JUDGE_FEATURES)
    least, most = JUDGE_IMAGES
    images = min(max(least, 2 * len(source)), most)
    trainer = ClassifierTrainer(source, shape, normalization_of(source), images, JUDGE_BATCH, flip=flip, device=device)
    for step in trainer.steps(path):
        yield Progress("training the judge on real images", min(step.images_seen, images), images)
    trainer.save(path, trainer.accuracy())
    return path


def averaged_pixels() -> Extractor:
    """Images as averages of their pixels: the features of images without classes."""
    name = f"pixels, averaged to {copies.SIDE} x {copies.SIDE}"
    fingerprint = hashlib.sha256(name.encode()).hexdigest()[:16]
    return Extractor(name, fingerprint, None, lambda images: (copies.averaged(images), None))


def best_guidance(sampler: FeatureSampler, job: SampleJob) -> Job[SampleJob]:
    """The job at the guidance with the least Fréchet distance of SEARCH_COUNT images."""
    search = Search(sampler, job, SEARCH_COUNT, [job.ema], [job.sampling.interval], LOW, HIGH, STEP)
    first = yield from search.evaluate(Setting(job.ema, job.sampling.interval, round((FIRST - LOW) / STEP)))
    best = yield from search.hill_climb(first, (1,))
    return replace(job, sampling=replace(job.sampling, guidance=best.guidance))


def describe_report(facts: dict[str, Any]) -> str:
    """A report in sentences."""
    lines, of = [], f"of {facts['samples']:,} samples"
    if facts["class_accuracy"] is not None:
        lines.append(
            f"a classifier trained only on real images recognises {facts['class_accuracy']:.1%} {of} as the requested class\n"
            f"({facts['judge_on_held_out_real_images']:.1%} of real images that it never saw)"
        )
    lines.append(
        f"copies: {facts['copies']:.1%} {of} are as near to a training image as the nearest "
        f"{facts['copies_of_real_images']:.0%} of training images are to each other"
    )
    return "\n".join(lines)
