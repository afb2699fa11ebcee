"""Averages: what they average, in any batch, and that a loan is always returned."""

import pytest
import torch

from justimage.ema import EMA, half_life


def net(value: float) -> torch.nn.Linear:
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(layer.weight, value)
    torch.nn.init.constant_(layer.bias, value)
    return layer


def test_several_decays_follow_the_recurrence() -> None:
    layer = net(0.0)
    ema = EMA(list(layer.parameters()), [0.9996, 0.9998, 0.9999])
    expected = dict.fromkeys(ema.averages, 0.0)
    for step in range(1, 6):
        torch.nn.init.constant_(layer.weight, float(step))
        ema.update(batch=1024, images_seen=1024 * step)
        expected = {n: float(n) * old + (1 - float(n)) * step for n, old in expected.items()}
    for n, averages in ema.averages.items():
        torch.testing.assert_close(averages[0], torch.full((2, 2), expected[n]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("batch", [64, 256, 1024])
def test_a_decay_means_the_same_in_every_batch(batch: int) -> None:
    """The share of the first weights after 8,192 images is 0.9996^8, however the images are grouped."""
    layer = net(1.0)
    ema = EMA(list(layer.parameters()), [0.9996])
    torch.nn.init.constant_(layer.weight, 0.0)
    for seen in range(batch, 8192 + 1, batch):
        ema.update(batch, seen)
    torch.testing.assert_close(ema.averages["0.9996"][0], torch.full((2, 2), 0.9996**8), rtol=1e-5, atol=0)


def test_half_lives() -> None:
    assert half_life(20_000) == 20_000
    assert abs(0.5 ** (1024 / half_life(0.9999)) - 0.9999) < 1e-12
    for wrong in 0, 1, -3:
        with pytest.raises(ValueError, match="allowed"):
            half_life(wrong)


def test_a_ramp_forgets_the_beginning() -> None:
    layer = net(1.0)
    slow, ramped = EMA(list(layer.parameters()), [1e6]), EMA(list(layer.parameters()), [1e6], ramp=0.1)
    torch.nn.init.constant_(layer.weight, 0.0)
    for seen in range(100, 10_001, 100):
        slow.update(100, seen)
        ramped.update(100, seen)
    assert slow.averages["1000000"][0].max() > 0.99 and ramped.averages["1000000"][0].max() < 1e-6


def test_a_loan_is_returned_whatever_happens() -> None:
    layer = net(5.0)
    ema = EMA(list(layer.parameters()), [0.5, 0.9])
    torch.nn.init.constant_(layer.weight, 7.0)
    with pytest.raises(RuntimeError), ema.lend(0.5):
        assert layer.weight.max() == 5
        raise RuntimeError
    assert layer.weight.max() == 7 and ema.averages["0.5"][0].max() == 5
    with ema.lend(0):
        assert layer.weight.max() == 7
    with pytest.raises(ValueError, match=r"0\.5, 0\.9"), ema.lend(0.7):
        pass
