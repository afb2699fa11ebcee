"""Scores of a model that is told images: how near its answers are to the true images, how they differ, and whether they fit
what was told. The simplest answer stands beside them: the image that was told, or, of a small one, bicubic interpolation."""

from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from justimage import figures
from justimage.evaluation import scores
from justimage.evaluation.feature_sampler import FeatureSampler, resize
from justimage.evaluation.scores import Score
from justimage.generate import SampleJob
from justimage.given import OfImages
from justimage.normalization import to_uint8
from justimage.progress import Job, Progress
from justimage.tasks import open_task

INPUTS = 256
"""Images that are answered."""
SHOWN, SHOWN_ANSWERS = 8, 4
"""Of these, shown, and of the answers to each."""
TITLES = {
    "psnr": "PSNR of an answer, dB",
    "psnr_mean": "PSNR of the mean of the answers, dB",
    "ssim": "SSIM of an answer",
    "spread": "deviation between answers, of 255",
    "misfit": "deviation from what was told, of 255",
    "psnr_simplest": "PSNR of the simplest answer, dB",
    "ssim_simplest": "SSIM of the simplest answer",
    "fid_simplest": "FID of the simplest answers",
}


class Answers(NamedTuple):
    """Scores by the names of TITLES, and a picture: what was told, the answers, and the true images."""

    scores: dict[str, Score]
    picture: Image.Image


def score_answers(sampler: FeatureSampler, job: SampleJob, count: int, several: int) -> Job[Answers]:
    """Score several answers to each of the first images, at most INPUTS of `count`; FID of the simplest answers to `count`."""
    real, recipe = sampler.generator.conditions, sampler.generator.recipe
    assert isinstance(real, OfImages)
    inputs, found = min(INPUTS, count, len(real)), {name: [] for name in TITLES if not name.startswith("fid")}
    shown = [[] for _ in range(min(several, SHOWN_ANSWERS) + 2)]
    for start in range(0, inputs, job.batch):
        indices = range(start, min(start + job.batch, inputs))
        truth, told = real.truth(indices), real.at(indices)["image"]
        images = []
        for k in range(several):
            yield Progress("answers", start * several + k * len(indices), inputs * several)
            images.append(sampler.generator.sample_indices(job, [i + k * len(real) for i in indices]))
        answers = torch.stack([recipe.normalization.normalize(each) for each in images])
        simplest = simplest_answer(real, told)
        found["psnr"] += psnr(answers, truth).mean(0).tolist()
        found["psnr_mean"] += psnr(answers.mean(0), truth).tolist()
        found["ssim"] += torch.stack([ssim(each, truth) for each in answers]).mean(0).tolist()
        found["spread"] += (127.5 * answers.std(0).square().mean((1, 2, 3)).sqrt()).tolist()
        if (fit := misfit(real, indices, answers[0], told)) is not None:
            found["misfit"] += fit.tolist()
        found["psnr_simplest"] += psnr(simplest, truth).tolist()
        found["ssim_simplest"] += ssim(simplest, truth).tolist()
        for row, each in zip(
            shown,
            (figures.as_image(told, truth.shape[1]), *map(to_uint8, answers[:SHOWN_ANSWERS]), to_uint8(truth)),
            strict=True,
        ):
            row.append(each)
    features = []
    for start in range(0, count, job.batch):
        yield Progress("simplest answers", start, count)
        told = real.at(range(start, min(start + job.batch, count)))["image"]
        images = recipe.normalization.denormalize(simplest_answer(real, told))
        features.append(sampler.extractor.extract(resize(images, sampler.resize))[0])
    each = {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items() if values}
    results = {name: Score(float(v.mean()), scores.standard_error(v)) for name, v in each.items()}
    results["fid_simplest"] = scores.fid(features, sampler.reference.statistics)[0]
    rows = [torch.cat(row)[:SHOWN] for row in shown]
    left = ["told", *["answer"] * (len(rows) - 2), "truth"]
    return Answers(results, figures.image_grid(torch.cat(rows), len(rows[0]), left=left))


def simplest_answer(real: OfImages, told: Tensor) -> Tensor:
    """The image that needs no network (b, channels, height, width)."""
    channels, word = real.recipe.model.channels, real.recipe.training.task
    if word:
        return open_task(word, real.recipe.shape).simplest(told)
    return told[:, :channels] if told.shape[1] >= channels else told[:, :1].expand(-1, channels, -1, -1)


def misfit(real: OfImages, indices: range, answers: Tensor, told: Tensor) -> Tensor | None:
    """How much what an answer would tell differs from what was told (b,); None where that is not known."""
    r = real.recipe.training
    if not r.task or r.task.startswith("denoise"):
        return None
    again = open_task(r.task, real.recipe.shape).make(answers, r.seed, [real.place(i) for i in indices])
    return 127.5 * (again - told).square().mean((1, 2, 3)).sqrt()


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of images in [-1, 1], in dB, (..., b); of floats beyond, by the true image's range."""
    peak = (truth.amax((-3, -2, -1)) - truth.amin((-3, -2, -1))).clamp(min=2.0)
    low, high = min(-1.0, float(truth.min())), max(1.0, float(truth.max()))
    return 10 * torch.log10(peak**2 / (x.clamp(low, high) - truth).square().mean((-3, -2, -1)).clamp(min=1e-10))


def ssim(x: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of images in [-1, 1], (b,), by scikit-image; NaN for images under 7 pixels."""
    from skimage.metrics import structural_similarity

    if min(x.shape[-2:]) < 7:
        return torch.full(x.shape[:1], torch.nan)
    pairs = zip(x.numpy(), truth.numpy(), strict=True)
    ranges = [max(2.0, float(b.max() - b.min())) for b in truth]
    found = [structural_similarity(a, b, channel_axis=0, data_range=r) for (a, b), r in zip(pairs, ranges, strict=True)]
    return torch.tensor(found)
