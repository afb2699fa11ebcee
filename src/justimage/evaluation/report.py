"""One model, scored: the features of drawn images beside those of real ones, and a report of all that decided the numbers."""

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

from justimage import disk, pictures, units
from justimage.drawing import Artist, Drawing
from justimage.evaluation import scores
from justimage.evaluation.examiner import Examiner, resized
from justimage.evaluation.reference import LOOKED_AT, MOST, Reference, labels_of
from justimage.evaluation.scores import Score

TITLES = {
    "fid": "FID",
    "inception_score": "IS",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "agreement": "class agreement",
    "copies": "copies",
}


def score(drawn: dict[str, Tensor], reference: Reference, own_classes: bool) -> dict[str, Score]:
    """Every score that the features allow; `own_classes` says whether logits are of the classes that were asked for."""
    features = drawn["features"]
    if not bool(features.isfinite().all()):
        raise ValueError("the features of drawn images are not all finite; are the images?")
    found = {"fid": scores.fid(features.split(scores.CHUNK), reference.statistics)[0]}
    if "logits" in drawn:
        found["inception_score"] = scores.inception_score(drawn["logits"])
        if own_classes and int(drawn["labels"].min()) >= 0:
            found["agreement"] = scores.agreement(drawn["logits"], drawn["labels"])
    if reference.source is not None:
        real, around = reference.around
        found["kid"] = scores.kid(features, real)
        found["precision"], found["recall"] = scores.precision_recall(features, real, around_real=around)
        found["copies"] = copies(features, reference)
    return {name: found[name] for name in TITLES if name in found}


def copies(features: Tensor, reference: Reference) -> Score:
    """The share of drawn images that lie nearer to a real one than only 1 % of real ones lie to another: about 0.01 of new
    images, more of memorised ones."""
    apart, _ = scores.nearest(features[:LOOKED_AT], reference.parts())
    near = (apart <= reference.common).double()
    return Score(float(near.mean()), scores.deviation_of_mean(near))


def refuse_missing(job: Drawing, reference: Reference, classes: Sequence[str]) -> None:
    """ValueError where a class that is drawn has no real image. A reference may have numbers for names, or no classes."""
    if reference.source is None or not reference.source.class_names or not classes:
        return
    names = list(reference.source.class_names)
    numbered = all(name.isdigit() for name in names) and set(names).isdisjoint(classes)
    there = {names[label] for label in set(labels_of(reference).tolist()) if label >= 0}
    for c in job.classes:
        if c >= 0 and (str(c) if numbered else classes[c]) not in there:
            raise ValueError(f"the reference {reference.facts['path']} has no image of class {disk.shown(classes[c])!r}")


def warnings(job: Drawing, count: int, reference: Reference, dimension: int) -> list[str]:
    """What makes these numbers less than they seem."""
    found = []
    if count <= dimension:
        found.append(f"{count:,} images in {dimension:,} dimensions: the covariance has no full rank, FID is biased upwards")
    if job.labels == "balanced" and count % len(job.classes):
        found.append(f"{count:,} images are not equally many of {len(job.classes)} classes")
    real = reference.facts["images"]
    if real is not None and real <= dimension and reference.facts["statistics"] == "of all images":
        found.append(f"{real:,} real images in {dimension:,} dimensions: their covariance has no full rank")
    if reference.source is None:
        found.append("the reference has statistics only: no KID, precision, recall or copies")
    return found


def draw_all(examiner: Examiner, job: Drawing, count: int) -> dict[str, Drawing]:
    """Draw what is to be scored: the job's images, and the unguided ones."""
    unguided = replace(job, guidance=1.0).without_idle_settings()
    jobs = {"unguided": unguided} if job.guidance == 1 else {"guided": job, "unguided": unguided}
    for name, each in jobs.items():
        examiner.draw(each, count, f"drawing, {name}")
    return jobs


def evaluate(examiner: Examiner, job: Drawing, count: int, out: Path, command: str = "") -> dict[str, Any]:
    """Score a job's first `count` images, and the unguided ones, and write report.json, report.md and pictures into `out`."""
    if count < 2:
        raise ValueError(f"count is {count}; it must be 2 or more")
    artist, extractor, reference = examiner.artist, examiner.extractor, examiner.reference
    refuse_missing(job, reference, artist.recipe.class_names)
    began, seconds = time.perf_counter(), {}
    jobs = draw_all(examiner, job, count)
    drawn = {name: examiner.features(each, count) for name, each in jobs.items()}
    seconds["drawing"], began = time.perf_counter() - began, time.perf_counter()
    cautions = warnings(job, count, reference, drawn["unguided"]["features"].shape[1])
    with units.single_threaded():
        results = {name: score(found, reference, bool(extractor.class_names)) for name, found in drawn.items()}
    main = next(iter(jobs))
    sheets = {"grid.png": grid(artist, job)}
    if reference.source is not None:
        sheets["neighbours.png"] = neighbours(examiner, job, drawn[main]["features"])
    seconds["scoring"] = time.perf_counter() - began
    report = {
        "scores": {
            name: {
                score: {k: v if math.isfinite(v) else None for k, v in s._asdict().items() if v is not None}
                for score, s in each.items()
            }
            for name, each in results.items()
        },
        "protocol": {
            "labels": job.labels,
            "images": count,
            "as": "the paper's (equally many of each class)" if job.labels == "balanced" else "ADM's (random classes)",
            "reference": reference.facts["statistics"],
            "neighbours": f"k = {scores.NEIGHBOURS}, in the space of the features, at most {MOST:,} real images",
            "resize": "to {} x {}, bicubic, antialiased".format(*examiner.resize) if examiner.resize else "none",
        },
        "sampling": job.describe(),
        "model": {"path": str(artist.place), "parameters": sum(p.numel() for p in artist.model(job.ema).net.parameters())},
        "reference": reference.facts,
        "features": {"name": extractor.name, "identity": extractor.identity},
        "images_sha256": {name: digest(examiner, each, count) for name, each in jobs.items()},
        "warnings": cautions,
        "versions": versions(),
        "seconds": {name: round(s, 1) for name, s in seconds.items()},
        "command": command,
    }
    for name, sheet in sheets.items():
        disk.write(out / name, pictures.png(sheet))
    disk.write(out / "report.md", written(report).encode())
    disk.write(out / "report.json", json.dumps(report, indent=1, allow_nan=False).encode())
    return report


def versions() -> dict[str, str]:
    """Of all that computes."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    for package in "justimage", "torch-fidelity":
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    if torch.cuda.is_available():
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return found


def digest(examiner: Examiner, job: Drawing, count: int) -> str:
    """One hash of the hashes of all images."""
    found = np.concatenate([u["sha256"] for u in units.units(examiner.kept(job), job.units(count))])[:count]
    return disk.own_hash({"images": found.tolist()})


def grid(artist: Artist, job: Drawing) -> Image.Image:
    """The first images of a job, drawn again; a class a column where there are few."""
    columns = len(job.classes) if 1 < len(job.classes) <= 10 else 8
    shown = range(columns * (8 if columns == 8 else max(2, 64 // columns)))
    images = artist.model(job.ema).units.visible(artist.again(job, shown))
    names = artist.recipe.class_names
    words = [names[job.label(i)] for i in range(columns)] if names and len(job.classes) == columns else []
    return pictures.grid(images, columns, top=words if job.labels == "balanced" else [])


def neighbours(examiner: Examiner, job: Drawing, features: Tensor, count: int = 8) -> Image.Image:
    """Drawn images nearest to and farthest from real ones, and real ones farthest from drawn ones, each over its neighbour."""
    reference, artist = examiner.reference, examiner.artist
    source = reference.source
    assert source is not None
    apart, real = scores.nearest(features[:LOOKED_AT], reference.parts())
    order = apart.argsort()
    numbers, some = reference.spread(LOOKED_AT)
    missed, drawn = scores.nearest(some, [features])
    lost = missed.argsort(descending=True)[:count]
    visible = artist.model(job.ema).units.visible

    def draw(which: Tensor) -> Tensor:
        return resized(visible(artist.again(job, which.tolist())), examiner.resize)

    def show(which: Tensor) -> Tensor:
        return visible(torch.stack([source[int(i)][0] for i in which]))

    near, far = order[:count], order.flip(0)[:count]
    rows = {
        "drawn, nearest to real": draw(near),
        "their real neighbours": show(real[near]),
        "drawn, farthest from real": draw(far),
        "their real neighbours ": show(real[far]),
        "real, farthest from drawn": show(numbers[lost]),
        "their drawn neighbours": draw(drawn[lost]),
    }
    return pictures.grid(torch.cat(list(rows.values())), min(count, len(near)), left=list(rows))


def shown(s: dict[str, float | None]) -> str:
    """A score with its deviation, with as many digits as that leaves meaning in."""
    value, deviation = s["value"], s["deviation"]
    if value is None:
        return "-"
    digits = min(max(1 - math.floor(math.log10(deviation)), 0), 6) if deviation else 4
    return f"{value:.{digits}f}" + (f" ± {deviation:.{digits}f}" if deviation is not None else "")


def table(report: dict[str, Any]) -> str:
    """The scores, guided and unguided, beside each other."""
    columns = list(report["scores"])
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in report["scores"][columns[0]]:
        lines.append(f"| {TITLES[name]} | {' | '.join(shown(report['scores'][c][name]) for c in columns)} |")
    return "\n".join(lines)


def written(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"# {report['model']['path']}", "", table(report), ""]
    lines += ["The number after ± is the standard deviation over other samples of this size.", ""]
    lines += [f"- **{w}**" for w in report["warnings"]]
    for part in "protocol", "sampling", "model", "reference", "features", "images_sha256", "versions", "seconds":
        facts = ", ".join(f"{k} {abridged(v)}" for k, v in report[part].items())
        lines.append(f"- {part.replace('_', ' ')}: {facts}")
    lines += [f"- command: `{report['command']}`"] if report["command"] else []
    return "\n".join([*lines, ""])


def abridged(value: Any) -> str:
    if isinstance(value, list) and len(value) > 12:
        return f"{value[0]} ... {value[-1]} ({len(value)})"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
