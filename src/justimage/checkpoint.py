"""Checkpoints: folders of safetensors and JSON that are complete or absent, and verified before they are used.

    run/recipe.json  metrics.jsonl  events.jsonl  samples/
    run/checkpoints/000012000/  model-00001-of-00001.safetensors  adam-...  ema-0.9999-...  state.json  MANIFEST.json
    run/checkpoints/.tmp-...    being written, never read       .bad-...    found damaged, kept for a person

The folder's name is the number of images seen. MANIFEST.json lists every file with its size and SHA-256, and every tensor
with dtype and shape, and carries a hash of itself. Every file of weights also carries the recipe, so it can be used alone.
A set of weights without a training (`adam-...`), as `justimage convert` makes it, has the same form.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save as serialised
from torch import Tensor, nn

from justimage import recipe as recipes
from justimage.ema import EMA, name
from justimage.process import Model
from justimage.recipe import Recipe

Tensors = dict[str, Tensor]
MANIFEST = "MANIFEST.json"
ADAM = ("step", "exp_avg", "exp_avg_sq")


class Damaged(ValueError):
    """A checkpoint that is not what was written."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place to write a file aside; on leaving, it becomes `path` whole. After an error or a crash `path` is what it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".tmp-{path.name}")
    try:
        yield aside
        fsync(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    fsync(path.parent)


def write(path: Path, content: bytes) -> None:
    """Replace a file whole: readers see the old one or the new one, after a crash too."""
    with replacing(path) as aside:
        aside.write_bytes(content)


def writable(place: Path) -> None:
    """OSError in one line now, rather than after the work, where a file or folder could not be written at `place`."""
    parent = next(p for p in place.absolute().parents if p.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"{place} cannot be written: {parent} is a file")
    if not os.access(parent, os.W_OK) or (place.exists() and not os.access(place, os.W_OK)):
        raise PermissionError(f"{place} cannot be written: no permission in {parent}")


def publish(folder: Path, groups: Mapping[str, Tensors], recipe: Recipe, state: dict[str, Any]) -> Path:
    """Write a checkpoint aside and rename it to `folder`, the moment it begins to exist.

    The manifest's hashes are of the bytes in memory, so what a disk did to them is noticed when they are read.
    """
    aside = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    stored = recipes.to_json(recipe)
    files: dict[str, dict[str, Any]] = {}
    tensors: dict[str, dict[str, Any]] = {}

    def put(file: str, content: bytes) -> None:
        (aside / file).write_bytes(content)
        fsync(aside / file)
        files[file] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    for group, named in groups.items():
        metadata = {"justimage": json.dumps({"group": group, "recipe": stored})}  # one entry: several come in random order
        put(file_of(group), serialised({n: t.detach().cpu().contiguous() for n, t in named.items()}, metadata))
        tensors[group] = {n: described(t, file_of(group)) for n, t in named.items()}
    put("state.json", json.dumps(state | {"recipe": stored}, indent=1).encode())
    manifest = {"files": files, "tensors": tensors}
    put(MANIFEST, json.dumps(manifest | {"sha256": own_hash(manifest)}, indent=1).encode())
    fsync(aside)
    aside.rename(folder)
    fsync(folder.parent)
    fsync(folder.parent.parent)
    return folder


def file_of(group: str) -> str:
    return f"{group}-00001-of-00001.safetensors"


def described(tensor: Tensor, file: str) -> dict[str, Any]:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape), "file": file}


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def own_hash(manifest: dict[str, Any]) -> str:
    body = {k: v for k, v in manifest.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def verify(folder: Path, groups: Collection[str] | None = None) -> dict[str, Any]:
    """The manifest, after checking it, state.json, and the files of some groups or of all; `Damaged` says what is wrong."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files, digest = manifest["files"], manifest["sha256"]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{folder / MANIFEST} is missing or not a manifest ({error})") from error
    if digest != own_hash(manifest):
        raise Damaged(f"{folder / MANIFEST} was changed: its hash of itself does not match")
    for file in files if groups is None else ["state.json", *(file_of(g) for g in groups if file_of(g) in files)]:
        path = folder / file
        if not path.is_file():
            raise Damaged(f"{path} is missing")
        if path.stat().st_size != files[file]["size"]:
            raise Damaged(f"{path} has {path.stat().st_size} bytes, not {files[file]['size']}")
        if sha256(path) != files[file]["sha256"]:
            raise Damaged(f"{path} was changed: its SHA-256 is not the manifest's")
    return manifest


def published(run: Path) -> list[Path]:
    """A run's checkpoints, oldest first, intact or not."""
    folders = (p for p in (run / "checkpoints").glob("*") if re.fullmatch(r"\d+", p.name))
    return sorted(folders, key=lambda p: int(p.name))


def newest(
    run: Path, groups: Collection[str] | None = None, damaged: Callable[[Path, Damaged], object] = lambda folder, error: None
) -> Path | None:
    """The newest checkpoint of a run that is intact (in some groups, or whole); None where there never was one.

    `damaged` is called with each that is not. Raises `Damaged` where none is intact.
    """
    damage = []
    for folder in reversed(published(run)):
        try:
            verify(folder, groups)
        except Damaged as error:
            damage.append(str(error))
            damaged(folder, error)
        else:
            return folder
    if damage or any((run / "checkpoints").glob(".bad-*")):
        raise Damaged(f"{run} has no intact checkpoint: " + ("; ".join(damage) or "all were set aside as .bad-"))
    return None


def set_aside(folder: Path) -> None:
    """Keep a damaged checkpoint for a person, under a name that is never read."""
    name, count = f".bad-{folder.name}", 1
    while folder.with_name(name).exists():
        count += 1
        name = f".bad-{folder.name}-{count}"
    folder.rename(folder.with_name(name))


def retain(run: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what a crash left half-written."""
    for folder in [*published(run)[:-keep], *(run / "checkpoints").glob(".tmp-*")]:
        shutil.rmtree(folder)


def read(folder: Path, group: str) -> Tensors:
    return load_file(folder / file_of(group))


def save(
    run: Path, recipe: Recipe, net: nn.Module, optimizer: torch.optim.Adam, ema: EMA, images_seen: int, fingerprint: str
) -> Path:
    """Publish a training's state as the run's newest checkpoint, then drop the oldest."""
    names = [n for n, _ in net.named_parameters()]
    adam = {f"{key}.{n}": t for n, p in net.named_parameters() for key, t in optimizer.state[p].items()}
    groups = {"model": dict(net.named_parameters()), "adam": adam}
    groups |= {f"ema-{n}": dict(zip(names, average, strict=True)) for n, average in ema.averages.items()}
    state = {"images_seen": images_seen, "fingerprint": fingerprint}
    folder = publish(run / "checkpoints" / f"{images_seen:09d}", groups, recipe, state)
    retain(run, recipe.upkeep.keep)
    return folder


def restore(folder: Path, net: nn.Module, optimizer: torch.optim.Adam, ema: EMA) -> None:
    """Put a verified checkpoint's tensors into a training's state, strictly."""
    weights = dict(net.named_parameters())
    fill(weights, read(folder, "model"), folder / "model")
    for n, average in ema.averages.items():
        fill(dict(zip(weights, average, strict=True)), read(folder, f"ema-{n}"), folder / f"ema-{n}")
    adam = read(folder, "adam")
    moments = {n: {key: adam.pop(f"{key}.{n}") for key in ADAM if f"{key}.{n}" in adam} for n in weights}
    torn = [n for n, found in moments.items() if len(found) not in (0, len(ADAM))]  # none: it never had a gradient
    if adam or torn:
        raise ValueError(f"{folder / 'adam'} does not fit the network: {', '.join([*adam, *torn][:3])}")
    for n, p in weights.items():
        optimizer.state[p] = {key: t.to(p.device) for key, t in moments[n].items()}


def fill(into: Mapping[str, Tensor], tensors: Tensors, where: Path) -> None:
    """Copy tensors into others of the same names and shapes; ValueError names what is missing, extra or misshapen."""
    shapes = {n: (list(tensors[n].shape), list(into[n].shape)) for n in sorted(into.keys() & tensors.keys())}
    faults = {
        "is missing tensors": sorted(into.keys() - tensors.keys()),
        "has extra tensors": sorted(tensors.keys() - into.keys()),
        "has misshapen tensors": [f"{n} is {found}, not {right}" for n, (found, right) in shapes.items() if found != right],
    }
    for fault, names in faults.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"{where} {fault}: {', '.join(names[:3])}{more}")
    with torch.no_grad():
        for n, t in into.items():
            t.copy_(tensors[n])


def find(path: str | Path, groups: Collection[str] = ()) -> Path:
    """The checkpoint folder, or the one file of weights, that a path stands for.

    A run stands for its newest checkpoint in which `groups` are intact. Reading changes nothing in it.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"{path} does not exist; give a run, a converted folder, or a .safetensors file of weights")
    if place.is_file():
        if place.suffix == ".safetensors":
            return place
        raise ValueError(f"{path} is no .safetensors file; an official checkpoint is first: justimage convert {path} FOLDER")
    if (place / MANIFEST).exists():
        verify(place, groups)
        return place
    folder = newest(place, groups)
    if folder is None:
        raise ValueError(f"{path} holds no checkpoint; give a run, a converted folder, or a .safetensors file of weights")
    return folder


def metadata_of(file: Path) -> dict[str, Any]:
    """What a file of weights says of itself: its group, and its recipe."""
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{file} is not a readable safetensors file: {error}") from error
    if "justimage" not in metadata:
        raise ValueError(f"{file} carries no recipe, so its network is unknown; it was not written by justimage")
    return json.loads(metadata["justimage"])


def stored_recipe(place: Path) -> Recipe:
    """The recipe that a checkpoint folder or a file of weights, as `find` gives it, carries."""
    if place.is_dir():
        return recipes.from_json(json.loads((place / "state.json").read_text())["recipe"])
    return recipes.from_json(metadata_of(place)["recipe"])


def load(path: str | Path, ema: float | None = None, device: str | torch.device = "cpu") -> Model:
    """The model of a run (its newest checkpoint), a checkpoint or converted folder, or one file of weights.

    ema: the average to take (0.9999, or a half-life in images), 0 for the weights themselves; by default what the recipe
    samples with, or what the one file is. Raises ValueError or OSError, in one line, for what is missing, damaged or does
    not fit.
    """
    place = find(path)
    recipe = stored_recipe(place)
    with torch.random.fork_rng(devices=[]):
        model = recipe.model()
    wanted = recipe.sampling.use_ema if ema is None else ema
    group = f"ema-{name(wanted)}" if wanted else "model"
    if place.is_dir():
        place = find(path, [group])
        groups = list(verify(place, ())["tensors"])
        if group not in groups:
            there = ", ".join(g.removeprefix("ema-") for g in groups if g.startswith("ema-"))
            raise ValueError(f"there is no ema {name(wanted)} in {place}; it has {there or 'none'} (0: the weights themselves)")
        tensors, place = read(place, group), place / group
    else:
        found = metadata_of(place)["group"]
        if ema is not None and found != group:
            raise ValueError(f"{place} holds {found.replace('-', ' ')}, not {group.replace('-', ' ')}")
        tensors = load_file(place)
    fill(dict(model.net.named_parameters()), tensors, place)
    return Model(model.net.to(device).eval(), model.process, model.units)
