"""Processes that share tasks: what ends them, and what they leave behind."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from justimage.pool import run_in_pool


def fatal(how: str, k: int) -> Iterator[int]:
    """An item that kills its process, or fails, after others have succeeded."""
    yield 1
    if k == 3 and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if k == 3 and how == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "images-00003.npy")


@pytest.mark.parametrize(("how", "message"), [("killed", "process .*died"), ("full", "No space left"), ("well", "")])
def test_a_process_that_dies_ends_the_pool_with_a_reason(how: str, message: str) -> None:
    if how == "well":
        assert sum(run_in_pool([partial(fatal, how)] * 2, range(6), "tests.test_pool")) == 6
        return
    with pytest.raises((ValueError, OSError), match=message):
        list(run_in_pool([partial(fatal, how)] * 2, range(6), "tests.test_pool"))


LOCKS: list[Any] = []


def locked(k: int) -> Iterator[int]:
    """An item that leaves a lock between processes behind, as torch.compile's libraries do."""
    LOCKS.append(multiprocessing.RLock())
    yield 1


def test_processes_that_have_no_more_to_do_clear_up_after_themselves() -> None:
    run = (
        "from justimage.pool import run_in_pool; from tests.test_pool import locked; "
        "print(sum(run_in_pool([locked] * 2, range(6), locked.__module__)))"
    )
    done = subprocess.run([sys.executable, "-c", run], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("6\n", "")
