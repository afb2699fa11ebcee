"""Sampling: the authors' numbers, the order of the solvers, what is evaluated, and seeds."""

import math

import numpy as np
import pytest
import torch
from torchdiffeq import odeint

from justimage.diffusion import Diffusion
from justimage.normalization import from_uint8, to_uint8
from justimage.sampling import SOLVERS, Denoiser, Sampling, euler, heun, sample, trajectory, velocity
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
    at = velocity(Denoiser(net, Diffusion()), torch.tensor([1]), Sampling(guidance=2.0, interval=(0.0, 0.5)))
    for t in 0.0, 0.25, 0.5:
        at(torch.zeros(1, 1, 2, 2), t)
    assert [len(y) for _, y in net.asked] == [2, 2, 1]


def test_guidance_1_never_asks_about_no_class() -> None:
    net = Counting()
    sample(Denoiser(net, Diffusion()), condition=[3, 4], sampling=Sampling(guidance=1.0, steps=10))
    assert [y for _, y in net.asked] == [[3, 4]] * 19


def error_at_the_end(solver: str, steps: int) -> float:
    """Of dz/dt = z cos t from z = 1, whose solution is exp(sin t)."""
    times = [i / steps for i in range(steps + 1)]
    times.append(1.0 + 1e-9)  # so that the Euler step at the very end, which the solver owes the process, is negligible
    *_, last = SOLVERS[solver](lambda z, t: (z * math.cos(t), z), torch.ones(1, dtype=torch.float64), times)
    return abs(last.z.item() - math.exp(math.sin(1)))


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_the_order_of_convergence(solver: str, order: int) -> None:
    measured = [math.log2(error_at_the_end(solver, n) / error_at_the_end(solver, 2 * n)) for n in (32, 64, 128)]
    assert all(abs(m - order) < 0.1 for m in measured), measured


def test_heun_is_torchdiffeqs_up_to_the_last_step() -> None:
    model, start = tiny(), noise(2, (2, 3, 32, 32))
    times = [i / 10 for i in range(11)]
    with torch.no_grad():
        field = velocity(model, torch.tensor([3, 7]), Sampling())
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
        velocity(Denoiser(net, Diffusion()), torch.tensor([1]), Sampling()), torch.zeros(1, 1, 2, 2), [0.0, 0.5, 1.0]
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
        plain, null, guided = (velocity(model, c, Sampling(guidance=g))(z, 0.6) for c, g in ((y, 1), (none, 1), (y, 2.5)))
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
