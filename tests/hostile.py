"""Files made to do harm, and the ways in which a user would open each. hostile_process.py opens them, watched and within
bounds."""

import argparse
import bz2
import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

import justimage
from justimage import cli, disk, recipe as recipes, run as runs
from justimage.convert.official import import_official
from justimage.data import Crop, open_source
from justimage.data.store import open_store
from justimage.transformer import JiT
from tests import crash, sets
from tests.sets import prepare

MEMORY = 2**30
"""Bytes of address space that opening a file may take beyond what the process has."""


# ways to open a file ---------------------------------------------------------------------------------------------------


def load(path: Path, out: Path) -> None:
    justimage.load(path)


def sample(path: Path, out: Path) -> None:
    """The same by the command line, which must say so in one line, too."""
    sys.argv = ["justimage", "sample", "--from", str(path), "--count", "1", "--steps", "1", "--out", str(out / "grid.png")]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.main()
        except SystemExit as end:
            if not end.code:
                return
            lines = said.getvalue().splitlines()
            assert end.code in (2, 78) and len(lines) == 1, (end.code, lines)
            raise ValueError(lines[0].removeprefix("justimage: error: ")) from None


def resume(path: Path, out: Path) -> None:
    runs.open_run(TRAINED, path, "cpu")


def official(path: Path, out: Path) -> None:
    import_official(path, out / "ours", context_start=1)


def images(path: Path, out: Path) -> None:
    source = open_source(str(path), Crop((8, 8)))
    for i in range(len(source)):
        image, label = source[i]
        assert image.shape == (3, 8, 8) and -1 <= label < max(1, len(source.class_names))


def prepared(path: Path, out: Path) -> None:
    size = None if path.suffix in (".npy", ".npz") else 8
    prepare(str(path), out / "store", image_size=size, workers=1)


def stored(path: Path, out: Path) -> None:
    store = open_store(path)
    store.batch(np.arange(len(store)))


def going_on(path: Path, out: Path) -> None:
    """Preparing the good folder into a place that holds something already."""
    prepare(str(GOOD["folder"]), path, image_size=8, workers=1, shard_images=2)


def naively(path: Path, out: Path) -> None:
    """Everything that a file must not bring about."""
    (path.parent / "written").write_bytes(b"")
    (path.parent / "link").symlink_to("/etc")
    pickle.loads(path.read_bytes())
    exec(compile("1 + 1", "hostile", "exec"))
    with contextlib.suppress(ImportError):
        __import__("tests.no_module")
    subprocess.run(["true"])
    bytearray(2 * MEMORY)


# the corpus ------------------------------------------------------------------------------------------------------------

Make = Callable[[Path], Path]
TRAINED = recipes.with_values(crash.recipe(steps=3), monitor="loss", patience=10**6)
GOOD: dict[str, Path] = {}
"""What is whole: a run, an official file, a folder of images and its store."""


class Case(NamedTuple):
    """A hostile file, how it is opened, and what is to be said: a word of it, or "" where it is safely passed over."""

    make: Make
    open: Callable[[Path, Path], None]
    said: str


CASES: dict[str, Case] = {}


def add(name: str, make: Make, said: str, *ways: Callable[[Path, Path], None]) -> None:
    for way in ways:
        title = f"{name}, {way.__name__}"
        assert title not in CASES, title
        CASES[title] = Case(make, way, said)


def hostile(said: str, *ways: Callable[[Path, Path], None]) -> Callable[[Make], Make]:
    """A function that makes a hostile file in a place, and gives the path to open."""

    def register(make: Make) -> Make:
        add(make.__name__.replace("_", " "), make, said, *ways)
        return make

    return register


def file(name: str, content: bytes) -> Make:
    def make(place: Path) -> Path:
        (place / name).write_bytes(content)
        return place / name

    return make


class Evil:
    """Unpickled, it makes a folder in the working directory."""

    def __reduce__(self):
        return os.system, ("mkdir ran",)


EVIL = pickle.dumps({"model": {}, "args": Evil()})
DEEP = b"[" * 200_000


CONTROL = "a file opened naively, naively"
add("a file opened naively", file("w.pickle", EVIL), "", naively)


# one file of weights

TINY = dict(dtype="F32", shape=[2], data_offsets=[0, 8])


def tensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def weights(**changes: Any) -> Make:
    """The good run's weights with other entries in what the file says of itself."""

    def make(place: Path) -> Path:
        content = (newest(GOOD["run"]) / "model-00001-of-00001.safetensors").read_bytes()
        size = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + size])
        said = json.loads(header["__metadata__"]["justimage"])
        for key, value in changes.items():
            match key:
                case "header":
                    header = value(header)
                case "description":
                    header["__metadata__"]["justimage"] = value
                case "model" | "diffusion" | "training" | "sampling" | "normalization":
                    said["recipe"][key] |= value
                case "class_names":
                    said["recipe"][key] = value
                case _:
                    said[key] = value
        if not changes.keys() & {"header", "description"}:
            header["__metadata__"]["justimage"] = json.dumps(said)
        (place / "w.safetensors").write_bytes(tensors(header, content[8 + size :]))
        return place / "w.safetensors"

    return make


UNREADABLE = "is not a readable safetensors file"
for name, content in {
    "a pickle as safetensors": EVIL,
    "nothing as safetensors": b"",
    "a header of 2^63 bytes": tensors(b"{}", length=2**63),
    "a header of 90 MB that is not there": tensors(b"{}", length=90 * 2**20),
    "a header that is no JSON": tensors(b"__import__('os')"),
    "a header that is deep": tensors(b'{"a":' + DEEP),
    "a header that is a list": tensors([TINY]),
    "overlapping offsets": tensors({"a": TINY, "b": TINY}, bytes(8)),
    "offsets past the end": tensors({"a": TINY | dict(data_offsets=[2**40, 2**40 + 8])}, bytes(8)),
    "offsets backwards": tensors({"a": TINY | dict(data_offsets=[8, 0])}, bytes(8)),
    "a hole between tensors": tensors({"a": TINY, "b": TINY | dict(data_offsets=[16, 24])}, bytes(24)),
    "bytes behind the tensors": tensors({"a": TINY}, bytes(1024)),
    "a name twice": tensors(b'{"a":%b,"a":%b}' % ((json.dumps(TINY).encode(),) * 2), bytes(16)),
    "a shape of 2^62": tensors({"a": TINY | dict(shape=[2**31, 2**31])}, bytes(8)),
    "a shape that overflows": tensors({"a": TINY | dict(shape=[2**63, 2**63, 4])}, bytes(8)),
    "a shape beyond 64 bits": tensors({"a": TINY | dict(shape=[2**70])}, bytes(8)),
    "a negative side": tensors({"a": TINY | dict(shape=[-2])}, bytes(8)),
    "an unknown dtype": tensors({"a": TINY | dict(dtype="OBJECT")}, bytes(8)),
    "metadata of numbers": tensors({"__metadata__": {"justimage": 5}}),
}.items():
    add(name, file("w.safetensors", content), UNREADABLE, load)


def other_dtype(header: dict[str, Any]) -> dict[str, Any]:
    return header | {n: t | {"dtype": "I32"} for n, t in header.items() if n != "__metadata__"}


def other_names(header: dict[str, Any]) -> dict[str, Any]:
    return {n if n == "__metadata__" else f"a\nb\x1b[2J{n}": t for n, t in header.items()}


def many_more(header: dict[str, Any]) -> dict[str, Any]:
    return header | {f"more{i}": dict(dtype="F32", shape=[0, 2**40], data_offsets=[0, 0]) for i in range(20_000)}


SAMPLED = {
    "tensors named in lines", "a description that is a pickle", "a part that is words", "a recipe with an entry in lines",
    "a recipe with a long value", "a rate of 400 digits", "steps without end", "channels of 2^62", "names for other classes",
}  # fmt: skip
"""What is opened from the command line, too."""

for name, make, said in [
    ("weights that are whole numbers", weights(header=other_dtype), "is torch.int32"),
    ("tensors named in lines", weights(header=other_names), "is missing tensors"),
    ("tensors without end", weights(header=many_more), "has extra tensors"),
    ("a description that is no JSON", weights(description="__import__('os')"), "damaged description"),
    ("a description that is a pickle", weights(description=EVIL.decode("latin1")), "damaged description"),
    ("a deep description", weights(description=DEEP.decode()), "damaged description"),
    ("a description of 20 million lists", weights(description="[" + "[]," * 20_000_000 + "0]"), "bytes"),
    ("a description that is a list", weights(description="[]"), "damaged description"),
    ("a part of three", weights(part=[0, 3]), "is one of 3 parts"),
    ("a part that is words", weights(part=["0", "1\n2"]), "damaged description"),
    ("a part that is a number", weights(part=1), "damaged description"),
    ("a group that is a number", weights(group=5), "damaged description"),
    ("a group in lines", weights(group="a\nb"), "damaged description"),
    ("a recipe that is a list", weights(recipe=[]), "must be an object"),
    ("a recipe that is a pickle", weights(recipe=EVIL.decode("latin1")), "must be an object"),
    ("a recipe of nothing", weights(recipe={}), "the recipe is of version 1"),
    ("a recipe with a deep entry", weights(model={"width": json.loads(b"[" * 400 + b"]" * 400)}), "recipe.model.width"),
    ("a recipe with an entry in lines", weights(model={"a\nb\x1b[2J": 1}), "unknown entry"),
    ("a recipe with a long entry", weights(model={"a" * 4_000_000: 1}), "unknown entry"),
    ("a recipe with a long value", weights(model={"width": "a" * 4_000_000}), "recipe.model.width"),
    ("a rate of 400 digits", weights(training={"learning_rate": 10**400}), "recipe.training.learning_rate"),
    ("a rate that is no number", weights(training={"learning_rate": float("nan")}), "finite"),
    ("an average of 0", weights(training={"ema": [0.0]}), "ema is 0"),
    ("steps without end", weights(sampling={"steps": 10**12}), "steps is"),
    ("a width of 2^40", weights(model={"width": 2**40, "heads": 1}), "width is"),
    ("a depth of 2^40", weights(model={"depth": 2**40}), "depth is"),
    ("the widest and deepest", weights(model={"width": 65_536, "heads": 1, "depth": 1_000}), "missing tensors"),
    ("a class for each of 2^62", weights(model={"classes": 2**62}), "classes is"),
    ("ten million classes", weights(model={"classes": 10**7}), "class_names"),
    ("classes that are unknown", weights(model={"classes": None}, class_names=[]), "classes is None"),
    ("an image of 2^40 in one patch", weights(model={"image_size": 2**40, "patch_size": 2**40}), "a patch"),
    ("an image of 2^20", weights(model={"image_size": 2**20}), "patches"),
    ("channels of 2^62", weights(model={"channels": 2**62}), "a patch"),
    ("a bottleneck of 2^62", weights(model={"bottleneck": 2**62}), "bottleneck is"),
    ("context tokens of 2^62", weights(model={"context_tokens": 2**62}), "context_tokens is"),
    ("names for other classes", weights(class_names=["a"]), "class_names"),
    ("statistics of other channels", weights(normalization={"mean": [0.0] * 5, "std": [1.0] * 5}), "normalization"),
]:  # fmt: skip
    add(name, make, said, load, *([sample] if name in SAMPLED else []))


@hostile("patches", load)
def tables_that_outweigh_the_weights(place: Path) -> Path:
    """A file that takes no room (it is a hole), whose weights fit its recipe, and whose tables of positions take 2 GB."""
    network = replace(TRAINED.model, classes=10, width=1024, depth=2, context_start=1, image_size=8, patch_size=1)
    with torch.device("meta"):
        shapes = {n: list(p.shape) for n, p in JiT(network).named_parameters()}
    header, end = {}, 0
    for n, shape in shapes.items():
        begin, end = end, end + 4 * int(np.prod(shape))
        header[n] = dict(dtype="F32", shape=shape, data_offsets=[begin, end])
    recipe = recipes.to_json(replace(TRAINED, model=network, class_names=tuple(map(str, range(10)))))
    recipe["model"]["image_size"] = 2**9
    header["__metadata__"] = {"justimage": json.dumps({"group": "model", "recipe": recipe})}
    content = tensors(header)
    with open(place / "w.safetensors", "wb") as made:
        made.write(content)
        made.truncate(len(content) + end)
    return place / "w.safetensors"


@hostile("is no .safetensors file", load, sample)
def a_pickle_as_pth_to_sample_from(place: Path) -> Path:
    return file("w.pth", EVIL)(place)


@hostile("holds no checkpoint", load, sample)
def a_pipe_as_weights(place: Path) -> Path:
    os.mkfifo(place / "w.safetensors")
    return place / "w.safetensors"


@hostile("holds no checkpoint", load, sample)
def a_device_as_weights(place: Path) -> Path:
    (place / "w.safetensors").symlink_to("/dev/zero")
    return place / "w.safetensors"


# a run and its manifest


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").iterdir())[-1]


def signed(folder: Path, manifest: Any = None) -> None:
    """Make a checkpoint's hashes right again, as an attacker would."""
    path = folder / "MANIFEST.json"
    manifest = json.loads(path.read_text()) if manifest is None else manifest
    if isinstance(manifest.get("files"), dict):
        for name, facts in manifest["files"].items():
            place = folder / name.replace("\0", "")
            if isinstance(facts, dict) and place.is_file() and not place.is_symlink() and "/" not in name:
                facts |= {"sha256": disk.sha256(place)}
                if type(facts.get("size")) is int and facts["size"] >= 0:
                    facts["size"] = place.stat().st_size
    path.write_text(json.dumps(manifest | {"sha256": disk.self_checksum(manifest)}))


def run_with(change: Callable[[Path], object]) -> Make:
    """The good run, its newest checkpoint changed and signed again."""

    def make(place: Path) -> Path:
        run = Path(shutil.copytree(GOOD["run"], place / "run"))
        change(newest(run))
        return run

    return make


def manifest(change: Callable[[dict[str, Any]], object]) -> Make:
    def apply(folder: Path) -> None:
        whole = json.loads((folder / "MANIFEST.json").read_text())
        change(whole)
        signed(folder, whole)

    return run_with(apply)


GROUP, MODEL = "ema-10", "ema-10-00001-of-00001.safetensors"
BIAS = "head.linear.bias"


def entry(**changes: Any) -> Make:
    return manifest(lambda m: m["tensors"][GROUP][BIAS].update(changes))


def listed(name: str, **changes: Any) -> Make:
    """A file of that name in the manifest, which one tensor is said to be in."""

    def change(m: dict[str, Any]) -> None:
        m["files"][name] = m["files"][MODEL] | changes
        m["tensors"][GROUP][BIAS]["shards"] = [[name, 0, m["tensors"][GROUP][BIAS]["shape"][0]]]

    return manifest(change)


def raw(name: str, content: bytes, size: int | None = None) -> Make:
    """A file of a checkpoint with other bytes (and then a hole, up to a size), signed where the manifest is not it."""

    def change(folder: Path) -> None:
        with open(folder / name, "wb") as made:
            made.write(content)
            made.truncate(size or len(content))
        if name != "MANIFEST.json":
            signed(folder)

    return run_with(change)


def elsewhere(name: str) -> Make:
    """A file of a checkpoint that is a link to where it went."""

    def change(folder: Path) -> None:
        (folder / name).rename(folder.parents[2] / "elsewhere")
        (folder / name).symlink_to(folder.parents[2] / "elsewhere")

    return run_with(change)


BROKEN = "is not a manifest"
for name, make, said in [
    ("a name above", listed("../../../../x.safetensors"), "names a file"),
    ("an absolute name", listed("/etc/passwd"), "names a file"),
    ("a name with NUL", listed("a\0.safetensors"), "names a file"),
    ("a name in lines", listed("a\nb.safetensors"), "names a file"),
    ("a hidden name", listed(".bashrc"), "names a file"),
    ("a negative size", listed("b.safetensors", size=-1), "names a file"),
    ("a size that is a float", listed("b.safetensors", size=1e308), "names a file"),
    ("a hash that is a list", listed("b.safetensors", sha256=["a"] * 64), BROKEN),
    ("a file that is not there", listed("b.safetensors"), "b.safetensors is missing"),
    ("files that are a list", manifest(lambda m: m.update(files=[])), BROKEN),
    ("tensors that are words", manifest(lambda m: m.update(tensors="model")), BROKEN),
    ("no files", manifest(lambda m: m.pop("files")), BROKEN),
    ("a state that is not listed", manifest(lambda m: m["files"].pop("state.json")), "state.json"),
    ("rows that overlap", entry(shards=[[MODEL, 0, 4], [MODEL, 2, 14]]), "more than once"),
    ("rows that are missing", entry(shards=[[MODEL, 0, 4]]), "of 16 rows"),
    ("rows that are negative", entry(shards=[[MODEL, 0, 20], [MODEL, 20, -4]]), BROKEN),
    ("rows that are floats", entry(shards=[[MODEL, 0, 16.0]]), BROKEN),
    ("shards that are words", entry(shards="abc"), BROKEN),
    ("shards that are numbers", entry(shards=[1, 2]), BROKEN),
    ("a shard that is a list", entry(shards=[[[MODEL], 0, 16]]), BROKEN),
    ("a shape that is a float", entry(shape=[16.0]), BROKEN),
    ("a shape that is negative", entry(shape=[-16]), BROKEN),
    ("a shape that is words", entry(shape="16"), BROKEN),
    ("a shape of 2^62 rows", entry(shape=[2**62], shards=[[MODEL, 0, 2**62]]), "misshapen tensors"),
    ("a tensor in another's file", entry(shards=[["optimizer-00001-of-00001.safetensors", 0, 16]]), BIAS),
    ("a tensor named in lines", manifest(lambda m: m["tensors"][GROUP].update({"a\nb": m["tensors"][GROUP][BIAS]})), BROKEN),
    ("a group named in lines", manifest(lambda m: m["tensors"].update({"a\nb": {}})), BROKEN),
    ("a manifest that is a pickle", raw("MANIFEST.json", EVIL), BROKEN),
    ("a manifest that is deep", raw("MANIFEST.json", DEEP), BROKEN),
    ("a manifest that is a list", raw("MANIFEST.json", b"[]"), BROKEN),
    ("a manifest of 300 MB of nothing", raw("MANIFEST.json", b"{}", 300 * 2**20), "at most"),
    ("a manifest of 20 million lists", raw("MANIFEST.json", b'{"files":[' + b"[]," * 20_000_000 + b"0]}"), "values"),
    ("a manifest with a number of 5000 digits", raw("MANIFEST.json", b'{"files":' + b"9" * 5000 + b"}"), BROKEN),
    ("a manifest of a deep entry", manifest(lambda m: m.update(more=json.loads(b"[" * 900 + b"]" * 900))), ""),
    ("a shard that is a pickle", raw(MODEL, EVIL), MODEL),
    ("a shard that is empty", raw(MODEL, b""), MODEL),
    ("a shard that is a link", elsewhere(MODEL), "is a link"),
    ("a state that is a link", elsewhere("state.json"), "is a link"),
    ("a manifest that is a link", elsewhere("MANIFEST.json"), "is a link"),
]:  # fmt: skip
    add(name, make, said, load, resume)


def scalar_bias(folder: Path) -> None:
    """In the file the bias has one row, which would be spread over sixteen."""
    content = (folder / MODEL).read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    begin, end = header[BIAS]["data_offsets"]
    for its in header.values():
        if its.get("data_offsets", [0])[0] >= end:
            its["data_offsets"] = [n - (end - begin) + 4 for n in its["data_offsets"]]
    header[BIAS] |= dict(shape=[1], data_offsets=[begin, begin + 4])
    (folder / MODEL).write_bytes(tensors(header, data[: begin + 4] + data[end:]))
    signed(folder)


add("a shard of other shapes", run_with(scalar_bias), BIAS, load, resume)


@hostile("is a link", load, resume)
def a_checkpoint_that_is_a_link(place: Path) -> Path:
    run = run_with(lambda folder: None)(place)
    newest(run).rename(place / "elsewhere")
    (run / "checkpoints" / "000000012").symlink_to(place / "elsewhere")
    return run


def state(change: Callable[[dict[str, Any]], object]) -> Make:
    def apply(folder: Path) -> None:
        facts = json.loads((folder / "state.json").read_text())
        change(facts)
        (folder / "state.json").write_text(json.dumps(facts))
        signed(folder)

    return run_with(apply)


for name, change in {
    "images seen that are negative": dict(images_seen=-12),
    "images seen that are words": dict(images_seen="12"),
    "images seen that are a float": dict(images_seen=12.0),
    "images seen that are true": dict(images_seen=True),
    "images seen without end": dict(images_seen=10**400),
    "images seen of another moment": dict(images_seen=2**40),
    "steps passed over in words": dict(skipped_steps="12"),
    "steps passed over that are lists": dict(skipped_steps=[[1]]),
    "a fingerprint that is a list": dict(fingerprint=["a"]),
}.items():
    add(name, state(lambda s, change=change: s.update(change)), "state.json", resume)
add("a state of a million steps passed over", state(lambda s: s.update(skipped_steps=list(range(10**6)))), "", resume)
add("a state without images seen", state(lambda s: s.pop("images_seen")), "state.json", resume)
add("a state without a recipe", state(lambda s: s.pop("recipe")), "state.json", load, sample)
add("a state whose recipe is a list", state(lambda s: s.update(recipe=[])), "state.json", load, sample)
add("a state with a width of 2^40", state(lambda s: s["recipe"]["model"].update(width=2**40)), "width is", load, sample)
add("a state with the widest", state(lambda s: s["recipe"]["model"].update(width=65_536, heads=1)), "misshapen", load, sample)
for name, content in {"a list": b"[]", "a pickle": EVIL, "deep": DEEP}.items():
    add(f"a state that is {name}", raw("state.json", content), "state.json", load, resume)


# the rest of a run's directory


def beside(change: Callable[[Path], object]) -> Make:
    """The good run, with something else changed in its directory."""

    def make(place: Path) -> Path:
        run = Path(shutil.copytree(GOOD["run"], place / "run"))
        change(run)
        return run

    return make


def link_out(run: Path, name: str) -> None:
    """A link to a file or folder of somebody else's."""
    theirs = run.parent / "theirs"
    if (run / name).is_dir():
        shutil.copytree(run / name, theirs)
        shutil.rmtree(run / name)
    else:
        theirs.write_text("precious\n")
        (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(theirs)


def pipe(run: Path, name: str) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)


for name in "events.jsonl", "metrics.jsonl", "recipe.json", ".lock", "checkpoints", "samples":
    add(f"a link in the place of {name}", beside(lambda run, name=name: link_out(run, name)), "is a link", resume)
for name in "events.jsonl", "metrics.jsonl", "recipe.json":
    add(f"a pipe in the place of {name}", beside(lambda run, name=name: pipe(run, name)), name, resume)
add("a link where a file is made", beside(lambda run: link_out(run, ".tmp-recipe.json")), "", resume)
for name, content in {"a pickle": EVIL, "deep": DEEP, "a list": b"[]"}.items():
    add(f"a recipe.json that is {name}", beside(lambda r, c=content: (r / "recipe.json").write_bytes(c)), "recipe.json", resume)


def logged(name: str, *lines: Any) -> Make:
    """The good run's log with lines that were not written by it."""

    def change(run: Path) -> None:
        with open(run / name, "ab") as log:
            log.writelines((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)

    return beside(change)


ODD = [None, "12", "a\nb", -1, 1.5, True, [], {}, 10**400, float("nan"), float("inf")]
SAVED = [{"event": "saved", "images_seen": value} for value in ODD]
MEASURED = [{"images_seen": seen, "loss": loss} for seen in (4, *ODD) for loss in ODD]
add("events of all types", logged("events.jsonl", *SAVED, {"event": []}, DEEP, EVIL, b"\xff\0"), "", resume)
add("metrics of all types", logged("metrics.jsonl", *MEASURED, {"loss": 1}, DEEP, EVIL, b"\xff\0"), "", resume)
for name in "events.jsonl", "metrics.jsonl":
    make = beside(lambda run, name=name: os.truncate(run / name, 2**33))
    add(f"8 GB of nothing in {name}", make, name if name == "metrics.jsonl" else "", resume)  # events are only added to
    make = logged(name, b'{"images_seen": 4, "more": [' + b"[]," * 20_000_000 + b"0]}")
    add(f"a line of 60 MB in {name}", make, "", resume)


@hostile("had a checkpoint at 12 images", resume)
def events_that_tell_in_lines_of_a_checkpoint_that_is_gone(place: Path) -> Path:
    run = logged("events.jsonl", *SAVED)(place)
    shutil.rmtree(run / "checkpoints")
    return run


# official checkpoints


def torch_file(change: Callable[[dict[str, Any]], object]) -> Make:
    """The good official file with other content."""

    def make(place: Path) -> Path:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(GOOD["official"], weights_only=True)
        change(content)
        torch.save(content, place / "w.pth")
        return place / "w.pth"

    return make


def settings(**values: Any) -> Make:
    return torch_file(lambda c: vars(c["args"]).update(values))


def expanded(content: dict[str, Any]) -> None:
    """Ten million classes that all are the same row."""
    table = content["model"]["net.y_embedder.embedding_table.weight"]
    for part in "model", "model_ema1", "model_ema2":
        content[part]["net.y_embedder.embedding_table.weight"] = table[:1].expand(10**8, -1)


def deflated(place: Path) -> Path:
    """A .pth whose members are compressed, one of them 4 GB of zeros."""
    with zipfile.ZipFile(GOOD["official"]) as good:
        members = [(e.filename, good.read(e)) for e in good.infolist()]
    packed = [Member(n, *deflate(c)) for n, c in members if not n.endswith("/data/0")]
    bomb = [Member(n, *zeros(2**32 - 2**26)) for n, _ in members if n.endswith("/data/0")]
    return zipped(place / "w.pth", *packed, *bomb)


def legacy_evil(place: Path) -> Path:
    torch.save({"model": {}, "args": Evil()}, place / "w.pth", _use_new_zipfile_serialization=False)
    return place / "w.pth"


def modern_evil(place: Path) -> Path:
    torch.save({"model": {}, "args": Evil()}, place / "w.pth")
    return place / "w.pth"


def cut(place: Path) -> Path:
    return file("w.pth", GOOD["official"].read_bytes()[:-3000])(place)


FOREIGN = "is not an official checkpoint"
for name, make, said in [
    ("a pickle that runs a command", file("w.pth", EVIL), FOREIGN),
    ("a torch file that runs a command", modern_evil, FOREIGN),
    ("an older torch file that runs a command", legacy_evil, FOREIGN),
    ("a torch file cut short", cut, FOREIGN),
    ("a torch file of 4 GB of zeros", deflated, "compressed"),
    ("JSON as pth", file("w.pth", b"{}"), FOREIGN),
    ("safetensors as pth", file("w.pth", tensors({"a": TINY}, bytes(8))), FOREIGN),
    ("a length of 2^62 in a pickle", file("w.pth", b"\x80\x04\x8e" + struct.pack("<Q", 2**62)), FOREIGN),
    ("a torch file of a list", lambda place: torch.save([1], place / "w.pth") or place / "w.pth", "no entry 'model'"),
    ("keys in lines", torch_file(lambda c: (c.pop("model"), c.update({"a\nb": 1, 5: 6}))), "no entry 'model'"),
    ("tensors with numbers as names", torch_file(lambda c: c["model"].update({5: torch.zeros(1)})), "names"),
    ("official tensors named in lines", torch_file(lambda c: c["model"].update({"a\nb": torch.zeros(1)})), "extra tensors"),
    ("tensors that are words", torch_file(lambda c: c["model"].update({"net.in_context_posemb": "a"})), "w.pth"),
    ("an average that is a list", torch_file(lambda c: c.update(model_ema1=[])), "model_ema1"),
    ("a hundred million classes in one row", torch_file(expanded), "stored"),
    ("tensors without numbers",
     torch_file(lambda c: c["model"].update({n: t.to("meta") for n, t in c["model"].items()})), "w.pth"),
    ("complex tensors", torch_file(lambda c: c["model"].update({n: t.cfloat() for n, t in c["model"].items()})), "complex64"),
    ("sparse tensors", torch_file(lambda c: c["model"].update({n: t.to_sparse() for n, t in c["model"].items()})), "w.pth"),
    ("a patch of nothing",
     torch_file(lambda c: c["model"].update({"net.x_embedder.proj1.weight": torch.zeros(0, 0, 0, 0)})), "w.pth"),
    ("settings that are lists", settings(P_mean=[1], cfg={}), "w.pth"),
    ("settings that are words", settings(P_std="a\nb"), "w.pth"),
    ("steps that are infinite", settings(num_sampling_steps=float("inf")), "w.pth"),
    ("a solver that is a list", settings(sampling_method=["heun"]), "w.pth"),
    ("a decay of 400 digits", settings(ema_decay1=10**400), "w.pth"),
    ("a dropout that is a tensor", settings(proj_dropout=torch.zeros(3)), "w.pth"),
]:  # fmt: skip
    add(name, make, said, official)


# archives


class Member(NamedTuple):
    """A file in a zip, all of whose claims can be lies."""

    name: str
    packed: bytes
    size: int
    crc: int = 0
    method: int = zipfile.ZIP_DEFLATED
    flags: int = 0
    mode: int = 0o100644


def deflate(content: bytes) -> tuple[bytes, int, int]:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush(), len(content), zlib.crc32(content)


def zeros(size: int, claimed: int | None = None) -> tuple[bytes, int]:
    """So many zeros, deflated; a piece of 64 MB is the same whatever stood before it."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(bytes(2**26)) + packer.flush(zlib.Z_FULL_FLUSH)
    return piece * (size // 2**26) + zlib.compressobj(9, zlib.DEFLATED, -15).flush(), size if claimed is None else claimed


def zipped(path: Path, *members: Member) -> Path:
    whole, central = bytearray(), bytearray()
    for m in members:
        name, at = m.name.encode(), len(whole)
        facts = struct.pack("<HHHHHIIIHH", 20, m.flags, m.method, 0, 33, m.crc, len(m.packed), m.size, len(name), 0)
        whole += b"PK\x03\x04" + facts + name + m.packed
        central += b"PK\x01\x02" + struct.pack("<H", 0x314) + facts + struct.pack("<HHHII", 0, 0, 0, m.mode << 16, at) + name
    end = struct.pack("<HHHHIIH", 0, 0, len(members), len(members), len(central), len(whole), 0)
    path.write_bytes(whole + central + b"PK\x05\x06" + end)
    return path


PNG = sets.png(sets.colours(0))


def archive(*members: Member, name: str = "a.zip") -> Make:
    return lambda place: zipped(place / name, Member("good.png", *deflate(PNG)), *members)


def stored_as(name: str, content: bytes = PNG, **facts: Any) -> Member:
    return Member(name, content, len(content), zlib.crc32(content), **({"method": zipfile.ZIP_STORED} | facts))


BZIP = bz2.compress(bytes(2**28))
for name, make, said in [
    ("a member above", archive(stored_as("../x.png")), "outside"),
    ("an absolute member", archive(stored_as("/tmp/x.png")), "outside"),
    ("a member above for another system", archive(stored_as("..\\x.png")), "outside"),
    ("a member named in lines", archive(stored_as("a\nb.txt")), "a.zip"),
    ("a member that clears the screen", archive(stored_as("a\x1b[2J.png", b"")), "a.zip"),
    ("a bomb", archive(Member("b.png", *zeros(2**32 - 2**26))), "at most"),
    ("a bomb of 10 GB that claims 1 kB", archive(Member("b.png", *zeros(10 * 2**30, 1000))), "b.png"),
    ("a bomb of bzip2", archive(Member("b.png", BZIP, 1000, method=zipfile.ZIP_BZIP2)), "b.png"),
    ("a bomb of lzma", archive(Member("b.png", bytes(100), 1000, method=zipfile.ZIP_LZMA)), "b.png"),
    ("an unknown compression", archive(Member("b.png", bytes(100), 1000, method=97)), "b.png"),
    ("a link to a password file", archive(stored_as("b.png", b"/etc/passwd", mode=0o120777)), "b.png"),
    ("an encrypted member", archive(stored_as("b.png", flags=1)), "b.png"),
    ("an archive in an archive", archive(stored_as("b.zip", zlib.compress(b""))), "is not an image"),
    ("a pickle in an archive", archive(stored_as("b.png", EVIL)), "b.png"),
    ("a member with a false sum", archive(stored_as("b.png")._replace(crc=5)), "b.png"),
    ("a member that claims more than there is", archive(stored_as("b.png")._replace(size=10**6)), "b.png"),
    ("a member beyond the end", archive(stored_as("b.png")._replace(packed=b"")), "b.png"),
    ("an archive that is only a directory", file("a.zip", b"PK\x05\x06" + b"\xff" * 18), "a.zip"),
    ("a directory before the beginning",
     file("a.zip", b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, 2**31, 2**31, 0)), "a.zip"),
    ("a pickle as zip", file("a.zip", EVIL), "a.zip"),
]:  # fmt: skip
    add(f"{name} in a zip", make, said, images)


# images


def chunk(kind: bytes, content: bytes, length: int | None = None) -> bytes:
    size = len(content) if length is None else length
    return struct.pack(">I", size) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *more: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def tiff(*tags: tuple[int, int, int, int]) -> bytes:
    """A TIFF of tags (number, kind, count, value or place)."""
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags) + bytes(8)


def picture(name: str, content: bytes) -> Make:
    """A folder of one good image and one that is not."""

    def make(place: Path) -> Path:
        (place / "set").mkdir()
        (place / "set" / "good.png").write_bytes(PNG)
        (place / "set" / name).write_bytes(content)
        return place / "set"

    return make


TEXT = zlib.compress(bytes(2**28))
GIF = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
FRAME = b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x44\x01\x00;"
for name, (kind, content) in {
    "a PNG of 50000 x 50000": ("b.png", png(50_000, 50_000)),
    "a PNG of 2^31 x 2^31": ("b.png", png(2**31 - 1, 2**31 - 1)),
    "a PNG of 12000 x 12000": ("b.png", png(12_000, 12_000)),
    "a PNG of 2^27 x 1": ("b.png", png(2**27 + 1, 1)),
    "a PNG that is cut": ("b.png", PNG[:-60]),
    "a PNG that claims a chunk of 2 GB": ("b.png", png(16, 16, chunk(b"iTXt", b"a", 2**31 - 1))),
    "a pickle as PNG": ("b.png", EVIL),
    "a PostScript as PNG": ("b.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(ran) (w) file\n"),
    "a GIF of a huge canvas": ("b.gif", GIF + FRAME),
    "a GIF of a huge frame": ("b.gif", b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + FRAME),
    "a TIFF of 2^32 tags": ("b.tif", tiff((256, 4, 2**31, 8), (257, 4, 2**31, 8))),
    "a TIFF of 2^31 x 2^31": ("b.tif", tiff((256, 4, 1, 2**31), (257, 4, 1, 2**31), (258, 3, 1, 8), (262, 3, 1, 1))),
    "a TIFF whose strip is elsewhere": ("b.tif", tiff(
        (256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 2**31),
        (279, 4, 1, 256))),
    "a TIFF with a silly compression": ("b.tif", tiff(
        (256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 999), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 256))),
    "a BMP of 2^30 x 2^30": (
        "b.bmp", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 60, 0, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0)
    ),
    "a PPM of 2^30 x 2^30": ("b.ppm", b"P6 1073741824 1073741824 255\n"),
    "a PPM of a number without end": ("b.ppm", b"P6 " + b"9" * 100_000 + b" 9 255\n"),
    "a JPEG that is cut": ("b.jpg", b"\xff\xd8\xff\xe0\xff\xff"),
    "a WebP of 16383 x 16383": (
        "b.webp", b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8L" + struct.pack("<I", 10) + b"/" +
        struct.pack("<I", 16382 | 16382 << 14) + bytes(5),
    ),
}.items():  # fmt: skip
    add(name, picture(kind, content), kind, images)
add("a PNG with text of 256 MB", picture("b.png", png(16, 16, chunk(b"iTXt", b"a\0\1\0\0\0" + TEXT))), "b.png", images)
add("a PNG with a profile of 256 MB", picture("b.png", png(16, 16, chunk(b"iCCP", b"a\0\0" + TEXT))), "b.png", images)
add(
    "a JPEG as PNG",
    picture("b.png", (lambda b: (Image.fromarray(sets.colours(1)).save(b, "JPEG"), b.getvalue())[1])(io.BytesIO())),
    "",
    images,
)
add("a file named in lines", picture("a\nb.txt", b"hello"), "is not an image", images)
add("an image named in lines", picture("a\nb.png", b"hello"), "not a readable image", images)


def special(make: Callable[[Path], object]) -> Make:
    def made(place: Path) -> Path:
        folder = picture("c.png", PNG)(place)
        make(folder / "b.png")
        return folder

    return made


add("a pipe in a folder", special(os.mkfifo), "", images)
add("a device in a folder", special(lambda path: path.symlink_to("/dev/zero")), "", images)
add("a link to nowhere in a folder", special(lambda path: path.symlink_to("/nowhere/x.png")), "b.png", images)
add("a link to a folder above", special(lambda path: path.with_suffix("").symlink_to(path.parent)), "", images)


# arrays


def npz(*members: Member) -> Make:
    return lambda place: zipped(place / "a.npz", *members)


FOUR = sets.npy_header((4, 1, 8, 8), "|u1") + bytes(256)
LARGE = sets.npy_header((2**20, 1, 32, 32), "|u1")
BOMB = LARGE + bytes(2**26 - len(LARGE))
for name, make, said in [
    ("an .npz that is a pickle", file("a.npz", EVIL), "a.npz"),
    ("an .npz with an encrypted array", npz(stored_as("a.npy", FOUR, flags=1)), "a.npz"),
    ("an .npz of bzip2", npz(Member("a.npy", BZIP, 2**28, method=zipfile.ZIP_BZIP2)), "a.npz"),
    ("an .npz of 1 GB of zeros", npz(Member("a.npy", deflate(BOMB)[0] * 16, len(LARGE) + 2**30)), "a.npz"),
    ("an .npz that ends early", npz(Member("a.npy", deflate(LARGE)[0], len(LARGE) + 2**30)), "a.npz"),
    ("an array at a false place", npz(stored_as("a.npy", FOUR), stored_as("labels.npy", b"\x93NUMPY")), "a.npz"),
    ("labels that are words",
     npz(stored_as("a.npy", FOUR), stored_as("labels.npy", sets.npy_header((4,), "<U1") + bytes(16))), "labels"),
    ("an array of voids", file("a.npy", sets.npy_header((1, 1, 2, 2), "|V8") + bytes(32)), "a.npy"),
    ("an array whose header calls",
     file("a.npy", sets.npy_header((1, 1, 2, 2)).replace(b"(1, 1, 2, 2)", b"print(1234) ") + bytes(16)), "a.npy"),
]:  # fmt: skip
    add(name, make, said, prepared)


# stores


def index(change: Callable[[dict[str, Any]], object]) -> Make:
    """The good store with another index, its hash made right."""

    def make(place: Path) -> Path:
        store = Path(shutil.copytree(GOOD["store"], place / "s"))
        facts = json.loads((store / "index.json").read_text())
        change(facts)
        (store / "index.json").write_text(json.dumps(facts | {"sha256": disk.self_checksum(facts)}))
        return store

    return make


def store_file(name: str, content: bytes) -> Make:
    """The good store with another file, the index made right."""

    def make(place: Path) -> Path:
        def change(facts: dict[str, Any]) -> None:
            its = facts["labels"] if name == "labels.npy" else facts["shards"][0]
            its |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}

        store = index(change)(place)
        (store / name).write_bytes(content)
        return store

    return make


PICKLED = io.BytesIO()
np.save(PICKLED, np.array([{"a": 1}] * 5, dtype=object), allow_pickle=True)
LABELS = sets.npy_header((5,), "<i8")
for name, change in {
    "a count of 2^62": dict(count=2**62),
    "a count that is words": dict(count="5"),
    "a shape that is a word": dict(shape="abc"),
    "a shape of 2^20": dict(shape=[3, 2**20, 2**20]),
    "a shape that is negative": dict(shape=[3, -8, -8]),
    "a shape of floats": dict(shape=[3, 8.0, 8]),
    "shards that are words": dict(shards="abc"),
    "shards that are paths": dict(shards=["../../x.npy"]),
    "shards of 2^62 images": dict(shards=[dict(count=2**62, size=128 + 2 * 192, sha256="a" * 64)] * 3),
    "shards that are negative": dict(shards=[dict(count=-5, size=-5, sha256="a" * 64)] * 3),
    "no shards": dict(shards=[]),
    "labels that are a list": dict(labels=[]),
    "a dtype of objects": dict(dtype="object"),
    "a dtype that is a list": dict(dtype=["uint8"]),
    "class names that are numbers": dict(class_names=[1, 2]),
    "statistics that are words": dict(mean="abc"),
    "statistics that are not finite": dict(mean=[float("nan")] * 3),
    "a plan that is a list": dict(plan=[]),
    "refusals that are numbers": dict(refused=[5]),
    "a version of words": dict(version="1\n2"),
}.items():
    add(f"a store with {name}", index(lambda f, change=change: f.update(change)), "index.json", stored)
add("a store with one class name of two", index(lambda f: f.update(class_names=["cat"])), "labels.npy", stored)
add("a store with a deep entry", index(lambda f: f.update(more=json.loads(b"[" * 900 + b"]" * 900))), "index.json", stored)
add("a store with a plan in lines", index(lambda f: f["plan"].update(dtype="a\nb")), "with other settings", going_on)
add("a store with a plan that is a list", index(lambda f: f.update(plan=[])), "index.json", going_on)
for name, content in {
    "pickled objects": PICKLED.getvalue(),
    "a pickle": EVIL,
    "2^40 numbers": sets.npy_header((2**40,), "<i8") + bytes(40),
    "classes beyond": LABELS + np.full(5, 2**40).tobytes(),
    "classes below": LABELS + np.full(5, -2).tobytes(),
    "other numbers": sets.npy_header((5,), "<f8") + bytes(40),
    "two axes": sets.npy_header((5, 1), "<i8") + bytes(40),
}.items():
    add(f"labels of {name}", store_file("labels.npy", content), "labels.npy", stored)
for name, content in {
    "pickled objects": PICKLED.getvalue(),
    "a pickle": EVIL,
    "2^40 images": sets.npy_header((2**40, 3, 8, 8), "|u1") + bytes(384),
    "other numbers": sets.npy_header((2, 3, 8, 8), "<f4") + bytes(1536),
    "another shape": sets.npy_header((2, 3, 64, 1), "|u1") + bytes(384),
}.items():
    add(f"a shard of {name}", store_file("images-00000.npy", content), "s", stored)


def index_is(content: bytes, size: int | None = None) -> Make:
    def make(place: Path) -> Path:
        store = Path(shutil.copytree(GOOD["store"], place / "s"))
        (store / "index.json").write_bytes(content)
        os.truncate(store / "index.json", size or len(content))
        return store

    return make


for name, content, size in [
    ("a pickle", EVIL, None), ("deep", DEEP, None), ("a list", b"[]", None), ("300 MB of nothing", b"{}", 300 * 2**20),
    ("20 million lists", b'{"a":[' + b"[]," * 20_000_000 + b"0]}", None),
]:  # fmt: skip
    add(f"an index that is {name}", index_is(content, size), "index.json", stored)


def begun(change: Callable[[Path], object]) -> Make:
    """A store that was begun: its plan, a shard, and that shard's note."""

    def make(place: Path) -> Path:
        store = Path(shutil.copytree(GOOD["begun"], place / "s"))
        change(store)
        return store

    return make


def note(**changes: Any) -> Make:
    def change(store: Path) -> None:
        path = store / "images-00000.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return begun(change)


def planned(**changes: Any) -> Make:
    def change(store: Path) -> None:
        path = store / "plan.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return begun(change)


for name, make, said in [
    ("a plan in lines", planned(dtype="a\nb\x1b[2J"), "was begun with other settings"),
    ("a plan of a long word", planned(dtype="a" * 4_000_000), "was begun with other settings"),
    ("a plan that is a pickle", begun(lambda s: (s / "plan.json").write_bytes(EVIL)), "plan.json"),
    ("a plan that is deep", begun(lambda s: (s / "plan.json").write_bytes(DEEP)), "plan.json"),
    ("a plan of 300 MB of nothing", begun(lambda s: os.truncate(s / "plan.json", 300 * 2**20)), "plan.json"),
    ("a note with labels in words", note(labels="ab"), ""),
    ("a note with no labels", note(labels=None), ""),
    ("a note with too many images", note(count=2**62), ""),
    ("a note with statistics in words", note(mean=["a", "b", "c"], squares=None), ""),
    ("a note with refusals of numbers", note(refused=5), ""),
    ("a note that is deep", begun(lambda s: (s / "images-00000.json").write_bytes(DEEP)), ""),
    ("a note that is a list", begun(lambda s: (s / "images-00000.json").write_bytes(b"[]")), ""),
    ("a link where the plan is made", begun(lambda s: link_out(s, ".tmp-plan.json")), ""),
]:  # fmt: skip
    add(f"a begun store with {name}", make, said, going_on)


# a table of Hugging Face


def table(change: Callable[[Path], object]) -> Make:
    def make(place: Path) -> Path:
        folder = Path(shutil.copytree(GOOD["table"], place / "table"))
        change(folder)
        return folder

    return make


SCRIPT = b"import os\nos.system('mkdir ran')\n"
if find_spec("datasets"):
    for name, make, said in [
        ("a script", table(lambda t: [(t / n).write_bytes(SCRIPT) for n in ("table.py", "dataset.py", "__init__.py")]), ""),
        ("a pickle as data", table(lambda t: [p.write_bytes(EVIL) for p in t.glob("*.arrow")]), "table"),
        ("a pickle as its state", table(lambda t: (t / "state.json").write_bytes(EVIL)), "table"),
        ("deep JSON", table(lambda t: (t / "dataset_info.json").write_bytes(DEEP)), "table"),
        ("a feature that is a function", table(
            lambda t: (t / "dataset_info.json").write_text('{"features": {"image": {"_type": "os.system"}}}')), "table"),
    ]:  # fmt: skip
        add(f"a table with {name}", make, said, images)
