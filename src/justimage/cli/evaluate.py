"""justimage evaluate."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from justimage import ema
from justimage.cli.options import checked_device, parse
from justimage.cli.progress import Report, stages, track_batches
from justimage.cli.sampling_options import SamplingOptions, class_numbers, precision_of, sampling_of
from justimage.distributed import rank_and_size
from justimage.evaluation import report
from justimage.evaluation.feature_sampler import FeatureSampler
from justimage.evaluation.reference import open_reference
from justimage.features import open_features
from justimage.generate import ImageGenerator, Labels, SampleJob, short_hash
from justimage.stopping import requests

DESCRIPTION = """Score a model's images against real ones: FID, IS, KID, precision, recall, class agreement, copies.

examples:
  justimage evaluate runs/digits --features digits.safetensors --count 2000
  justimage evaluate runs/photos --reference photos/ --count 10000 --guidance 1.8
  justimage evaluate jit-b16 --reference jit_in256_stats.npz --count 50000 --guidance 2.9 --interval 0.1 1.0 --ema 0.9999
  torchrun --standalone --nproc-per-node=gpu -m justimage evaluate runs/l16 --reference stores/imagenet-256

The reference is a folder, an archive or a store of real images, or an .npz with mu and sigma; by default what the run was
trained on. Features are Inception-v3's, those of a classifier of your own data (justimage features train), or of any network
that torch.export saved. Writes report.md, report.json, grid.png and neighbours.png; the unguided score is always among them.
Images are drawn in units whose features are kept: stopped or killed, or with a larger --count, the same command goes on. The
search for the best guidance: justimage search."""


@dataclass(frozen=True)
class EvalOptions(SamplingOptions):
    """What is scored, and against what."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = tyro.MISSING
    """a run, a converted folder, or one .safetensors file"""
    reference: str = ""
    """real images: a folder, an archive, a store, "digits", or an .npz with mu and sigma [what the run was trained on]"""
    features: str = "inception"
    """inception, or a file: .pth (Inception's weights), .safetensors (a classifier), .pt2 (torch.export)"""
    labels: Labels = "balanced"
    """equally many of each class (the paper's protocol), or random (ADM's)"""
    classes: tuple[str, ...] = ()
    """numbers or names [all]"""
    resize: tuple[int, ...] = ()
    """scale drawn images to this side, or height and width, first, bicubic and antialiased (App. B.4) [no]"""


@dataclass(frozen=True)
class EvaluateOptions(EvalOptions):
    count: int = 50_000
    """images, guided and as many unguided"""
    out: Path | None = None
    """where reports and features are kept [RUN/evaluations]"""


def main(words: Sequence[str]) -> int:
    o = parse(EvaluateOptions, words, "evaluate", DESCRIPTION)
    if o.count < 2:
        raise ValueError(f"count is {o.count}; it must be 2 or more")
    leads = rank_and_size()[0] == 0
    with requests("this batch, kept") as asked, stages(leads) as progress:
        examiner, job = open_sampler(o, o.out, progress, lambda: bool(asked))
        net = examiner.generator.denoiser(job.ema).net
        with track_batches([net], job.sampling, job.batch, progress) as examiner.progress:
            if not leads:
                report.draw_all(examiner, job, o.count)
                return 0
            others = short_hash([examiner.key(job), examiner.reference.info])[:6]
            name = f"ema{ema.ema_name(job.ema)}-guidance{job.sampling.guidance:g}-{o.count}-{others}"
            out = examiner.root / f"{examiner.generator.checkpoint.name}-{name}"
            found = report.evaluate(examiner, job, o.count, out, shlex.join(["justimage", "evaluate", *words]))
    print(report.scores_table(found))
    for warning in found["warnings"]:
        print(f"warning: {warning}")
    print(out / "report.md")
    return 0


def open_sampler(
    o: EvalOptions, out: Path | None, progress: Report, stop: Callable[[], bool]
) -> tuple[FeatureSampler, SampleJob]:
    """What examines a model as the options say, and the settings of its drawings."""
    device = checked_device(o.device)
    artist = ImageGenerator(o.source, device)
    if len(o.resize) > 2 or any(side < 1 for side in o.resize):
        raise ValueError(f"resize is {' '.join(map(str, o.resize))}; allowed: one or two numbers above 0")
    resize = (o.resize[0], o.resize[-1]) if o.resize else None
    crop = replace(artist.recipe.crop, size=resize or artist.recipe.model.size)
    progress(f"loading {o.features}", 0, 0)
    extractor = open_features(o.features, device)
    progress("reading the model", 0, 0)
    job = artist.make_job(
        o.ema, class_numbers(o.classes, artist.recipe), sampling_of(o, artist.recipe),
        seed=o.seed, labels=o.labels, batch=o.batch, precision=precision_of(o, device),
    )  # fmt: skip
    if not (o.reference or artist.recipe.data):
        raise ValueError("what to compare with is not given, and this model does not say what it was trained on: --reference")
    real = o.reference or artist.recipe.data
    progress(f"reading {real}", 0, 0)
    reference = open_reference(real, extractor, crop, lambda *n: progress("real images", *n), stop)
    is_run = (o.source / "checkpoints").is_dir()
    place = out or (o.source / "evaluations" if is_run else Path("evaluations") / o.source.name)
    return FeatureSampler(artist, extractor, reference, place, resize, progress, stop), job
