"""How a JiT is read and sampled from, as a scheduler of diffusers: the diffusion process, guidance, solvers, grids of times.

Times run from 0, noise, to 1, image. A solver asks for the velocities that it needs, so the pipeline calls `trajectory`; `step`
is for loops of one's own, with one output of the network at each of `timesteps`. The sample is float32 whatever the network
computes in.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor, nn

from justimage.conditions import Condition
from justimage.diffusion import Diffusion
from justimage.randomness import image_noise
from justimage.sampling import Denoiser, Sampling, trajectory
from justimage.solvers import SOLVERS, Point


class JiTScheduler(SchedulerMixin, ConfigMixin):
    """A `Diffusion` and a `Sampling`, where each entry of its configuration is explained.

    Two of them are clips: `t_clip` is the lower bound of denominators while sampling, `training_t_clip` that of the loss.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        solver: str = "heun",
        steps: int = 50,
        times: str | Sequence[float] = "linear",
        guidance: float = 1.0,
        interval: Sequence[float] = (0.0, 1.0),
        guidance_every: int = 1,
        t_clip: float = 0.05,
        prediction: Literal["x", "eps", "v", "edm", "linear"] = "x",
        loss_space: Literal["x", "eps", "v"] = "v",
        interpolant: Literal["linear", "trigonometric"] = "linear",
        mu: float = -0.8,
        sigma: float = 0.8,
        noise_scale: float = 1.0,
        training_t_clip: float = 0.05,
        label_drop: float = 0.1,
        class_loss_weight: float = 0.0,
    ) -> None:
        grid = times if isinstance(times, str) else tuple(times)
        self.sampling = Sampling(solver, steps, grid, guidance, (interval[0], interval[1]), guidance_every, t_clip)
        self.diffusion = Diffusion(
            prediction, loss_space, interpolant, mu, sigma, noise_scale, training_t_clip, label_drop, class_loss_weight
        )
        self.init_noise_sigma = noise_scale
        self.set_timesteps()

    def set_timesteps(self, num_inference_steps: int | None = None, device: str | torch.device | None = None) -> None:
        """Begin anew, in that many steps; `timesteps` are the times at which the network is evaluated, two a step for Heun."""
        self.current = self.sampling if num_inference_steps is None else with_steps(self.sampling, num_inference_steps)
        self.start: Tensor | None = None
        self.known: list[tuple[Tensor, Tensor]] = []
        asked = Asked(self)
        for _ in SOLVERS[self.current.solver](asked, torch.zeros(1, 1), self.current.grid):
            pass
        self.timesteps = torch.tensor(asked.times, dtype=torch.float32, device=device)
        self.num_inference_steps = self.current.steps

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noisy sample between images and standard normal noise, at times (b,) (Eq. 1)."""
        return self.diffusion.add_noise(original_samples, noise * self.diffusion.noise_scale, timesteps)

    def step(
        self, model_output: Tensor, timestep: Tensor | float, sample: Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor]:
        """The sample at the next of `timesteps`, or at the end, from the network's output (guided, if one guides) at this one.

        The solver runs again from the start, answered from what is known, up to the first evaluation that is not. So all
        outputs since `set_timesteps` are kept; `trajectory` keeps none.
        """
        z = sample.float()
        self.start = z if self.start is None else self.start
        self.known.append(self.diffusion.velocity(model_output.float(), z, float(timestep), self.current.t_clip))
        asked = Asked(self, self.known)
        try:
            for point in SOLVERS[self.current.solver](asked, self.start, self.current.grid):
                z = point.z
        except Unanswered as question:
            z = question.z
        return SchedulerOutput(prev_sample=z) if return_dict else (z,)

    def trajectory(
        self,
        transformer: Any,
        noise: Tensor,
        condition: Condition = None,
        sampling: Sampling | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[Point]:
        """Every point (t, z, v, x) on the way from noise, (b, ...) of deviation `init_noise_sigma`, to images: by default as
        the configuration says. seeds: b, of the noise that the solver sde adds on the way."""
        denoiser = Denoiser(Network(transformer), self.diffusion, shape=transformer.shape, classes=transformer.classes)
        yield from trajectory(denoiser, noise.float(), condition, sampling or self.sampling, seeds=seeds)


def with_steps(sampling: Sampling, steps: int) -> Sampling:
    """The same sampling in that many steps; ValueError where its times are listed one by one."""
    if isinstance(sampling.times, tuple) and steps != sampling.steps:
        raise ValueError(f"num_inference_steps is {steps}, but the times are listed, of {sampling.steps} steps; give times too")
    return replace(sampling, steps=steps)


class Network(nn.Module):
    """A model of diffusers as a network net(z, t, condition)."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.transformer(z, t, condition).sample


class Unanswered(Exception):
    """The evaluation that a solver asked for and nobody knows."""

    def __init__(self, z: Tensor) -> None:
        super().__init__("the next evaluation is not known yet")
        self.z = z


class Asked:
    """A velocity that answers from a list and notes at which times it is asked; without a list it answers 0."""

    def __init__(self, scheduler: JiTScheduler, known: list[tuple[Tensor, Tensor]] | None = None) -> None:
        self.diffusion, self.known, self.times, self.shape = scheduler.diffusion, known, [], torch.Size()

    def __call__(self, z: Tensor, t: float) -> tuple[Tensor, Tensor]:
        self.times.append(t)
        self.shape, self.device = z.shape, z.device
        if self.known is None:
            return torch.zeros_like(z), torch.zeros_like(z)
        if len(self.times) > len(self.known):
            raise Unanswered(z)
        return self.known[len(self.times) - 1]

    def coefficients(self, t: float) -> tuple[float, float]:
        a, b, _, _ = self.diffusion.coefficients(t, torch.zeros((), dtype=torch.float64))
        return a.item(), b.item()

    def noise(self, number: int) -> Tensor:
        noise = torch.stack([image_noise(seed, self.shape[1:], number + 1) for seed in range(self.shape[0])])
        return noise.to(self.device) * self.diffusion.noise_scale
