"""Many images from a model, sampled in chunks of fixed size: the bytes of image i depend on the job alone.

Image i has the noise of seed + i and a label that is a function of i; a chunk is always computed as one batch, the last one
too, whatever the count. So a larger count contains the images of a smaller one, and any image can be sampled again from
its index.
"""

import hashlib
import json
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from justimage import checkpoint, chunks, disk, figures, randomness, sampling, stopping
from justimage.chunks import Chunk
from justimage.conditions import NULL_CLASS, Condition, class_numbers
from justimage.distributed import rank_and_size
from justimage.given import Conditions
from justimage.inference import compile_denoiser
from justimage.progress import Job, Progress
from justimage.sample_arguments import check_condition
from justimage.sampling import Denoiser, Sampling

BATCH = 64
"""Images sampled together."""
INDEX_CSV = "images.csv"
Precision = Literal["fp32", "bf16"]
Labels = Literal["balanced", "random"]


@dataclass(frozen=True)
class SampleJob:
    """Everything that determines the bytes of a job's images, on one kind of device; idle settings are normalised."""

    weights_hash: str
    """of the weights, and of the recipe that interprets their output"""
    ema: float
    """the average that these are; 0 for the weights themselves"""
    sampling: Sampling = Sampling()
    seed: int = 0
    """of the first image"""
    classes: tuple[int, ...] = (NULL_CLASS,)
    """those sampled; -1 for no class"""
    labels: Labels = "balanced"
    """the classes over and over (the paper's 50 of each, where the count is a multiple), or drawn at random (ADM's)"""
    batch: int = BATCH
    """images sampled together: a chunk"""
    precision: Precision = "fp32"
    device: str = "cpu"
    """what computes; other devices round otherwise"""
    compiled: bool = False
    """by a compiled network, which rounds otherwise, too"""
    conditions: str = ""
    """fingerprint of what images are sampled from beside their classes; empty for nothing"""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; it must be 1 or more")
        if self.sampling.guidance == 1:  # then these change nothing
            object.__setattr__(self, "sampling", replace(self.sampling, interval=(0.0, 1.0), guidance_every=1))

    def label(self, index: int) -> int:
        """The class of an image."""
        if self.labels == "balanced":
            return self.classes[index % len(self.classes)]
        return self.classes[int(randomness.uniform(self.seed, "label", index)[0] * len(self.classes))]

    def indices(self, chunk: int) -> range:
        """The images of a chunk."""
        return range(chunk * self.batch, (chunk + 1) * self.batch)

    def n_chunks(self, count: int) -> int:
        """Chunks that hold `count` images."""
        return -(-count // self.batch)

    def describe(self) -> dict[str, Any]:
        """This job as JSON."""
        told = {"conditions": self.conditions} if self.conditions else {}
        return json.loads(json.dumps({name: v for name, v in asdict(self).items() if name != "conditions"} | told))


def short_hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


class ImageGenerator:
    """Samples images from a run's averages, each loaded once."""

    def __init__(self, source: str | Path, device: torch.device, precision: Precision = "fp32", compiled: bool = False) -> None:
        """precision: what networks compute in. compiled: whether they are."""
        (self.checkpoint, self.recipe), self.device = checkpoint.resolve_average(source), device
        self.precision: Precision = precision
        self.compiled = compiled
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.conditions: Conditions | None = None
        """what its jobs are sampled from beside their classes"""
        self.denoisers: dict[float, Denoiser] = {}
        self.hashes: dict[float, str] = {}
        self.loading = Lock()

    def denoiser(self, ema: float) -> Denoiser:
        """The denoiser with one of the averages; whichever thread asks first loads it."""
        with self.loading:
            if ema not in self.denoisers:
                loaded = checkpoint.load(self.checkpoint, ema, self.device, dtype=self.dtype)
                self.denoisers[ema] = compile_denoiser(loaded, self.dtype) if self.compiled else loaded
        return self.denoisers[ema]

    def weights_hash(self, ema: float) -> str:
        """The hash of one of the averages, computed once."""
        if ema not in self.hashes:
            self.hashes[ema] = checkpoint.fingerprint(self.checkpoint, ema)
        return self.hashes[ema]

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    @property
    def emas(self) -> tuple[float, ...]:
        """The averages to sample with; of one file the one it holds, 0 for the weights themselves."""
        if self.checkpoint.is_file():
            return (checkpoint.ema_of(self.checkpoint),)
        return self.recipe.training.ema or (0.0,)

    def make_job(
        self,
        ema: float | None = None,
        classes: Sequence[int] | None = None,
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        labels: Labels = "balanced",
        batch: int = BATCH,
    ) -> SampleJob:
        """A job for this run, checked; by default of all its classes, with the average and the sampling of its recipe.

        ValueError for what the model cannot sample.
        """
        total = self.recipe.model.classes or 0
        if ema is None:
            ema = self.emas[0] if self.checkpoint.is_file() else self.recipe.training.sample_ema
        sampling = sampling or self.recipe.sampling
        if self.is_told and self.conditions is None and not total:  # nothing to guide towards
            sampling = replace(sampling, guidance=1.0)
        job = SampleJob(
            self.weights_hash(ema), ema, sampling, seed, tuple(classes or range(total) or [NULL_CLASS]),
            labels, batch, self.precision, self.device_name, self.compiled,
            self.conditions.fingerprint if self.conditions else "",
        )  # fmt: skip
        guidance = 1.0 if self.is_told else job.sampling.guidance  # what it is told can be guided towards, without classes
        check_condition(torch.tensor(job.classes), len(job.classes), self.denoiser(ema).classes, guidance)
        return job

    @property
    def is_told(self) -> bool:
        """Whether the network is told more than a class."""
        a = self.recipe.model
        return bool(a.image_channels or a.vector or a.text_length)

    def condition(self, job: SampleJob, indices: Sequence[int]) -> Condition:
        """The conditions of some of a job's images."""
        classes = torch.tensor([job.label(i) for i in indices])
        if self.conditions is None:
            return classes
        return ({"classes": classes} if self.recipe.model.classes else {}) | self.conditions.at(indices)

    def labels(self, job: SampleJob, indices: Sequence[int]) -> list[int]:
        """The classes of some of a job's images: its own, or those of the real images whose conditions they have."""
        found = class_numbers(self.condition(job, indices))
        return [NULL_CLASS] * len(indices) if found is None else found.tolist()

    def sample_chunk(self, job: SampleJob, chunk: int) -> Tensor:
        """The images (job.batch, channels, height, width) of a chunk, on the CPU, in the data's units."""
        return self.sample_indices(job, job.indices(chunk))

    def sample_indices(self, job: SampleJob, indices: Sequence[int]) -> Tensor:
        """Images by their index."""
        condition, seeds = self.condition(job, indices), [job.seed + i for i in indices]
        return sampling.sample(self.denoiser(job.ema), condition, seeds, job.sampling, batch=job.batch, dtype=self.dtype)


def sha256_each(images: Tensor) -> np.ndarray:
    """The SHA-256 of each image's numbers."""
    return np.array([hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images])


def labels_and_hashes(generator: ImageGenerator, job: SampleJob, chunk: int, images: Tensor) -> Chunk:
    """The labels and hashes of a chunk's images, or of the first of them; every chunk carries these."""
    return {"labels": np.array(generator.labels(job, job.indices(chunk)[: len(images)])), "sha256": sha256_each(images)}


def save_images(generator: ImageGenerator, job: SampleJob, count: int, folder: Path | None, npz: Path | None) -> Job[None]:
    """Sample a job's first `count` images into a folder of PNGs, an .npz, or both; a crash costs one chunk, memory holds a few.

    Until the .npz is complete, its images lie in a folder beside it, FILE.npz.job. images.csv in the folder lists each image's
    class, seed and SHA-256. Rank 0 joins the chunks that all processes sampled. ValueError for a folder with another job.
    """
    root = folder or Path(f"{npz}.job")
    to_uint8, total = generator.denoiser(job.ema).normalization.to_uint8, job.n_chunks(count)

    def make(number: int) -> Chunk:
        images = generator.sample_chunk(job, number)[: count - number * job.batch]
        for i, image in zip(job.indices(number), to_uint8(images) if folder else [], strict=False):
            disk.write(root / f"{i:06d}.png", figures.encode_png(figures.to_pil(image)), chunks.tmp_prefix())
        return labels_and_hashes(generator, job, number, images) | ({"images": images.numpy()} if npz else {})

    chunks.begin(root, {"count": count, "job": job.describe(), "folder": bool(folder), "npz": bool(npz)})
    place, (rank, size) = root / "chunks", rank_and_size()
    disk.remove(place / f"done-{rank}")
    if (root / INDEX_CSV).exists() and not npz:
        yield Progress("sampling", count, count)
        return
    for done in chunks.compute_missing(place, total, make, chunks.concurrency(generator.device)):
        yield Progress("sampling", min(done * job.batch, count), count)
    if rank:
        disk.write(place / f"done-{rank}", b"")
        return
    while any(not (place / f"done-{other}").exists() for other in range(1, size)):
        stopping.check()
        time.sleep(0.05)  # nobody reads chunks any more when they are removed
    if npz:
        write_npz(npz, count, chunks.read_chunks(place, total))
    if folder:
        hashes = (sha256 for chunk in chunks.read_chunks(place, total) for sha256 in chunk["sha256"])
        rows = (f"{i:06d}.png,{job.label(i)},{job.seed + i},{h}\n" for i, h in zip(range(count), hashes, strict=True))
        disk.write(folder / INDEX_CSV, "".join(["file,class,seed,sha256\n", *rows]).encode())
    for left in root.glob(".tmp-*"):  # of killed processes
        disk.remove(left)
    disk.remove(place if folder else root)


def write_npz(path: Path, count: int, batches: Iterator[Chunk]) -> None:
    """Write images and labels as ADM does, arr_0 (n, height, width, channels) uint8 and arr_1 (n,), one chunk in memory;
    floats as (n, channels, height, width)."""
    labels = []
    with disk.replacing(path) as aside, zipfile.ZipFile(aside, "w", allowZip64=True) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            for number, chunk in enumerate(batches):
                images = chunk["images"] if chunk["images"].dtype != np.uint8 else np.moveaxis(chunk["images"], 1, -1)
                if number == 0:
                    about = {"descr": images.dtype.str, "fortran_order": False, "shape": (count, *images.shape[1:])}
                    np.lib.format.write_array_header_1_0(file, about)  # pyright: ignore[reportArgumentType]
                file.write(np.ascontiguousarray(images).tobytes())
                labels.append(chunk["labels"])
        with archive.open("arr_1.npy", "w") as file:
            np.lib.format.write_array(file, np.concatenate(labels), allow_pickle=False)
