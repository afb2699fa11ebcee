"""What evaluation costs: time beside PNGs written and read again, memory and disk; and whether scores order real images.

    python benchmarks/evaluate.py speed              the same images: straight from memory, or through PNGs on the disk
    python benchmarks/evaluate.py memory 1000 50000  peak memory and disk of so many images of 256 x 256 (a stub network)
    python benchmarks/evaluate.py effects runs/digits digits.safetensors digits 2000    what each setting changes
    python benchmarks/evaluate.py real cifar10.zip cifar10.safetensors      Frechet distances between sets of real images

The classifiers: justimage features train --data digits --images 20000 --out digits.safetensors, and
justimage features train --data cifar10.zip --image-size 32 --flip --images 200000 --batch 128 --out cifar10.safetensors.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from justimage import chunks, data, figures, randomness
from justimage.chunks import Chunk
from justimage.data import Crop
from justimage.evaluation import scores
from justimage.evaluation.feature_sampler import FeatureSampler
from justimage.evaluation.reference import open_reference
from justimage.evaluation.scores import gaussian
from justimage.features import open_features
from justimage.features.classifier import Classifier, ClassifierShape
from justimage.generate import ImageGenerator
from justimage.normalization import from_uint8
from justimage.progress import finish

SIDE, UNIT = 256, 64


def stub_images(unit: int) -> Tensor:
    """Samples of a stub network: smooth noise, as costly to compress as photographs are."""
    coarse = torch.stack([randomness.image_noise(i, (3, 64, 64)) for i in range(unit * UNIT, (unit + 1) * UNIT)])
    return (nn.functional.interpolate(coarse, SIDE, mode="bilinear") * 60 + 128).clamp(0, 255).to(torch.uint8)


def stub() -> Callable[[Tensor], np.ndarray]:
    """Features of a small residual network on the image's quarter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Classifier(ClassifierShape(3, (64, 64), 10, width=8)).eval()

    @torch.no_grad()
    def features(images: Tensor) -> np.ndarray:
        return net(nn.functional.avg_pool2d(from_uint8(images), 4))[0].numpy()

    return features


def speed(count: int = 1024, rounds: int = 3) -> None:
    """The images exist; both ways end with the same features, units kept. What is compared is everything but drawing."""
    features, parts = stub(), [stub_images(unit) for unit in range(count // UNIT)]
    ratios = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as place:
            root, began = Path(place), time.perf_counter()
            for _ in chunks.compute_missing(root / "units", len(parts), lambda u: {"features": features(parts[u])}):
                pass
            straight = time.perf_counter() - began
            began = time.perf_counter()

            def write(unit: int, root: Path = root) -> Chunk:
                for i, image in enumerate(parts[unit]):
                    figures.to_pil(image).save(root / f"{unit * UNIT + i:06d}.png")
                return {"done": np.zeros(1)}

            def read(unit: int, root: Path = root) -> Chunk:
                names = [root / f"{i:06d}.png" for i in range(unit * UNIT, (unit + 1) * UNIT)]
                images = np.ascontiguousarray(np.stack([np.asarray(Image.open(name)) for name in names]).transpose(0, 3, 1, 2))
                return {"features": features(torch.from_numpy(images))}

            for name, make in ("written", write), ("read", read):
                for _ in chunks.compute_missing(root / name, len(parts), make):
                    pass
            through = time.perf_counter() - began
            same = all(
                np.array_equal(a["features"], b["features"])
                for a, b in zip(
                    chunks.read_chunks(root / "units", len(parts)), chunks.read_chunks(root / "read", len(parts)), strict=True
                )
            )
            ratios.append(through / straight)
            print(f"{count} images: straight {straight:.2f} s, through PNGs {through:.2f} s, {ratios[-1]:.1f} x; equal: {same}")
    print(f"median ratio {sorted(ratios)[len(ratios) // 2]:.1f}")


def memory(counts: list[int]) -> None:
    """A process for each count, which draws and scores."""
    for count in counts:
        subprocess.run([sys.executable, __file__, "one", str(count)], check=True)


def one(count: int) -> None:
    import resource

    features = stub()
    real = torch.cat([torch.from_numpy(features(stub_images(unit))) for unit in range(10**6, 10**6 + 16)])
    with tempfile.TemporaryDirectory() as place:
        began, total = time.perf_counter(), -(-count // UNIT)
        for _ in chunks.compute_missing(Path(place), total, lambda u: {"features": features(stub_images(u))}):
            pass
        found = np.concatenate([unit["features"] for unit in chunks.read_chunks(Path(place), total)])[:count]
        fid, _ = scores.fid(torch.from_numpy(found).split(scores.CHUNK), gaussian([real]))
        kid = scores.kid(torch.from_numpy(found), real)
        precision, recall = scores.precision_recall(torch.from_numpy(found), real)
        stored = sum(p.stat().st_size for p in Path(place).iterdir())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(
            f"{count:,} images of {SIDE} x {SIDE}: {time.perf_counter() - began:.0f} s, peak memory {peak / 1e6:.0f} MB, disk "
            f"{stored / 1e6:.1f} MB, of which features {found.nbytes / 1e6:.1f} MB; FID {fid.value:.3g}, "
            f"KID {kid.value:.2g}, precision {precision.value:.3f}, recall {recall.value:.3f}"
        )


def real(archive: str, classifier: str) -> None:
    """CIFAR-10: halves of train, train against test, train against itself with noise; in the space of a classifier."""
    sets = {p: finish(data.cache_in_ram(data.open_source(f"{archive}/{p}", Crop((32, 32))))) for p in ("train", "test")}
    extractor = open_features(classifier, torch.device("cpu"))
    print(extractor.name)

    def read(images: Tensor) -> Iterator[Tensor]:
        yield from chunks.map_threads(lambda part: extractor.extract(part)[0], images.split(256))

    def whole(part: str) -> Tensor:
        return sets[part].batch(np.arange(len(sets[part])))[0]

    train, test = whole("train"), whole("test")
    known = torch.cat(list(read(train)))
    noise = torch.randn(10_000, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rows = {
        "half of train against the other": (known[::2], known[1::2]),
        "10,000 of train against the rest": (known[::5], torch.cat([known[i::5] for i in range(1, 5)])),
        "test against train": (torch.cat(list(read(test))), known),
    }
    for strength in 4, 8, 16:
        noisy = (train[::5].float() + strength * noise).round().clamp(0, 255).to(torch.uint8)
        rows[f"10,000 of train with noise of {strength} grey levels against train"] = (torch.cat(list(read(noisy))), known)
    for name, (a, b) in rows.items():
        fid, _ = scores.fid(a.split(1024), gaussian(b.split(1024)))
        kid = scores.kid(a, b)
        print(f"| {name} | {len(a):,} | {fid.value:.3f} ± {fid.std:.3f} | {kid.value:.5f} ± {kid.std:.5f} |", flush=True)


def effects(run: str, classifier: str, reference: str, count: str) -> None:
    """What one setting changes, everything else as it is: a run's score under each protocol."""
    cpu, n, base = torch.device("cpu"), int(count), {}
    fp32, bf16 = ImageGenerator(run, cpu), ImageGenerator(run, cpu, "bf16")
    extractor, recipe = open_features(classifier, cpu), fp32.recipe
    real, s = finish(open_reference(reference, extractor, recipe.crop)), recipe.sampling
    rows: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
        "as it is": ({}, {}, n),
        "other noise": ({}, {"seed": 10**6}, n),
        "random classes": ({}, {"labels": "random"}, n),
        "half as many images": ({}, {}, n // 2),
        "a quarter": ({}, {}, n // 4),
        "bf16": ({}, {}, n),
        "Euler": ({"solver": "euler"}, {}, n),
        "twice the steps": ({"steps": 2 * s.steps}, {}, n),
        "half the steps": ({"steps": s.steps // 2}, {}, n),
        "no interval": ({"interval": (0.0, 1.0)}, {}, n),
        "sampling clip 0.04": ({"t_clip": 0.04}, {}, n),
        "no sampling clip": ({"t_clip": 0.0}, {}, n),
        "the weights themselves": ({}, {"ema": 0.0}, n),
        "unguided": ({"guidance": 1.0}, {}, n),
    }
    for name, (changes, others, size) in rows.items():
        generator = bf16 if name == "bf16" else fp32
        sampler = FeatureSampler(generator, extractor, real, Path(run) / "evaluations")
        job = generator.make_job(sampling=replace(s, **changes), **others)
        samples = finish(sampler.features(job, size))["features"]
        score, moved = scores.fid(samples.split(scores.CHUNK), real.statistics)
        base = base or {"fid": score.value, "moved": moved}
        paired = scores.standard_error(moved - base["moved"][:size]) if len(moved) == len(base["moved"]) else float("nan")
        change = score.value - base["fid"]
        print(f"| {name} | {size:,} | {score.value:.3f} ± {score.std:.3f} | {change:+.3f} ± {paired:.3f} |", flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["speed"]:
            speed()
        case ["memory", *counts]:
            memory([int(c) for c in counts] or [1000, 50_000])
        case ["one", count]:
            one(int(count))
        case ["real", archive, classifier]:
            real(archive, classifier)
        case ["effects", run, classifier, reference, count]:
            effects(run, classifier, reference, count)
        case _:
            print(__doc__)
    os._exit(0)
