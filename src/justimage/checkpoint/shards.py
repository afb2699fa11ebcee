"""One checkpoint: a folder of safetensors shards and a manifest, written by one process or many, read by as many as like."""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from justimage import disk, recipe as recipes
from justimage.distributed import Shard
from justimage.recipe import Recipe

Tensors = dict[str, Tensor]
Groups = Mapping[str, Mapping[str, Shard]]
"""Rows of tensors by the group (model, optimizer, ema-0.9999) and their name in it."""
MANIFEST = "MANIFEST.json"
SAFETENSORS_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
FLOAT_TYPES = ("F32", "F64", "BF16", "F16")
"""What weights, moments and averages may be."""
NAME = re.compile(r"[\w.+-]+")
"""Of a group or a tensor."""
HASH_BLOCK = 2**22
"""Bytes that are hashed and written at a time."""


class CorruptCheckpoint(ValueError):
    """A checkpoint that is not what was written."""


def file_of(group: str, part: int = 0, parts: int = 1) -> str:
    return f"{group}-{part + 1:05d}-of-{parts:05d}.safetensors"


def staging_dir(folder: Path) -> Path:
    return folder.with_name(f".tmp-{folder.name}")


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> Iterator[memoryview]:
    """The bytes of a safetensors file, a piece at a time, so that no second copy of the tensors is made."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for n, t in tensors.items():
        begin, end = end, end + t.numel() * t.element_size()
        header[n] = {"dtype": SAFETENSORS_TYPES[t.dtype], "shape": list(t.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    piece = bytearray(len(text).to_bytes(8, "little") + text)
    for t in tensors.values():
        content = memoryview(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # pyright: ignore
        for start in range(0, len(content), HASH_BLOCK):
            piece += content[start : start + HASH_BLOCK]
            if len(piece) >= HASH_BLOCK:
                yield memoryview(piece)
                piece = bytearray()
    yield memoryview(piece)


def write_shard(folder: Path, groups: Groups, recipe: Recipe, part: int = 0, parts: int = 1) -> None:
    """One process's files of a checkpoint, aside, with a list of what is in them; `publish_parts` makes them one."""
    aside, stored = staging_dir(folder), recipes.to_json(recipe)
    listed: dict[str, Any] = {"files": {}, "tensors": {}}
    for group, named in groups.items():
        file = file_of(group, part, parts)
        metadata = {"justimage": json.dumps({"group": group, "part": [part, parts], "recipe": stored})}
        mine = {n: r for n, r in named.items() if r.is_writer and (r.tensor.numel() or not math.prod(r.shape))}
        if mine or part == 0:
            size, digest = disk.write_durable(aside / file, safetensors_bytes({n: r.tensor for n, r in mine.items()}, metadata))
            listed["files"][file] = {"size": size, "sha256": digest}
        listed["tensors"][group] = {
            n: tensor_entry(r.tensor, r.shape) | {"shards": [[file, r.start, r.tensor.shape[0] if r.shape else 1]]}
            for n, r in mine.items()
        }
    disk.write_durable(aside / f"part-{part}.json", [json.dumps(listed).encode()])


def tensor_entry(tensor: Tensor, shape: Collection[int]) -> dict[str, Any]:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(shape)}


def publish_shards(folder: Path, recipe: Recipe, state: dict[str, Any], parts: int = 1) -> Path:
    """Join what `write_part` wrote, and rename it to `folder`: the moment the checkpoint begins to exist.

    The manifest's hashes are of the bytes in memory, so what a disk did to them is noticed when they are read.
    """
    aside = staging_dir(folder)
    files: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    for part in range(parts):
        try:
            listed = disk.read_json(aside / f"part-{part}.json")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{aside} lacks the part of process {part}: all must see the same folder") from error
        files |= listed["files"]
        for group, named in listed["tensors"].items():
            for n, entry in named.items():
                known = tensors.setdefault(group, {}).setdefault(n, entry | {"shards": []})
                known["shards"] += entry["shards"]
    for group, named in tensors.items():
        for n, entry in named.items():
            check_shards(entry, f"{group}: {n}")
    size, digest = disk.write_durable(
        aside / "state.json", [json.dumps(state | {"recipe": recipes.to_json(recipe)}, indent=1).encode()]
    )
    files["state.json"] = {"size": size, "sha256": digest}
    manifest = {"files": files, "tensors": tensors}
    disk.write_durable(
        aside / MANIFEST, [json.dumps(manifest | {"sha256": disk.self_checksum(manifest)}, separators=(",", ":")).encode()]
    )
    for part in range(parts):
        disk.remove(aside / f"part-{part}.json")
    disk.sync(aside)
    disk.remove(folder)  # published before, but the disk failed in the very next moment, so nobody could rely on it
    disk.rename(aside, folder)
    disk.sync(folder.parent.parent)
    return folder


def write_checkpoint(folder: Path, groups: Mapping[str, Tensors], recipe: Recipe, state: dict[str, Any]) -> Path:
    """Write whole tensors as a checkpoint, from one process."""
    disk.remove(staging_dir(folder))
    disk.mkdir(staging_dir(folder))
    whole = {g: {n: Shard(t, 0, list(t.shape), True) for n, t in named.items()} for g, named in groups.items()}
    write_shard(folder, whole, recipe)
    return publish_shards(folder, recipe, state)


def check_shards(entry: dict[str, Any], where: str) -> None:
    """ValueError unless a tensor's shards are all of its rows, each once."""
    if type(entry["shape"]) is not list or any(type(side) is not int or side < 0 for side in entry["shape"]):
        raise ValueError(f"{where} has no shape")
    if any(type(file) is not str or type(start) is not int or type(count) is not int for file, start, count in entry["shards"]):
        raise ValueError(f"{where} has rows that are not counted")
    height = entry["shape"][0] if entry["shape"] else 1
    at = 0
    for file, start, count in sorted(entry["shards"], key=lambda shard: shard[1]):
        if start != at or count < 0:
            raise ValueError(f"{where}: its rows are not all there, or more than once, at row {at} ({disk.printable(file)})")
        at = start + count
    if at != height:
        raise ValueError(f"{where} has {at} of {height} rows")


def read_manifest(folder: Path) -> dict[str, Any]:
    """A manifest that is whole and well formed; `Damaged` says what is wrong with it."""
    path = folder / MANIFEST
    if path.is_symlink():
        raise CorruptCheckpoint(f"{path} is a link, not a file")
    try:
        manifest = disk.read_json(path)
        if manifest["sha256"] != disk.self_checksum(manifest):
            raise CorruptCheckpoint(f"{path} was changed: its hash of itself does not match")
        for file, facts in manifest["files"].items():
            whole = type(facts["size"]) is int and facts["size"] >= 0 and type(facts["sha256"]) is str
            if not re.fullmatch(r"[\w+-][\w.+-]*", file) or not whole:
                raise ValueError(f"it names a file {disk.printable(file)!r}")
        if strangers := [g for g in manifest["tensors"] if not NAME.fullmatch(g)]:
            raise ValueError(f"it names a group {disk.printable(strangers[0])}")
        if "state.json" not in manifest["files"]:
            raise ValueError("it does not list state.json")
        for group, named in manifest["tensors"].items():
            for n, entry in named.items():
                where = disk.printable(f"{group}: {n}")
                if not NAME.fullmatch(n):
                    raise ValueError(f"it names a tensor {where}")
                check_shards(entry, where)
                if strangers := [f for f, _, _ in entry["shards"] if f not in manifest["files"]]:
                    raise ValueError(f"it puts {where} into {disk.printable(strangers[0])!r}, which it does not list")
    except CorruptCheckpoint:
        raise
    except FileNotFoundError as error:
        raise CorruptCheckpoint(f"{path} is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise CorruptCheckpoint(f"{path} is not a manifest ({error})") from error
    return manifest


def verify(folder: Path, groups: Collection[str] | None = None) -> dict[str, Any]:
    """The manifest, after checking it, state.json, and the files of some groups or of all; `Damaged` says what is wrong."""
    manifest = read_manifest(folder)
    files = manifest["files"]
    if groups is not None:
        named = (entry for g in groups for entry in manifest["tensors"].get(g, {}).values())
        files = {"state.json": None} | {file: None for entry in named for file, _, _ in entry["shards"]}
    for file in files:
        path, facts = folder / file, manifest["files"].get(file)
        if facts is None or not path.is_file() or path.is_symlink():
            raise CorruptCheckpoint(f"{path} is missing" if not path.is_symlink() else f"{path} is a link, not a file")
        if path.stat().st_size != facts["size"]:
            raise CorruptCheckpoint(f"{path} has {path.stat().st_size} bytes, not {facts['size']}")
        if disk.sha256(path) != facts["sha256"]:
            raise CorruptCheckpoint(f"{path} was changed: its SHA-256 is not the manifest's")
    read_state(folder)
    return manifest


def read_state(folder: Path) -> dict[str, Any]:
    """What a checkpoint says beside its tensors; `Damaged` where that is nothing that a training wrote."""

    def counts(n: Any) -> bool:
        return type(n) is int and 0 <= n < 2**53

    path = folder / "state.json"
    try:
        state = disk.read_json(path)
    except ValueError as error:
        raise CorruptCheckpoint(str(error)) from error
    passed = state.get("skipped_steps", [])
    if not isinstance(state.get("recipe"), dict):
        raise CorruptCheckpoint(f"{path} carries no recipe")
    if not counts(state.get("images_seen", 0)) or not isinstance(state.get("fingerprint", ""), str):
        raise CorruptCheckpoint(f"{path} does not say how many images were seen, and of which data")
    if not isinstance(passed, list) or not all(map(counts, passed)):
        raise CorruptCheckpoint(f"{path} does not say which steps were skipped")
    optimizer = state.get("optimizer", {"state": {}, "groups": []})
    if not isinstance(optimizer, dict) or [type(optimizer.get(k)) for k in ("state", "groups")] != [dict, list]:
        raise CorruptCheckpoint(f"{path} does not say what the optimizer's numbers are")
    window = state.get("window", [])
    if not isinstance(window, list) or not all(type(loss) is float and math.isfinite(loss) for loss in window):
        raise CorruptCheckpoint(f"{path} does not say which losses are not in the metrics yet")
    return state


class Reader:
    """Rows of a verified checkpoint's tensors, whoever wrote them in however many parts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tensors = folder, read_manifest(folder)["tensors"]
        self.opened: dict[str, Any] = {}

    def shapes(self, group: str) -> dict[str, list[int]]:
        return {n: entry["shape"] for n, entry in self.tensors.get(group, {}).items()}

    def read_rows(self, group: str, n: str, start: int = 0, count: int | None = None) -> Tensor:
        """`count` rows of a tensor from `start` on; all of it where it has no rows."""
        entry = self.tensors[group][n]
        if not entry["shape"]:
            name = entry["shards"][0][0]
            self.open_part(name, n, [])
            return self.opened[name].get_tensor(n)
        stop = start + (entry["shape"][0] - start if count is None else count)
        parts = []
        for file, first, height in sorted(entry["shards"], key=lambda shard: shard[1]):
            low, high = max(start, first), min(stop, first + height)
            if low < high or (height == entry["shape"][0] and low == high):
                parts.append(self.open_part(file, n, [height, *entry["shape"][1:]])[low - first : high - first])
        if not parts:
            return torch.empty(0, *entry["shape"][1:])
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def open_part(self, name: str, n: str, shape: list[int]) -> Any:
        """The rows of a tensor that one file holds, not yet read; `Damaged` where they are not what the manifest says."""
        if name not in self.opened:
            self.opened[name] = open_safetensors(self.folder / name)
        types = SAFETENSORS_TYPES.values() if name.startswith("optimizer-") else FLOAT_TYPES
        return open_slice(self.opened[name], n, shape, self.folder / name, types)

    def dtype(self, group: str, n: str) -> torch.dtype:
        """The type of a tensor, as its file says."""
        file = self.tensors[group][n]["shards"][0][0]
        if file not in self.opened:
            self.opened[file] = open_safetensors(self.folder / file)
        named = {word: dtype for dtype, word in SAFETENSORS_TYPES.items()}
        try:
            return named[self.opened[file].get_slice(n).get_dtype()]
        except (KeyError, SafetensorError) as error:
            raise CorruptCheckpoint(f"{self.folder / file} has no tensor {disk.printable(n)} of a known type") from error


def open_safetensors(file: Path) -> Any:
    """A safetensors file to read from; ValueError for anything else."""
    try:
        return safe_open(file, framework="pt").__enter__()
    except SafetensorError as error:
        raise ValueError(f"{file} is not a readable safetensors file: {error}") from error


def open_slice(file: Any, n: str, shape: Sequence[int], where: Path, types: Collection[str] = FLOAT_TYPES) -> Any:
    """A tensor in an opened file, not yet read, of a shape and of a type that is written here; otherwise `Damaged`."""
    try:
        found = file.get_slice(n)
    except SafetensorError as error:
        raise CorruptCheckpoint(f"{where} has no tensor {disk.printable(n)}") from error
    if found.get_shape() != list(shape) or found.get_dtype() not in types:
        raise CorruptCheckpoint(
            f"{where}: {disk.printable(n)} is {found.get_dtype()} {found.get_shape()}, not {list(shape)} of {FLOAT_TYPES[0]}"
        )
    return found


def load_group(folder: Path, group: str) -> Tensors:
    """A group's tensors, whole."""
    reader = Reader(folder)
    return {n: reader.read_rows(group, n) for n in reader.shapes(group)}
