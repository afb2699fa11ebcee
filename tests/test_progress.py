"""What is shown while a command works: from the start on, and within a batch."""

import os
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from justimage.chunks import map_threads
from justimage.cli.progress import bar, stage, stages, track_batches
from justimage.diffusion import Diffusion
from justimage.mlp import MLP
from justimage.progress import Progress
from justimage.sampling import Denoiser, Sampling, sample_batches


def test_something_is_shown_before_anything_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("sampling", 1000):
        assert capsys.readouterr().out == "sampling: 0 of 1,000\n"
    with stage("reading the model"):
        assert capsys.readouterr().out == "reading the model ...\n"
    with stages() as show:
        show(Progress("photos"))
        assert capsys.readouterr().out == "photos ...\n"
        show(Progress("photos", 0, 4))
        assert capsys.readouterr().out == "photos: 0 of 4\n"
        show(Progress("photos", 4, 4))
        assert capsys.readouterr().out.startswith("photos: 4 of 4")


def test_a_process_that_does_not_lead_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with stages(shown=False) as show:
        show(Progress("photos"))
        show(Progress("photos", 4, 4))
    with stage("reading", shown=False), bar("sampling", 4, shown=False) as advance:
        advance(4, 4)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_heun_evaluates_twice_a_step_but_for_the_last_euler_once(steps: int) -> None:
    assert Sampling("heun", steps).evaluations == 2 * steps - 1 and Sampling("euler", steps).evaluations == steps


@pytest.mark.parametrize("solver", ["heun", "euler"])
@pytest.mark.parametrize("threads", [1, 3])
def test_batches_are_counted_by_their_passes(solver: str, threads: int) -> None:
    """Every forward pass is shown, as its share of a batch; all of them make the whole; what is shown never falls."""
    model, shown, steps, batch, batches = Denoiser(MLP(4, 8, 2), Diffusion()), [], 5, 4, 6
    sampling, count = Sampling(solver, steps), 24
    each = sampling.evaluations

    def drawn(number: int) -> int:
        return len(next(sample_batches(model, None, list(range(batch)), sampling, batch=batch)))

    with track_batches([model.net], sampling, batch, shown.append) as show:
        show(Progress("sampling", 0, count))
        for i, images in enumerate(map_threads(drawn, range(batches), threads), 1):
            assert images == batch
            show(Progress("sampling", i * batch, count))
    numbers = [done for _, done, _ in shown]
    assert numbers == sorted(numbers) and numbers[0] == 0 and numbers[-1] == count
    shares = {round(n * each / batch, 6) for n in numbers if n < 0.99 * count}
    assert shares >= set(range(each)) and shares <= set(range(each * batches)), "a pass is a share of a batch"
    assert {what for what, _, _ in shown} == {"sampling"} and {of for _, _, of in shown} == {count}
    show(Progress("sampling", 0, count))
    heard = len(shown)
    model.net(torch.zeros(1, 4), torch.zeros(1))
    assert len(shown) == heard, "outside of the block nothing listens"


def test_resumed_work_counts_from_there() -> None:
    model, shown = Denoiser(MLP(4, 8, 2), Diffusion()), []
    with track_batches([model.net], Sampling("euler", 4), 8, shown.append) as show:
        show(Progress("sampling", 16, 32))
        next(sample_batches(model, None, list(range(8)), Sampling("euler", 4), batch=8))
    assert [done for _, done, _ in shown] == [16, 18, 20, 22, 24]


@pytest.mark.full
@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")
def test_on_a_terminal_the_bar_moves_within_the_only_batch(run: Path, tmp_path: Path) -> None:
    import pty

    controller, terminal = pty.openpty()
    words = [sys.executable, "-m", "justimage", "sample", "--from", run, "--count", "16", "--steps", "1000"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(words, cwd=tmp_path, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    shown = b""
    while process.poll() is None or select.select([controller], [], [], 0)[0]:
        if select.select([controller], [], [], 0.1)[0]:
            try:
                shown += os.read(controller, 65536)
            except OSError:  # Linux, where the other end is closed
                break
    os.close(controller)
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    assert text.index("loading PyTorch") < text.index("reading the model") < text.index("0/16")
    assert {int(n) for n in re.findall(r"(?<!\d)(\d+)/16", text)} > {0, 16}
