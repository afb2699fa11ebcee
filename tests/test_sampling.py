"""Sampling: the authors' numbers, the order of the solvers, what is evaluated, and seeds."""

import math

import numpy as np
import pytest
import torch
from torchdiffeq import odeint

from justimage.diffusion import Denoiser, Diffusion, from_uint8, to_uint8
from justimage.sampling import SOLVERS, euler, heun, sample, trajectory, velocity
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
    *_, last = trajectory(model, start.to(device), torch.tensor([3, 7], device=device), **settings)
    assert relative_error(last.z, TINY_ARRAYS[name]) < 1e-5


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
    sample(Denoiser(net, Diffusion()), classes=[3], guidance=2.9, interval=(0.1, 1.0), steps=50)
    unguided = [t for t, y in net.asked if y == [3]]
    assert len(net.asked) == 99
    assert len(unguided) == 11 and max(unguided) == 0.1
    assert all(y == [3, -1] for t, y in net.asked if t > 0.1)


def test_the_interval_is_open_but_for_zero() -> None:
    net = Counting()
    at = velocity(Denoiser(net, Diffusion()), torch.tensor([1]), 2.0, (0.0, 0.5))
    for t in 0.0, 0.25, 0.5:
        at(torch.zeros(1, 1, 2, 2), t)
    assert [len(y) for _, y in net.asked] == [2, 2, 1]


def test_guidance_1_never_asks_about_no_class() -> None:
    net = Counting()
    sample(Denoiser(net, Diffusion()), classes=[3, 4], guidance=1.0, steps=10)
    assert [y for _, y in net.asked] == [[3, 4]] * 19


def error_at_the_end(solver: str, steps: int) -> float:
    """Of dz/dt = z cos t from z = 1, whose solution is exp(sin t)."""
    times = [i / steps for i in range(steps + 1)]
    times.append(1.0 + 1e-9)  # so that the Euler step at the very end, which the solver owes the process, is negligible
    *_, last = SOLVERS[solver](lambda z, t: z * math.cos(t), torch.ones(1, dtype=torch.float64), times)
    return abs(last.z.item() - math.exp(math.sin(1)))


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_the_order_of_convergence(solver: str, order: int) -> None:
    measured = [math.log2(error_at_the_end(solver, n) / error_at_the_end(solver, 2 * n)) for n in (32, 64, 128)]
    assert all(abs(m - order) < 0.1 for m in measured), measured


def test_heun_is_torchdiffeqs_up_to_the_last_step() -> None:
    model, start = tiny(), noise(2, (2, 3, 32, 32))
    times = [i / 10 for i in range(11)]
    with torch.no_grad():
        field = velocity(model, torch.tensor([3, 7]))
        oracle = odeint(lambda t, z: field(z, t.item()), start, torch.tensor(times[:-1], dtype=torch.float64), method="heun2")
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

    model, start = Denoiser(Best(), Diffusion(sampling_t_clip=0.0)), noise(0, (1, 1, 4, 4)).double()
    *_, last = trajectory(model, start, torch.tensor([-1]), steps=400)
    torch.testing.assert_close(last.z, s * start, rtol=2e-3, atol=0)


def test_states_and_predictions_come_in_pairs() -> None:
    model, start = tiny(), noise(2, (1, 3, 32, 32))
    points = list(trajectory(model, start, torch.tensor([3]), steps=5))
    assert [p.t for p in points] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert torch.equal(points[0].z, start) and torch.equal(points[-1].x, points[-1].z)
    with torch.no_grad():
        direct = model.net(points[2].z, torch.tensor([0.4]), torch.tensor([3]))
    torch.testing.assert_close(points[2].x, direct)  # unguided: what the network says


def test_an_image_depends_on_its_seed_alone() -> None:
    model = tiny()
    model.net.double()
    straight = sample(model, classes=[1, 2, 3, 4, 5], seeds=[10, 11, 12, 13, 14], steps=4, guidance=2.0)
    for batch in 1, 2, 3:
        assert torch.equal(sample(model, [1, 2, 3, 4, 5], 10, steps=4, guidance=2.0, batch=batch), straight)
    fp32 = [sample(tiny(), [1, 2, 3, 4, 5], 10, steps=4, guidance=2.0, batch=b).int() for b in (1, 5)]
    assert (fp32[0] - fp32[1]).abs().max() <= 1  # rounding may differ in the last bits, and a pixel by a level
    order = [3, 0, 4, 2, 1]
    shuffled = sample(model, [i + 1 for i in order], [10 + i for i in order], steps=4, guidance=2.0)
    assert torch.equal(shuffled, straight[order])


def test_the_sample_stays_fp32_while_the_network_computes_in_bf16() -> None:
    model, start = tiny(), noise(2, (2, 3, 32, 32))
    exact = list(trajectory(model, start, torch.tensor([3, 7]), steps=4))
    half = list(trajectory(model, start, torch.tensor([3, 7]), steps=4, dtype=torch.bfloat16))
    assert all(p.z.dtype == p.x.dtype == torch.float32 for p in half)
    assert 0 < relative_error(half[-1].z, exact[-1].z) < 0.1


def test_classes_and_seeds_may_be_arrays() -> None:
    model = tiny()
    plain = sample(model, [1, 2], [5, 6], steps=2)
    for kind in (np.array, torch.tensor, tuple):
        assert torch.equal(sample(model, kind([1, 2]), kind([5, 6]), steps=2), plain)
    alone = sample(model, np.int64(1), np.int64(5), steps=2)
    assert torch.equal(alone, sample(model, 1, 5, steps=2))


def test_a_trajectory_refuses_what_a_sample_would() -> None:
    for y, settings in ([0, 10], {}), ([0, -2], {}), ([0, 1], dict(steps=0)), ([0, 1], dict(solver="x")):
        with pytest.raises(ValueError):
            next(trajectory(tiny(), noise(0, (2, 3, 32, 32)), torch.tensor(y), **settings))


def test_given_noise_is_used() -> None:
    model, start = tiny(noise_scale=2.0), noise(2, (2, 3, 32, 32))
    *_, last = trajectory(model, start * 2, torch.tensor([3, 7]), steps=3)
    assert torch.equal(sample(model, [3, 7], noise=start, steps=3), to_uint8(last.z))


def test_pixels_survive_the_way_there_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)
    assert to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


def test_an_interrupted_solver_costs_nothing_more() -> None:
    net = Counting()
    solver = euler(velocity(Denoiser(net, Diffusion()), torch.tensor([1])), torch.zeros(1, 1, 2, 2), [0.0, 0.5, 1.0])
    next(solver)
    assert len(net.asked) == 1


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (dict(classes=[10]), "class 10"),
        (dict(classes=[-2]), "class -2"),
        (dict(classes=[1, 2, 3], seeds=[0, 1]), "agree"),
        (dict(classes=[1], steps=0), "steps"),
        (dict(classes=[1], interval=(0.5, 0.1)), "interval"),
        (dict(classes=[1], solver="rk4"), "heun, euler"),
        (dict(classes=[1], noise=torch.zeros(1, 1, 4, 4)), "noise"),
        (dict(classes=[1], guidance=float("nan")), "guidance"),
        (dict(classes=[1], batch=0), "batch"),
        (dict(classes=["cat"]), "classes"),
        (dict(classes=[1.5]), "classes"),
        (dict(classes=[]), "classes"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, word) -> None:
    with pytest.raises(ValueError, match=word):
        sample(tiny(), **settings)
