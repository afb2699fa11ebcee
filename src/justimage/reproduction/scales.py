"""The four scales at which an experiment is run: the paper's names ("B/16") stand for other networks and images at each.

laptop      two CPU cores, minutes: the paper's images over eight, its patches as they are, four small sizes
overnight   two CPU cores, hours: digits on patterns, 64 x 64, a hundred classes, three seeds where an effect is small
gpu         one large GPU, at most an hour: images of 32 x 32 (CIFAR-10), networks of ten to sixty million parameters
paper       Table 9 on ImageNet
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from justimage import recipe as recipes
from justimage.architectures import Architecture
from justimage.data import BUILT_IN
from justimage.data.store import is_store, open_store
from justimage.diffusion import Diffusion
from justimage.generate import BATCH
from justimage.recipe import IMAGENET, Checkpointing, Logging, OnlineEvaluation, Parallelism, Recipe, Training, with_values
from justimage.sampling import Sampling

ScaleName = Literal["laptop", "overnight", "gpu", "paper"]
Size = dict[str, Any]


@dataclass(frozen=True)
class Scoring:
    """How a trained network is scored: the best guidance with some images, then all scores there, with more."""

    search_count: int
    """images for each guidance that is tried"""
    count: int
    """images of the score"""
    step: float
    """between two candidates for the guidance, 1 to 4 (Table 9)"""
    coarse_to_fine: bool
    """search over all averages, coarse to fine; otherwise climb down the grid from a guidance of 2"""
    feature_size: int | None
    """side to which images are scaled for the feature extractor; None for their own"""


@dataclass(frozen=True)
class Scale:
    """The networks, images, training and scoring that the paper's names stand for."""

    name: ScaleName
    data: str
    """as `train` takes it; {size} stands for the image size"""
    scoring: Scoring
    shapes: dict[int, tuple[int, int]]
    """(image size, patch size) for the paper's patches of 4, 16, 32, 64"""
    noise: float
    """image size at which the noise has a standard deviation of 1"""
    sizes: dict[str, Size] = field(default_factory=dict)
    """architectures of B, L, H, G; empty for the paper's"""
    channels: int = 3
    features: str = ""
    """the feature space of scores, as `evaluate` takes it; empty for a classifier of the data"""
    reference: str = ""
    """the real images, or their statistics, as `evaluate` takes them; empty for the data"""
    images: dict[int, int] = field(default_factory=dict)
    """images to train on, by the paper's number of epochs"""
    long_images: int = 0
    """where the shorter trainings of small networks differ by how much they have learnt, not by what is compared; 0: as many"""
    fine_scoring: Scoring | None = None
    """where distances are small, and deviate more from one set of samples to another; None: as others"""
    training: Training = Training()
    sampling: Sampling = Sampling(guidance=2.2, interval=(0.1, 1.0))
    parallelism: Parallelism = Parallelism()
    logging: Logging = Logging()
    checkpoint: Checkpointing = Checkpointing()
    seeds: int = 1
    """trainings of each row whose effect is small"""
    many_seeds: int = 1
    """of two rows that one claim compares, and that `seeds` of either cannot tell apart"""
    gpu_batch: int = BATCH
    """images sampled at a time on a GPU"""
    classifier: dict[str, Any] = field(default_factory=dict)
    """of the classifier: width, features, images to train on, batch"""

    def recipe(self, name: str, epochs: int = 200, long: bool = False) -> Recipe:
        """The recipe of a network such as "B/16" at this scale, for the paper's number of epochs, or on `long_images`."""
        size, patch = name[0], int(name[2:])
        checkpoint, evaluation = self.checkpoint, OnlineEvaluation()
        if self.name == "paper":
            r = recipes.paper_recipe(name, epochs)
            side = r.model.size[0]
            if size == "G" and epochs > 320:  # they end early, about there (App. A)
                checkpoint = replace(checkpoint, monitor="fid", patience=PATIENCE)
                reference = self.reference.replace("{size}", str(side))
                evaluation = OnlineEvaluation(FID_EVERY, 8_000, self.features, reference)
        else:
            side, patch_here = self.shapes[patch]
            images = (long and self.long_images) or self.images[epochs]
            r = Recipe(
                model=Architecture(side, patch_here, self.channels, None, **self.sizes[size]),
                diffusion=Diffusion(noise_scale=side / self.noise),
                training=replace(self.training, total_images=images),
                sampling=self.sampling,
            )
        return replace(
            r, data=self.data.replace("{size}", str(side)), parallelism=self.parallelism, logging=self.logging,
            checkpoint=checkpoint, evaluation=evaluation,
        )  # fmt: skip

    def patch_dimension(self, name: str) -> int:
        return self.recipe(name).model.patch_dimension


def baseline(r: Recipe) -> Recipe:
    """The settings of Tables 2, 3, 10 and Figs. 4, 7: no bottleneck, nothing of Sec. 4.4, guidance at all times."""
    return with_values(r, bottleneck=None, rope=False, qk_norm=False, context_tokens=0, interval=(0.0, 1.0))


Four = tuple[int, int, int, int]


def networks(
    widths: Four, depths: Four, heads: Four, bottlenecks: Four, context_tokens: int, context_starts: Four
) -> dict[str, Size]:
    """The architectures of B, L, H and G."""
    names = "width", "depth", "heads", "bottleneck", "context_start"
    columns = zip("BLHG", widths, depths, heads, bottlenecks, context_starts, strict=True)
    alike = dict(context_tokens=context_tokens, dropout=0.0)
    return {size: dict(zip(names, numbers, strict=True)) | alike for size, *numbers in columns}


LAPTOP = Scale(
    name="laptop",
    data="digits",
    channels=1,
    scoring=Scoring(search_count=256, count=1024, step=0.5, coarse_to_fine=False, feature_size=32),
    shapes={4: (8, 4), 16: (32, 16), 32: (64, 32), 64: (128, 64)},
    noise=32,
    sizes=networks((64, 96, 128, 160), (4, 5, 6, 8), (4, 4, 4, 4), (32, 32, 64, 64), 4, (1, 1, 2, 2)),
    images={200: 60_000, 600: 60_000},
    training=Training(
        batch=64, learning_rate=2e-3, lr_schedule="cosine", warmup=2_000, gradient_clip=1.0,
        ema=(5_000,), ema_ramp=0.1, sample_ema=5_000, flip=False, precision="fp32",
    ),
    sampling=Sampling(steps=12, guidance=2.0, interval=(0.1, 1.0)),
    parallelism=Parallelism(compile=False, workers=0),
    logging=Logging(preview_every=10**12, preview_count=20),
    checkpoint=Checkpointing(save_every=10_000, keep_checkpoints=1, on_nonfinite="skip"),
    classifier=dict(width=16, features=64, images=20_000, batch=64),
)  # fmt: skip

OVERNIGHT = replace(
    LAPTOP,
    name="overnight",
    data="textured-digits",
    scoring=Scoring(search_count=1_000, count=5_000, step=0.5, coarse_to_fine=False, feature_size=64),
    shapes={4: (16, 4), 16: (64, 16), 32: (128, 32), 64: (256, 64)},
    noise=64,
    sizes=networks((96, 128, 160, 192), (6, 8, 10, 12), (4, 4, 5, 6), (32, 32, 64, 64), 8, (2, 2, 3, 3)),
    images={200: 240_000, 600: 240_000},
    long_images=960_000,
    fine_scoring=Scoring(search_count=1_000, count=20_000, step=0.5, coarse_to_fine=False, feature_size=64),
    training=replace(LAPTOP.training, batch=32, learning_rate=3e-3, precision="bf16"),
    sampling=Sampling("unipc", steps=12, times="logsnr", guidance=2.0, interval=(0.1, 1.0), t_clip=0.0),
    parallelism=Parallelism(compile=True, workers=0),
    seeds=3,
    many_seeds=10,
    gpu_batch=500,
    classifier=dict(width=16, features=64, images=60_000, batch=64),
)  # fmt: skip

GPU = Scale(
    name="gpu",
    data="cifar10.zip",
    scoring=Scoring(search_count=2_000, count=10_000, step=0.25, coarse_to_fine=False, feature_size=32),
    shapes={4: (32, 4), 16: (32, 16), 32: (64, 32), 64: (128, 64)},
    noise=32,
    sizes=networks((384, 512, 576, 640), (12, 12, 14, 16), (6, 8, 8, 8), (64, 64, 128, 128), 8, (4, 4, 4, 5)),
    images={200: 2_000_000, 600: 2_000_000},
    training=Training(
        batch=512, learning_rate=1e-3, lr_schedule="cosine", warmup=50_000, gradient_clip=1.0,
        ema=(200_000,), ema_ramp=0.1, sample_ema=200_000,
    ),
    sampling=Sampling(steps=25, guidance=2.0, interval=(0.1, 1.0)),
    logging=Logging(preview_every=10**12, preview_count=20),
    checkpoint=Checkpointing(save_every=500_000, keep_checkpoints=1, on_nonfinite="skip"),
    gpu_batch=500,
    classifier=dict(width=64, features=128, images=500_000, batch=128),
)  # fmt: skip

PAPER = Scale(
    name="paper",
    data="stores/imagenet-{size}",
    scoring=Scoring(search_count=8_000, count=50_000, step=0.1, coarse_to_fine=True, feature_size=None),
    shapes={patch: (16 * patch, patch) for patch in (4, 16, 32, 64)},
    noise=256,
    features="inception",
    logging=Logging(preview_every=20 * IMAGENET),
    checkpoint=Checkpointing(save_every=5 * IMAGENET),
)

PATIENCE, FID_EVERY = 60 * IMAGENET, 20 * IMAGENET
"""The paper stops G "when the monitored FID begins to degrade"; these numbers are ours."""

SCALES: dict[str, Scale] = {scale.name: scale for scale in (LAPTOP, OVERNIGHT, GPU, PAPER)}


def with_data(scale: Scale, data: str, features: str = "", reference: str = "") -> Scale:
    """The scale with other data, and another feature space or reference to score with."""
    given = {"features": features, "reference": reference}
    scale = replace(scale, **{k: v for k, v in given.items() if v})
    if not data:
        return scale
    channels = 1 if data in BUILT_IN else 3
    for side, _ in scale.shapes.values():
        place = Path(data.replace("{size}", str(side))).expanduser()
        if is_store(place):
            channels = open_store(place).shape[0]
    return replace(scale, data=data, channels=channels)
