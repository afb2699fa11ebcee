"""A run's Fréchet distance by solver, grid of times and number of passes, on the same noise: the table of docs/sampling.md.

    python benchmarks/solvers.py runs/digits digits.safetensors digits --count 2048
    python benchmarks/solvers.py runs/cifar cifar.safetensors cifar10.zip --batch 512 --device cuda --guidance 1 1.5 2

The guidance is the one of those given that has the least distance with 12 steps of UniPC. Every distance has its deviation
over other samples; every difference to 50 steps of Heun its own, paired: both are of the same seeds and classes. Samples are
cached beside the run: stopped, the same command resumes.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from justimage.distributed import preferred_precision
from justimage.evaluation import scores
from justimage.evaluation.feature_sampler import FeatureSampler
from justimage.evaluation.reference import open_reference
from justimage.evaluation.time_grid import fit_times
from justimage.features import open_features
from justimage.generate import ImageGenerator
from justimage.progress import finish
from justimage.sampling import Sampling, with_passes


def rows(s: Sampling) -> Iterator[tuple[str, Sampling]]:
    """Names of rows and what they sample with; the first two are compared with. Fitted times follow them."""
    yield "heun, the authors' clip", replace(s, solver="heun", steps=50, times="linear", t_clip=0.05)
    yield "heun", replace(s, solver="heun", steps=50, times="linear", t_clip=0.0)
    for steps in 5, 8, 12, 18, 25:
        yield "heun", replace(s, solver="heun", steps=steps, times="linear", t_clip=0.0)
    for steps in 12, 25, 50:
        yield "euler", replace(s, solver="euler", steps=steps, times="linear", t_clip=0.0)
    for solver in "unipc", "dpm2", "dpm3":
        for steps in 5, 6, 7, 8, 10, 12, 16, 24:
            yield solver, replace(s, solver=solver, steps=steps, times="cosine", t_clip=0.0)
    for solver, grids in (
        ("unipc", ("linear", "logsnr", "shifted")),
        ("dpm2", ("linear", "logsnr")),
        ("adams", ("linear", "cosine")),
    ):
        for grid in grids:
            for steps in 6, 7, 8, 12, 20:
                yield solver, replace(s, solver=solver, steps=steps, times=grid, t_clip=0.0)
    for steps in 8, 12, 24, 50:
        yield "sde", replace(s, solver="sde", steps=steps, times="cosine", t_clip=0.0)
    for every in 2, 3:
        for steps in 8, 12, 24:
            yield "unipc", replace(s, solver="unipc", steps=steps, times="cosine", t_clip=0.0, guidance_every=every)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("features")
    parser.add_argument("reference")
    parser.add_argument("--count", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--guidance", type=float, nargs="+", help="[the recipe's]")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="the network, for sampling")
    parser.add_argument("--fitted", type=int, nargs="*", default=[], help="passes for which times are fitted")
    parser.add_argument("--only", nargs="+", help='rows: a name, or "unipc shifted 7" [all]')
    o = parser.parse_args()
    device = torch.device(o.device)
    generator = ImageGenerator(o.run, device, preferred_precision(device), o.compile)
    extractor = open_features(o.features, device)
    real = finish(open_reference(o.reference, extractor, generator.recipe.crop))
    sampler = FeatureSampler(generator, extractor, real, o.run / "evaluations")

    def score(sampling: Sampling) -> tuple[scores.Score, torch.Tensor, float]:
        """The distance, its influences, and the seconds that sampling took."""
        began = time.perf_counter()
        job = generator.make_job(sampling=sampling, batch=o.batch)
        samples = finish(sampler.features(job, o.count))["features"]
        taken = time.perf_counter() - began
        return *scores.fid(samples.split(scores.CHUNK), real.statistics), taken

    def fitted(passes: int) -> Sampling:
        """UniPC on times fitted to the model."""
        job = generator.make_job(sampling=with_passes(best, passes), batch=o.batch)
        return finish(fit_times(generator, job))

    recipe = generator.recipe
    settings = [replace(recipe.sampling, guidance=g) for g in o.guidance or [recipe.sampling.guidance]]
    quick = {s: score(replace(s, solver="unipc", steps=12, times="cosine", t_clip=0.0))[0].value for s in settings}
    best = min(quick, key=lambda s: quick[s])
    print(f"{o.run.name}: {o.count:,} images, guidance {best.guidance:g} on {best.interval}; {extractor.name}", flush=True)
    print("by guidance, unipc, 12 steps: " + ", ".join(f"{s.guidance:g}: {v:.3f}" for s, v in quick.items()))
    print("\n| solver | grid | steps | passes | distance | - heun 50 | - heun 50, the authors' clip | s |")
    print("|---|---|---|---|---|---|---|---|")
    found = []
    chosen = list(rows(best))
    if o.only:
        chosen[2:] = [(name, s) for name, s in chosen[2:] if {name, f"{name} {s.times} {s.steps}"} & set(o.only)]
    chosen += [("unipc, fitted times", fitted(n)) for n in o.fitted]
    for name, s in chosen:
        fid, moved, seconds = score(s)
        found.append((fid, moved))
        differences = []
        for base, base_moved in (found[1:2] or found[:1]) + found[:1]:
            error = scores.standard_error(moved - base_moved)
            differences.append(f"{fid.value - base.value:+.3f} ± {error:.3f}")
        name = name if s.guidance_every == 1 else f"{name}, guidance every {s.guidance_every}"
        grid = s.times if isinstance(s.times, str) else " ".join(f"{t:.3g}" for t in s.times)
        print(
            f"| {name} | {grid} | {s.steps} | {s.passes} | {fid.value:.3f} ± {fid.std:.3f} | {' | '.join(differences)} "
            f"| {seconds:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
