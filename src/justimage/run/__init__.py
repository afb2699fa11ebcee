"""A run: a training in a directory, which begins or resumes there, keeps its metrics, previews and checkpoints.

resume.py says what may begin or resume; run.py does what is due after a step, with metrics.py and checkpoints.py; here it runs.
"""

from collections.abc import Callable, Generator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import torch

from justimage import distributed, training
from justimage.diffusion import Diffusion
from justimage.recipe import Recipe
from justimage.run.resume import open_run as open_run
from justimage.run.run import Run as Run
from justimage.stopping import Watchdog, exit_peer_lost
from justimage.training import Loss, MakeNet, MakeOptimizer, NonFiniteError, Step


def steps(run: Run) -> Generator[Step, None, None]:
    """The run's remaining steps, with metrics, previews and checkpoints on the way; closed early, it saves."""
    if run.world.is_main:
        run.metrics.open_tensorboard(run.state.images_seen)
    run.metrics.reset(run.metrics.earlier_losses)
    outcome, facts = "stopped", {}
    try:
        with Watchdog(run.recipe.parallelism.watchdog_timeout).run() as watchdog, run.world.watch_peers(exit_peer_lost):
            run.heartbeat = watchdog.heartbeat
            try:
                with closing(finite_steps(run)) as found:
                    for step in found:
                        with watchdog.paused():
                            yield step
                run.ended_early = run.world.on_main(lambda: run.ended_early)
                if run.ended_early or run.state.images_seen >= run.recipe.training.total_images:
                    outcome = "finished early" if run.ended_early else "finished"
                    run.log_metrics()
            except (GeneratorExit, ValueError, OSError, distributed.RemoteError):  # the last step's state is whole
                with suppress(NonFiniteError):
                    run.save_now()
                raise
            run.save_now()
            run.metrics.file.flush()
            if outcome != "stopped" and run.previewed_at != run.state.images_seen:
                run.preview()
    except (Exception, KeyboardInterrupt) as error:
        outcome, facts = "failed", {"error": " ".join(str(error).split())}
        raise
    finally:
        run.log_event(outcome, **facts)
        run.close()


def finite_steps(run: Run) -> Generator[Step, None, None]:
    """Steps until the end, or until some process wants to stop; one that is not finite is skipped, where the recipe allows."""
    while not run.ended_early:
        try:
            for step in training.train(run.recipe, run.source, run.state, run.should_stop, run.loss):
                run.heartbeat()
                run.on_step(step)
                yield step
                if step.stop:
                    return
            return
        except NonFiniteError as error:
            run.handle_nonfinite(error)
            run.ended_early = run.world.on_main(lambda run=run: run.ended_early)  # by the step before, whose agreement is lost


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    data: Any = None,
    net: MakeNet | None = None,
    optimizer: MakeOptimizer | None = None,
    loss: Loss = Diffusion.loss,
    device: torch.device | str | None = None,
    on_progress: Callable[[str, int, int], object] = lambda what, done, total: None,
) -> Generator[Step, None, None]:
    """Train by a recipe in the directory `out`, beginning or resuming there: `for step in justimage.train(...): ...`.

    data: anything with a length and `data[i] -> (image, condition)`, instead of the recipe's path: images (channels, height,
    width), uint8 or floats in [-1, 1]; conditions are class numbers (named by data.class_names), tensors, dicts of tensors, or
    None. net: a network `net(z, t, condition)`, or better a function that makes one, instead of the recipe's JiT. optimizer: a
    function from parameters to a torch optimizer. loss: `loss(diffusion, net, batch) -> (b,)`. Yields a `Step` (images_seen,
    loss, gradient_norm, learning_rate) after each update; leaving the loop saves. Raises ValueError or OSError, in one line and
    before anything is written, for what does not fit.
    """
    yield from steps(open_run(recipe, out, device, data=data, net=net, optimizer=optimizer, loss=loss, on_progress=on_progress))
