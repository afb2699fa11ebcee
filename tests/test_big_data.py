"""Large data: more shards than a process may open, a million files, slow disks, several processes.

The tests start processes that run `python -m tests.test_big_data FUNCTION ...`.
"""

import hashlib
import json
import os
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from justimage import distributed, recipe as recipes, run as runs
from justimage.data import Crop, Stream, batches, files, open_source, store as stores
from justimage.data.store import Store, open_store
from tests import crash, sets
from tests.sets import prepare

pytestmark = pytest.mark.full

HERE = Path(__file__).parents[1]
COUNT, SIZE = 150, 16
"""Images, and images of a batch."""
needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted as on Linux")
SIDES = pytest.mark.parametrize("side", [8, 96])
"""Images of 192 bytes, whose shards are mapped, and of 27,648 bytes, which are read by their offset."""


def run_alone(function: str, *arguments: object, limit: int | None = None) -> Any:
    """The result of a function of this file in a process that may open `limit` files."""
    code = [sys.executable, "-m", "tests.test_big_data", function, *map(str, arguments)]
    limited = (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))) if limit else None
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(code, cwd=HERE, capture_output=True, text=True, timeout=280, preexec_fn=limited, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sets.folder_of(tmp_path_factory.mktemp("big") / "set", COUNT)


@pytest.fixture(scope="module", params=[8, 96])
def pair(request: pytest.FixtureRequest, photos: Path) -> tuple[Path, Path]:
    """The same images in as many shards and in two."""
    places = photos.with_name(f"many-{request.param}"), photos.with_name(f"few-{request.param}")
    for place, each in zip(places, (1, COUNT // 2), strict=True):
        prepare(str(photos), place, image_size=request.param, upscale=True, shard_images=each, workers=1)
    return places


def digests(source: Store, workers: int) -> list[str]:
    """Of each of 25 batches, some epochs."""
    read = batches(Stream(source, 5, flip=True), range(0, 25 * SIZE, SIZE), SIZE, workers)
    return [hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest() for images, labels in read]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_many_small_shards_are_the_sequence_of_few_large_ones(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    many, few = map(open_store, pair)
    straight = digests(few, 0)
    assert len(set(straight)) == 25 and many.fingerprint == few.fingerprint
    for most in stores.MAX_OPEN_SHARDS, 3:
        monkeypatch.setattr(stores, "MAX_OPEN_SHARDS", most)
        for workers in 0, 2:
            assert digests(open_store(pair[0]), workers) == straight


def trained(store: str, out: str) -> dict[str, Any]:
    """Losses of some steps with two worker processes, and the number of files that this process may open."""
    recipe = recipes.for_store(crash.recipe(steps=12), open_store(Path(store)))
    recipe = replace(recipe, data=store, parallelism=replace(recipe.parallelism, workers=2))
    run = runs.open_run(recipe, out, "cpu")
    losses = [step.loss.hex() for step in runs.steps(run)]
    for position in range(COUNT):  # here, too
        run.source[position]
    return {"losses": losses, "limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0]}


def test_a_store_of_more_shards_than_open_files_trains_as_one_of_few_shards(pair: tuple[Path, Path], tmp_path: Path) -> None:
    many, few = pair
    found = run_alone("trained", many, tmp_path / "many", limit=64)
    assert found["limit"] == 64 < len(list(many.glob("images-*.npy"))) == COUNT
    assert len(found["losses"]) == 12 and found["losses"] == run_alone("trained", few, tmp_path / "few")["losses"]


def opened_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@needs_proc
def test_threads_read_shards_that_others_evict(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Few stay open, none is closed while it is read, and none is left open."""
    monkeypatch.setattr(stores, "MAX_OPEN_SHARDS", 2)

    def most() -> int:
        """The most files open while eight threads read a whole store, three times each."""
        real, many, seen = open_store(pair[1]).batch(np.arange(COUNT))[0], open_store(pair[0]), []

        def read(seed: int) -> bool:
            chosen = np.random.default_rng(seed).permutation(COUNT)
            images = many.batch(chosen)[0]
            seen.append(opened_files())
            return torch.equal(images, real[torch.from_numpy(chosen)])

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(24)))
        return max(seen)

    before = opened_files()
    assert before < most() <= before + 1 + 2 * (2 + 8)  # the one that lists them; for each shard its file and its map
    assert opened_files() == before


def test_a_worker_opens_a_store_without_checking_every_shard(pair: tuple[Path, Path], tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    for path in pair[0].iterdir():
        os.link(path, store / path.name)
    pickled = pickle.dumps(open_store(store))
    (store / "images-00007.npy").unlink()
    again = pickle.loads(pickled)
    assert torch.equal(again[8][0], open_store(pair[1])[8][0])
    with pytest.raises(OSError, match=r"images-00007\.npy"):
        again[7]
    with pytest.raises(ValueError, match=r"images-00007\.npy is missing"):
        open_store(store)


@pytest.mark.parametrize("change", ["order", "bytes", "shape"])
def test_a_shard_that_differs_from_the_index_is_named_when_it_is_opened(change: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((4, 2, 4, 4), dtype=np.float32))
    prepare(str(tmp_path / "a.npy"), tmp_path / "store", shard_images=4)
    shard = tmp_path / "store" / "images-00000.npy"
    content, (old, new) = shard.read_bytes(), {
        "order": (b"False", b"True "), "bytes": (b"'<f4'", b"'>f4'"), "shape": (b"(4, 2, 4, 4)", b"(2, 4, 4, 4)")
    }[change]  # fmt: skip
    assert old in content
    shard.write_bytes(content.replace(old, new, 1))
    store = open_store(tmp_path / "store")
    with pytest.raises(ValueError, match=r"images-00000\.npy is .* which is not what index\.json says"):
        store[0]


def test_a_shard_truncated_while_it_is_open_is_named(tmp_path: Path, photos: Path) -> None:
    prepare(str(photos), tmp_path / "store", image_size=96, upscale=True, shard_images=COUNT // 2, workers=1)
    store = open_store(tmp_path / "store")
    store[0]
    os.truncate(tmp_path / "store" / "images-00000.npy", 200_000)
    assert store[5][0].shape == (3, 96, 96)
    with pytest.raises(ValueError, match=r"images-00000\.npy ends within an image"):
        store[70]


def test_uncached_images_are_requested_all_at_once(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a cold disk all images of a batch are requested before the first one is waited for."""
    prepare(str(photos), tmp_path / "store", image_size=96, upscale=True, shard_images=10, workers=1)
    store, read, calls = open_store(tmp_path / "store"), os.preadv, []
    real = store.batch(np.arange(0, COUNT, 3))[0]

    def cold(descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError
        calls.append(("read", descriptor, offset))
        return read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", cold)
    monkeypatch.setattr(stores, "advise", lambda descriptor, offset, size: calls.append(("advise", descriptor, offset)))
    assert torch.equal(store.batch(np.arange(0, COUNT, 3))[0], real)
    half = len(calls) // 2
    assert half == COUNT // 3 and {call for call, *_ in calls[:half]} == {"advise"}
    assert [place for _, *place in calls[:half]] == [place for _, *place in calls[half:]]


class SlowStore(Store):
    """A store in which every image takes 3 ms to arrive."""

    def batch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        time.sleep(0.003 * len(indices))
        return super().batch(indices)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_prefetching_workers_hide_a_slow_disk(pair: tuple[Path, Path]) -> None:
    """With steps of 10 ms and batches that take 48 ms, four workers save more than half of the wait."""
    stream = Stream(SlowStore(**vars(open_store(pair[1]))), 0, flip=False)

    def waited(workers: int) -> float:
        read = batches(stream, range(0, 16 * 24, 16), 16, workers)
        next(read)  # starts the workers
        seconds = 0.0
        for _ in range(23):
            time.sleep(0.01)
            began = time.perf_counter()
            next(read)
            seconds += time.perf_counter() - began
        return seconds

    assert waited(4) < waited(0) / 2


# folders ---------------------------------------------------------------------------------------------------------------


def listed_plainly(folder: Path) -> dict[str, int]:
    """Path and size of every file, by os.walk."""
    found = {}
    for place, _, names in os.walk(folder, followlinks=True):
        for path in (Path(place) / name for name in names):
            if path.is_file():
                found[path.relative_to(folder).as_posix()] = path.stat().st_size
    return found


def test_a_folder_is_listed_with_its_links_and_without_pipes(tmp_path: Path) -> None:
    root, other = sets.folder_of(tmp_path / "set", 9), sets.folder_of(tmp_path / "other", 4)
    (root / "empty").mkdir()
    (root / "deep" / "er" / "and deeper").mkdir(parents=True)
    (root / "deep" / "er" / "and deeper" / "\udcff ü.png").write_bytes(b"12345")
    (root / "linked").symlink_to(other)
    (root / "cat" / "link.png").symlink_to(other / "cat" / "000.png")
    (root / ".hidden").write_bytes(b"1")
    os.mkfifo(root / "cat" / "pipe.png")
    found = files.list_folder(root)
    assert found == listed_plainly(root) and len(found) == 9 + 4 + 3 and "linked/cat/000.png" in found
    (root / "linked" / "again").symlink_to(root)
    assert files.list_folder(root) == found
    (root / "cat" / "dangling.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"dangling\.png"):
        files.list_folder(root)


def test_junk_is_hidden_or_a_file_managers() -> None:
    names = ["a", "a.png", ".", ".a", "a.", "Thumbs.db", "thumbs.db.png", "xthumbs.db", "DESKTOP.INI", "__MACOSX", "__macosx2"]
    junk = {"thumbs.db", "desktop.ini", "__macosx"}
    for first in names:
        for second in names:
            wanted = any(name.startswith(".") or name.lower() in junk for name in (first, second))
            assert bool(files.JUNK.search(f"{first}/{second}")) == wanted, (first, second)


def run_distributed(processes: int, function: str, out: Path) -> list[Any]:
    """The result of a function of this file in each of several processes that train together."""
    code = ["--standalone", "--nproc-per-node", str(processes), "-m", "tests.test_big_data", function, str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *code], cwd=HERE, capture_output=True, text=True, timeout=280
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(processes)]


def listing(out: str) -> None:
    """Open a run with the data that each process sees in its own folder: how often it listed a folder, and the outcome."""
    world, calls, found, plain = distributed.init("cpu"), [], {}, files.list_folder
    files.list_folder = lambda folder: calls.append(folder) or plain(folder)
    for case in sorted(p.name for p in Path(out).iterdir() if p.is_dir()):
        os.chdir(Path(out, case, f"node{world.rank}"))
        recipe = replace(crash.recipe(steps=1), data="photos")
        calls.clear()
        try:
            source = runs.open_run(recipe, Path(out, f"{case}-run"), "cpu").source
            images, labels = zip(*(source[i] for i in range(len(source))), strict=True)
            ended = [hashlib.sha256(torch.stack(images).numpy().tobytes()).hexdigest(), labels, source.fingerprint]
        except (ValueError, OSError, distributed.RemoteError) as error:
            ended = [type(error).__name__, str(error)]
        found[case] = {"listed": len(calls), "ended": ended}
    Path(out, f"{world.rank}.json").write_text(json.dumps(found))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_one_process_lists_for_all_and_another_disk_is_noticed(tmp_path: Path) -> None:
    for case in "same", "missing", "smaller", "nowhere":
        for node in 0, 1:
            sets.folder_of(tmp_path / case / f"node{node}" / "photos", 20)
    at = "photos/dog/013.png"
    (tmp_path / "missing" / "node1" / at).unlink()
    (tmp_path / "smaller" / "node1" / at).write_bytes(b"12345")
    (tmp_path / "nowhere" / "node0" / "photos").rename(tmp_path / "nowhere" / "node0" / "elsewhere")
    first, other = run_distributed(2, "listing", tmp_path)
    assert {case: one["listed"] for case, one in first.items()} == {"same": 1, "missing": 1, "smaller": 1, "nowhere": 0}
    assert not any(one["listed"] for one in other.values())
    assert first["same"]["ended"] == other["same"]["ended"] and first["same"]["ended"][1] == [0] * 10 + [1] * 10
    size = len(sets.png(sets.colours(13)))
    for case, what in ("missing", "is missing here"), ("smaller", "has 5 bytes here"):
        message = f"{at} {what}, and has {size:,} for the first process; all must see the same files"
        assert first[case]["ended"] == ["RemoteError", message] and other[case]["ended"] == ["ValueError", message]
    (kind, message), (kind_there, there) = first["nowhere"]["ended"], other["nowhere"]["ended"]
    assert (kind, kind_there) == ("FileNotFoundError", "RemoteError") and message == there and "photos does not exist" in there


@pytest.mark.parametrize("form", ["folder", "zip", "tar", "store"])
def test_every_form_of_data_names_files_to_compare(form: str, photos: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    from justimage.data import check_same_files, sample_sizes

    makes: dict[str, Callable[[], Path]] = {
        "folder": lambda: photos,
        "zip": lambda: sets.zipped(photos, tmp_path / "set.zip"),
        "tar": lambda: sets.tarred(sets.as_members(photos), tmp_path / "set.tar"),
        "store": lambda: pair[0],
    }
    side = open_store(pair[0]).shape[1]
    source = open_source(str(makes[form]()), Crop((side, side), upscale=True))
    sizes = sample_sizes(pickle.loads(pickle.dumps(source)))
    assert len(sizes) == {"folder": 64, "zip": 1, "tar": 1, "store": 64}[form]
    assert all(Path(place).stat().st_size == size for place, size in sizes.items())
    check_same_files(sizes)
    place = next(iter(sizes))
    with pytest.raises(ValueError, match="bytes here, and has"):
        check_same_files(sizes | {place: sizes[place] + 1})


# minutes ---------------------------------------------------------------------------------------------------------------


def resident() -> int:
    """Bytes in memory of this process and its children."""
    children = "".join(p.read_text() for p in Path("/proc/self/task").glob("*/children"))
    pages = [Path(f"/proc/{pid}/statm").read_text().split()[1] for pid in ["self", *children.split()]]
    return sum(map(int, pages)) * resource.getpagesize()


def enduring(store: str, out: str) -> dict[str, Any]:
    """Open a store, read 102,400 images with two workers, train a little: CPU seconds to open it, bytes in memory after each
    12,800 images, files open at the end."""
    began = time.process_time()
    opened = open_store(Path(store))
    found: dict[str, Any] = {"opening": time.process_time() - began, "images": len(opened), "memory": []}
    began = time.process_time()
    pickle.loads(pickle.dumps(opened))
    found["opening again"] = time.process_time() - began
    for number, _ in enumerate(batches(Stream(opened, 0, flip=True), range(0, 64 * 1600, 64), 64, workers=2), 1):
        if number % 200 == 0:
            found["memory"].append(resident())
    found["losses"] = len(trained(store, out)["losses"])
    return found | {"files": opened_files(), "limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0]}


@needs_proc
@SIDES
def test_a_store_of_20_000_shards_and_1_300_000_images_under_256_open_files(side: int, tmp_path: Path) -> None:
    store = sets.store_of_links(tmp_path / "store", shards=20_000, each=65, side=side)
    found = run_alone("enduring", store, tmp_path / "run", limit=256)
    assert found["images"] == 1_300_000 and found["limit"] == 256 > found["files"]
    assert found["opening"] < 10 and found["opening again"] < found["opening"]
    assert found["losses"] == 12 and len(found["memory"]) == 8
    assert max(found["memory"][4:]) < 1.1 * max(found["memory"][:4]), found["memory"]


def opening(folder: str) -> dict[str, Any]:
    began = time.process_time()
    source = open_source(folder, Crop((8, 8)))
    return {"seconds": time.process_time() - began, "images": len(source), "classes": len(source.class_names)}


def test_a_folder_of_200_000_files(tmp_path: Path) -> None:
    for number in range(200):
        place = tmp_path / "set" / f"n{number:08d}"
        place.mkdir(parents=True)
        (place / "0.png").write_bytes(sets.png(sets.colours(number)))
        for i in range(1, 1000):
            os.link(place / "0.png", place / f"{i}.png")
    found = run_alone("opening", tmp_path / "set")
    assert (found["images"], found["classes"]) == (200_000, 200) and found["seconds"] < 3, found


FUNCTIONS: dict[str, Callable[..., Any]] = {"trained": trained, "enduring": enduring, "opening": opening, "listing": listing}


def main(argv: Sequence[str]) -> None:
    print(json.dumps(FUNCTIONS[argv[0]](*argv[1:])))


if __name__ == "__main__":
    main(sys.argv[1:])
