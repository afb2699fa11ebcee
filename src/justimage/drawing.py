"""Many images from a model, drawn in units of fixed size: the bytes of image i depend on the job alone, not on who draws it.

Image i has the noise of seed + i and a label that is a function of i; unit u is always computed as one batch, the last one
too, whatever the count. So with more images come those of fewer, and any image can be drawn again from its number.
"""

import hashlib
import json
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from justimage import checkpoint, disk, pictures, randomness, sampling, units
from justimage.distributed import share
from justimage.process import Model
from justimage.sampling import SolverName
from justimage.stopping import Stopped
from justimage.units import Unit

UNIT = 64
"""Images drawn together."""
TABLE = "images.csv"
Precision = Literal["fp32", "bf16"]
Labels = Literal["balanced", "random"]


@dataclass(frozen=True)
class Drawing:
    """What decides every byte of the images of a job, on one kind of device."""

    weights: str
    """hash of the weights, and of what reads their output"""
    ema: float
    """the average that these are; 0 for the weights themselves"""
    guidance: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    solver: SolverName = "heun"
    steps: int = 50
    sampling_clip: float = 0.05
    """least 1 - t that a velocity is divided by, at the end of the way to the image"""
    seed: int = 0
    """of the first image"""
    classes: tuple[int, ...] = (-1,)
    """those drawn; -1 for no class"""
    labels: Labels = "balanced"
    """the classes over and over (the paper's 50 of each, where the count is a multiple), or drawn at random (ADM's)"""
    unit: int = UNIT
    precision: Precision = "fp32"
    device: str = "cpu"
    """what computes; other devices round otherwise"""

    def __post_init__(self) -> None:
        sampling.check_settings(self.guidance, self.interval, self.steps, self.solver)
        if self.unit < 1:
            raise ValueError(f"batch is {self.unit}; it must be 1 or more")

    def without_idle_settings(self) -> "Drawing":
        """The same images, where guidance is off, by one name: an interval changes nothing then."""
        return replace(self, interval=(0.0, 1.0)) if self.guidance == 1 else self

    def label(self, number: int) -> int:
        """The class of image `number`."""
        if self.labels == "balanced":
            return self.classes[number % len(self.classes)]
        return self.classes[int(randomness.uniform(self.seed, "label", number)[0] * len(self.classes))]

    def numbers(self, unit: int) -> range:
        """The images of a unit."""
        return range(unit * self.unit, (unit + 1) * self.unit)

    def units(self, count: int) -> int:
        """Units that hold `count` images."""
        return -(-count // self.unit)

    def describe(self) -> dict[str, Any]:
        """This job as JSON."""
        return json.loads(json.dumps(asdict(self)))


def short_hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


class Artist:
    """Draws images of a run's averages, each read once."""

    def __init__(self, source: str | Path, device: torch.device) -> None:
        self.place, self.device = checkpoint.find(source), device
        self.recipe = checkpoint.stored_recipe(self.place)
        self.models: dict[float, Model] = {}
        self.loading = Lock()
        self.weights: Callable[[float], str] = lru_cache(maxsize=None)(lambda ema: checkpoint.identity(self.place, ema))

    def model(self, ema: float) -> Model:
        """The model with one of the averages, read once, whichever thread asks first."""
        with self.loading:
            if ema not in self.models:
                self.models[ema] = checkpoint.load(self.place, ema, self.device)
        return self.models[ema]

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    @property
    def averages(self) -> tuple[float, ...]:
        """Those there are to draw with; of one file the one that it holds, 0 for the weights themselves."""
        if self.place.is_file():
            return (checkpoint.average_in(self.place),)
        return self.recipe.training.ema or (0.0,)

    def job(self, ema: float | None = None, classes: Sequence[int] | None = None, **others: Any) -> Drawing:
        """A job for this run, checked; by default of all its classes, with the average that the recipe samples with.

        ValueError for what the model cannot draw.
        """
        total = self.recipe.network.classes or 0
        if ema is None:
            ema = self.averages[0] if self.place.is_file() else self.recipe.sampling.use_ema
        if others.get("sampling_clip") is None:
            others["sampling_clip"] = self.recipe.process.sampling_clip
        job = Drawing(
            weights=self.weights(ema),
            ema=ema,
            classes=tuple(classes or range(total) or [-1]),
            device=self.device_name,
            **others,
        )
        sampling.check(self.model(ema), torch.tensor(job.classes), job.guidance)
        return job.without_idle_settings()

    def draw(self, job: Drawing, unit: int) -> Tensor:
        """The images (job.unit, channels, height, width) of a unit, on the CPU, in the data's units."""
        return self.again(job, job.numbers(unit))

    def again(self, job: Drawing, numbers: Sequence[int]) -> Tensor:
        """Images by their numbers."""
        model = self.model(job.ema)
        model = replace(model, process=replace(model.process, sampling_clip=job.sampling_clip))
        return sampling.sample(
            model, [job.label(i) for i in numbers], [job.seed + i for i in numbers], batch=job.unit,
            guidance=job.guidance, interval=job.interval, steps=job.steps, solver=job.solver,
            dtype=torch.bfloat16 if job.precision == "bf16" else torch.float32,
        )  # fmt: skip


def hashes(images: Tensor) -> np.ndarray:
    """The SHA-256 of each image's numbers."""
    return np.array([hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images])


def signed(job: Drawing, unit: int, images: Tensor) -> Unit:
    """What every unit of a job keeps: the labels and hashes of its images, or of the first of them."""
    return {"labels": np.array([job.label(i) for i in job.numbers(unit)[: len(images)]]), "sha256": hashes(images)}


def save(
    artist: Artist,
    job: Drawing,
    count: int,
    folder: Path | None,
    npz: Path | None,
    progress: Callable[[int, int], object] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Draw a job's first `count` images into a folder of PNGs, an .npz, or both; a crash costs a unit, memory holds a few.

    Until the .npz is whole, its images lie in a folder beside it, FILE.npz.job. images.csv in the folder says of each image its
    class, seed and SHA-256. The process that leads ends what all have drawn. ValueError for a folder with another job.
    """
    place = folder or Path(f"{npz}.job")
    visible, total = artist.model(job.ema).units.visible, job.units(count)

    def make(number: int) -> Unit:
        images = artist.draw(job, number)[: count - number * job.unit]
        for i, image in zip(job.numbers(number), visible(images) if folder else [], strict=False):
            disk.write(place / f"{i:06d}.png", pictures.png(pictures.picture(image)), units.writer())
        return signed(job, number, images) | ({"images": images.numpy()} if npz else {})

    units.begin(place, {"drawing": job.describe(), "count": count, "folder": bool(folder), "npz": bool(npz)})
    rank, size = share()
    disk.remove(place / "units" / f"done-{rank}")
    if (place / TABLE).exists() and not npz:
        progress(count, count)
        return
    for done in units.complete(place / "units", total, make, units.at_once(artist.device), stop):
        progress(min(done * job.unit, count), count)
    if rank:
        disk.write(place / "units" / f"done-{rank}", b"")
        return
    while any(not (place / "units" / f"done-{other}").exists() for other in range(1, size)):
        if stop():
            raise Stopped("stopped as asked; the same command goes on where it was")
        time.sleep(0.05)  # nobody looks for units any more when they are removed
    if npz:
        write_npz(npz, count, units.units(place / "units", total))
    if folder:
        hashed = (sha256 for unit in units.units(place / "units", total) for sha256 in unit["sha256"])
        rows = (f"{i:06d}.png,{job.label(i)},{job.seed + i},{h}\n" for i, h in zip(range(count), hashed, strict=True))
        disk.write(folder / TABLE, "".join(["file,class,seed,sha256\n", *rows]).encode())
    for left in place.glob(".tmp-*"):  # by whoever was killed
        disk.remove(left)
    disk.remove(place / "units" if folder else place)


def write_npz(path: Path, count: int, parts: Iterator[Unit]) -> None:
    """Images and labels as ADM stores them, arr_0 (n, height, width, channels) uint8 and arr_1 (n,), one part in memory;
    floats as they are prepared, (n, channels, height, width)."""
    labels = []
    with disk.replacing(path) as aside, zipfile.ZipFile(aside, "w", allowZip64=True) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            for number, part in enumerate(parts):
                images = part["images"] if part["images"].dtype != np.uint8 else np.moveaxis(part["images"], 1, -1)
                if number == 0:
                    about = {"descr": images.dtype.str, "fortran_order": False, "shape": (count, *images.shape[1:])}
                    np.lib.format.write_array_header_1_0(file, about)  # pyright: ignore[reportArgumentType]
                file.write(np.ascontiguousarray(images).tobytes())
                labels.append(part["labels"])
        with archive.open("arr_1.npy", "w") as file:
            np.lib.format.write_array(file, np.concatenate(labels), allow_pickle=False)
