"""The trainings of an experiment at the paper's scale: as commands to be run on a cluster, with what they take."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch

from justimage import plan as plans, recipe as recipes
from justimage.laboratory import Lab, Work
from justimage.laboratory.trained import Trained, finished
from justimage.plan import Plan
from justimage.recipe import PRESETS, Recipe

CLASSES = 1000
"""Of ImageNet, for a network that is built before its data is read."""


def flat(recipe: Recipe) -> dict[str, Any]:
    """A recipe's numbers by their own names."""
    found: dict[str, Any] = {}
    for part in fields(recipe):
        value = getattr(recipe, part.name)
        found |= {f.name: getattr(value, f.name) for f in fields(value)} if is_dataclass(value) else {part.name: value}
    return found


def words(name: str, value: Any) -> list[str]:
    """An option of `justimage train`."""
    option = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [option if value else option.replace("--", "--no-", 1)]
    return [option, *map(str, value if isinstance(value, tuple) else [value])]


def options(recipe: Recipe) -> list[str]:
    """What to give to `justimage train` for exactly this recipe: the nearest of the paper's presets, and what differs."""
    wanted = flat(recipe)

    def differing(name: str) -> list[str]:
        there = flat(recipes.preset(name))
        return [w for k, value in wanted.items() if there[k] != value for w in words(k, value)]

    best = min((name for name in PRESETS if name.startswith("jit-")), key=lambda name: len(differing(name)))
    return ["--preset", best, *differing(best)]


@dataclass(frozen=True)
class Job:
    """One training: its plan, and the command for each node."""

    work: Trained
    title: str
    plan: Plan
    command: str

    @property
    def gpu_days(self) -> float:
        return self.plan.days * self.plan.gpus


def left(works: Sequence[tuple[str, Work]], lab: Lab, gpus: int, kind: str) -> list[Job]:
    """The trainings that are not finished, each once, with the name that the table has for it.

    Each network is built, without memory. ValueError for one that the GPUs cannot hold.
    """
    jobs: dict[str, Job] = {}
    for title, work in works:
        if isinstance(work, Trained) and (group := work.group(lab)) not in jobs and not finished(work.place(lab)):
            with torch.device("meta"):
                replace(work.recipe, network=replace(work.recipe.network, classes=CLASSES)).model()
            plan = plans.plan(work.recipe, gpus, kind)
            if not plan.fits:
                raise ValueError(f"{title} does not fit on {gpus} x {kind}: {plan.advice or 'give more, or larger ones'}")
            train = shlex.join([*options(work.recipe), "--out", str(work.place(lab))])
            jobs[group] = Job(work, title, plan, plans.launch(plan, train, job=group))
    return list(jobs.values())
