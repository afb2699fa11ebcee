"""A reader that goes away before the command has ended, as in `justimage info | head -1`: real pipes, closed early."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from justimage import cli
from tests.test_cli import TINY_TRAINING, justimage

pytestmark = [pytest.mark.full, pytest.mark.skipif(sys.platform == "win32", reason="pipes close otherwise there")]
TRAINING = ["train", "--preset", "digits", *TINY_TRAINING, "--save-every", "64"]


def unheard(*words: str | Path, cwd: Path, both: bool = False, lines: int = 0, python: str = "-mjustimage") -> tuple[int, str]:
    """Run a command whose reader leaves after so many lines, or before it is started; exit code and, unless it writes there,
    too, standard error."""
    reading, writing = os.pipe()
    end = subprocess.STDOUT if both else subprocess.PIPE
    if not lines:
        os.close(reading)
    command = [sys.executable, *python.split(), *map(str, words)]
    with subprocess.Popen(command, cwd=cwd, stdout=writing, stderr=end, text=True) as process:
        os.close(writing)
        if lines:
            with open(reading) as file:
                assert all(file.readline() for _ in range(lines))
        _, said = process.communicate(timeout=300)
        return process.returncode, said or ""


def last_hashes(run: Path) -> dict[str, str]:
    """What the last checkpoint of a run consists of."""
    newest = max((run / "checkpoints").glob("0*"))
    files = json.loads((newest / "MANIFEST.json").read_text())["files"]
    return {name: file["sha256"] for name, file in files.items() if name != "state.json"}


@pytest.mark.parametrize("words", ["--help", *(f"{c} --help" for c in cli.COMMANDS), "info", "reproduce --list", "plan --json"])
def test_it_ends_without_a_word(words: str, tmp_path: Path) -> None:
    code = 0 if words.split()[0] in cli.UNATTENDED else 141
    assert unheard(*words.split(), cwd=tmp_path) == (code, "")


def test_unbuffered_and_with_both_streams_closed_it_does_so_too(tmp_path: Path) -> None:
    assert unheard("plan", cwd=tmp_path, python="-u -mjustimage") == (141, "")
    assert unheard("plan", cwd=tmp_path, both=True) == (141, "")
    assert unheard("plan", "--gpu-type", "tpu", cwd=tmp_path, both=True) == (141, "")


def test_a_mistake_is_still_said_where_somebody_listens(tmp_path: Path) -> None:
    code, said = unheard("plan", "--gpu-type", "tpu", cwd=tmp_path)
    assert code == 2 and "no GPU is called 'tpu'" in said and said.count("\n") == 1


def test_sampling_ends_and_the_same_command_resumes(run: Path, tmp_path: Path) -> None:
    words = ["sample", "--from", run, "--count", "20", "--batch", "4", "--steps", "3", "--folder"]
    assert justimage(*words, "straight", cwd=tmp_path).returncode == 0
    assert unheard(*words, "left", cwd=tmp_path, lines=1) == (141, "")
    assert justimage(*words, "left", cwd=tmp_path).returncode == 0
    assert (tmp_path / "left" / "images.csv").read_bytes() == (tmp_path / "straight" / "images.csv").read_bytes()


def test_a_training_continues_to_its_end(tmp_path: Path) -> None:
    straight = justimage(*TRAINING, "--total-images", "256", "--out", "straight", cwd=tmp_path)
    assert straight.returncode == 0, straight.stderr
    assert unheard(*TRAINING, "--total-images", "256", "--out", "left", cwd=tmp_path, lines=1) == (0, "")
    assert unheard(*TRAINING, "--total-images", "256", "--out", "never", cwd=tmp_path, both=True) == (0, "")
    assert last_hashes(tmp_path / "straight") == last_hashes(tmp_path / "left") == last_hashes(tmp_path / "never")


def test_a_training_without_listeners_is_still_stopped_and_saved(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    words = [sys.executable, "-m", "justimage", *TRAINING, "--total-images", "1000000", "--out", "long"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=writing, stderr=writing)
    os.close(writing)
    os.close(reading)
    deadline = time.monotonic() + 120
    while not (tmp_path / "long" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 75 and last_hashes(tmp_path / "long")


def test_another_pipe_that_breaks_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """That to a process of our own, which has died, say: nothing to be silent about."""

    def main(words: list[str]) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "argv", ["justimage", "info"])
    monkeypatch.setattr(cli, "import_module", lambda name: SimpleNamespace(main=main))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2 and "Broken pipe" in capsys.readouterr().err
