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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from justimage import recipe as recipes
from justimage.ema import EMA, name
from justimage.process import Model
from justimage.recipe import Recipe

Tensors = dict[str, Tensor]
MANIFEST = "MANIFEST.json"


class Damaged(ValueError):
    """A checkpoint that is not what was written."""


def write(path: Path, content: bytes) -> None:
    """Replace a file whole: readers see the old one or the new one, after a crash too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".tmp-{path.name}")
    with open(aside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def publish(folder: Path, groups: Mapping[str, Tensors], recipe: Recipe, state: dict[str, Any]) -> Path:
    """Write a checkpoint: aside first, then verified on the disk, then renamed to `folder`, the moment it begins to exist."""
    aside = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    files = {f"{group}-00001-of-00001.safetensors": group for group in groups}
    text = json.dumps(recipes.to_json(recipe))
    for file, group in files.items():
        tensors = {n: t.detach().contiguous() for n, t in groups[group].items()}
        save_file(tensors, aside / file, metadata={"format": "pt", "group": group, "justimage": text})
    (aside / "state.json").write_text(json.dumps(state | {"recipe": recipes.to_json(recipe)}, indent=1))
    manifest: dict[str, Any] = {
        "files": {f: {"size": (aside / f).stat().st_size, "sha256": sha256(aside / f)} for f in [*files, "state.json"]},
        "tensors": {group: {n: described(t, file) for n, t in groups[group].items()} for file, group in files.items()},
    }
    (aside / MANIFEST).write_text(json.dumps(manifest | {"sha256": own_hash(manifest)}, indent=1))
    for place in [*(aside / f for f in [*files, "state.json", MANIFEST]), aside]:
        fsync(place)
    if folder.exists():
        shutil.rmtree(folder)
    aside.rename(folder)
    fsync(folder.parent)
    return folder


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


def verify(folder: Path, group: str | None = None) -> dict[str, Any]:
    """The manifest, after checking it and the files (of one group, or all); `Damaged` says in one line what is wrong."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files, digest = manifest["files"], manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{folder / MANIFEST} is missing or not a manifest ({error})") from error
    if digest != own_hash(manifest):
        raise Damaged(f"{folder / MANIFEST} was changed: its hash of itself does not match")
    wanted = files if group is None else [f for f in files if f == "state.json" or f.startswith(f"{group}-0")]
    for file in wanted:
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
    return sorted(p for p in (run / "checkpoints").glob("*") if re.fullmatch(r"\d+", p.name))


def newest(run: Path, group: str | None = None, set_aside: bool = False) -> Path | None:
    """The newest checkpoint of a run that is intact (in one group, or whole); None where there never was one.

    Damaged ones are passed over, or set aside as `.bad-`. `Damaged` where all are.
    """
    damage = []
    for folder in reversed(published(run)):
        try:
            verify(folder, group)
        except Damaged as error:
            damage.append(str(error))
            if set_aside:
                aside = folder.with_name(f".bad-{folder.name}")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
        else:
            return folder
    if damage or any((run / "checkpoints").glob(".bad-*")):
        raise Damaged(f"{run} has no intact checkpoint: " + ("; ".join(damage) or "all were set aside as .bad-"))
    return None


def retain(run: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for folder in published(run)[:-keep]:
        shutil.rmtree(folder)


def read(folder: Path, group: str) -> Tensors:
    return load_file(folder / f"{group}-00001-of-00001.safetensors")


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


def restore(folder: Path, net: nn.Module, optimizer: torch.optim.Adam, ema: EMA) -> dict[str, Any]:
    """Put a verified checkpoint's tensors into a training's state; returns its state.json."""
    fill(dict(net.named_parameters()), read(folder, "model"), folder / "model")
    for n, average in ema.averages.items():
        names = [p for p, _ in net.named_parameters()]
        fill(dict(zip(names, average, strict=True)), read(folder, f"ema-{n}"), folder / f"ema-{n}")
    adam = read(folder, "adam")
    for n, p in net.named_parameters():
        state = {key: adam[f"{key}.{n}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{n}" in adam}
        optimizer.state[p] = {key: t.to(p.device) for key, t in state.items()}
    return json.loads((folder / "state.json").read_text())


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


def find(path: str | Path, group: str = "state.json") -> Path:
    """The checkpoint folder, or the one file of weights, that a path stands for.

    A run stands for its newest checkpoint in which `group` is intact. Reading changes nothing in it.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"{path} does not exist; give a run, a converted folder, or a .safetensors file of weights")
    if place.is_file():
        if place.suffix == ".safetensors":
            return place
        raise ValueError(
            f"{path} is not a .safetensors file; an official checkpoint is first made one by: justimage convert {path} FOLDER"
        )
    if (place / MANIFEST).exists():
        return place
    folder = newest(place, group)
    if folder is None:
        raise ValueError(f"{path} holds no checkpoint; give a run, a converted folder, or a .safetensors file of weights")
    return folder


def stored_recipe(place: Path) -> Recipe:
    """The recipe that a checkpoint folder or a file of weights carries."""
    if place.is_dir():
        verify(place, group="state.json")
        return recipes.from_json(json.loads((place / "state.json").read_text())["recipe"])
    try:
        with safe_open(place, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{place} is not a readable safetensors file: {error}") from error
    if "justimage" not in metadata:
        raise ValueError(f"{place} carries no recipe, so its network is unknown; it was not written by justimage")
    return recipes.from_json(json.loads(metadata["justimage"]))


def load(path: str | Path, ema: float | None = None, device: str | torch.device = "cpu") -> Model:
    """The model of a run (its newest checkpoint), a checkpoint or converted folder, or one file of weights.

    ema: the average to take (0.9999, or a half-life in images), 0 for the weights themselves; by default what the recipe
    samples with. Raises ValueError or OSError, in one line, for what is missing, damaged or does not fit.
    """
    place = find(path)
    recipe = stored_recipe(place)
    with torch.random.fork_rng(devices=[]):
        model = recipe.model()
    if place.is_dir():
        ema = recipe.sampling.use_ema if ema is None else ema
        group = f"ema-{name(ema)}" if ema else "model"
        place = find(path, group)
        groups = list(verify(place, group)["tensors"])
        if group not in groups:
            there = [g.removeprefix("ema-") for g in groups if g.startswith("ema-")]
            raise ValueError(
                f"there is no ema {name(ema)} in {place}; it has {', '.join(there) or 'none'} (0: the weights themselves)"
            )
        tensors, place = read(place, group), place / group
    else:
        tensors = load_file(place)
    fill(dict(model.net.named_parameters()), tensors, place)
    return Model(model.net.to(device).eval(), model.process)
