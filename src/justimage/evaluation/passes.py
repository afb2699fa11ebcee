"""Score against passes of the network: the solver and grid with which a model is sampled best, for each number of passes."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from justimage import disk, figures
from justimage.chunks import single_threaded
from justimage.evaluation import scores
from justimage.evaluation.feature_sampler import FeatureSampler
from justimage.evaluation.scores import Score
from justimage.evaluation.search import fid_difference
from justimage.evaluation.search_report import format_score
from justimage.evaluation.time_grid import fit_times
from justimage.generate import SampleJob
from justimage.progress import Job
from justimage.sampling import Sampling, with_passes

CANDIDATES = ("unipc", "logsnr"), ("unipc", "cosine"), ("unipc", "shifted"), ("dpm2", "logsnr"), ("heun", "linear")
"""Solvers and grids that are compared (docs/sampling.md)."""


class Candidate(NamedTuple):
    """A way to sample, and its score."""

    sampling: Sampling
    passes: int
    fid: Score
    influence: Tensor
    """each image's influence on the FID (count,)"""

    @property
    def grid(self) -> str:
        """The grid's name."""
        return self.sampling.times if isinstance(self.sampling.times, str) else "fitted"

    def __str__(self) -> str:
        return f"{self.sampling.solver} on {self.grid}, {self.sampling.steps} steps"

    @property
    def options(self) -> list[str]:
        """The command line's words for it."""
        s = self.sampling
        times = [s.times] if isinstance(s.times, str) else [f"{t:.4g}" for t in s.times]
        return ["--solver", s.solver, "--steps", str(s.steps), "--times", *times, "--t-clip", f"{s.t_clip:g}"]


def candidates(sampling: Sampling, budgets: Sequence[int]) -> list[Sampling]:
    """Each solver and grid in the most steps that each number of passes allows. ValueError for too few."""
    found = [with_passes(sampling, n, solver, grid) for n in sorted(budgets) for solver, grid in CANDIDATES]
    return list(dict.fromkeys(found))


def compare(sampler: FeatureSampler, job: SampleJob, budgets: Sequence[int], count: int) -> Job[list[Candidate]]:
    """The scores of all candidates, and of UniPC on times fitted to the model, on the same noise and classes; by passes, then
    by score."""
    found, tried = [], candidates(job.sampling, budgets)
    for n in sorted(budgets):
        tried.append((yield from fit_times(sampler.generator, replace(job, sampling=with_passes(job.sampling, n)))))
    for sampling in dict.fromkeys(tried):
        title = f"{sampling.solver}, {sampling.passes} passes"
        samples = yield from sampler.features(replace(job, sampling=sampling), count, title)
        with single_threaded():
            fid, influence = scores.fid(samples["features"].split(scores.CHUNK), sampler.reference.statistics)
        found.append(Candidate(sampling, sampling.passes, fid, influence))
    return sorted(found, key=lambda c: (c.passes, c.fid.value))


def pareto_front(found: Sequence[Candidate]) -> list[Candidate]:
    """Those that no candidate with as many passes, or fewer, is better than."""
    front: list[Candidate] = []
    for candidate in found:
        if not front or candidate.fid.value < front[-1].fid.value:
            front.append(candidate)
    return front


def recommend(found: Sequence[Candidate]) -> tuple[Candidate, Candidate]:
    """The best candidate, and the one of fewest passes that is within two deviations of it."""
    best = min(found, key=lambda c: c.fid.value)
    for candidate in found:
        gap = fid_difference(candidate, best)
        if gap.value <= 2 * gap.std:
            return best, candidate
    return best, best


def summarize_passes(found: Sequence[Candidate]) -> list[str]:
    best, fewest = recommend(found)
    gap = fid_difference(fewest, best)
    return [
        f"the best: {best}, {best.passes} passes: FID {best.fid.value:.4g} ± {best.fid.std:.2g}",
        f"the fewest passes within two deviations of it: {fewest.passes}, {fewest}, by {gap.value:.3g} ± {gap.std:.2g}",
    ]


def write_passes(found: Sequence[Candidate], out: Path, command: str) -> None:
    """Write passes.md, passes.json and, with matplotlib, passes.png."""
    best, front = recommend(found)[0], [c.sampling for c in pareto_front(found)]
    lines = ["# Score against passes", "", *(f"- {line}" for line in summarize_passes(found)), f"- command: `{command}`", ""]
    lines += ["| passes | solver | grid | steps | FID | above the best | no cheaper one is better |", "|---" * 7 + "|"]
    for c in found:
        s, above = c.sampling, fid_difference(c, best)
        lines.append(
            f"| {c.passes} | {s.solver} | {c.grid} | {s.steps} | {format_score(c.fid._asdict())} "
            f"| {format_score(above._asdict())} | {'yes' if c.sampling in front else ''} |"
        )
    facts: list[dict[str, Any]] = [
        {
            "passes": c.passes,
            "sampling": asdict(c.sampling),
            "fid": c.fid._asdict(),
            "above_best": fid_difference(c, best)._asdict(),
        }
        for c in found
    ]
    if picture := plot(found):
        disk.write(out / "passes.png", picture)
    disk.write(out / "passes.md", "\n".join([*lines, ""]).encode())
    disk.write(out / "passes.json", json.dumps({"command": command, "candidates": facts}, indent=1).encode())


def plot(found: Sequence[Candidate]) -> bytes | None:
    """FID against passes, a line a solver and grid, and the Pareto front; None without matplotlib."""

    def draw(figure: Any) -> None:
        panel = figure.subplots()
        for solver, grid in (*CANDIDATES, ("unipc", "fitted")):
            line = [c for c in found if (c.sampling.solver, c.grid) == (solver, grid)]
            x, y = [c.passes for c in line], [c.fid.value for c in line]
            panel.errorbar(x, y, [c.fid.std for c in line], marker="o", markersize=3, capsize=2, label=f"{solver}, {grid}")
        front = pareto_front(found)
        panel.step([c.passes for c in front], [c.fid.value for c in front], where="post", color="black", alpha=0.4, linewidth=3)
        panel.set(xscale="log", xlabel="passes of the network for an image", ylabel="FID")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)

    return figures.plot_png(draw, (6, 4))
