"""The trainings of an experiment at the paper's scale, as commands for a cluster, with what they cost."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from justimage import disk, plan as plans, recipe as recipes
from justimage.plan import TrainingPlan
from justimage.reproduction import Job, Lab
from justimage.reproduction.training_job import TrainAndScore, finished

CLASSES = 1000
"""Of ImageNet, for networks that are built before their data is read."""


@dataclass(frozen=True)
class PlannedRun:
    """One training: its plan, its folder, and the command to run on each node."""

    job: TrainAndScore
    title: str
    plan: TrainingPlan
    folder: Path
    command: str

    @property
    def gpu_days(self) -> float:
        return self.plan.days * self.plan.gpus

    def write_recipe(self) -> None:
        """Write the recipe that the command reads; a run that has begun keeps its own."""
        if not (self.folder / "events.jsonl").exists():
            content = json.dumps(recipes.to_json(self.job.recipe), indent=1).encode()
            disk.write(self.folder / "recipe.json", content)


def remaining(jobs: Sequence[tuple[str, Job]], lab: Lab, gpus: int, gpu_type: str) -> list[PlannedRun]:
    """The trainings among the jobs, with their titles, that are not finished, each once.

    Each network is built, without memory. ValueError for one that the GPUs cannot hold.
    """
    runs: dict[str, PlannedRun] = {}
    for title, job in jobs:
        if isinstance(job, TrainAndScore) and (group := job.group(lab)) not in runs and not finished(lab.run_dir(job)):
            with torch.device("meta"):
                replace(job.recipe, model=replace(job.recipe.model, classes=CLASSES)).build()
            plan = plans.plan(plans.Request(job.recipe, gpus, gpu_type))
            if not plan.fits:
                advice = plan.advice or "give more, or larger ones"
                raise ValueError(f"{title} does not fit on {gpus} x {gpu_type}: {advice}")
            folder = lab.run_dir(job)
            words = shlex.join(["--recipe", str(folder / "recipe.json"), "--out", str(folder)])
            runs[group] = PlannedRun(job, title, plan, folder, plans.launch_command(plan, words, job=group))
    return list(runs.values())
