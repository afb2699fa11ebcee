"""Stores: the reference's crops, one set in every form, kills that change nothing, and errors."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from justimage import disk
from justimage.cli import prepare as command
from justimage.data import Crop, Stream, batches, cache_in_ram, files as files_room, open_source, prepare as preparation
from justimage.data.files import open_files
from justimage.data.prepare import PrepareReport
from justimage.data.store import Store, open_store
from justimage.progress import finish
from justimage.recipe import preset
from tests import sets
from tests.reference import SHARED, needs_shared
from tests.sets import prepare


def files(store: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in store.iterdir()}


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images, two of them unusable."""
    folder = sets.folder_of(tmp_path_factory.mktemp("forty") / "set", 40)
    (folder / "cat" / "005.png").write_bytes((folder / "cat" / "005.png").read_bytes()[:70])
    (folder / "dog" / "030.png").write_bytes(sets.png(sets.colours(30, 4)))
    return folder


@pytest.fixture(scope="module")
def whole(forty: Path) -> Path:
    """The store of forty, made by one process without interruption."""
    prepare(str(forty), forty.parent / "whole", image_size=8, shard_images=4, workers=1)
    return forty.parent / "whole"


@needs_shared
@pytest.mark.parametrize("size", [64, 256])
def test_the_crops_in_a_store_are_the_references_bit_for_bit(size: int, tmp_path: Path) -> None:
    hashes = json.loads((SHARED / "reference" / "crop_sha256.json").read_text())
    folder = SHARED / "data" / "imagenet-sample"
    report = prepare(str(folder), tmp_path / "store", image_size=size, upscale=True, shard_images=16, workers=1)
    assert report == PrepareReport(63, (3, size, size), "uint8", [], verified=False)
    store = open_store(tmp_path / "store")
    for i, name in enumerate(sorted(hashes)):
        pixels = store[i][0].permute(1, 2, 0).contiguous().numpy()
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == hashes[name][str(size)], name


@pytest.mark.full
@needs_shared
def test_the_papers_data_is_the_papers_bit_for_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A thousand photographs rotated by EXIF, smaller than the crop, and in every mode and format, from a store and from files;
    decoded as photographs, the rotated ones would be other images."""
    for number, path in enumerate(sorted((SHARED / "data" / "imagenet-sample").iterdir())):
        for name, content in sets.variants(path.read_bytes(), number).items():
            place = tmp_path / "train" / f"n{number:08d}" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
    argv = [str(tmp_path / "train"), str(tmp_path / "store"), "--for", "jit-b16-256"]
    assert command.main(argv) == 0 and "refused" not in capsys.readouterr().out
    assert command.main(argv) == 0 and "every hash was verified" in capsys.readouterr().out
    crop = preset("jit-b16-256").crop
    files, store = open_files(str(tmp_path / "train"), crop), open_store(tmp_path / "store")
    as_photographs = open_files(str(tmp_path / "train"), replace(crop, decode="photo"))
    assert len(files) == len(store) == 16 * 63 and store.index.plan.decode == "torchvision"
    different = Counter()
    for i, name in enumerate(files.names):
        paper = torch.from_numpy(sets.paper_crop((tmp_path / "train" / name).read_bytes(), 256).copy())
        assert torch.equal(store[i][0], paper) and torch.equal(files[i][0], paper), name
        if "rotated" in name:
            different[name[-5]] += not torch.equal(as_photographs[i][0], paper)
    assert different == {"1": 0, **dict.fromkeys("2345678", 63)}
    assert as_photographs.fingerprint != files.fingerprint


def test_a_preset_gives_the_defaults_of_options(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(sets.png(sets.colours(0, 70)))

    def plan(*options: str) -> tuple[object, ...]:
        store = tmp_path / f"store{len(list(tmp_path.iterdir()))}"
        assert command.main([str(tmp_path / "set"), str(store), *options]) == 0
        plan = open_store(store).index.plan
        return plan.image_size, plan.channels, plan.upscale, plan.decode

    assert plan("--for", "jit-b4-64") == ((64, 64), 3, True, "torchvision")
    assert plan("--for", "folder-64") == ((64, 64), 3, False, "photo")
    given = "--image-size", "32", "48", "--channels", "1", "--no-upscale", "--decode", "photo"
    assert plan("--for", "jit-b4-64", *given) == plan(*given) == ((32, 48), 1, False, "photo")


def test_a_store_of_another_version_is_refused_in_one_line(forty: Path, whole: Path, tmp_path: Path) -> None:
    store = copied(whole, tmp_path / "store")
    index = json.loads((store / "index.json").read_text())
    (store / "index.json").write_text(json.dumps(index | {"version": 1}))
    for attempt in partial(open_store, store), partial(prepare, str(forty), store, image_size=8, shard_images=4):
        with pytest.raises(ValueError, match=r"index\.json is of version 1; this justimage reads version 2: remove"):
            attempt()


def test_one_set_in_every_form_is_one_store(tmp_path: Path) -> None:
    folder = sets.folder_of(tmp_path / "set", 10)
    images = [sets.colours(i) for i in range(10)]
    labels, names = [0] * 5 + [1] * 5, np.array(["cat", "dog"])
    first = np.stack(images).transpose(0, 3, 1, 2)
    np.savez(tmp_path / "a.npz", arr_0=np.stack(images), arr_1=np.array(labels), class_names=names)
    np.savez_compressed(tmp_path / "b.npz", images=first, labels=np.array(labels), class_names=names)
    np.savez(tmp_path / "c.npz", images=np.asfortranarray(first), label=np.array(labels), class_names=names)
    sources = [
        folder,
        sets.zipped(folder, tmp_path / "set.zip"),
        sets.tarred(sets.as_members(folder), tmp_path / "set.tar"),
        *(tmp_path / f"{n}.npz" for n in "abc"),
    ]
    sizes = [16, 16, 16, None, None, None]
    stores = []
    for i, (source, size) in enumerate(zip(sources, sizes, strict=True)):
        prepare(str(source), tmp_path / f"store{i}", image_size=size, workers=1, shard_images=3 + i % 3)
        stores.append(open_store(tmp_path / f"store{i}"))
    assert len({s.fingerprint for s in stores}) == 1 and stores[0].class_names == ["cat", "dog"]
    assert torch.equal(stores[0].batch(np.arange(10))[0], torch.from_numpy(first))
    assert stores[0].batch(np.arange(10))[1].tolist() == labels
    web = sets.web_dataset(tmp_path / "web", images, labels)
    for pattern in web, web / "train-{0000..0001}.tar", web / "train-*.tar", web / "train-000{0,1}.tar":
        source = open_source(str(pattern), Crop((16, 16)))
        assert len(source) == 10 and source.class_names == ["0", "1"]
        assert [source[i][1] for i in range(10)] == labels
        assert all(torch.equal(source[i][0], torch.from_numpy(first[i])) for i in range(10))


def test_a_hugging_face_table_is_the_same_store(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install 'justimage[hf]'")
    folder = sets.folder_of(tmp_path / "set", 6)
    content = [p.read_bytes() for p in sorted(folder.rglob("*.png"))]
    features = datasets.Features(
        {"image": datasets.Image(), "note": datasets.Value("string"), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    columns = {"image": [{"bytes": c, "path": None} for c in content], "note": ["a"] * 6, "label": [0, 0, 0, 1, 1, 1]}
    table = datasets.Dataset.from_dict(columns, features=features)
    table.save_to_disk(tmp_path / "table")
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(tmp_path / "splits")
    prepare(str(folder), tmp_path / "plain", image_size=8, workers=1)
    for name in "table", "splits":
        prepare(str(tmp_path / name), tmp_path / f"{name}-store", image_size=8, workers=2, shard_images=3)
        again = prepare(str(tmp_path / name), tmp_path / f"{name}-store", image_size=8, shard_images=3)
        assert again.verified
        a, b = open_store(tmp_path / f"{name}-store"), open_store(tmp_path / "plain")
        assert (
            a.class_names == b.class_names
            and a.fingerprint == b.fingerprint
            and torch.equal(a.batch(np.arange(6))[0], b.batch(np.arange(6))[0])
        )


def test_a_hugging_face_table_is_the_same_in_whichever_order_its_folder_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with the cache that `datasets` leaves there when somebody looks at it."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install 'justimage[hf]'")
    content = [p.read_bytes() for p in sorted(sets.folder_of(tmp_path / "set", 6).rglob("*.png"))]
    columns = {"image": [{"bytes": c, "path": None} for c in content], "label": [0, 0, 0, 1, 1, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "table")
    before = open_source(str(tmp_path / "table"), Crop((8, 8))).fingerprint
    (tmp_path / "table" / "cache-0123456789abcdef.arrow").write_bytes(b"of a filter")
    listed = files_room.list_folder
    monkeypatch.setattr(files_room, "list_folder", lambda folder: dict(reversed(listed(folder).items())))
    assert open_source(str(tmp_path / "table"), Crop((8, 8))).fingerprint == before


def test_a_table_without_its_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "dataset_info.json", "state.json":
        (tmp_path / name).write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'justimage\[hf\]'"):
        open_source(str(tmp_path), Crop((8, 8)))


def test_the_number_of_processes_changes_nothing(forty: Path, whole: Path, tmp_path: Path) -> None:
    *_, last = preparation.prepare(str(forty), tmp_path / "s", image_size=8, shard_images=4, workers=3)
    assert files(tmp_path / "s") == files(whole) and last == ("preparing", 40, 40)
    assert {p.name for p in whole.iterdir()} == {"index.json", "labels.npy", *(f"images-{k:05d}.npy" for k in range(10))}


def test_refused_images_are_listed_with_their_reasons(forty: Path, whole: Path) -> None:
    refused = dict(json.loads((whole / "index.json").read_text())["refused"])
    assert (
        set(refused) == {"cat/005.png", "dog/030.png"}
        and "--upscale" in refused["dog/030.png"]
        and "4 x 4 pixels, smaller" in refused["dog/030.png"]
    )
    store = open_store(whole)
    assert len(store) == 38 and store.labels.tolist() == [0] * 19 + [1] * 19
    plain = open_source(str(forty), Crop((8, 8)))
    names = sorted(p.relative_to(forty).as_posix() for p in forty.rglob("*.png"))
    for i, name in enumerate(name for name in names if name not in refused):
        assert torch.equal(store[i][0], plain[names.index(name)][0])


def dying(life: Callable[[], object], left: int) -> bool:
    """Run in a child process, killed at the n-th operation that creates, renames, syncs or removes; whether it was killed."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)

    def counted(plain: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **more: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(*arguments, **more)

        return call

    for name in "replace", "rename", "fsync", "unlink", "mkdir":
        setattr(os, name, counted(getattr(os, name)))
    try:
        life()
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.full
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_killed_at_every_operation_and_resumed_it_is_the_same_store(forty: Path, tmp_path: Path) -> None:
    settings = dict(image_size=8, shard_images=14, workers=1)
    prepare(str(forty), tmp_path / "straight", **settings)
    straight, at = files(tmp_path / "straight"), 0
    while True:
        life = partial(prepare, str(forty), tmp_path / f"s{at}", **settings)
        if not dying(life, at):
            break
        with suppress(ValueError, FileNotFoundError):
            open_store(tmp_path / f"s{at}")  # whole, or one line
        dying(life, 7)  # and again soon after
        life()
        assert files(tmp_path / f"s{at}") == straight, at
        at += 1
    assert at > 20


@pytest.mark.full
def test_killed_with_its_workers_at_some_moment_it_is_the_same_store(tmp_path: Path) -> None:
    folder = sets.folder_of(tmp_path / "set", 300, side=160)
    options = ["--image-size", "64", "--shard-images", "8", "--workers", "2"]

    def start(store: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "justimage", "prepare", str(folder), str(store), *options]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    straight = start(tmp_path / "straight")
    assert straight.communicate(timeout=120)[0].count("300 images of 3 x 64 x 64 uint8") == 1
    for notes in 1, 9:
        killed = start(tmp_path / "killed")
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "killed").glob("images-*.json"))) < notes and time.monotonic() < deadline:
            time.sleep(0.002)
        killed.kill()
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL and not (tmp_path / "killed" / "index.json").exists()
    interrupted = start(tmp_path / "killed")
    while len(list((tmp_path / "killed").glob("images-*.json"))) < 18 and time.monotonic() < deadline:
        time.sleep(0.002)
    interrupted.send_signal(signal.SIGTERM)
    _, stderr = interrupted.communicate(timeout=20)
    assert interrupted.returncode == 75 and "resume with:  justimage prepare" in stderr and stderr.count("\n") == 1, stderr
    with pytest.raises(ValueError, match="is not finished"):
        open_store(tmp_path / "killed")
    prepare(str(folder), tmp_path / "killed", image_size=64, shard_images=8, workers=2)
    assert files(tmp_path / "killed") == files(tmp_path / "straight")


def test_a_complete_store_is_verified_also_without_its_source(forty: Path, whole: Path, tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.iterdir()}
    assert prepare(str(forty), whole, image_size=8, shard_images=4).verified
    assert prepare(str(tmp_path / "gone"), whole, image_size=8, shard_images=4).verified
    assert before == {p: p.stat().st_mtime_ns for p in whole.iterdir()}


def copied(store: Path, to: Path) -> Path:
    to.mkdir()
    for path in store.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


@pytest.mark.parametrize("file", ["index.json", "labels.npy", "images-00003.npy"])
@pytest.mark.parametrize("damage", ["missing", "cut", "bit"])
def test_damage_is_named_in_one_line(file: str, damage: str, forty: Path, whole: Path, tmp_path: Path) -> None:
    store = copied(whole, tmp_path / "store")
    content = (store / file).read_bytes()
    if damage == "missing":
        (store / file).unlink()
    else:
        flipped = content[:-30] + bytes([content[-30] ^ 16]) + content[-29:]
        (store / file).write_bytes(content[:-1] if damage == "cut" else flipped)
    message = "holds no store|missing" if (file, damage) == ("index.json", "missing") else file.replace(".", r"\.")
    with pytest.raises((ValueError, OSError), match=message) as caught:
        opened = open_store(store)
        assert damage == "bit" and len(opened) == 38  # in a shard, it is found when the store is prepared again
        prepare(str(forty), store, image_size=8, shard_images=4)
    assert "\n" not in str(caught.value)


def test_resuming_with_other_settings_is_refused(forty: Path, whole: Path, tmp_path: Path) -> None:
    for change, message in (
        (dict(image_size=4), r"image_size is \(4, 4\), was \(8, 8\)"),
        (dict(shard_images=5), "shard_images is 5, was 4"),
        (dict(upscale=True), "upscale is True, was False"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(str(forty), whole, **({"image_size": 8, "shard_images": 4} | change))
    with pytest.raises(ValueError, match="is not the data it was begun with"):
        prepare(str(sets.folder_of(tmp_path / "other", 40)), whole, image_size=8, shard_images=4)
    with pytest.raises(ValueError, match="is not empty and holds no store"):
        prepare(str(forty), forty, image_size=8)
    with pytest.raises(ValueError, match="is a store already"):
        prepare(str(whole), tmp_path / "s", image_size=8)
    with pytest.raises(ValueError, match="no image size is given"):
        prepare(str(forty), tmp_path / "s")
    (tmp_path / "tiny" / "a").mkdir(parents=True)
    (tmp_path / "tiny" / "a" / "0.png").write_bytes(sets.png(sets.colours(0, 4)))
    with pytest.raises(ValueError, match=r"none of the 1 images .* a/0\.png: 4 x 4 pixels, smaller"):
        prepare(str(tmp_path / "tiny"), tmp_path / "s", image_size=8, workers=1)
    assert not (tmp_path / "s").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_damage_to_an_unfinished_store_is_repaired_or_named(forty: Path, whole: Path, tmp_path: Path) -> None:
    settings = dict(image_size=8, shard_images=4, workers=1)
    assert dying(partial(prepare, str(forty), tmp_path / "s", **settings), 40)
    (tmp_path / "s" / "images-00000.json").write_bytes(b"{")
    (tmp_path / "s" / "images-00001.npy").write_bytes(b"")
    plan = (tmp_path / "s" / "plan.json").read_bytes()
    (tmp_path / "s" / "plan.json").write_bytes(b"[")
    with pytest.raises(ValueError, match=r"plan\.json is missing or damaged"):
        prepare(str(forty), tmp_path / "s", **settings)
    (tmp_path / "s" / "plan.json").write_bytes(plan)
    prepare(str(forty), tmp_path / "s", **settings)
    assert files(tmp_path / "s") == files(whole)


HOLD = """
import sys
from pathlib import Path
from justimage import disk
lock = disk.file_lock(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


def test_two_processes_do_not_prepare_one_store(forty: Path, tmp_path: Path) -> None:
    """The lock is refused without waiting while another process holds it, and free when that is killed."""
    pytest.importorskip("fcntl")
    (tmp_path / "s").mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "s" / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "locked\n"
        with pytest.raises(BlockingIOError, match="s is in use by another process") as caught:
            prepare(str(forty), tmp_path / "s", image_size=8)
        assert "\n" not in str(caught.value)
        other.kill()
    prepare(str(forty), tmp_path / "s", image_size=8, shard_images=4)
    assert not (tmp_path / "s" / ".lock").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_lock_ends_with_its_process_though_workers_live_on(tmp_path: Path) -> None:
    """Processes forked while it is held, such as the DataLoader's workers, do not hold it."""
    pytest.importorskip("fcntl")
    read, write = os.pipe()
    if not (holder := os.fork()):
        lock = disk.file_lock(tmp_path / ".lock")
        if not (worker := os.fork()):
            time.sleep(60)
            os._exit(0)
        os.write(write, f"{worker}\n".encode())
        time.sleep(60)
        os._exit(lock.closed)
    worker = int(os.read(read, 100))
    try:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        disk.file_lock(tmp_path / ".lock").close()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_link_where_the_lock_is_made_is_refused(forty: Path, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / ".lock").symlink_to(tmp_path / "victim")
    with pytest.raises(ValueError, match="lock is a link"):
        prepare(str(forty), tmp_path / "s", image_size=8)
    assert not (tmp_path / "victim").exists()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_store_reads_as_its_folder_for_any_number_of_workers(tmp_path: Path) -> None:
    folder = sets.folder_of(tmp_path / "set", 40)
    prepare(str(folder), tmp_path / "store", image_size=8, shard_images=7, workers=1)
    streams = [Stream(open_source(str(tmp_path / n), Crop((8, 8))), 3, flip=True) for n in ("set", "store")]
    assert isinstance(streams[1].source, Store) and finish(cache_in_ram(streams[1].source)) is streams[1].source

    def digest(stream: Stream, workers: int, start: int = 0) -> list[str]:
        read = batches(stream, range(start, 128, 16), 16, workers)
        return [hashlib.sha256(i.numpy().tobytes() + y.numpy().tobytes()).hexdigest() for i, y in read]

    straight = digest(streams[0], 0)
    assert len(set(straight)) == 8
    for stream in streams:
        for workers in 0, 1, 2, 4:
            assert digest(stream, workers) == straight
        assert digest(stream, 2, start=48) == straight[3:]  # resumed


def test_a_store_is_pickled_as_its_path(whole: Path) -> None:
    import pickle

    store = open_store(whole)
    store[0]
    assert len(pickle.dumps(store)) < 500
    assert torch.equal(pickle.loads(pickle.dumps(store))[37][0], store[37][0])


def test_a_store_of_another_shape_is_one_line(whole: Path) -> None:
    with pytest.raises(ValueError, match="holds images of 3 x 8 x 8, the recipe asks for 1 x 8 x 8"):
        open_source(str(whole), Crop((8, 8), 1))
    with pytest.raises(ValueError, match="justimage prepare"):
        open_source("weather.npy", Crop((8, 8), 1))


def test_hostile_files_are_one_line_each_and_bounded(tmp_path: Path) -> None:
    """In a process with limited address space and an audit hook that watches for unpickling."""
    corpus = sets.hostile(tmp_path / "corpus")
    code = """
import json, resource, sys
from justimage.data import open_source
from tests.sets import prepare
import multiprocessing.connection  # imports pickle
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event in ("pickle.find_class", "os.system", "exec") else None)
used = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize"))) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
messages = {}
for name, path in json.load(sys.stdin).items():
    size = None if path.endswith(("npy", "npz")) else 8
    try:
        prepare(path, sys.argv[1], image_size=size, workers=1)
        messages[name] = "nothing was wrong"
    except (ValueError, OSError) as error:
        messages[name] = str(error)
assert "pickle.find_class" not in seen and "os.system" not in seen
print(json.dumps(messages))
"""
    given = json.dumps({name: str(path) for name, (path, _) in corpus.items()})
    before = set(tmp_path.rglob("*"))
    command, root = [sys.executable, "-c", code, str(tmp_path / "s")], Path(__file__).parents[1]
    done = subprocess.run(command, input=given, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    wrong = {name: found[name] for name, (_, text) in corpus.items() if text not in found[name] or "\n" in found[name]}
    assert not wrong and len(found) == len(corpus)
    assert set(tmp_path.rglob("*")) == before


def test_links_and_devices_in_a_tar_are_ignored(tmp_path: Path) -> None:
    source = open_source(str(sets.linked(tmp_path / "links.tar")), Crop((8, 8)))
    assert len(source) == 1 and source[0][0].shape == (3, 8, 8)
