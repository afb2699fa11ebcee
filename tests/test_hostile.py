"""Files made to do harm: each ends in one line that names it, or is safely passed over; no code runs, nothing is written
elsewhere, memory and time are bounded. The files are in hostile.py; what opens and watches them, in hostile_process.py."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostile import CASES, CONTROL

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="address space is measured as Linux tells it"),
]

Open = Callable[[str], dict[str, Any]]
LONGEST, SECONDS = 1000, 8
"""Letters of a message, and seconds of computing that a file may take."""


@pytest.fixture(scope="module")
def opening() -> Iterator[Open]:
    """A process that opens one case after the other."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.hostile_process", "-"]
    where = {"cwd": Path(__file__).parents[1], "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **where) as process:
        assert process.stdin and process.stdout
        into, out = process.stdin, process.stdout

        def one(name: str) -> dict[str, Any]:
            into.write(f"{name}\n")
            into.flush()
            found = json.loads(out.readline() or "{}")
            assert found.get("name") == name and "failed" not in found, found.get("failed", "the process died")
            return found

        yield one
        with contextlib.suppress(BrokenPipeError):
            into.close()


@pytest.mark.parametrize("name", [n for n in CASES if n != CONTROL])
def test_a_hostile_file_does_no_harm(name: str, opening: Open) -> None:
    found, wanted = opening(name), CASES[name].said
    if wanted:
        assert found["kind"] == "line", found["trace"]
        assert wanted in found["said"] and found["path"] in found["said"].replace("\\\\", "\\")
        assert found["said"].isprintable() and found["length"] <= LONGEST
    else:
        assert not found["kind"], found["trace"]
    assert found["events"] == [] and found["changed"] == [] and found["seconds"] < SECONDS


def test_the_watch_sees_what_it_watches_for(opening: Open) -> None:
    found = opening(CONTROL)
    events = {event.split()[0] for event in found["events"]}
    assert events >= {"pickle.find_class", "os.system", "exec", "compile", "import", "open", "os.symlink", "subprocess.Popen"}
    assert set(found["changed"]) == {"ran", "corpus/written", "corpus/link"} and found["kind"] == "MemoryError"


def test_the_corpus_is_large() -> None:
    assert len({(case.make, case.said) for case in CASES.values()}) > 250
