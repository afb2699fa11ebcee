"""A report: scores of a model's samples against real images, with everything that determined the numbers."""

import json
import math
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from justimage import chunks, disk, figures
from justimage.evaluation import answers, scores
from justimage.evaluation.answers import score_answers
from justimage.evaluation.feature_sampler import FeatureSampler, resize
from justimage.evaluation.reference import COPY_SAMPLES, MAX_REAL, Reference, real_labels
from justimage.evaluation.scores import Score
from justimage.generate import ImageGenerator, SampleJob
from justimage.progress import Job

ANSWERS = 4
"""Answers to each image that a model is told."""
TITLES = {
    "fid": "FID",
    "inception_score": "IS",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "class_accuracy": "class accuracy",
    "memorization": "memorization",
}


def score_all(samples: dict[str, Tensor], reference: Reference, own_classes: bool) -> dict[str, Score]:
    """Every score that the features allow; `own_classes`: logits are of the classes that were asked for."""
    features = samples["features"]
    if not bool(features.isfinite().all()):
        raise ValueError("the features of the samples are not all finite; are the images?")
    found = {"fid": scores.fid(features.split(scores.CHUNK), reference.statistics)[0]}
    if "logits" in samples:
        found["inception_score"] = scores.inception_score(samples["logits"])
        if own_classes and int(samples["labels"].min()) >= 0:
            found["class_accuracy"] = scores.class_accuracy(samples["logits"], samples["labels"])
    if reference.source is not None:
        real, radii = reference.knn_radii
        found["kid"] = scores.kid(features, real)
        found["precision"], found["recall"] = scores.precision_recall(features, real, real_radii=radii)
        found["memorization"] = memorization(features, reference)
    return {name: found[name] for name in TITLES if name in found}


def memorization(features: Tensor, reference: Reference) -> Score:
    """The share of samples nearer to a real image than the 1 % quantile of distances between real ones: about 0.01 of new
    images, more of memorised ones."""
    distance, _ = scores.nearest(features[:COPY_SAMPLES], reference.iter_features())
    near = (distance <= reference.copy_threshold).double()
    return Score(float(near.mean()), scores.standard_error(near))


def check_computable(job: SampleJob, reference: Reference, classes: Sequence[str]) -> None:
    """ValueError where a sampled class has no real image. A reference may have numbers for names, or no classes."""
    if reference.source is None or not reference.source.class_names or not classes:
        return
    names = list(reference.source.class_names)
    numbered = all(name.isdigit() for name in names) and set(names).isdisjoint(classes)
    there = {names[label] for label in set(real_labels(reference).tolist()) if label >= 0}
    for c in job.classes:
        if c >= 0 and (str(c) if numbered else classes[c]) not in there:
            raise ValueError(f"the reference {reference.info['path']} has no image of class {disk.printable(classes[c])!r}")


def warnings(job: SampleJob, count: int, reference: Reference, dimension: int) -> list[str]:
    """Return the reasons, one sentence each, to trust the scores less."""
    messages = []
    if count <= dimension:
        messages.append(
            f"{count:,} images in {dimension:,} dimensions: their covariance is rank-deficient, FID is biased upwards"
        )
    if job.labels == "balanced" and not job.conditions and count % len(job.classes):
        messages.append(f"{count:,} images are not equally many of {len(job.classes)} classes")
    real = reference.info["images"]
    if real is not None and real <= dimension and reference.info["statistics"] == "of all images":
        messages.append(f"{real:,} real images in {dimension:,} dimensions: their covariance is rank-deficient")
    if reference.source is None:
        messages.append("the reference has statistics only: no KID, precision, recall or memorization")
    return messages


def guided_and_unguided(job: SampleJob) -> dict[str, SampleJob]:
    """The jobs that a report scores: the job, and the same without guidance."""
    unguided = replace(job, sampling=replace(job.sampling, guidance=1.0))
    return {"unguided": unguided} if job.sampling.guidance == 1 else {"guided": job, "unguided": unguided}


def ensure_samples(sampler: FeatureSampler, job: SampleJob, count: int) -> Job[None]:
    """Sample what a report scores; every process does its share."""
    for name, each in guided_and_unguided(job).items():
        yield from sampler.ensure(each, count, f"sampling, {name}")


def evaluate(
    sampler: FeatureSampler, job: SampleJob, count: int, out: Path, command: str = "", answers_each: int = ANSWERS
) -> Job[dict[str, Any]]:
    """Score a job's first `count` images, and the unguided ones; write report.json, report.md and pictures into `out`.
    answers_each: to an image that a model is told."""
    if count < 2:
        raise ValueError(f"count is {count}; it must be 2 or more")
    generator, extractor, reference = sampler.generator, sampler.extractor, sampler.reference
    check_computable(job, reference, generator.recipe.class_names)
    began = time.perf_counter()
    yield from ensure_samples(sampler, job, count)
    sampled = time.perf_counter()

    results, digests, main_features = {}, {}, None
    for name, each in guided_and_unguided(job).items():
        samples, hashes = sampler.load(each, count)
        digests[name] = disk.self_checksum({"images": hashes})
        with chunks.single_threaded():
            results[name] = score_all(samples, reference, bool(extractor.class_names))
        main_features = samples["features"] if main_features is None else main_features
    assert main_features is not None
    pictures = {"grid.png": sample_grid(generator, job)}
    if reference.source is not None:
        pictures["neighbours.png"] = neighbour_grid(sampler, job, main_features)

    told = {}
    if generator.recipe.model.image_channels:
        found = yield from score_answers(sampler, job, count, answers_each)
        pictures["answers.png"] = found.picture
        told = {"answers_each": answers_each, "answers": {name: score_to_json(s) for name, s in found.scores.items()}}

    report = {
        "scores": {name: {n: score_to_json(s) for n, s in each.items()} for name, each in results.items()},
        **told,
        **protocol(sampler, job, count),
        "images_sha256": digests,
        "warnings": warnings(job, count, reference, main_features.shape[1]),
        "versions": versions(),
        "seconds": {"sampling": round(sampled - began, 1), "scoring": round(time.perf_counter() - sampled, 1)},
        "command": command,
    }
    for name, picture in pictures.items():
        disk.write(out / name, figures.encode_png(picture))
    disk.write(out / "report.md", to_markdown(report).encode())
    disk.write(out / "report.json", json.dumps(report, indent=1, allow_nan=False).encode())
    return report


def score_to_json(score: Score) -> dict[str, float | None]:
    """A score as JSON, which has no number for what is not finite."""
    return {k: v if math.isfinite(v) else None for k, v in score._asdict().items() if v is not None}


def protocol(sampler: FeatureSampler, job: SampleJob, count: int) -> dict[str, Any]:
    """Everything that determined the scores, by section of the report."""
    generator, extractor, info = sampler.generator, sampler.extractor, sampler.reference.info
    return {
        "protocol": {
            "labels": job.labels,
            "images": count,
            "as": described_labels(job),
            "reference": info["statistics"],
            "neighbours": f"k = {scores.NEIGHBOURS}, in the space of the features, at most {MAX_REAL:,} real images",
            "resize": "to {} x {}, bicubic, antialiased".format(*sampler.resize) if sampler.resize else "none",
        },
        "sampling": job.describe(),
        "model": {
            "path": str(generator.checkpoint),
            "parameters": sum(p.numel() for p in generator.denoiser(job.ema).net.parameters()),
        },
        "reference": info,
        "features": {"name": extractor.name, "fingerprint": extractor.fingerprint},
    }


def described_labels(job: SampleJob) -> str:
    """Where the classes of a job's images are from."""
    if job.conditions:
        return "those of the real images, like all that they are told"
    return "the paper's (equally many of each class)" if job.labels == "balanced" else "ADM's (random classes)"


def versions() -> dict[str, str]:
    """Return the versions of the software that the scores depend on."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    for package in "justimage", "torch-fidelity":
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    if torch.cuda.is_available():
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return found


def sample_grid(generator: ImageGenerator, job: SampleJob) -> Image.Image:
    """Generate the first images of a job again and show them; one column for each class, if there are 2 to 10."""
    columns = len(job.classes) if 1 < len(job.classes) <= 10 else 8
    indices = range(columns * (8 if columns == 8 else max(2, 64 // columns)))
    images = generator.denoiser(job.ema).normalization.to_uint8(generator.sample_indices(job, indices))
    names = generator.recipe.class_names
    labelled = names and len(job.classes) == columns and job.labels == "balanced" and not job.conditions
    return figures.image_grid(images, columns, top=[names[job.label(i)] for i in range(columns)] if labelled else [])


def neighbour_grid(sampler: FeatureSampler, job: SampleJob, features: Tensor, count: int = 8) -> Image.Image:
    """Show the generated images nearest to and farthest from real ones, and the real ones farthest from generated ones, each
    above its nearest neighbour."""
    reference, generator, source = sampler.reference, sampler.generator, sampler.reference.source
    assert source is not None
    to_uint8 = generator.denoiser(job.ema).normalization.to_uint8

    def generated(indices: Tensor) -> Tensor:
        return resize(to_uint8(generator.sample_indices(job, indices.tolist())), sampler.resize)

    def real(indices: Tensor) -> Tensor:
        return to_uint8(torch.stack([source[int(i)][0] for i in indices]))

    distances, nearest_real = scores.nearest(features[:COPY_SAMPLES], reference.iter_features())
    order = distances.argsort()
    near, far = order[:count], order.flip(0)[:count]
    real_indices, real_features = reference.subsample(COPY_SAMPLES)
    distances, nearest_generated = scores.nearest(real_features, features.split(scores.CHUNK))
    missed = distances.argsort(descending=True)[:count]
    rows = [
        ("generated, nearest to real", generated(near)),
        ("their real neighbours", real(nearest_real[near])),
        ("generated, farthest from real", generated(far)),
        ("their real neighbours", real(nearest_real[far])),
        ("real, farthest from generated", real(real_indices[missed])),
        ("their generated neighbours", generated(nearest_generated[missed])),
    ]
    labels, images = zip(*rows, strict=True)
    return figures.image_grid(torch.cat(images), min(count, len(near)), left=labels)


def to_display(s: dict[str, float | None]) -> str:
    """Format a score with its standard deviation, to two significant digits of the latter."""
    value, std = s["value"], s["std"]
    if value is None:
        return "-"
    digits = min(max(1 - math.floor(math.log10(std)), 0), 6) if std else 4
    return f"{value:.{digits}f}" + (f" ± {std:.{digits}f}" if std is not None else "")


def scores_table(report: dict[str, Any]) -> str:
    """Return a Markdown table of the scores, one column each for guided and unguided samples."""
    columns = list(report["scores"])
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in report["scores"][columns[0]]:
        lines.append(f"| {TITLES[name]} | {' | '.join(to_display(report['scores'][c][name]) for c in columns)} |")
    if told := report.get("answers"):
        lines += ["", f"| {report['answers_each']} answers to each image | |", "|---|---|"]
        lines += [f"| {answers.TITLES[name]} | {to_display(score)} |" for name, score in told.items()]
    return "\n".join(lines)


def to_markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = [f"# {report['model']['path']}", "", scores_table(report), ""]
    lines += ["The number after ± is the standard deviation over other samples of the same size.", ""]
    lines += [f"- **{w}**" for w in report["warnings"]]
    for section in "protocol", "sampling", "model", "reference", "features", "images_sha256", "versions", "seconds":
        entries = ", ".join(f"{k} {shorten_classes(v)}" for k, v in report[section].items())
        lines.append(f"- {section.replace('_', ' ')}: {entries}")
    lines += [f"- command: `{report['command']}`"] if report["command"] else []
    return "\n".join([*lines, ""])


def shorten_classes(value: Any) -> str:
    """Format a value of the report, a list of more than 12 items as its first, last and length."""
    if isinstance(value, list) and len(value) > 12:
        return f"{value[0]} ... {value[-1]} ({len(value)})"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
