"""Launched as on a cluster: torchrun, and the examples of docs/ with stand-ins for what a cluster has.

Everything is a real process here: workers are killed, asked to stop, made to hang or given a bad image, and what counts is
what is on the disk afterwards, and how long it took. Most of a test's time is the import of PyTorch.
"""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from PIL import Image

from justimage import checkpoint, log, randomness

T = TypeVar("T")
DOCS = Path(__file__).parents[1] / "docs"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
IMAGES = 1200
OPTIONS = shlex.split(
    "--image-size 16 --width 16 --depth 4 --heads 2 --bottleneck 4 --context-start 1 --dropout 0.2 --batch 8 --warmup 8 "
    "--steps 2 --preview-count 4 --save-every 200 --log-every 1 --precision fp32"
)
LONG = ["--total-images", "1000000"]
START = 120
"""Seconds that a start may take on a slow machine before a test gives up."""

pytestmark = [pytest.mark.full, pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc")]


@dataclass
class Launch:
    """A command and all that it started, told by a mark in their environment."""

    process: subprocess.Popen[bytes]
    mark: str
    output: Path

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def processes(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Process ids, with their environments."""
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (place / "environ").read_bytes().decode(errors="replace").split("\0")
                if f"JUSTIMAGE_LAUNCH={self.mark}" in words:
                    yield int(place.name), dict(word.split("=", 1) for word in words if "=" in word)

    def worker(self, rank: int) -> int:
        return next(pid for pid, environment in self.processes() if environment.get("RANK") == str(rank))

    def until(self, found: Callable[[], T], seconds: float = START) -> T:
        """What is found, once it is something."""
        deadline = time.monotonic() + seconds
        while True:
            over = self.process.poll() is not None or time.monotonic() > deadline
            if value := found():
                return value
            if over:
                pytest.fail(f"not found within {seconds} s\n{where_all_hang()}")
            time.sleep(0.01)

    def code(self, seconds: float = START) -> int:
        """The exit code, which must come in time."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"no end within {seconds} s\n{where_all_hang()}")

    def errors(self) -> list[str]:
        return re.findall(r"^justimage: error: .*", self.text, re.MULTILINE)


OPEN: list[Launch] = []


def where_all_hang() -> str:
    """What the launches that are open have said, with the stacks of their processes, which this ends."""
    for launch in OPEN:
        for pid, _ in launch.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGABRT)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(list(launch.processes()) for launch in OPEN):
        time.sleep(0.1)
    return "\n".join(f"{shlex.join(launch.process.args)}:\n{launch.text}" for launch in OPEN)


@contextmanager
def launched(words: list[str], cwd: Path, **variables: str) -> Iterator[Launch]:
    """Start a command in the environment of a fresh login; at the end of the block nothing of it is left."""
    mark = uuid.uuid4().hex
    strangers = ("PET_", "SLURM_", "TORCHELASTIC_", "MASTER_", "RANK", "LOCAL_RANK", "WORLD_SIZE")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(strangers)}
    environment |= {"JUSTIMAGE_LAUNCH": mark, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"} | variables
    output = cwd / f"{mark}.log"
    with open(output, "wb") as file:
        process = subprocess.Popen(
            words, cwd=cwd, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )  # fmt: skip
    OPEN.append(launch := Launch(process, mark, output))
    try:
        yield launch
    finally:
        OPEN.remove(launch)
        while left := [pid for pid, _ in launch.processes()]:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.poll()
        process.wait()


def torchrun(out: str, *options: str, restarts: int = 3, program: tuple[str, ...] = ("-m", "justimage")) -> list[str]:
    """The command for two processes in which a run is trained."""
    launcher = ["--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts)]
    return [*TORCHRUN, *launcher, *program, "train", "--preset", "digits", "--data", "photos", "--out", out, *OPTIONS, *options]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with a few grey pictures in two classes."""
    home = tmp_path_factory.mktemp("home")
    for i in range(64):
        file = home / "photos" / "ab"[i % 2] / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16), dtype=np.uint8)).save(file)
    return home


@pytest.fixture(scope="module")
def whole(home: Path) -> Callable[[str], dict[str, str]]:
    """The last checkpoint of a training in two processes that nobody interrupts, by the command of docs/scale.md."""
    known: dict[str, dict[str, str]] = {}

    def of(mode: str) -> dict[str, str]:
        if mode not in known:
            command = re.search(r"^torchrun --standalone .*", (DOCS / "scale.md").read_text(), re.MULTILINE)
            assert command and "--nproc-per-node=gpu" in command[0] and "--preset jit-b16-256" in command[0]
            text = command[0].replace("--nproc-per-node=gpu", "--nproc-per-node=2").replace("jit-b16-256", "digits")
            words = shlex.split(text.replace("STORE", "photos").replace("RUN", f"whole-{mode}"))
            options = [*OPTIONS, "--total-images", str(IMAGES), "--parallel", mode]
            with launched([*TORCHRUN, *words[1:], *options], home) as launch:
                assert launch.code() == 0 and f"on 2 processes ({mode})" in launch.text, launch.text
            known[mode] = weights(home / f"whole-{mode}")
        return known[mode]

    return of


def events(run: Path) -> list[dict[str, Any]]:
    return list(log.records(run / "events.jsonl"))


def kinds(run: Path) -> list[str]:
    return [e["event"] for e in events(run)]


def seen(run: Path) -> int:
    """Images seen at the last line of metrics."""
    return max((line["images_seen"] for line in log.records(run / "metrics.jsonl")), default=0)


def weights(run: Path) -> dict[str, str]:
    """The hashes of the last checkpoint's files, which are those of its bytes."""
    folder = checkpoint.list_checkpoints(run)[-1]
    assert int(folder.name) == IMAGES
    return {name: facts["sha256"] for name, facts in checkpoint.verify(folder)["files"].items() if name != "state.json"}


def check_stopped(run: Path) -> int:
    """That a run ended after one step that all agreed on, published and intact; images seen by then."""
    newest = checkpoint.newest(run)
    assert newest is not None
    at, last = int(newest.name), events(run)[-1]
    assert (last["event"], last["images_seen"]) == ("stopped", at) and kinds(run)[-2] == "saved" and seen(run) == at
    return at


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


# One machine


@pytest.mark.parametrize("mode", ["ddp", pytest.param("fsdp")])
def test_a_killed_worker_is_started_again_and_nothing_is_lost(mode: str, home: Path, whole: Any) -> None:
    """Steps again within 15 s of the kill (on a slow machine: no later than a start takes), and the end is the same.

    Rarely the other process hangs in gloo, before its Python notices; then torchrun ends it, 30 s after it has asked it to end.
    """
    run, began = home / f"killed-{mode}", time.monotonic()
    with launched(torchrun(run.name, "--total-images", str(IMAGES), "--parallel", mode), home) as launch:
        launch.until(lambda: seen(run))
        start = time.monotonic() - began
        launch.until(lambda: checkpoint.list_checkpoints(run))
        os.kill(launch.worker(1), signal.SIGKILL)
        killed = time.monotonic()
        launch.until(lambda: {"failed", "resumed"} & set(kinds(run)))
        noticed, hung = time.monotonic() - killed, "failed" not in kinds(run)
        launch.until(lambda: "resumed" in kinds(run) and seen(run) > events(run)[kinds(run).index("resumed")]["images_seen"])
        stepping = time.monotonic() - killed
        print(
            f"{mode}: first step {start:.1f} s after the start; killed: noticed {noticed:.2f} s, steps {stepping:.1f} s after"
        )
        assert noticed < 5 + 60 * hung and stepping < max(15, start) + 40 * hung, launch.text
        assert launch.code() == 0 and len(launch.errors()) == (not hung), launch.text
    assert weights(run) == whole(mode)


STUCK = """\
import os, time
from justimage import cli
from justimage.data import Stream

batch = Stream.batch

def stuck(stream, start, size):
    if start >= 80 and os.environ["RANK"] == os.environ["STUCK"]:
        time.sleep(10**6)
    if start >= 80 and os.environ["RANK"] == os.environ.get("FAILS"):
        raise RuntimeError("of this process alone")
    return batch(stream, start, size)

Stream.batch = stuck
cli.main()
"""
"""A training in which the process of a rank hangs after ten steps, and another fails."""


@pytest.mark.parametrize("stuck", [None, 0])
def test_the_other_process_ends_at_once_with_one_line_and_code_70(stuck: int | None, home: Path) -> None:
    """Two processes without a launcher, of which one is killed; also where the other waits for something else for ever."""
    run, port = home / f"pair-{stuck}", str(free_port())
    (home / "stuck.py").write_text(STUCK)
    command = torchrun(run.name, *LONG)
    words = [sys.executable, "stuck.py", *command[command.index("train") :]]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port, "STUCK": str(stuck)}
    with launched(words, home, RANK="0", **common) as first, launched(words, home, RANK="1", **common) as second:
        first.until(lambda: seen(run) >= 80)
        second.process.kill()
        killed = time.monotonic()
        assert first.code(10) == 70 and len(first.errors()) == 1, first.text
        print(f"ended {time.monotonic() - killed:.2f} s after the kill: {first.errors()[0]}")
    assert "Traceback" not in first.text and (stuck == 0 or kinds(run)[-1] == "failed")


def test_who_waits_for_one_that_failed_ends_too(home: Path) -> None:
    """It waits for something else for ever, as in a collective on GPUs."""
    run, port = home / "failing", str(free_port())
    (home / "stuck.py").write_text(STUCK)
    command = torchrun(run.name, *LONG)
    words = [sys.executable, "stuck.py", *command[command.index("train") :]]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port, "STUCK": "0", "FAILS": "1"}
    with launched(words, home, RANK="0", **common) as first, launched(words, home, RANK="1", **common) as second:
        first.until(lambda: seen(run) >= 80)
        assert second.code(30) == 70 and "of this process alone" in second.text
        assert first.code(10) == 70 and "another process is gone" in first.text, first.text


@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_to_the_launcher_publishes_one_agreed_step(workers: int, home: Path) -> None:
    """Which torchrun gives to each process's group, and so to processes that read images, too."""
    run = home / f"told-{workers}"
    (home / "large.py").write_text("from justimage import cli, data\n\ndata.MAX_RAM_BYTES = 0\ncli.main()\n")
    read = dict(program=("large.py",)) if workers else {}
    with launched(torchrun(run.name, *LONG, "--workers", str(workers), **read), home) as launch:
        launch.until(lambda: seen(run))
        launch.process.terminate()
        asked = time.monotonic()
        assert launch.code(30) != 0, launch.text
        print(f"published and ended {time.monotonic() - asked:.1f} s after SIGTERM")
        assert not launch.errors(), launch.text
    assert check_stopped(run) >= 8 and "resumed" not in kinds(run)


def ask_a_worker(number: int) -> Callable[[Launch, Path], None]:
    return lambda launch, run: os.kill(launch.worker(1), number)


@pytest.mark.parametrize(
    ("ask", "restarts"),
    [
        pytest.param(ask_a_worker(signal.SIGTERM), 3, id="SIGTERM"),
        pytest.param(ask_a_worker(signal.SIGUSR1), 3, id="SIGUSR1"),
        pytest.param(ask_a_worker(signal.SIGUSR1), 0, id="SIGUSR1-without-restarts"),
        pytest.param(lambda launch, run: (run / "STOP").touch(), 3, id="STOP"),
    ],
)
def test_one_who_is_asked_stops_all_and_they_stay_stopped(ask: Any, restarts: int, home: Path) -> None:
    """torchrun starts again what does not end with 0, so they do; but where it would not, the code says what happened."""
    run = home / f"asked-{uuid.uuid4().hex}"
    with launched(torchrun(run.name, *LONG, restarts=restarts), home) as launch:
        launch.until(lambda: seen(run))
        ask(launch, run)
        code = launch.code()
        assert not launch.errors(), launch.text
        assert (code == 0) if restarts else (code != 0 and re.search(r"exitcode +: 75", launch.text)), launch.text
    assert check_stopped(run) >= 8 and kinds(run).count("begun") == 1 and "resumed" not in kinds(run)


def test_a_bad_image_in_one_process_ends_all_with_its_name(home: Path) -> None:
    """A set too large for memory, read by worker processes; the last good step is published."""
    images = sorted((home / "photos").rglob("*.png"), key=lambda p: p.relative_to(home).as_posix())
    position = 5 * 8 + 6  # in the sixth step, and in the second half of its batch
    victim = images[randomness.order(0, 0, len(images))[position]]
    assert victim != images[0]  # it is read first, for its shape
    content, run = victim.read_bytes(), home / "bad"
    (home / "large.py").write_text("from justimage import cli, data\n\ndata.MAX_RAM_BYTES = 0\ncli.main()\n")
    victim.write_bytes(content[:40])
    try:
        with launched(torchrun(run.name, *LONG, "--workers", "1", restarts=0, program=("large.py",)), home) as launch:
            launch.until(lambda: seen(run))
            began = time.monotonic()
            assert launch.code(10 if seen(run) else START) == 1, launch.text
            print(f"all ended {time.monotonic() - began:.1f} s after a step before it")
    finally:
        victim.write_bytes(content)
    named = [line for line in launch.errors() if victim.name in line]
    assert len(named) == 1 and re.search(r"exitcode +: 2\b", launch.text), launch.text
    newest = checkpoint.newest(run)
    assert newest is not None and int(newest.name) == 40 == seen(run) and kinds(run)[-1] == "failed"


def test_a_process_that_hangs_says_where_and_ends_all(home: Path) -> None:
    (home / "stuck.py").write_text(STUCK)
    run = home / "hung"
    with launched(
        torchrun(run.name, *LONG, "--watchdog-timeout", "5", restarts=0, program=("stuck.py",)), home, STUCK="1"
    ) as launch:
        launch.until(lambda: seen(run) == 80)
        began = time.monotonic()
        assert launch.code(30) != 0, launch.text
        print(f"all ended {time.monotonic() - began:.1f} s after the last step, 5 of them the watchdog's patience")
    assert "no step for 5 s; it hangs here" in launch.text and re.search(r'stuck\.py", line \d+ in stuck', launch.text)
    assert re.search(r"exitcode +: 70", launch.text), launch.text


# SLURM

SRUN = """\
#!{python}
# srun: the command once a node; where one fails, all end.
import os, subprocess, sys, time
options = [word for word in sys.argv[1:] if word.startswith("--")][: sys.argv[1:].index("torchrun")]
nodes = next(int(word.split("=")[1]) for word in options if word.startswith("--nodes="))
assert "--ntasks-per-node=1" in options and "--kill-on-bad-exit=1" in options
command = sys.argv[1 + sys.argv[1:].index("torchrun") :]
tasks = [subprocess.Popen(command, env=os.environ | {{"SLURM_NODEID": str(i)}}) for i in range(nodes)]
while None in (codes := [task.poll() for task in tasks]):
    if any(codes):
        for task in tasks:
            task.terminate()
        break
    time.sleep(0.05)
sys.exit(max(abs(task.wait()) for task in tasks))
"""
SCONTROL = """\
#!/bin/bash
# scontrol: the names of a job's nodes, or the job queued again, which is written down.
if [ "$1" = show ]; then echo localhost; else echo "$@" >>"$CALLS"; fi
"""


@pytest.fixture
def job(home: Path, tmp_path: Path) -> Callable[..., Any]:
    """docs/slurm.sh on two nodes, as SLURM runs it; its calls of scontrol are written to tmp_path/calls."""
    stand_ins = {
        "srun": SRUN.format(python=sys.executable),
        "scontrol": SCONTROL,
        "torchrun": f'#!/bin/bash\nexec {shlex.join(TORCHRUN)} "$@"\n',
    }
    for name, content in stand_ins.items():
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(content)
        (tmp_path / "bin" / name).chmod(0o755)

    def submitted(run: str, images: int, starts: int = 0) -> Any:
        return launched(
            ["bash", str(DOCS / "slurm.sh")], home, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            CALLS=str(tmp_path / "calls"),
            SLURM_JOB_ID="7", SLURM_JOB_NUM_NODES="2", SLURM_JOB_NODELIST="node[1-2]", SLURM_RESTART_COUNT=str(starts),
            PRESET="digits", DATA="photos", RUN=run, NPROC="1", PORT=str(free_port()),
            EXTRA=shlex.join([*OPTIONS, "--total-images", str(images), "--parallel", "ddp"]),
        )  # fmt: skip

    return submitted


def test_a_slurm_job_whose_time_is_over_is_queued_again_and_ends_as_if_never_stopped(
    job: Any, home: Path, whole: Any, tmp_path: Path
) -> None:
    run, calls = home / "slurm", tmp_path / "calls"
    with job(run.name, IMAGES) as first:
        first.until(lambda: seen(run))
        first.process.send_signal(signal.SIGUSR1)  # as --signal=B:USR1@300 does: to the script alone
        asked = time.monotonic()
        assert first.code() == 0, first.text
        print(f"published and queued again {time.monotonic() - asked:.1f} s after USR1, at {check_stopped(run)} images")
    assert calls.read_text() == "requeue 7\n" and not (run / "STOP").exists()
    with job(run.name, IMAGES, starts=1) as second:
        assert second.code() == 0 and "resuming from" in second.text, second.text
    assert kinds(run)[-1] == "finished" and calls.read_text() == "requeue 7\n"
    assert weights(run) == whole("ddp")


def test_a_slurm_job_that_a_person_stops_ends_and_stays(job: Any, home: Path, tmp_path: Path) -> None:
    run = home / "slurm-stopped"
    with job(run.name, 10**6) as first:
        first.until(lambda: seen(run))
        (run / "STOP").touch()
        assert first.code() == 0, first.text
    at = check_stopped(run)
    with job(run.name, 10**6) as second:  # a person forgets why
        assert second.code() == 0, second.text
        assert len(second.errors()) == 2 and all("remove it to resume" in line for line in second.errors()), second.text
    assert check_stopped(run) == at and (run / "STOP").exists() and not (tmp_path / "calls").exists()


# Kubernetes


def test_evicted_pods_publish_and_those_started_again_complete_the_run(home: Path, whole: Any, tmp_path: Path) -> None:
    """The two containers of docs/kubernetes.yaml, by their command, environment and hook; OnFailure starts them again."""
    text, run = (DOCS / "kubernetes.yaml").read_text(), home / "pods"
    command = re.search(r"^ +args:\n +- \|\n((?: {18}.*\n)+)", text, re.MULTILINE)
    hook = re.search(r'preStop:[^\n]*\n +exec:\n +command: \[bash, -c, (".*")\]', text)
    values = dict(re.findall(r'\{ name: (\w+), value: "?(.*?)"? \}', text))
    assert command and hook and {"PRESET", "DATA", "RUN", "EXTRA", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"} == values.keys()
    (tmp_path / "torchrun").write_text(f'#!/bin/bash\nexec {shlex.join(TORCHRUN)} "$@"\n')
    (tmp_path / "torchrun").chmod(0o755)
    values |= {"PRESET": "digits", "DATA": "photos", "RUN": str(run), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    values["EXTRA"] = shlex.join([*OPTIONS, "--total-images", str(IMAGES), "--parallel", "ddp"])

    @contextmanager
    def pods(port: str) -> Iterator[list[Launch]]:
        operators = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        with ExitStack() as stack:
            script = ["bash", "-c", textwrap.dedent(command[1])]
            yield [
                stack.enter_context(launched(script, home, **values, **operators, PET_NODE_RANK=str(rank))) for rank in (0, 1)
            ]

    with pods(str(free_port())) as containers:
        containers[0].until(lambda: seen(run))
        lines = json.loads(hook[1])
        assert "kill -0 1;" in lines
        hooked = ["bash", "-c", lines.replace("kill -0 1;", f"kill -0 {containers[1].process.pid};")]
        with launched(hooked, home, RUN=str(run)) as stopping:
            assert [c.code() for c in containers] == [75, 75], containers[0].text + containers[1].text
            stopping.code(30)
    at = check_stopped(run)
    assert at < IMAGES and (run / "STOP").read_text() == "evicted\n"
    with pods(str(free_port())) as containers:
        assert [c.code() for c in containers] == [0, 0], containers[0].text + containers[1].text
    assert kinds(run)[-1] == "finished" and not (run / "STOP").exists() and weights(run) == whole("ddp")
    with pods(str(free_port())) as containers:  # complete: nothing is to be done
        assert [c.code() for c in containers] == [0, 0], containers[0].text + containers[1].text
