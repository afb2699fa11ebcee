"""Load a denoiser from a run, a checkpoint, or one file of weights; strictly, and checked before memory is allocated."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from justimage import disk, hub, recipe as recipes
from justimage.checkpoint.history import newest
from justimage.checkpoint.shards import GROUP_NAME, MANIFEST, Reader, open_safetensors, read_state, read_tensor, verify
from justimage.distributed import find_device
from justimage.ema import ema_name
from justimage.inference import cast_weights
from justimage.recipe import Recipe
from justimage.sampling import Denoiser
from justimage.transformer import JiT

Shapes = Mapping[str, Sequence[int]]
MAX_METADATA_BYTES = 2**24
"""Bytes of the metadata in a file of weights: a recipe, with the names of its classes."""


def named_weights(net: torch.nn.Module) -> dict[str, Tensor]:
    """A network's parameters and persistent buffers, by name."""
    persistent = net.state_dict().keys()
    return dict(net.named_parameters()) | {n: buffer for n, buffer in net.named_buffers() if n in persistent}


def check_shapes(wanted: Shapes, found: Shapes, where: Path) -> None:
    """ValueError that names the tensors that are missing, extra or of another shape."""
    shapes = {n: (list(found[n]), list(wanted[n])) for n in sorted(wanted.keys() & found.keys())}
    faults = {
        "is missing tensors": sorted(wanted.keys() - found.keys()),
        "has extra tensors": sorted(found.keys() - wanted.keys()),
        "has misshapen tensors": [f"{n} is {shape}, not {right}" for n, (shape, right) in shapes.items() if shape != right],
    }
    for fault, names in faults.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"{where} {fault}: {', '.join(disk.printable(n, 100) for n in names[:3])}{more}")


def resolve(path: str | Path, groups: Collection[str] = ()) -> Path:
    """The checkpoint folder, or the one file of weights, at a path or an address on the Hub (hf://organisation/name); in a run
    the newest checkpoint with `groups` intact.

    Reading changes nothing in a run.
    """
    place = hub.fetch(path) if hub.is_address(path) else Path(path).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"{path} does not exist; give a run, a converted folder, or a .safetensors file of weights")
    if place.is_file():
        if place.suffix == ".safetensors":
            return place
        raise ValueError(f"{path} is no .safetensors file; of an official checkpoint make one: justimage convert {path} FOLDER")
    if (place / MANIFEST).exists():
        verify(place, groups)
        return place
    folder = newest(place, groups)
    if folder is None and (place / "model_index.json").exists():
        raise ValueError(f"{path} is a folder of diffusers; make a checkpoint of it: justimage convert {path} FOLDER")
    if folder is None:
        raise ValueError(f"{path} holds no checkpoint; give a run, a converted folder, or a .safetensors file of weights")
    return folder


def read_metadata(file: Path) -> dict[str, Any]:
    """The metadata of a file of weights: its group, which shard of how many it is, and its recipe."""
    description = (open_safetensors(file).metadata() or {}).get("justimage")
    if description is None:
        raise ValueError(f"{file} carries no recipe, so its network is unknown; it was not written by justimage")
    try:
        if len(description) > MAX_METADATA_BYTES:
            raise ValueError(f"{len(description)} bytes; at most {MAX_METADATA_BYTES} are read")
        metadata = disk.json_object(description.encode(), "it")
        shard, shards = metadata.get("part", [0, 1])
        if not GROUP_NAME.fullmatch(metadata["group"]) or "recipe" not in metadata or {type(shard), type(shards)} != {int}:
            raise ValueError("its group, part or recipe is missing")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} carries a damaged description ({error})") from error
    if shards != 1:
        raise ValueError(f"{file} is one of {shards} parts; give the folder it is in")
    return metadata


def ema_of(file: Path) -> float:
    """The average in one file of weights; 0 for the weights themselves."""
    group = read_metadata(file)["group"]
    try:
        return float(group.removeprefix("ema-")) if group != "model" else 0.0
    except ValueError as error:
        raise ValueError(f"{file} holds {disk.printable(group, 100)}, which is not a network's weights") from error


def read_recipe(place: Path) -> Recipe:
    """The recipe in a checkpoint folder or a file of weights (a path from `resolve`)."""
    carried = (read_state(place) if place.is_dir() else read_metadata(place))["recipe"]
    try:
        recipe = recipes.from_json(carried)
        if recipe.model.classes is None:
            raise ValueError("classes is None; a trained network's is a number")
        if recipe.class_names and len(recipe.class_names) != recipe.model.classes:
            raise ValueError(f"class_names are {len(recipe.class_names)}, for {recipe.model.classes} classes")
        if (channels := len(recipe.normalization.mean)) not in (0, recipe.model.channels):
            raise ValueError(f"the normalization is of {channels} channels, the network of {recipe.model.channels}")
    except ValueError as error:
        raise ValueError(f"{place / 'state.json' if place.is_dir() else place}: {error}") from error
    return recipe


def resolve_average(path: str | Path, ema: float | None = None) -> tuple[Path, Recipe]:
    """The place as of `resolve` where an average is intact, by default the one that the recipe samples with; and the recipe."""
    place = resolve(path)
    recipe = read_recipe(place)
    if place.is_dir():
        wanted = recipe.training.sample_ema if ema is None else ema
        place = resolve(place if hub.is_address(path) else path, [group_of(wanted)])
    return place, recipe


def group_of(ema: float) -> str:
    """The name under which an average's weights are saved; 0: the weights themselves."""
    return f"ema-{ema_name(ema)}" if ema else "model"


def fingerprint(place: Path, ema: float) -> str:
    """A hash of one average's weights (0: the weights themselves) and of their recipe, at a path from `resolve`."""
    if place.is_file():
        return disk.sha256(place)
    group = group_of(ema)
    manifest = verify(place, [group])
    files = {file for entry in manifest["tensors"].get(group, {}).values() for file, _, _ in entry["shards"]}
    return disk.self_checksum({file: manifest["files"][file]["sha256"] for file in files})


def load(
    path: str | Path,
    ema: float | None = None,
    device: str | torch.device | None = None,
    net: torch.nn.Module | Callable[[], torch.nn.Module] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Denoiser:
    """Load the denoiser of a run (its newest checkpoint), a checkpoint or converted folder, one file of weights, or a
    repository on the Hub of Hugging Face ("hf://organisation/name").

    ema: the average (0.9999, or a half-life in images), 0 for the weights themselves; by default the one that the recipe
    samples with, or the one in the file. device: by default the GPU where there is one. net: the network, or a function that
    makes it, of a run that was trained with a custom one. dtype: torch.bfloat16 where it will only sample, in bfloat16: its
    linear maps are kept in that (`inference.cast_weights`). Raises ValueError or OSError, in one line, for what is missing,
    damaged or does not fit.
    """
    place, recipe = resolve_average(path, ema)
    wanted = recipe.training.sample_ema if ema is None else ema
    group = group_of(wanted)

    # the saved tensors
    if place.is_dir():
        reader = Reader(place)
        if group not in reader.tensors:
            emas = ", ".join(g.removeprefix("ema-") for g in reader.tensors if g.startswith("ema-")) or "none"
            raise ValueError(f"there is no ema {ema_name(wanted)} in {place}; it has {emas} (0: the weights themselves)")
        shapes, where, read = reader.shapes(group), place / group, lambda n: reader.read_rows(group, n)
    else:
        found = read_metadata(place)["group"]
        if ema is not None and found != group:
            raise ValueError(f"{place} holds {found.replace('-', ' ')}, not {group.replace('-', ' ')}")
        file = open_safetensors(place)
        shapes = {n: file.get_slice(n).get_shape() for n in file.keys()}  # noqa: SIM118
        where, read = place, lambda n: read_tensor(file, n, shapes[n], place)

    # the network, built only if they fit
    if net is None:
        if custom := next((name for name in recipe.custom if name.startswith("net ")), None):
            network = custom.removeprefix("net ")
            raise ValueError(f"{path} was trained with a custom network, {network}; give it: load(path, net=...)")
        with torch.device("meta"):
            network = JiT(recipe.model)
    else:
        with torch.random.fork_rng(devices=[]):
            network = net if isinstance(net, torch.nn.Module) else net()
    cast_weights(network, dtype)
    check_shapes({n: tensor.shape for n, tensor in named_weights(network).items()}, shapes, where)
    device = find_device(device)
    if net is None and isinstance(network, JiT):
        network.to_empty(device=device).init_tables()
    weights = named_weights(network)
    for n, tensor in weights.items():
        values = read(n)
        if values.dtype != tensor.dtype and not (values.is_floating_point() and tensor.is_floating_point()):
            raise ValueError(f"{where}: {n} is {values.dtype}, not {tensor.dtype}")
        tensor.detach().copy_(values)
    return recipe.denoiser(network.to(device).eval())
