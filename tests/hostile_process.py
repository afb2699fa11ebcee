"""A process that opens hostile files as a user would, watched and within bounds.

    python -m tests.hostile_process [NAME ...]          opens these (or all), one line of JSON each

It imports everything once, and forks a child to open them: there an audit hook writes down whatever could run code or change
the disk elsewhere, the address space is limited, and the clock runs. test_hostile.py judges what it prints.
"""

import contextlib
import gc
import io
import json
import os
import resource
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from PIL import Image

from justimage import distributed, recipe as recipes, run as runs
from justimage.convert.official import export_official
from justimage.data import prepare as preparation
from justimage.run.metrics import Metrics
from tests import sets
from tests.hostile import (
    CASES,
    FOUR,
    GOOD,
    MEMORY,
    TRAINED,
    Case,
    going_on,
    images,
    load,
    npz,
    official,
    prepared,
    resume,
    sample,
    stored,
    stored_as,
)  # fmt: skip

SECONDS = 60
"""After which a case is killed, however busy the machine is; a test allows less of its own time."""


def make_good(place: Path) -> None:
    """What is whole, which every case changes a copy of; and all that is imported on the way is imported before the watch."""
    Metrics.open_tensorboard = lambda *_: None
    recipe = recipes.with_values(TRAINED, keep_checkpoints=1)
    for _ in runs.steps(runs.open_run(recipe, place / "run", "cpu")):
        pass
    resume(Path(shutil.copytree(place / "run", place / "again")), place)
    load(place / "run", place)
    sample(place / "run", place)
    GOOD["run"] = place / "run"
    GOOD["official"] = export_official(place / "run", place / "good.pth")
    official(GOOD["official"], place)
    GOOD["folder"] = sets.folder_of(place / "set", 5)
    GOOD["store"], GOOD["begun"] = place / "store", place / "begun"
    images(GOOD["folder"], place)
    going_on(GOOD["store"], place)
    stored(GOOD["store"], place)
    with contextlib.suppress(KeyboardInterrupt):
        begin(GOOD["begun"])
    with contextlib.suppress(ValueError):
        prepared(npz(stored_as("a.npy", FOUR))(place), place)
    for kind in "TIFF", "GIF", "BMP", "PPM", "WEBP", "JPEG":
        buffer = io.BytesIO()
        Image.fromarray(sets.colours(0)).save(buffer, kind)
        (place / "set2").mkdir(exist_ok=True)
        (place / "set2" / f"a.{kind.lower()}").write_bytes(buffer.getvalue())
    images(place / "set2", place)
    with contextlib.suppress(ImportError):
        import datasets  # pyright: ignore[reportMissingImports]

        content = [p.read_bytes() for p in sorted(GOOD["folder"].rglob("*.png"))]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
        columns = {"image": [{"bytes": c, "path": None} for c in content], "label": [0, 0, 0, 1, 1]}
        datasets.Dataset.from_dict(columns, features=features).save_to_disk(place / "table")
        GOOD["table"] = place / "table"
        images(GOOD["table"], place)


def begin(store: Path) -> None:
    """Prepare a store up to its second shard."""

    for progress in preparation.prepare(str(GOOD["folder"]), store, image_size=8, workers=1, shard_images=2):
        if progress.done >= 2:
            raise KeyboardInterrupt


CODE = {
    "pickle.find_class", "exec", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile",
    "subprocess.Popen", "pty.spawn", "ctypes.dlopen", "ctypes.dlsym", "import", "socket.connect", "socket.getaddrinfo",
    "urllib.Request", "webbrowser.open", "marshal.loads", "code.__new__", "compile",
}  # fmt: skip
CHANGES = {
    "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile", "os.mkfifo", "os.mknod",
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """Writes down, while a case is open, whatever could run code, or changes a disk outside of some folders."""

    def __init__(self) -> None:
        self.roots: tuple[str, ...] = ()
        self.seen: list[str] | None = None
        sys.addaudithook(self.hook)

    @contextlib.contextmanager
    def watching(self, *allowed: Path) -> Iterator[list[str]]:
        self.roots, self.seen = tuple(os.path.realpath(p) for p in allowed), []
        try:
            yield self.seen
        finally:
            self.seen = None

    def inside(self, path: Any, followed: bool) -> bool:
        """Whether a path, or the entry of that name in its folder, is within the allowed."""
        if isinstance(path, int):
            return True
        folder, name = os.path.split(os.fsdecode(path))
        real = os.path.realpath(os.fsdecode(path)) if followed else f"{os.path.realpath(folder)}/{name}"
        return any(real == root or real.startswith(root + "/") for root in self.roots)

    def hook(self, event: str, words: tuple[Any, ...]) -> None:
        if self.seen is None:
            return
        if event == "open":
            path, _, flags = words
            wrong = path is not None and flags & WRITING and path != "/dev/null" and not self.inside(path, followed=True)
        elif event in CHANGES:
            wrong = not all(self.inside(p, followed=False) for p in words if isinstance(p, str | bytes | os.PathLike))
        elif event == "import":
            wrong = words[0] not in sys.modules
        elif event == "compile":  # NumPy parses headers, which runs nothing: there is no exec
            wrong = words[1] != "<unknown>"
        else:
            wrong = event in CODE
        if wrong:
            self.seen.append(f"{event} {str(words)[:200]}")


def tree(root: Path, *without: Path) -> dict[str, tuple[int, int, int]]:
    """All below a folder but some: kind, size and time of change."""
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if Path(folder) / f not in without]
        for name in [*folders, *names]:
            facts = os.lstat(Path(folder) / name)
            size = 0 if stat.S_ISDIR(facts.st_mode) else facts.st_size
            found[f"{folder}/{name}"] = (facts.st_mode, size, 0 if stat.S_ISDIR(facts.st_mode) else facts.st_mtime_ns)
    return found


def opened(case: Case, place: Path, watch: Watch) -> dict[str, Any]:
    """Make the file, open it, and say what happened."""
    (place / "corpus").mkdir(parents=True)
    (place / "out").mkdir()
    os.chdir(place)
    path = case.make(place / "corpus")
    own = [path] if case.open in (resume, going_on) else []
    before = tree(place, place / "out", *own)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    said, kind, trace = "", "", ""
    with watch.watching(place / "out", *own) as seen:
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
        began = time.process_time()
        try:
            case.open(path, place / "out")
        except BaseException as error:
            said, trace = str(error), traceback.format_exc()[-3000:]
            kind = "line" if isinstance(error, ValueError | OSError) else type(error).__name__
        seconds = time.process_time() - began
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    after = tree(place, place / "out", *own)
    changed = sorted(os.path.relpath(p, place) for p in before.keys() | after.keys() if before.get(p) != after.get(p))
    os.chdir("/")
    return {
        "said": said[:5000], "length": len(said), "kind": kind, "seconds": round(seconds, 2), "trace": trace,
        "events": seen[:20], "changed": changed, "path": str(path),
    }  # fmt: skip


class Child:
    """A process that opens cases, until one ends it, or fails in a way that nobody foresaw."""

    def __init__(self) -> None:
        theirs, ours = os.pipe(), os.pipe()
        self.process = os.fork()
        if not self.process:
            os.close(theirs[1])
            os.close(ours[0])
            self.work(os.fdopen(theirs[0]), os.fdopen(ours[1], "w"))
            os._exit(0)
        os.close(theirs[0])
        os.close(ours[1])
        self.into, self.out = os.fdopen(theirs[1], "w"), os.fdopen(ours[0])

    def work(self, names: TextIO, results: TextIO) -> None:
        watch = Watch()
        while name := names.readline().rstrip("\n"):
            place = Path(names.readline().rstrip("\n"))
            signal.alarm(SECONDS)
            try:
                result = opened(CASES[name], place, watch)
            except BaseException:
                result = {"failed": traceback.format_exc()}
            print(json.dumps(result), file=results, flush=True)

    def result(self, name: str, place: Path) -> dict[str, Any]:
        print(name, place, sep="\n", file=self.into, flush=True)
        text = self.out.readline()
        shutil.rmtree(place, ignore_errors=True)
        return json.loads(text) if text else {"failed": "the process was ended: it crashed, or took too long"}

    def end(self) -> None:
        self.into.close()
        self.out.close()
        os.waitpid(self.process, 0)


@contextlib.contextmanager
def workshop() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name).resolve()
        (place / "good").mkdir()
        with contextlib.redirect_stdout(sys.stderr):
            make_good(place / "good")
        yield place


def main() -> None:
    torch.set_num_threads(1)
    distributed.init("cpu")  # what it does once in a process is not what is watched
    names = sys.argv[1:] or list(CASES)
    with workshop() as place:
        if names == ["-"]:
            names = (line.rstrip("\n") for line in sys.stdin)
        gc.collect()
        gc.freeze()  # a child that collects would copy all of it
        child = None
        for i, name in enumerate(names):
            child = child or Child()
            result = child.result(name, place / f"case{i}")
            print(json.dumps({"name": name} | result), flush=True)
            if result.get("kind") not in ("", "line"):
                child = child.end()
        if child:
            child.end()


if __name__ == "__main__":
    main()
