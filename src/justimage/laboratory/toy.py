"""The work of Fig. 2: a curve in a plane, buried in D dimensions, learnt by an MLP and drawn again (Sec. 3.3)."""

import math
import time
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from justimage import disk, sampling
from justimage.laboratory import Lab, Result, Talk, hashed
from justimage.mlp import MLP
from justimage.process import Model, Process
from justimage.stopping import Stopped

POINTS = 2000


def curve(u: Tensor) -> Tensor:
    """A spiral in the plane, (n,) numbers in [0, 1] -> (n, 2): a turn and a half, from 0.4 to 2 away from the middle."""
    angle = 3 * math.pi * u.sqrt()
    return torch.stack([angle.cos(), angle.sin()], 1) * (0.4 + 1.6 * angle / (3 * math.pi))[:, None]


@dataclass(frozen=True)
class Toy:
    """One panel of Fig. 2: `dimension` is D, and the loss is the v-loss."""

    dimension: int
    process: Process = Process(mu=0.0, sigma=1.0, sampling_clip=0.02)
    steps: int = 3000
    batch: int = 256
    learning_rate: float = 2e-3
    seed: int = 0

    def group(self, lab: Lab) -> str:
        return hashed("toy", asdict(self))

    @property
    def title(self) -> str:
        return f"D = {self.dimension}, {self.process.prediction}-pred"

    def identity(self, lab: Lab) -> str:
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
        optimizer = torch.optim.Adam(net.parameters(), self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        nobody, keep = torch.full((self.batch,), -1), torch.zeros(self.batch, dtype=torch.bool)
        loss = torch.zeros(())
        for step in range(self.steps):
            if talk.stop():
                raise Stopped("stopped as asked; the same command goes on")
            x = curve(torch.rand(self.batch, generator=random)) @ P.T
            eps = torch.randn(self.batch, self.dimension, generator=random)
            t = self.process.time(torch.randn(self.batch, generator=random))
            x, eps, t, y, drop = (q.to(device) for q in (x, eps, t, nobody, keep))
            optimizer.zero_grad()
            loss = self.process.objective(net, x, y, t, eps, drop).mean()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 100 == 0:
                talk.tell(f"step {step:,} of {self.steps:,}, loss {loss.item():.3f}", step / self.steps)
        points = self.drawn(net, device).cpu()
        with disk.replacing(lab.kept(self) / "points.npz") as aside, open(aside, "wb") as file:
            np.savez(file, allow_pickle=False, points=(points @ P).numpy())
        within, out = distances(points, P)
        found = {"curve": (within**2 + out**2).sqrt(), "in_plane": within, "plane": out}
        means = {name: float(distance.mean()) for name, distance in found.items()}
        return means | {"loss": loss.item(), "seconds": round(time.perf_counter() - began, 1)}

    def drawn(self, net: torch.nn.Module, device: torch.device) -> Tensor:
        """Points (POINTS, D) that the network generates from noise."""
        noise = torch.randn(POINTS, self.dimension, generator=torch.Generator().manual_seed(self.seed + 2)).to(device)
        nobody = torch.full((POINTS,), -1, device=device)
        *_, end = sampling.trajectory(Model(net, self.process), noise, nobody, steps=50)
        return end.z


def distances(points: Tensor, P: Tensor) -> tuple[Tensor, Tensor]:
    """Of points (n, D): to the curve, projected back into its plane, and to that plane; each (n,)."""
    inside, dense = points @ P, curve(torch.linspace(0, 1, 4000) ** 2)
    along = torch.cdist(inside, dense, compute_mode="donot_use_mm_for_euclid_dist").min(1).values
    return along, (points - inside @ P.T).norm(dim=1)


def toy(dimension: int, prediction: str) -> Toy:
    return Toy(dimension, replace(Toy(dimension).process, prediction=prediction))
