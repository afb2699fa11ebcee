"""The job of Fig. 2: points along a curve in a plane, buried in D dimensions, learnt by an MLP and sampled (Sec. 3.3).

How near the samples come to the curve says little by itself: samples of half the curve lie on it. So distances are measured
both ways, from each sample to the curve and from each place of the curve to the nearest sample.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from justimage import checkpoint, disk, progress, recipe as recipes, sampling
from justimage.architectures import Architecture
from justimage.diffusion import Diffusion, Prediction
from justimage.mlp import MLP
from justimage.recipe import Checkpointing, Logging, Parallelism, Recipe, Training
from justimage.reproduction import Lab, Result, hash_of
from justimage.reproduction.training_job import logged_losses, run_training_job
from justimage.sampling import Sampling

POINTS, CURVE_POINTS = 2000, 4000
"""Samples to draw, and places on the curve that stand for it."""
INNER, OUTER, TURNS, SPREAD = 0.4, 2.0, 1.5, 0.08
"""Of the curve; and the deviation of the data from it, within the plane."""
NEVER = 10**12
"""Images between previews and checkpoints: only those at the end are wanted."""


def spiral(u: Tensor) -> Tensor:
    """A spiral in the plane, (n,) numbers in [0, 1] -> (n, 2): from INNER to OUTER away from the middle in TURNS turns.

    Uniform u are spread evenly along it (with the square of the radius, as its length grows), so that both ends are learnt.
    """
    radius = (INNER**2 + u * (OUTER**2 - INNER**2)).sqrt()
    angle = 2 * math.pi * TURNS * (radius - INNER) / (OUTER - INNER)
    return torch.stack([angle.cos(), angle.sin()], 1) * radius[:, None]


def true_points(count: int) -> Tensor:
    """Data: `count` points, evenly along the curve, with normal noise of SPREAD to either side; (count, 2)."""
    random = torch.Generator().manual_seed(0)
    return spiral((torch.arange(count) + 0.5) / count) + SPREAD * torch.randn(count, 2, generator=random)


class SpiralPoints:
    """Data for `justimage.train`: `count` points along the curve that P (D, 2) buries, as images (D, 1, 1)."""

    def __init__(self, P: Tensor, count: int) -> None:
        self.P, self.points = P, true_points(count)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, i: int) -> tuple[Tensor, None]:
        return (self.P @ self.points[i])[:, None, None], None


@dataclass(frozen=True)
class ToyJob:
    """One panel of Fig. 2: `dimension` is D, and the loss is the v-loss.

    The paper gives no other settings. These are such that at D = 2, where capacity is ample, all three predictions converge:
    more times near 1 than images need, since only there the noise is as fine as the data.
    """

    dimension: int
    prediction: Prediction = "x"
    steps: int = 6000
    batch: int = 256
    seed: int = 0

    @property
    def recipe(self) -> Recipe:
        """Of the architecture only the shape of an image counts: the network is an MLP."""
        return Recipe(
            model=Architecture(1, 1, self.dimension, 0, width=4, depth=1, heads=1, context_start=0),
            diffusion=Diffusion(self.prediction, mu=1.0, sigma=1.5),
            training=Training(
                total_images=self.steps * self.batch, batch=self.batch, learning_rate=2e-3, lr_schedule="cosine", warmup=0,
                betas=(0.9, 0.999), ema=(), sample_ema=0.0, flip=False, precision="fp32", seed=self.seed,
            ),
            sampling=Sampling(steps=100, t_clip=0.01),
            parallelism=Parallelism(grad_accumulation=1, compile=False, workers=0),
            logging=Logging(log_every=100, preview_every=NEVER, preview_count=1),
            checkpoint=Checkpointing(save_every=NEVER, keep_checkpoints=1),
        )  # fmt: skip

    def group(self, lab: Lab) -> str:
        return hash_of("toy", SPREAD, recipes.to_json(self.recipe))

    @property
    def title(self) -> str:
        return f"D = {self.dimension}, {self.prediction}-pred"

    def key(self, lab: Lab) -> str:
        return self.group(lab)

    def projection(self) -> Tensor:
        """P, (D, 2), random and column-orthogonal: P^T P = 1."""
        return torch.linalg.qr(torch.randn(self.dimension, 2, generator=torch.Generator().manual_seed(self.seed)))[0]

    def run(self, lab: Lab) -> progress.Job[Result]:
        began, P, run = time.perf_counter(), self.projection(), lab.run_dir(self)
        net = lambda: MLP(self.dimension)
        yield from run_training_job(self.recipe, run, lab.device, data=SpiralPoints(P, self.steps * self.batch), net=net)
        denoiser = checkpoint.load(run, device=lab.device, net=net)
        points = sampling.sample(denoiser, seeds=range(POINTS), batch=POINTS, dtype=torch.float32).flatten(1)
        with disk.replacing(lab.result_dir(self) / "points.npz") as aside, open(aside, "wb") as file:
            np.savez(file, allow_pickle=False, points=(points @ P).numpy())
        near, covered = curve_distances(points, P)
        means = {"curve": near, "coverage": covered, "plane": (points - points @ P @ P.T).norm(dim=1)}
        *_, last = logged_losses(run)
        return {name: float(distance.mean()) for name, distance in means.items()} | {
            "loss": last["loss"],
            "seconds": round(time.perf_counter() - began, 1),
        }


def curve_distances(points: Tensor, P: Tensor) -> tuple[Tensor, Tensor]:
    """Distances between points (n, D) and the curve that P buries: from each point to the curve (n,), and from CURVE_POINTS
    places on the curve to the nearest point (CURVE_POINTS,)."""
    within, places = points @ P, spiral(torch.linspace(0, 1, CURVE_POINTS))
    out = (points - within @ P.T).norm(dim=1)  # of the plane, at a right angle to whatever lies in it
    apart = torch.hypot(torch.cdist(within, places, compute_mode="donot_use_mm_for_euclid_dist"), out[:, None])
    return apart.amin(1), apart.amin(0)


def true_distances() -> tuple[float, float]:
    """Both mean distances of as many points of the data as are sampled."""
    near, covered = curve_distances(true_points(POINTS), torch.eye(2))
    return float(near.mean()), float(covered.mean())
