"""justimage evaluate."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import tyro

from justimage import ema
from justimage.cli.options import checked_device, parse
from justimage.cli.progress import Show, stages, track_batches
from justimage.cli.sampling_options import SamplingOptions, parse_classes, precision_of, sampling_of
from justimage.data import Source, ToldBefore, open_source, tell
from justimage.distributed import rank_and_size
from justimage.evaluation import report
from justimage.evaluation.feature_sampler import FeatureSampler
from justimage.evaluation.reference import open_reference
from justimage.features import open_features
from justimage.generate import ImageGenerator, Labels, SampleJob, short_hash
from justimage.given import OfImages
from justimage.progress import Progress, finish
from justimage.recipe import Recipe
from justimage.stopping import requests

DESCRIPTION = """Score a model's images against real ones: FID, IS, KID, precision, recall, class accuracy,
memorization.

examples:
  justimage evaluate runs/digits --features digits.safetensors --count 2000
  justimage evaluate runs/photos --reference photos/ --count 10000 --guidance 1.8
  justimage evaluate jit-b16 --reference jit_in256_stats.npz --count 50000 --guidance 2.9 --interval 0.1 1.0 --ema 0.9999
  justimage evaluate runs/sketched --reference heldout/ --condition heldout-sketches/
  torchrun --standalone --nproc-per-node=gpu -m justimage evaluate runs/l16 --reference stores/imagenet-256

The reference is a folder, an archive or a store of real images, or an .npz with mu and sigma; by default what the run was
trained on. Features are Inception-v3's, those of a classifier of your own data (justimage feature-space train), or those of any
network that torch.export saved. Writes report.md, report.json, grid.png and neighbours.png; the unguided score is always there.
Images are sampled in chunks whose features are kept: stopped or killed, or with a larger --count, the same command resumes. The
search for the best guidance: justimage search."""


@dataclass(frozen=True)
class EvalOptions(SamplingOptions):
    """Options of what is scored, and against which images."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = tyro.MISSING
    """a run, a converted folder, or one .safetensors file"""
    reference: str = ""
    """real images: a folder, an archive, a store, "digits", or an .npz with mu and sigma [what the run was trained on]"""
    features: str = "inception"
    """inception, or a file: .pth (Inception's weights), .safetensors (a classifier), .pt2 (torch.export)"""
    condition: str = ""
    """what a model is told of the real images, as in training: images of the same names, or a table [the run's own]"""
    labels: Labels = "balanced"
    """equally many of each class (the paper's protocol), or random (ADM's)"""
    classes: tuple[str, ...] = ()
    """numbers or names [all]"""
    resize: tuple[int, ...] = ()
    """scale samples to this side, or height and width, first, bicubic and antialiased (App. B.4) [no]"""


@dataclass(frozen=True)
class EvaluateOptions(EvalOptions):
    count: int = 50_000
    """images, guided and as many unguided"""
    answers: int = report.ANSWERS
    """to each image that a model is told, for PSNR and their spread"""
    out: Path | None = None
    """where reports and features are kept [RUN/evaluations]"""


def main(words: Sequence[str]) -> int:
    o = parse(EvaluateOptions, words, "evaluate", DESCRIPTION)
    if o.count < 2:
        raise ValueError(f"count is {o.count}; it must be 2 or more")
    if not 2 <= o.answers <= 256:
        raise ValueError(f"answers is {o.answers}; allowed: 2 to 256")
    is_main = rank_and_size()[0] == 0
    with requests("this batch, kept"), stages(is_main) as show:
        sampler, job = open_sampler(o, o.out, show)
        generator = sampler.generator
        with track_batches([generator.denoiser(job.ema).net], job.sampling, job.batch, show) as show_batches:
            if not is_main:
                finish(report.ensure_samples(sampler, job, o.count))
                return 0
            others = short_hash([sampler.key(job), sampler.reference.info])[:6]
            name = f"ema{ema.ema_name(job.ema)}-guidance{job.sampling.guidance:g}-{o.count}-{others}"
            out = sampler.root / f"{generator.checkpoint.name}-{name}"
            command = shlex.join(["justimage", "evaluate", *words])
            found = finish(report.evaluate(sampler, job, o.count, out, command, o.answers), show_batches)
    print(report.scores_table(found))
    for warning in found["warnings"]:
        print(f"warning: {warning}")
    print(out / "report.md")
    return 0


def told_source(images: Source, beside: str, recipe: Recipe) -> Source:
    """Real images with everything that a model is told of them; ValueError where that is not known."""
    a, told = recipe.model, recipe.told
    if recipe.training.task and not (a.vector or a.text_length):
        return images
    if not beside:
        raise ValueError("this model is told what lay beside its images; say where that is for these: --condition")
    found = tell(images, beside, recipe.crop, a.classes != 0, ToldBefore(told, a.image_channels, a.text_length))
    if (sizes := recipe.sizes_told(found)) != {name: getattr(a, name) for name in sizes}:
        raise ValueError(
            f"{beside} tells other things than the model was trained with: {recipe.condition or recipe.training.task}"
        )
    return found


def open_sampler(o: EvalOptions, out: Path | None, show: Show) -> tuple[FeatureSampler, SampleJob]:
    """Open what the options describe: a sampler of features beside the real images, and the job to sample."""
    device = checked_device(o.device)
    generator = ImageGenerator(o.source, device, precision_of(o, device), o.compile)
    recipe = generator.recipe
    if len(o.resize) > 2 or any(side < 1 for side in o.resize):
        raise ValueError(f"resize is {' '.join(map(str, o.resize))}; allowed: one or two numbers above 0")
    resize = (o.resize[0], o.resize[-1]) if o.resize else None
    show(Progress(f"loading {o.features}"))
    extractor = open_features(o.features, device)
    show(Progress("reading the model"))
    job = generator.make_job(
        o.ema, parse_classes(o.classes, recipe), sampling_of(o, recipe),
        seed=o.seed, labels=o.labels, batch=o.batch,
    )  # fmt: skip
    if not (o.reference or recipe.data):
        raise ValueError("what to compare with is not given, and this model does not say what it was trained on: --reference")
    real, beside = o.reference or recipe.data, o.condition or ("" if o.reference else recipe.condition)
    show(Progress(f"reading {real}"))
    crop = replace(recipe.crop, size=resize or recipe.model.size)
    reference = finish(open_reference(real, extractor, crop), show)
    if generator.is_told:
        if o.classes or o.labels != "balanced":
            raise ValueError("--classes and --labels are for models told a class alone; this one is told what real images have")
        if recipe.model.image_channels and not find_spec("skimage"):
            raise ValueError("to score answers to images install scikit-image: pip install 'justimage[eval]'")
        if reference.source is None:
            raise ValueError(f"this model is told more than a class, and {real} holds no images to be told of")
        images = open_source(real, recipe.crop) if resize else reference.source
        generator.conditions = OfImages(told_source(images, beside, recipe), recipe)
        job = replace(job, conditions=generator.conditions.fingerprint)
    root = out or evaluations_of(o.source)
    return FeatureSampler(generator, extractor, reference, root, resize), job


def evaluations_of(source: Path) -> Path:
    """The folder of reports of a run, or of other weights."""
    is_run = (source / "checkpoints").is_dir()
    return source / "evaluations" if is_run else Path("evaluations") / source.name
