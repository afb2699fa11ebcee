"""The work of Fig. 2: a curve in a plane, buried in D dimensions, learnt by an MLP and drawn again (Sec. 3.3).

How near the samples come to the curve says little by itself: samples of half the curve lie on it. So distances are measured
both ways, from each sample to the curve and from each place of the curve to the nearest sample.
"""

import math
import time
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from justimage import disk, sampling
from justimage.diffusion import Batch, Diffusion
from justimage.mlp import MLP
from justimage.reproduction import Lab, Result, Talk, hash_of
from justimage.sampling import Denoiser, Sampling
from justimage.stopping import Stopped

POINTS, CURVE_POINTS = 2000, 4000
"""Samples that are drawn, and places on the curve that stand for it."""
INNER, OUTER, TURNS = 0.4, 2.0, 1.5


def curve(u: Tensor) -> Tensor:
    """A spiral in the plane, (n,) numbers in [0, 1] -> (n, 2): from INNER to OUTER away from the middle in TURNS turns.

    Uniform u are spread evenly along it (with the square of the radius, as its length grows), so that both ends are learnt.
    """
    radius = (INNER**2 + u * (OUTER**2 - INNER**2)).sqrt()
    angle = 2 * math.pi * TURNS * (radius - INNER) / (OUTER - INNER)
    return torch.stack([angle.cos(), angle.sin()], 1) * radius[:, None]


@dataclass(frozen=True)
class ToyJob:
    """One panel of Fig. 2: `dimension` is D, and the loss is the v-loss.

    The paper is silent about the rest, so it is such that at D = 2, where none wants for capacity, all three predictions
    converge: more times near 1 than images need, since only there the noise is as fine as a curve that has no width.
    """

    dimension: int
    process: Diffusion = Diffusion(mu=1.0, sigma=1.5)
    steps: int = 6000
    batch: int = 256
    learning_rate: float = 2e-3
    seed: int = 0

    def group(self, lab: Lab) -> str:
        return hash_of("toy", asdict(self))

    @property
    def title(self) -> str:
        return f"D = {self.dimension}, {self.process.prediction}-pred"

    def key(self, lab: Lab) -> str:
        return self.group(lab)

    def projection(self) -> Tensor:
        """P, (D, 2), random and column-orthogonal: P^T P = 1."""
        return torch.linalg.qr(torch.randn(self.dimension, 2, generator=torch.Generator().manual_seed(self.seed)))[0]

    def do(self, lab: Lab, talk: Talk) -> Result:
        began, device, P = time.perf_counter(), torch.device(lab.device), self.projection()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net = MLP(self.dimension).to(device)
        random = torch.Generator().manual_seed(self.seed + 1)
        optimizer = torch.optim.Adam(net.parameters(), self.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        nobody, keep = torch.full((self.batch,), -1), torch.zeros(self.batch, dtype=torch.bool)
        loss = torch.zeros(())
        for step in range(self.steps):
            if talk.stop():
                raise Stopped("stopped as asked; the same command goes on")
            x = curve(torch.rand(self.batch, generator=random)) @ P.T
            eps = torch.randn(self.batch, self.dimension, generator=random)
            t = self.process.sample_t(torch.randn(self.batch, generator=random))
            x, eps, t, y, drop = (q.to(device) for q in (x, eps, t, nobody, keep))
            optimizer.zero_grad()
            loss = self.process.loss(net, Batch(x, y, t, eps, drop)).mean()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 100 == 0:
                talk.tell(f"step {step:,} of {self.steps:,}, loss {loss.item():.3f}", step / self.steps)
        points = self.sample(net, device).cpu()
        with disk.replacing(lab.result_dir(self) / "points.npz") as aside, open(aside, "wb") as file:
            np.savez(file, allow_pickle=False, points=(points @ P).numpy())
        near, covered = distances(points, P)
        means = {"curve": near, "coverage": covered, "plane": (points - points @ P @ P.T).norm(dim=1)}
        found = {name: float(distance.mean()) for name, distance in means.items()}
        return found | {"loss": loss.item(), "seconds": round(time.perf_counter() - began, 1)}

    def sample(self, net: torch.nn.Module, device: torch.device) -> Tensor:
        """Points (POINTS, D) that the network generates from noise."""
        noise = torch.randn(POINTS, self.dimension, generator=torch.Generator().manual_seed(self.seed + 2)).to(device)
        nobody = torch.full((POINTS,), -1, device=device)
        *_, end = sampling.trajectory(Denoiser(net, self.process), noise, nobody, Sampling(steps=100, t_clip=0.01))
        return end.z


def distances(points: Tensor, P: Tensor) -> tuple[Tensor, Tensor]:
    """Of points (n, D) and the curve that P buried: to it from each (n,), and from PLACES on it to the nearest (PLACES,)."""
    within, places = points @ P, curve(torch.linspace(0, 1, CURVE_POINTS))
    out = (points - within @ P.T).norm(dim=1)  # of the plane, at a right angle to whatever lies in it
    apart = torch.hypot(torch.cdist(within, places, compute_mode="donot_use_mm_for_euclid_dist"), out[:, None])
    return apart.amin(1), apart.amin(0)


def blur_distances(deviation: float) -> tuple[float, float]:
    """Both mean distances of POINTS true points that normal noise has moved in the plane: what samples may be measured by."""
    random = torch.Generator().manual_seed(0)
    points = curve(torch.rand(POINTS, generator=random)) + deviation * torch.randn(POINTS, 2, generator=random)
    near, covered = distances(points, torch.eye(2))
    return float(near.mean()), float(covered.mean())


def toy(dimension: int, prediction: str) -> ToyJob:
    return ToyJob(dimension, replace(ToyJob(dimension).process, prediction=prediction))
