"""justimage push."""

import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from justimage import checkpoint, disk, figures, hub
from justimage.cli.card import About, model_card
from justimage.cli.evaluate import evaluations_of
from justimage.cli.options import checked_device, parse
from justimage.cli.progress import stage
from justimage.cli.train import asked
from justimage.generate import ImageGenerator

DESCRIPTION = """Upload a model to the Hub of Hugging Face: its averages as safetensors, its recipe, and a card with samples
and scores.

examples:
  justimage push runs/photos me/photos
  justimage push runs/photos me/photos --ema 0.9999 --license cc-by-4.0 --data "my photographs of 2026" --private
  justimage sample --from hf://me/photos --out grid.png

Needs pip install 'justimage[hub]' and, once, hf auth login. Scores are those of the newest report of these
weights (justimage evaluate). Weights that the repository has beside these are deleted, and stay in its history. Interrupted,
the same command goes on; what the Hub has is not sent again."""


@dataclass(frozen=True)
class PushOptions:
    source: Positional[Path]
    """a run, or a converted folder"""
    repository: Positional[str]
    """organisation/name, made where there is none"""
    ema: tuple[float, ...] = ()
    """averages to upload, 0 for the weights themselves [the one that the recipe samples with]"""
    all: bool = False
    """upload all averages, and the weights themselves"""
    license: str = "mit"
    """of the weights, by its name on the Hub"""
    data: str = ""
    """a word about the data and its licence, for the card [the name of its folder, without the folders above]"""
    private: bool = False
    """make the repository private; one that is public already is refused"""
    revision: str | None = None
    """branch to push to [main]"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps, for the samples on the card [cuda if there is one]"""


def main(words: Sequence[str]) -> int:
    o = parse(PushOptions, words, "push", DESCRIPTION)
    place = checkpoint.resolve(o.source)
    if place.is_file():
        raise ValueError(f"{o.source} is one file of weights; give a run or a converted folder")
    recipe = checkpoint.read_recipe(place)
    if recipe.custom:
        raise ValueError(f"{o.source} was trained with {', '.join(recipe.custom)}, which nobody else has; it cannot be shared")
    values = (0.0, *recipe.training.ema) if o.all else o.ema or (recipe.training.sample_ema,)
    names = [checkpoint.group_of(value) for value in values]
    place = checkpoint.resolve(o.source, names)  # whose files are as they were written
    groups = checkpoint.verify(place, [])["tensors"]
    if missing := [value for value, name in zip(values, names, strict=True) if name not in groups]:
        raise ValueError(f"there is no ema {missing[0]:g} in {o.source}; it has {', '.join(sorted(groups))} (model: 0)")
    older = hub.create(o.repository, o.private, o.revision)
    shared = recipe.shared(values)
    seen = checkpoint.read_state(place)["images_seen"]
    with stage(f"uploading {o.source} to {o.repository}"), tempfile.TemporaryDirectory() as parent:
        groups = {name: checkpoint.load_group(place, name) for name in names}
        folder = checkpoint.write_checkpoint(Path(parent) / "weights", groups, shared, {"images_seen": seen})
        picture, parameters = samples(folder, o.device)
        disk.write(folder / "samples.png", picture)
        data = o.data or disk.printable(Path(recipe.data).name, 100)
        report = newest_report(o.source, place, values)
        text = model_card(shared, About(o.repository, address_of(o), parameters, seen, o.license, data, report))
        disk.write(folder / "README.md", text.encode())
        address = hub.push(folder, o.repository, f"{seen:,} images", older, o.revision)
    print(f"pushed as {address}")
    print(f"now try:  {shlex.join(['justimage', 'sample', '--from', address_of(o), *asked(recipe), '--out', 'grid.png'])}")
    return 0


def address_of(o: PushOptions) -> str:
    """Where others find it."""
    return f"hf://{o.repository}" + (f"@{o.revision}" if o.revision else "")


def samples(folder: Path, device: str | None) -> tuple[bytes, int]:
    """A picture of sixteen samples or so, and the number of the network's parameters."""
    generator = ImageGenerator(folder, checked_device(device))
    total = generator.recipe.model.classes or 0
    job = generator.make_job(batch=16)
    denoiser = generator.denoiser(job.ema)
    images = denoiser.normalization.to_uint8(generator.sample_indices(job, range(16)))
    columns = total if 2 <= total <= 8 else 8
    grid = figures.image_grid(images, columns)
    return figures.encode_png(grid), sum(p.numel() for p in denoiser.net.parameters())


def newest_report(source: Path, place: Path, values: Sequence[float]) -> dict[str, Any] | None:
    """The newest report of a checkpoint with one of these averages; None where there is none."""
    found = sorted(evaluations_of(source).glob("*/report.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for report in map(disk.read_json, found):
        if report["sampling"]["ema"] in values and Path(report["model"]["path"]).name == place.name:
            return report
    return None
