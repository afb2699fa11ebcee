"""The trainings of an experiment at the paper's scale: as commands to be run on a cluster, with what they take."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch

from justimage import plan as plans, recipe as recipes
from justimage.plan import TrainingPlan
from justimage.recipe import PRESETS, Recipe
from justimage.reproduction import Job, Lab
from justimage.reproduction.training_job import TrainAndScore, finished

CLASSES = 1000
"""Of ImageNet, for a network that is built before its data is read."""


def flatten(recipe: Recipe) -> dict[str, Any]:
    """A recipe's numbers by their own names."""
    found: dict[str, Any] = {}
    for part in fields(recipe):
        value = getattr(recipe, part.name)
        found |= {f.name: getattr(value, f.name) for f in fields(value)} if is_dataclass(value) else {part.name: value}
    return found


def to_option(name: str, value: Any) -> list[str]:
    """An option of `justimage train`."""
    option = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [option if value else option.replace("--", "--no-", 1)]
    return [option, *map(str, value if isinstance(value, tuple) else [value])]


def options(recipe: Recipe) -> list[str]:
    """What to give to `justimage train` for exactly this recipe: the nearest of the paper's presets, and what differs."""
    wanted = flatten(recipe)

    def differing(name: str) -> list[str]:
        there = flatten(recipes.preset(name))
        return [w for k, value in wanted.items() if there[k] != value for w in to_option(k, value)]

    best = min((name for name in PRESETS if name.startswith("jit-")), key=lambda name: len(differing(name)))
    return ["--preset", best, *differing(best)]


@dataclass(frozen=True)
class PlannedRun:
    """One training: its plan, and the command for each node."""

    work: TrainAndScore
    title: str
    plan: TrainingPlan
    command: str

    @property
    def gpu_days(self) -> float:
        return self.plan.days * self.plan.gpus


def remaining(works: Sequence[tuple[str, Job]], lab: Lab, gpus: int, kind: str) -> list[PlannedRun]:
    """The trainings that are not finished, each once, with the name that the table has for it.

    Each network is built, without memory. ValueError for one that the GPUs cannot hold.
    """
    jobs: dict[str, PlannedRun] = {}
    for title, work in works:
        if isinstance(work, TrainAndScore) and (group := work.group(lab)) not in jobs and not finished(work.run_dir(lab)):
            with torch.device("meta"):
                replace(work.recipe, model=replace(work.recipe.model, classes=CLASSES)).build()
            plan = plans.plan(plans.Request(work.recipe, gpus, kind))
            if not plan.fits:
                raise ValueError(f"{title} does not fit on {gpus} x {kind}: {plan.advice or 'give more, or larger ones'}")
            train = shlex.join([*options(work.recipe), "--out", str(work.run_dir(lab))])
            jobs[group] = PlannedRun(work, title, plan, plans.launch_command(plan, train, job=group))
    return list(jobs.values())
