"""A run: a training in a directory, which begins or goes on there, keeps its metrics, draws previews and saves checkpoints.

opening.py says what may begin or go on; kept.py is what a run keeps while it goes; here it goes.
"""

import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from justimage import distributed, training
from justimage.recipe import Recipe
from justimage.run.kept import Run as Run
from justimage.run.opening import open_run as open_run
from justimage.stopping import Watchdog, alone
from justimage.training import NotFinite, Step


def tensorboard(directory: Path, images_seen: int) -> Any:
    """A TensorBoard writer that goes on after images_seen, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory / "tensorboard"), purge_step=images_seen + 1)


def steps(run: Run) -> Generator[Step, None, None]:
    """The run's remaining steps, with metrics, previews and checkpoints on the way; closed early, it saves."""
    if run.world.leads:
        run.board = tensorboard(run.directory, run.state.images_seen)
    run.clock = time.perf_counter()
    why, facts = "stopped", {}
    try:
        with Watchdog(run.recipe.machine.hang_after).watching() as watchdog, run.world.in_company(alone):
            run.beat = watchdog.beat
            try:
                going = not run.ended_early
                while going:
                    going = False
                    try:
                        for step in training.train(run.recipe, run.source, run.state, run.should_stop):
                            watchdog.beat()
                            run.after(step)
                            yield step
                            if step.stop:
                                break
                    except NotFinite as error:
                        run.leave_out(error)
                        going = True
                run.ended_early = run.world.first(lambda: run.ended_early)
                if run.state.images_seen >= run.recipe.training.images or run.ended_early:
                    why = "finished early" if run.ended_early else "finished"
                    run.measure()
            except (GeneratorExit, ValueError, OSError, distributed.Elsewhere):  # the last step's state is whole
                with suppress(NotFinite):
                    run.save_now()
                raise
            run.save_now()
            run.metrics.flush()
            if why != "stopped" and run.previewed_at != run.state.images_seen:
                run.look()
    except (Exception, KeyboardInterrupt) as error:
        why, facts = "failed", {"error": " ".join(str(error).split())}
        raise
    finally:
        run.event(why, **facts)
        run.saver.close()
        if run.lock:
            run.lock.close()
        if run.board:
            run.board.close()


def train(recipe: Recipe, out: str | Path, device: torch.device | str | None = None) -> Generator[Step, None, None]:
    """Train by a recipe in the directory `out`, beginning or going on there: `for step in justimage.train(...): ...`.

    Yields a `Step` (images_seen, loss, gradient_norm, learning_rate) after each update; leaving the loop saves.
    """
    yield from steps(open_run(recipe, out, device))
