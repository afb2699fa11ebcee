"""Sampling: the authors' numbers, the order of the solvers, what is evaluated, and seeds."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torchdiffeq import odeint

from justimage.demo.pictures import denoising_figure
from justimage.diffusion import Diffusion, Prediction
from justimage.normalization import from_uint8, to_uint8
from justimage.sampling import Denoiser, GuidedVelocity, Sampling, sample, trajectory, with_passes
from justimage.solvers import GRIDS, SOLVERS, euler, heun
from tests.reference import DEVICES, TINY_ARRAYS, noise, relative_error, tiny


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("heun50_cfg2.9_interval0.1_1", dict(solver="heun", steps=50, guidance=2.9, interval=(0.1, 1.0))),
        ("heun10_cfg1", dict(solver="heun", steps=10)),
        ("euler20_cfg2.2_all", dict(solver="euler", steps=20, guidance=2.2)),
        ("heun8_cfg3_interval0.3_0.8_noise2", dict(solver="heun", steps=8, guidance=3.0, interval=(0.3, 0.8), scale=2.0)),
    ],
)
@pytest.mark.parametrize("device", DEVICES)
def test_samples_are_the_references(device, name, settings) -> None:
    settings = dict(settings)
    model, start = tiny(device), noise(2, (2, 3, 32, 32)) * settings.pop("scale", 1.0)
    *_, last = trajectory(model, start.to(device), torch.tensor([3, 7], device=device), Sampling(**settings))
    assert relative_error(last.z, TINY_ARRAYS[name]) < 1e-5


@pytest.mark.parametrize("device", DEVICES)
def test_the_way_from_noise_is_drawn_on_every_device(device) -> None:
    model = tiny(device)
    one, two = denoising_figure(model, [3]), denoising_figure(model, [3, -1])
    assert two.width == one.width and two.height > one.height


class Counting(torch.nn.Module):
    """Notes at which t it was asked about which classes."""

    shape, classes = (1, 2, 2), 10

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[float, list[int]]] = []
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, z, t, y):
        self.asked.append((round(t[0].item(), 6), y.tolist()))
        return z.tanh()


def test_evaluations_are_counted_as_the_paper_would() -> None:
    net = Counting()
    sample(Denoiser(net, Diffusion()), condition=[3], sampling=Sampling(guidance=2.9, interval=(0.1, 1.0), steps=50))
    unguided = [t for t, y in net.asked if y == [3]]
    assert len(net.asked) == 99
    assert len(unguided) == 11 and max(unguided) == 0.1
    assert all(y == [3, -1] for t, y in net.asked if t > 0.1)


def test_the_interval_is_open_but_for_zero() -> None:
    net = Counting()
    at = GuidedVelocity(Denoiser(net, Diffusion()), torch.tensor([1]), Sampling(guidance=2.0, interval=(0.0, 0.5)))
    for t in 0.0, 0.25, 0.5:
        at(torch.zeros(1, 1, 2, 2), t)
    assert [len(y) for _, y in net.asked] == [2, 2, 1]


def test_guidance_1_never_asks_about_no_class() -> None:
    net = Counting()
    sample(Denoiser(net, Diffusion()), condition=[3, 4], sampling=Sampling(guidance=1.0, steps=10))
    assert [y for _, y in net.asked] == [[3, 4]] * 19


class GaussianVelocity:
    """The velocity of data N(0.7, 0.5^2), in float64, and where it leads."""

    mean, std = 0.7, 0.5

    def coefficients(self, t: float) -> tuple[float, float]:
        return t, 1 - t

    def __call__(self, z: torch.Tensor, t: float) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.mean + t * self.std**2 / (t**2 * self.std**2 + (1 - t) ** 2) * (z - t * self.mean)
        return (x - z) / (1 - t), x

    def noise(self, number: int) -> torch.Tensor:
        return torch.randn(4, generator=torch.Generator().manual_seed(number), dtype=torch.float64)

    def solution(self, z: torch.Tensor, t: float, s: float) -> torch.Tensor:
        """z at s from z at t: it stays as many standard deviations from the mean."""
        scale = [math.hypot(time * self.std, 1 - time) for time in (t, s)]
        return s * self.mean + scale[1] / scale[0] * (z - t * self.mean)


START = torch.tensor([1.3, -0.4, 0.2, 2.0], dtype=torch.float64)


def end(solver: str, times: list[float]) -> torch.Tensor:
    *_, last = SOLVERS[solver](GaussianVelocity(), START, times)
    return last.z


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("adams", 2), ("dpm2", 2), ("dpm3", 3), ("unipc", 3)])
def test_the_order_of_convergence(solver: str, order: int) -> None:
    """From 0.1 to 0.9 with short steps at both ends, where these solvers begin and end with first order. UniPC's corrector
    makes its steps of second order one better."""
    errors = []
    for n in (64, 128, 256):
        times = [0.1 + 0.8 * GRIDS["cosine"](i / n) for i in range(n + 1)]
        errors.append((end(solver, times) - GaussianVelocity().solution(START, 0.1, 0.9)).abs().max().item())
    measured = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(abs(m - order) < 0.15 for m in measured), measured


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "sde"])
def test_every_solver_ends_at_the_solution(solver: str) -> None:
    """From pure noise to data, where lambda is infinite."""
    times = [GRIDS["cosine"](i / 400) for i in range(401)]
    assert (end(solver, times) - GaussianVelocity().solution(START, 0.0, 1.0)).abs().max() < 5e-3


class TrigonometricVelocity(GaussianVelocity):
    """The same of the path whose a and b are sine and cosine, the latter not 0 at t = 1 in floating point."""

    def coefficients(self, t: float) -> tuple[float, float]:
        return math.sin(math.pi / 2 * t), math.cos(math.pi / 2 * t)

    def __call__(self, z: torch.Tensor, t: float) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = self.coefficients(t)
        x = self.mean + a * self.std**2 / (a**2 * self.std**2 + b**2) * (z - a * self.mean)
        return math.pi / 2 * (x - a * z) / b, x  # a' x + b' eps with eps = (z - a x) / b


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("grid", ["logsnr", "linear"])
def test_every_solver_ends_at_the_image_on_the_trigonometric_path(solver: str, grid: str) -> None:
    """From pure noise z a standard deviation of the noise stays one of the data; the stochastic solver ends within four."""
    times = Sampling(steps=200, times=grid).grid
    *_, last = SOLVERS[solver](TrigonometricVelocity(), START, times)
    wanted = GaussianVelocity.mean + GaussianVelocity.std * START
    assert (last.z - wanted).abs().max() < (2.0 if solver == "sde" else 2e-2)


def test_times_that_are_not_those_from_noise_to_images_are_refused() -> None:
    for times in (0.2, 0.5, 1.0), (0.0, 0.5, 0.8):
        with pytest.raises(ValueError, match=r"from noise to images they must be 0 to 1"):
            sample(tiny(), [3], sampling=Sampling(times=times))
    assert Sampling(times=[0.0, 0.5, 1.0]) == Sampling(times=(0.0, 0.5, 1.0), steps=2)  # pyright: ignore[reportArgumentType]


def test_noise_and_condition_are_taken_to_the_networks_device() -> None:
    model = tiny()
    on_meta = replace(model, net=model.net.to("meta"))
    placed = on_meta.place({"classes": torch.zeros(2), "image": torch.zeros(2, 3)})
    assert all(tensor.is_meta for tensor in placed.values()) and on_meta.place(None) is None
    assert not replace(model, net=torch.nn.Identity()).place(torch.zeros(1)).is_meta


def test_an_entry_that_the_network_is_not_told_is_refused() -> None:
    for name in "class", "text":
        with pytest.raises(ValueError, match=f"the condition has '{name}'; allowed for this model: classes"):
            sample(tiny(), {name: torch.tensor([3])})


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("prediction", get_args(Prediction))
def test_without_a_clip_every_prediction_is_sampled(prediction: Prediction, solver: str) -> None:
    """From pure noise, where what eps-prediction says of x is divided by t = 0."""
    model = replace(tiny(), diffusion=Diffusion(prediction))
    settings = Sampling(solver, steps=3, times="logsnr", guidance=1.5, t_clip=0.0)
    points = list(trajectory(model, noise(2, (2, 3, 32, 32)), torch.tensor([3, 7]), settings))
    assert all(q.isfinite().all() for point in points for q in (point.z, point.v, point.x) if q is not None)


def test_the_stochastic_solver_samples_the_distribution() -> None:
    """Independent of where it began: mean and deviation of the data."""

    class Many(GaussianVelocity):
        def noise(self, number: int) -> torch.Tensor:
            return torch.randn(20_000, generator=torch.Generator().manual_seed(number), dtype=torch.float64)

    *_, last = SOLVERS["sde"](Many(), torch.zeros(20_000, dtype=torch.float64), Sampling(steps=60, times="cosine").grid)
    assert abs(last.z.mean() - 0.7) < 0.02 and abs(last.z.std() - 0.5) < 0.02


DIFFUSERS = {
    "dpm2": [1.304050517, 0.459271412, 0.757428785, 1.65190073],
    "unipc": [1.304657625, 0.459076006, 0.757516577, 1.652838291],
}
"""What diffusers 0.42.1 computes of the same on the same ten steps: DPMSolverMultistepScheduler and UniPCMultistepScheduler
with flow_prediction, solver_order 2, lower_order_final off, sigmas 1 - t."""


@pytest.mark.parametrize("solver", DIFFUSERS)
def test_multistep_solvers_are_those_of_diffusers(solver: str) -> None:
    times = [0.02 + 0.93 * GRIDS["cosine"](i / 10) for i in range(11)]
    assert (end(solver, times) - torch.tensor(DIFFUSERS[solver], dtype=torch.float64)).abs().max() < 1e-6


def test_the_third_order_solver_integrates_parabolas_exactly() -> None:
    """A prediction that is a parabola in lambda, against quadrature of its weighted integral."""

    class Parabola(GaussianVelocity):
        def __call__(self, z: torch.Tensor, t: float) -> tuple[torch.Tensor, torch.Tensor]:
            x = torch.full_like(z, parabola(math.log(t / (1 - t))))
            return (x - z) / (1 - t), x

    def parabola(level: float) -> float:
        return 0.3 - 0.5 * level + 0.2 * level**2

    def step(z: torch.Tensor, t: float, s: float) -> torch.Tensor:
        low, high = math.log(t / (1 - t)), math.log(s / (1 - s))
        return (1 - s) * (z / (1 - t) + quad(lambda level: math.exp(level) * parabola(level), low, high)[0])

    times = [0.1, 0.25, 0.45, 0.7, 0.9]
    points = list(SOLVERS["dpm3"](Parabola(), START, times))
    for now, after in list(pairwise(points))[2:]:  # two steps to begin with
        torch.testing.assert_close(after.z, step(now.z, now.t, after.t), rtol=1e-9, atol=0)


def test_passes_are_counted_and_kept_to() -> None:
    """As a network sees them; and the most steps that a number of passes allows."""
    for sampling in (
        Sampling(guidance=2.9, interval=(0.1, 1.0)),
        Sampling("unipc", steps=7, times="cosine", guidance=2.0, interval=(0.1, 1.0)),
        Sampling("dpm2", steps=9, guidance=2.0, guidance_every=3),
    ):
        net = Counting()
        sample(Denoiser(net, Diffusion()), condition=[3], sampling=sampling)
        assert sampling.passes == sum(len(y) for _, y in net.asked)
        for passes in 1, 2, 12, 13, 100:
            if passes > 1 or not sampling.guides(0.0):
                found = with_passes(sampling, passes)
                assert found.passes <= passes < replace(found, steps=found.steps + 1).passes
                assert (found.guidance, found.interval) == (sampling.guidance, sampling.interval)
    assert Sampling(guidance=2.9, interval=(0.1, 1.0)).passes == 187
    with pytest.raises(ValueError, match="passes is 1; it must be 2 or more"):
        with_passes(Sampling(guidance=2.0), 1)


def test_a_difference_that_is_used_again_is_the_last() -> None:
    """Guidance from every second evaluation; where condition and no condition differ by a constant, that changes nothing."""

    class Offset(torch.nn.Module):
        shape, classes = (1, 2, 2), 10

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, z, t, y):
            return z / 2 + y[:, None, None, None] / 4

    model, start = Denoiser(Offset(), Diffusion()), noise(0, (2, 1, 2, 2)).double()
    for solver in "heun", "unipc":
        sampling = Sampling(solver, steps=6, guidance=2.0)
        *_, each = trajectory(model, start, torch.tensor([1, 3]), sampling)
        *_, second = trajectory(model, start, torch.tensor([1, 3]), replace(sampling, guidance_every=2))
        torch.testing.assert_close(second.z, each.z)


def test_added_noise_depends_on_the_seed_alone() -> None:
    model = tiny()
    model.net.double()
    sampling = Sampling("sde", steps=4, guidance=2.0)
    whole = sample(model, [1, 2, 3], [5, 6, 7], sampling)
    assert torch.equal(sample(model, [3, 1], [7, 5], sampling), whole[[2, 0]])
    assert not torch.equal(sample(model, [1], [6], sampling), sample(model, [1], [5], sampling))


def test_heun_is_torchdiffeqs_up_to_the_last_step() -> None:
    model, start = tiny(), noise(2, (2, 3, 32, 32))
    times = [i / 10 for i in range(11)]
    with torch.no_grad():
        field = GuidedVelocity(model, torch.tensor([3, 7]), Sampling())
        oracle = odeint(
            lambda t, z: field(z, t.item())[0], start, torch.tensor(times[:-1], dtype=torch.float64), method="heun2"
        )
        ours = [state.z for state in heun(field, start, times)]
    for a, b in zip(ours[:-1], oracle, strict=True):
        assert relative_error(a, b) < 1e-6


def test_a_gaussian_is_transported_exactly() -> None:
    """With the best possible x-prediction for N(0, s^2) data, sampling turns noise into data: z at 1 is s times z at 0."""
    s = 0.5

    class Best(torch.nn.Module):
        shape, classes = (1, 4, 4), 0

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, z, t, y):
            t = t[:, None, None, None].to(z.dtype)
            return z * t * s**2 / (t**2 * s**2 + (1 - t) ** 2)

    model, start = Denoiser(Best(), Diffusion()), noise(0, (1, 1, 4, 4)).double()
    *_, last = trajectory(model, start, torch.tensor([-1]), sampling=Sampling(steps=400, t_clip=0.0))
    torch.testing.assert_close(last.z, s * start, rtol=2e-3, atol=0)


def test_states_and_predictions_come_in_pairs() -> None:
    model, start = tiny(), noise(2, (1, 3, 32, 32))
    points = list(trajectory(model, start, torch.tensor([3]), sampling=Sampling(steps=5)))
    assert [p.t for p in points] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert torch.equal(points[0].z, start) and torch.equal(points[-1].x, points[-1].z)
    with torch.no_grad():
        direct = model.net(points[2].z, torch.tensor([0.4]), torch.tensor([3]))
    torch.testing.assert_close(points[2].x, direct)  # unguided: what the network says


def test_an_image_depends_on_its_seed_alone() -> None:
    model = tiny()
    model.net.double()
    straight = sample(model, condition=[1, 2, 3, 4, 5], seeds=[10, 11, 12, 13, 14], sampling=Sampling(steps=4, guidance=2.0))
    for batch in 1, 2, 3:
        assert torch.equal(sample(model, [1, 2, 3, 4, 5], 10, batch=batch, sampling=Sampling(steps=4, guidance=2.0)), straight)
    fp32 = [sample(tiny(), [1, 2, 3, 4, 5], 10, batch=b, sampling=Sampling(steps=4, guidance=2.0)).int() for b in (1, 5)]
    assert (fp32[0] - fp32[1]).abs().max() <= 1  # rounding may differ in the last bits, and a pixel by a level
    order = [3, 0, 4, 2, 1]
    shuffled = sample(model, [i + 1 for i in order], [10 + i for i in order], sampling=Sampling(steps=4, guidance=2.0))
    assert torch.equal(shuffled, straight[order])


def test_the_sample_stays_fp32_while_the_network_computes_in_bf16() -> None:
    model, start = tiny(), noise(2, (2, 3, 32, 32))
    exact = list(trajectory(model, start, torch.tensor([3, 7]), sampling=Sampling(steps=4)))
    half = list(trajectory(model, start, torch.tensor([3, 7]), dtype=torch.bfloat16, sampling=Sampling(steps=4)))
    assert all(p.z.dtype == p.x.dtype == torch.float32 for p in half)
    assert 0 < relative_error(half[-1].z, exact[-1].z) < 0.1


def test_classes_and_seeds_may_be_arrays() -> None:
    model = tiny()
    plain = sample(model, [1, 2], [5, 6], sampling=Sampling(steps=2))
    for kind in (np.array, torch.tensor, tuple):
        assert torch.equal(sample(model, kind([1, 2]), kind([5, 6]), sampling=Sampling(steps=2)), plain)
    alone = sample(model, np.int64(1), np.int64(5), sampling=Sampling(steps=2))
    assert torch.equal(alone, sample(model, 1, 5, sampling=Sampling(steps=2)))


def test_a_trajectory_refuses_what_a_sample_would() -> None:
    for y, settings in ([0, 10], {}), ([0, -2], {}), ([0, 1], dict(steps=0)), ([0, 1], dict(solver="x")):
        with pytest.raises(ValueError):
            next(trajectory(tiny(), noise(0, (2, 3, 32, 32)), torch.tensor(y), Sampling(**settings)))


def test_given_noise_is_used() -> None:
    model, start = tiny(noise_scale=2.0), noise(2, (2, 3, 32, 32))
    *_, last = trajectory(model, start * 2, torch.tensor([3, 7]), sampling=Sampling(steps=3))
    assert torch.equal(sample(model, [3, 7], noise=start, sampling=Sampling(steps=3)), to_uint8(last.z))


def test_pixels_survive_the_way_there_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)
    assert to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


def test_an_interrupted_solver_costs_nothing_more() -> None:
    net = Counting()
    solver = euler(
        GuidedVelocity(Denoiser(net, Diffusion()), torch.tensor([1]), Sampling()), torch.zeros(1, 1, 2, 2), [0.0, 0.5, 1.0]
    )
    next(solver)
    assert len(net.asked) == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (dict(condition=[10]), "class 10"),
        (dict(condition=[-2]), "class -2"),
        (dict(condition=[1, 2, 3], seeds=[0, 1]), "agree"),
        (dict(condition=[1], noise=torch.zeros(1, 1, 4, 4)), "noise"),
        (dict(condition=[1], batch=0), "batch"),
        (dict(condition=["cat"]), "classes"),
        (dict(condition=[1.5]), "classes"),
        (dict(condition=[]), "classes"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, word) -> None:
    with pytest.raises(ValueError, match=word):
        sample(tiny(), **arguments)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (dict(steps=0), "steps is 0"),
        (dict(interval=(0.5, 0.1)), "interval is 0.5 0.1"),
        (dict(solver="rk4"), "allowed: heun, euler"),
        (dict(guidance=float("nan")), "guidance"),
        (dict(t_clip=-0.1), "t_clip is -0.1"),
        (dict(times="sine"), "allowed: linear, cosine"),
        (dict(times=(0.0, 0.5, 0.5)), "rising"),
        (dict(times=(0.5,)), "two or more"),
        (dict(times=(0.0, 1.5)), "from 0 to 1"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, word) -> None:
    with pytest.raises(ValueError, match=word):
        Sampling(**settings)


def test_any_grid_of_times_is_walked() -> None:
    """A grid given number by number is the grid of that name, and its length is the number of steps."""
    model, start = tiny(), noise(2, (1, 3, 32, 32))
    assert Sampling(steps=4, times="cosine").grid == pytest.approx([0, 0.5 - 0.125**0.5, 0.5, 0.5 + 0.125**0.5, 1])
    for name in "linear", "cosine":
        grid = tuple(Sampling(steps=3, times=name).grid)
        named = list(trajectory(model, start, torch.tensor([3]), Sampling(steps=3, times=name)))
        given = list(trajectory(model, start, torch.tensor([3]), Sampling(times=grid)))
        assert Sampling(times=grid).steps == 3 and tuple(p.t for p in named) == grid
        assert all(torch.equal(p.z, q.z) and torch.equal(p.x, q.x) for p, q in zip(named, given, strict=True))


def test_guidance_extrapolates_velocity_and_prediction_alike() -> None:
    model, z = tiny(), noise(2, (2, 3, 32, 32)).double()
    model.net.double()
    y, none = torch.tensor([3, 7]), torch.tensor([-1, -1])
    with torch.no_grad():
        plain, null, guided = (GuidedVelocity(model, c, Sampling(guidance=g))(z, 0.6) for c, g in ((y, 1), (none, 1), (y, 2.5)))
    for a, b, c in zip(plain, null, guided, strict=True):
        torch.testing.assert_close(c, b + 2.5 * (a - b))


class Conditioned(torch.nn.Module):
    """Notes the condition it is given."""

    shape = (1, 2, 2)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list = []
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, z, t, condition):
        self.seen.append(condition)
        return z.tanh()


def test_a_condition_of_any_form_is_guided_towards_and_cut_into_batches() -> None:
    net, maps, tokens = Conditioned(), torch.rand(3, 1, 2, 2), torch.tensor([[1, 2], [3, 4], [5, 6]])
    sampling = Sampling(guidance=2.0, steps=1)
    sample(Denoiser(net), {"map": maps, "tokens": tokens}, 0, sampling, batch=2)
    first, second = net.seen
    assert torch.equal(first["map"], torch.cat([maps[:2], torch.zeros(2, 1, 2, 2)]))
    assert torch.equal(first["tokens"], torch.cat([tokens[:2], torch.full((2, 2), -1)]))
    assert torch.equal(second["map"], torch.cat([maps[2:], torch.zeros(1, 1, 2, 2)]))
    with pytest.raises(ValueError, match="must agree"):
        sample(Denoiser(net), {"map": maps, "tokens": tokens[:2]}, 0, sampling)
