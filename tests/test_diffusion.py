"""Theorems about the process: none needs a trained network."""

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
import torch
from hypothesis import given, strategies as st

from justimage.diffusion import INTERPOLANTS, Batch, Diffusion, Space, convert, edm, linear

SPACES = get_args(Space)
interior = st.floats(0.06, 0.94)


def draw(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, eps = torch.randn(2, 3, 1, 4, 4, generator=generator, dtype=torch.float64).unbind()
    return x, eps


def quantities(name: str, t: float, x: torch.Tensor, eps: torch.Tensor):
    path = INTERPOLANTS[name](torch.tensor(t, dtype=torch.float64))
    return path, path.a * x + path.b * eps, {"x": x, "eps": eps, "v": path.da * x + path.db * eps}


@given(t=interior)
def test_table_1_on_the_linear_path_is_the_papers(t: float) -> None:
    x, eps = draw()
    z = t * x + (1 - t) * eps
    written = {
        ("eps", "x"): lambda q: (z - (1 - t) * q) / t,
        ("v", "x"): lambda q: (1 - t) * q + z,
        ("x", "eps"): lambda q: (z - t * q) / (1 - t),
        ("v", "eps"): lambda q: z - t * q,
        ("x", "v"): lambda q: (q - z) / (1 - t),
        ("eps", "v"): lambda q: (z - q) / t,
    }
    q = x + 0.3 * eps  # any prediction, not only the true one
    for (source, target), formula in written.items():
        ours = convert(q, source, target, z, linear(torch.tensor(t, dtype=torch.float64)))
        torch.testing.assert_close(ours, formula(q), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", INTERPOLANTS)
@given(t=interior)
def test_every_cell_finds_the_truth_and_inverts_itself(name: str, t: float) -> None:
    path, z, truth = quantities(name, t, *draw())
    for source, target in product(SPACES, SPACES):
        torch.testing.assert_close(convert(truth[source], source, target, z, path), truth[target])
        there = convert(truth["x"] * 1.7, source, target, z, path)
        torch.testing.assert_close(convert(there, target, source, z, path), truth["x"] * 1.7)


@pytest.mark.parametrize("name", INTERPOLANTS)
@given(t=interior)
def test_v_is_the_time_derivative_of_z(name: str, t: float) -> None:
    x, eps = draw()

    def z(t: torch.Tensor) -> torch.Tensor:
        return INTERPOLANTS[name](t).a * x + INTERPOLANTS[name](t).b * eps

    derivative = torch.func.jacfwd(z)(torch.tensor(t, dtype=torch.float64))
    torch.testing.assert_close(derivative, quantities(name, t, x, eps)[2]["v"])


def test_the_trigonometric_path_preserves_variance() -> None:
    a, b, _, _ = INTERPOLANTS["trigonometric"](torch.linspace(0, 1, 101, dtype=torch.float64))
    torch.testing.assert_close(a**2 + b**2, torch.ones_like(a))


@pytest.mark.parametrize("prediction", [*SPACES, "edm", "linear"])
@pytest.mark.parametrize("path", INTERPOLANTS)
@given(t=interior)
def test_a_loss_space_only_reweights(prediction, path, t: float) -> None:
    """For one prediction, the errors in any two loss spaces are proportional, by a factor that depends on t alone."""
    x, eps = draw()
    process = Diffusion(prediction=prediction, interpolant=path, t_clip=0.0)
    time = torch.full((3,), t, dtype=torch.float64)
    z = process.add_noise(x, eps, time)
    output = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    errors = {loss: replace(process, loss_space=loss).error(output, x, eps, z, time) for loss in SPACES}
    for loss in "eps", "v":
        ratio = errors[loss] / errors["x"]
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-6, atol=0)


@given(t=interior)
def test_footnote_4_the_weights_of_x_prediction(t: float) -> None:
    x, eps = draw()
    time = torch.full((3,), t, dtype=torch.float64)
    weights = {"x": 1, "eps": t**2 / (1 - t) ** 2, "v": 1 / (1 - t) ** 2}
    for loss in SPACES:
        process = Diffusion(loss_space=loss, t_clip=0.0)
        z = process.add_noise(x, eps, time)
        torch.testing.assert_close(process.error(eps, x, eps, z, time), weights[loss] * (eps - x) ** 2)


@pytest.mark.parametrize("prediction", SPACES)
@pytest.mark.parametrize("loss", SPACES)
@pytest.mark.parametrize("path", INTERPOLANTS)
def test_a_clip_never_moves_the_target(prediction, loss, path) -> None:
    x, eps = draw()
    process = Diffusion(prediction=prediction, loss_space=loss, interpolant=path, t_clip=0.3)
    time = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    z, p = process.add_noise(x, eps, time), process.coefficients(time, x)
    truth = {"x": x, "eps": eps, "v": p.da * x + p.db * eps}[prediction]
    assert process.error(truth, x, eps, z, time).max() == 0


def test_edm_coefficients_are_the_appendix_formulas() -> None:
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    sigma, data = (1 - t) / t, 0.5
    c_skip, c_out = edm(linear(t))
    torch.testing.assert_close(c_skip, 1 / t * data**2 / (data**2 + sigma**2))
    torch.testing.assert_close(c_out, data * sigma / (data**2 + sigma**2).sqrt())
    at_noise = edm(linear(torch.tensor(0.0)))
    assert at_noise[0] == 0 and at_noise[1] == 0.5  # the formula's limit is sigma_data, not the 1 of the text


@pytest.mark.parametrize("prediction", [*SPACES, "edm", "linear"])
def test_any_prediction_generates_through_v(prediction) -> None:
    """A network that outputs the true quantity moves z along the true velocity, and predicts the true image."""
    x, eps = draw()
    process, t = Diffusion(prediction=prediction), 0.4
    z, path = process.add_noise(x, eps, t), process.coefficients(t, x)
    c = {"edm": edm(path), "linear": (path.a, path.b)}.get(prediction)
    truth = (x - c[0] * z) / c[1] if c else {"x": x, "eps": eps, "v": x - eps}[prediction]
    velocity, predicted = process.velocity(truth, z, t)
    torch.testing.assert_close(velocity, x - eps)
    torch.testing.assert_close(predicted, x)


@pytest.mark.parametrize("prediction", [*SPACES, "edm", "linear"])
@pytest.mark.parametrize("path", INTERPOLANTS)
@pytest.mark.parametrize("t", [0.01, 0.5, 0.99])
def test_velocity_and_predicted_x_are_one_statement_of_table_1(prediction, path, t: float) -> None:
    """Without a clip either follows from the other, whatever the network says."""
    x, eps = draw()
    process = Diffusion(prediction=prediction, interpolant=path, t_clip=0.0)
    z, c = process.add_noise(x, eps, t), process.coefficients(t, x)
    velocity, predicted = process.velocity(x.roll(1), z, t, t_clip=0.0)
    torch.testing.assert_close(velocity, convert(predicted, "x", "v", z, c))
    torch.testing.assert_close(predicted, convert(velocity, "v", "x", z, c))


def test_training_and_sampling_clips_are_apart() -> None:
    x, eps = draw()
    process, t = Diffusion(t_clip=0.2), 0.9
    z, time = process.add_noise(x, eps, t), torch.full((3,), t, dtype=torch.float64)
    torch.testing.assert_close(process.velocity(x, z, t, t_clip=0.0)[0], x - eps)
    torch.testing.assert_close(process.velocity(x, z, t, t_clip=0.3)[0], (x - z) / 0.3)
    torch.testing.assert_close(process.error(eps, x, eps, z, time), ((eps - x) / 0.2) ** 2)


def test_time_is_logit_normal() -> None:
    t = Diffusion(mu=-0.8, sigma=0.8).sample_t(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(t.logit(), torch.tensor([-1.6, -0.8, 0.0], dtype=torch.float64))


def test_the_loss_drops_labels_and_adds_the_classifier_of_the_networks_extras() -> None:
    x, eps = (q.float() for q in draw())
    seen, t = [], torch.tensor([0.2, 0.5, 0.8])
    batch = Batch(x, torch.tensor([0, 1, 2]), t, eps, torch.tensor([False, True, False]))

    def plain_net(z, t, y):
        seen.append(y.tolist())
        return z.tanh()

    def classifying_net(z, t, y):
        return plain_net(z, t, y), {"logits": torch.eye(3) * 2}

    plain = Diffusion().loss(plain_net, batch)
    assert torch.equal(Diffusion().loss(classifying_net, batch), plain)
    both = Diffusion(class_loss_weight=100.0).loss(classifying_net, batch)
    assert seen == [[0, -1, 2]] * 3
    cross_entropy = -torch.tensor([2.0, 0.0, 0.0]).log_softmax(0)[0]
    torch.testing.assert_close(both, plain * 16 + 100 * cross_entropy)
    with pytest.raises(ValueError, match="logits"):
        Diffusion(class_loss_weight=100.0).loss(plain_net, batch)


@pytest.mark.parametrize(
    "wrong", [dict(prediction="noise"), dict(loss_space="z"), dict(noise_scale=0.0), dict(t_clip=-1.0), dict(label_drop=2.0)]
)
def test_values_outside_their_range_are_named(wrong) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Diffusion(**wrong)
