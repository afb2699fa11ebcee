"""A network trained to fill holes beside `justimage edit --mask` with the model it came from, which was not: FID and PSNR.

    python benchmarks/inpainting.py runs/filling runs/photos heldout/ judge.safetensors --count 2000

Both draw the same parts of the same real images, told their classes, and are scored in the space of the classifier
against all of them. Every image has its holes by its place, as `justimage evaluate runs/filling` cuts them.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from justimage import data, editing
from justimage.evaluation import scores
from justimage.evaluation.answers import psnr
from justimage.evaluation.reference import open_reference
from justimage.features import open_features
from justimage.generate import ImageGenerator
from justimage.given import OfImages
from justimage.progress import finish
from justimage.sampling import Sampling, sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path, help="a run of --task inpaint")
    parser.add_argument("base", type=Path, help="a run that is told classes alone")
    parser.add_argument("reference", help="real images")
    parser.add_argument("features")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=24, help="of edit")
    parser.add_argument("--repeats", type=int, default=3, help="of each of edit's steps")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    o = parser.parse_args()

    device = torch.device(o.device)
    trained, base = ImageGenerator(o.trained, device), ImageGenerator(o.base, device)
    if trained.recipe.training.task != "inpaint":
        parser.error(f"{o.trained} was not trained with --task inpaint")
    extractor = open_features(o.features, device)
    reference = finish(open_reference(o.reference, extractor, trained.recipe.crop))
    real = OfImages(data.open_source(o.reference, trained.recipe.crop), trained.recipe)
    filler, model = (g.denoiser(g.recipe.training.sample_ema) for g in (trained, base))
    freely = Sampling("sde", o.steps, "logsnr", t_clip=0.0)

    def conditions() -> Iterator[tuple[range, dict[str, Tensor], Tensor]]:
        """Batches: the images' indices, what is told of them, and the images."""
        for start in range(0, o.count, o.batch):
            indices = range(start, min(start + o.batch, o.count))
            yield indices, real.at(indices), real.truth(indices)

    def grey(indices: range, told: dict[str, Tensor]) -> Tensor:
        return told["image"][:, :-1]

    def fill(indices: range, told: dict[str, Tensor]) -> Tensor:
        sampling = replace(trained.recipe.sampling, guidance=1.0)
        images = sample(filler, told, list(indices), sampling, batch=o.batch, dtype=trained.dtype)
        return trained.recipe.normalization.normalize(images)

    def edit(indices: range, told: dict[str, Tensor], repeats: int) -> Tensor:
        known = editing.known_pixels(told["image"][:, -1:])
        y, classes = told["image"][:, :-1], told["classes"]
        *_, x = editing.complete(model, known, y.to(device), classes.to(device), list(indices), freely, repeats=repeats)
        return x.cpu()

    rows = {
        "holes left grey": grey,
        f"edit --mask, {o.steps} steps": lambda indices, told: edit(indices, told, 1),
        f"edit --mask, {o.steps} steps, {o.repeats} times each": lambda indices, told: edit(indices, told, o.repeats),
        f"trained, {trained.recipe.sampling.steps} steps": fill,
    }
    print(f"| {o.count} images | FID | PSNR of the whole image, dB | seconds |\n|---|---|---|---|", flush=True)
    for name, draw in rows.items():
        began, features, fidelity = time.perf_counter(), [], []
        for indices, told, truth in conditions():
            images = draw(indices, told)
            fidelity.append(psnr(images, truth))
            features.append(extractor.extract(model.normalization.denormalize(images))[0])
        fid = scores.fid(features, reference.statistics)[0]
        took = time.perf_counter() - began
        print(f"| {name} | {fid.value:.3f} ± {fid.std:.3f} | {torch.cat(fidelity).mean():.2f} | {took:.0f} |", flush=True)


if __name__ == "__main__":
    main()
