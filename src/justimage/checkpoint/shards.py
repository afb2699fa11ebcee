"""One checkpoint: a folder of safetensors shards and a manifest, written by one process or many, read by any number."""

import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from justimage import disk, recipe as recipes
from justimage.parallelize import Shard
from justimage.recipe import Recipe

Tensors = dict[str, Tensor]
Groups = Mapping[str, Mapping[str, Shard]]
"""Rows of tensors, by group (model, optimizer, ema-0.9999) and name."""
MANIFEST = "MANIFEST.json"
SAFETENSORS_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
GROUP_NAME = re.compile(r"[\w.+-]+")
HASH_BLOCK = 2**22
"""Bytes hashed and written at a time."""


class CorruptCheckpoint(ValueError):
    """A checkpoint that is not what was written."""

    exit_code = 78


def file_of(group: str, part: int = 0, parts: int = 1) -> str:
    return f"{group}-{part + 1:05d}-of-{parts:05d}.safetensors"


def staging_dir(folder: Path) -> Path:
    return folder.with_name(f".tmp-{folder.name}")


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> Iterator[memoryview]:
    """The bytes of a safetensors file in blocks: to be hashed while they are written, with no second copy of the tensors."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for n, t in tensors.items():
        begin, end = end, end + t.numel() * t.element_size()
        header[n] = {"dtype": SAFETENSORS_TYPES[t.dtype], "shape": list(t.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = bytearray(len(text).to_bytes(8, "little") + text)
    for t in tensors.values():
        content = memoryview(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # pyright: ignore
        for start in range(0, len(content), HASH_BLOCK):
            block += content[start : start + HASH_BLOCK]
            if len(block) >= HASH_BLOCK:
                yield memoryview(block)
                block = bytearray()
    yield memoryview(block)


def write_shard(folder: Path, groups: Groups, recipe: Recipe, shard: int = 0, shards: int = 1) -> None:
    """Write one process's files of a checkpoint into the staging directory, with an index of them for `publish_shards`."""
    staging, written_recipe = staging_dir(folder), recipes.to_json(recipe)
    index: dict[str, Any] = {"files": {}, "tensors": {}}
    for group, named in groups.items():
        file = file_of(group, shard, shards)
        metadata = {"justimage": json.dumps({"group": group, "part": [shard, shards], "recipe": written_recipe})}
        mine = {n: r for n, r in named.items() if r.is_writer and (r.tensor.numel() or not math.prod(r.shape))}
        if mine or shard == 0:
            content = safetensors_bytes({n: r.tensor for n, r in mine.items()}, metadata)
            size, digest = disk.write_durable(staging / file, content)
            index["files"][file] = {"size": size, "sha256": digest}
        index["tensors"][group] = {
            n: tensor_entry(r.tensor, r.shape) | {"shards": [[file, r.start, r.tensor.shape[0] if r.shape else 1]]}
            for n, r in mine.items()
        }
    disk.write_durable(staging / f"part-{shard}.json", [json.dumps(index).encode()])


def tensor_entry(tensor: Tensor, shape: Collection[int]) -> dict[str, Any]:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(shape)}


def publish_shards(folder: Path, recipe: Recipe, state: dict[str, Any], shards: int = 1) -> Path:
    """Join the files of `write_shard` and rename the staging directory to `folder`: only then the checkpoint exists.

    The manifest's hashes are of the bytes in memory, so damage done by a disk is noticed when they are read.
    """
    staging = staging_dir(folder)
    files: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    for shard in range(shards):
        try:
            index = disk.read_json(staging / f"part-{shard}.json")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{staging} lacks the shard of process {shard}: all must see the same folder") from error
        files |= index["files"]
        for group, named in index["tensors"].items():
            for n, entry in named.items():
                known = tensors.setdefault(group, {}).setdefault(n, entry | {"shards": []})
                known["shards"] += entry["shards"]
    for group, named in tensors.items():
        for n, entry in named.items():
            check_shards(entry, f"{group}: {n}")
    content = json.dumps(state | {"recipe": recipes.to_json(recipe)}, indent=1).encode()
    size, digest = disk.write_durable(staging / "state.json", [content])
    files["state.json"] = {"size": size, "sha256": digest}
    manifest = {"files": files, "tensors": tensors}
    content = json.dumps(manifest | {"sha256": disk.self_checksum(manifest)}, separators=(",", ":")).encode()
    disk.write_durable(staging / MANIFEST, [content])
    for shard in range(shards):
        disk.remove(staging / f"part-{shard}.json")
    disk.sync(staging)
    disk.remove(folder)  # published before, but the disk failed in the very next moment, so nobody could rely on it
    disk.rename(staging, folder)
    with suppress(PermissionError):  # of a folder that its owner does not let us list, such as /home
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
    """ValueError unless a tensor's shards hold all of its rows, each once."""
    if type(entry["shape"]) is not list or any(type(side) is not int or side < 0 for side in entry["shape"]):
        raise ValueError(f"{where} has no shape")
    if any(type(file) is not str or type(start) is not int or type(count) is not int for file, start, count in entry["shards"]):
        raise ValueError(f"{where} has a shard without rows")
    height = entry["shape"][0] if entry["shape"] else 1
    at = 0
    for file, start, count in sorted(entry["shards"], key=lambda shard: shard[1]):
        if start != at or count < 0:
            raise ValueError(f"{where}: its rows are not all there, or more than once, at row {at} ({disk.printable(file)})")
        at = start + count
    if at != height:
        raise ValueError(f"{where} has {at} of {height} rows")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a manifest that is intact and well formed; CorruptCheckpoint says what is wrong with it."""
    path = folder / MANIFEST
    if path.is_symlink():
        raise CorruptCheckpoint(f"{path} is a link, not a file")
    try:
        manifest = disk.read_json(path)
        if manifest["sha256"] != disk.self_checksum(manifest):
            raise CorruptCheckpoint(f"{path} was changed: its hash of itself does not match")
        for file, entry in manifest["files"].items():
            typed = type(entry["size"]) is int and entry["size"] >= 0 and type(entry["sha256"]) is str
            if not re.fullmatch(r"[\w+-][\w.+-]*", file) or not typed:
                raise ValueError(f"it names a file {disk.printable(file)!r}")
        if "state.json" not in manifest["files"]:
            raise ValueError("it does not list state.json")
        for group, named in manifest["tensors"].items():
            if not GROUP_NAME.fullmatch(group):
                raise ValueError(f"it names a group {disk.printable(group)}")
            for n, entry in named.items():
                where = disk.printable(f"{group}: {n}")
                if not n.isprintable():
                    raise ValueError(f"it names a tensor {where}")
                check_shards(entry, where)
                if unlisted := [f for f, _, _ in entry["shards"] if f not in manifest["files"]]:
                    raise ValueError(f"it puts {where} into {disk.printable(unlisted[0])!r}, which it does not list")
    except CorruptCheckpoint:
        raise
    except FileNotFoundError as error:
        raise CorruptCheckpoint(f"{path} is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise CorruptCheckpoint(f"{path} is not a manifest ({error})") from error
    return manifest


def verify(folder: Path, groups: Collection[str] | None = None) -> dict[str, Any]:
    """Return the manifest, after checking it, state.json, and the files of some groups or of all.

    CorruptCheckpoint says what is wrong.
    """
    manifest = read_manifest(folder)
    files = manifest["files"]
    if groups is not None:
        named = (entry for g in groups for entry in manifest["tensors"].get(g, {}).values())
        files = {"state.json": None} | {file: None for entry in named for file, _, _ in entry["shards"]}
    for file in files:
        path, entry = folder / file, manifest["files"].get(file)
        if entry is None or not path.is_file() or path.is_symlink():
            raise CorruptCheckpoint(f"{path} is missing" if not path.is_symlink() else f"{path} is a link, not a file")
        if path.stat().st_size != entry["size"]:
            raise CorruptCheckpoint(f"{path} has {path.stat().st_size} bytes, not {entry['size']}")
        if disk.sha256(path) != entry["sha256"]:
            raise CorruptCheckpoint(f"{path} was changed: its SHA-256 is not the manifest's")
    read_state(folder)
    return manifest


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a word, None, or a list of such."""
    return isinstance(value, str | int | float | None) or (isinstance(value, list | tuple) and all(map(is_plain, value)))


def is_optimizer(value: Any) -> bool:
    """Whether this is what `optimizer_numbers` returns."""
    if not isinstance(value, dict) or not isinstance(value.get("groups"), list):
        return False
    entries = [value.get("state"), *value["groups"]]
    return all(isinstance(named, dict) and all(map(is_plain, named.values())) for named in entries)


def is_losses(value: Any) -> bool:
    return isinstance(value, list) and all(type(loss) is float and math.isfinite(loss) for loss in value)


STATE_CHECKS: dict[str, tuple[Callable[[Any], bool], Any, str]] = {
    "recipe": (lambda value: isinstance(value, dict), None, "the recipe"),
    "images_seen": (is_count, 0, "the number of images seen"),
    "fingerprint": (lambda value: isinstance(value, str), "", "the fingerprint of the data"),
    "skipped_steps": (lambda value: isinstance(value, list) and all(map(is_count, value)), [], "steps that were skipped"),
    "optimizer": (is_optimizer, {"state": {}, "groups": []}, "the optimizer's numbers"),
    "window": (is_losses, [], "losses since the last line of metrics"),
}
"""Entries of state.json: a test, a value that stands for a missing one, and the meaning."""


def read_state(folder: Path) -> dict[str, Any]:
    """Read what a checkpoint holds beside its tensors; CorruptCheckpoint where no training wrote it."""
    path = folder / "state.json"
    try:
        state = disk.read_json(path)
    except ValueError as error:
        raise CorruptCheckpoint(str(error)) from error
    for name, (is_valid, default, meaning) in STATE_CHECKS.items():
        if not is_valid(state.get(name, default)):
            raise CorruptCheckpoint(f"{path} has no valid {name}: {meaning}")
    return state


class Reader:
    """Reads rows of a verified checkpoint's tensors, however many processes wrote them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tensors = folder, read_manifest(folder)["tensors"]
        self.opened: dict[str, Any] = {}

    def shapes(self, group: str) -> dict[str, list[int]]:
        return {n: entry["shape"] for n, entry in self.tensors.get(group, {}).items()}

    def read_rows(self, group: str, n: str, start: int = 0, count: int | None = None) -> Tensor:
        """`count` rows of a tensor from `start` on; all of a tensor without dimensions."""
        entry = self.tensors[group][n]
        if not entry["shape"]:
            file = entry["shards"][0][0]
            return read_tensor(self.open_file(file), n, [], self.folder / file)
        stop = start + (entry["shape"][0] - start if count is None else count)
        pieces = []
        for file, first, height in sorted(entry["shards"], key=lambda shard: shard[1]):
            low, high = max(start, first), min(stop, first + height)
            if low < high or (height == entry["shape"][0] and low == high):
                rows = open_slice(self.open_file(file), n, [height, *entry["shape"][1:]], self.folder / file)
                pieces.append(rows[low - first : high - first])
        if not pieces:
            return torch.empty(0, *entry["shape"][1:])
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def open_file(self, name: str) -> Any:
        if name not in self.opened:
            self.opened[name] = open_safetensors(self.folder / name)
        return self.opened[name]

    def copy_rows(self, group: str, n: str, shard: Shard) -> None:
        """Copy a tensor's rows into a process's shard of it; CorruptCheckpoint for another type."""
        rows = self.read_rows(group, n, shard.start, shard.tensor.shape[0] if shard.shape else None)
        if rows.dtype != shard.tensor.dtype:
            raise CorruptCheckpoint(f"{self.folder}: {group} {disk.printable(n)} is {rows.dtype}, not {shard.tensor.dtype}")
        with torch.no_grad():
            shard.tensor.copy_(rows)


def open_safetensors(file: Path) -> Any:
    """A safetensors file to read from; ValueError for anything else."""
    try:
        return safe_open(file, framework="pt").__enter__()
    except SafetensorError as error:
        raise ValueError(f"{file} is not a readable safetensors file: {error}") from error


def open_slice(file: Any, n: str, shape: Sequence[int], where: Path) -> Any:
    """A tensor in an opened file, not yet read; CorruptCheckpoint for another shape, or a type that is not written here."""
    try:
        found = file.get_slice(n)
    except SafetensorError as error:
        raise CorruptCheckpoint(f"{where} has no tensor {disk.printable(n)}") from error
    kind = found.get_dtype()
    if found.get_shape() != list(shape) or kind not in SAFETENSORS_TYPES.values():
        raise CorruptCheckpoint(f"{where}: {disk.printable(n)} is {kind} {found.get_shape()}, not a tensor of {list(shape)}")
    return found


def read_tensor(file: Any, n: str, shape: Sequence[int], where: Path) -> Tensor:
    """A tensor in an opened file, whole; errors as in `open_slice`."""
    open_slice(file, n, shape, where)
    return file.get_tensor(n)


def load_group(folder: Path, group: str) -> Tensors:
    """A group's tensors, whole."""
    reader = Reader(folder)
    return {n: reader.read_rows(group, n) for n in reader.shapes(group)}
