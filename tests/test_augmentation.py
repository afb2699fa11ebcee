"""Augmentation: images are changed as the network is told, most of them not at all, and each by its position alone."""

from pathlib import Path

import pytest
import torch

from justimage import checkpoint, run as runs
from justimage.augmentation import MOVE, SCALE, augment
from justimage.conditions import AUGMENTATION, drop, with_entry
from justimage.transformer import JiT
from tests.test_training import digest, equal, finish, resumed, small


def test_each_image_is_changed_as_it_is_told() -> None:
    """Images whose pixels are their own coordinates show where each was taken from, which what is told says, too."""
    count, height, width = 64, 48, 64
    y, x = torch.meshgrid((torch.arange(height) + 0.5) - height / 2, (torch.arange(width) + 0.5) - width / 2, indexing="ij")
    shown, told = augment(torch.stack([x, y]).expand(count, -1, -1, -1) / 64, 0, 128, 0.5)
    scale, stretch, cosine, sine, right, down = told.view(count, 6, 1, 1).unbind(1)
    across, along = 2 ** (-SCALE * (scale + stretch)), 2 ** (-SCALE * (scale - stretch))
    taken_x = across * ((cosine + 1) * x + sine * y) - MOVE * width * right
    taken_y = along * ((cosine + 1) * y - sine * x) - MOVE * height * down
    inside = (taken_x.abs() < width / 2 - 3) & (taken_y.abs() < height / 2 - 3)  # elsewhere it is mirrored
    assert inside.flatten(1).float().mean(1).min() > 0.2
    for taken, seen in (taken_x, shown[:, 0]), (taken_y, shown[:, 1]):
        assert (taken / 64 - seen)[inside].abs().max() < 0.01


def test_most_images_stay_as_they_are_and_each_is_a_function_of_its_position() -> None:
    x = torch.rand(400, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    shown, told = augment(x, 5, 0, 0.12)
    same = (shown == x).flatten(1).all(1)
    assert torch.equal(same, (told == 0).all(1)) and 0.5 < same.float().mean() < 0.7  # 0.88^4
    assert shown.min() >= -1 and shown.max() <= 1
    again = [augment(x[i : i + 50], 5, i, 0.12)[0] for i in range(0, 400, 50)]
    assert torch.allclose(torch.cat(again), shown, atol=1e-6)
    assert torch.equal(augment(x, 5, 0, 0.0)[0], x)


def test_a_new_network_does_not_care_and_what_was_done_is_never_dropped() -> None:
    net = JiT("T/4", image_size=16, channels=1, classes=3, augmented=True).eval()
    for linear in net.head.linear, net.head.modulation:
        torch.nn.init.normal_(linear.weight, std=0.1)
    z, t, y = torch.randn(4, 1, 16, 16), torch.rand(4), torch.tensor([0, 1, 2, -1])
    told = torch.randn(4, 6)
    assert torch.equal(net(z, t, y), net(z, t, with_entry(y, AUGMENTATION, told)))
    torch.nn.init.normal_(net.augmentation.weight)
    assert not torch.allclose(net(z, t, y), net(z, t, with_entry(y, AUGMENTATION, told)))
    assert torch.equal(net(z, t, y), net(z, t, with_entry(y, AUGMENTATION, 0 * told)))
    dropped = drop(with_entry(y, AUGMENTATION, told), torch.tensor([True, False, True, False]))
    assert isinstance(dropped, dict) and torch.equal(dropped["augmentation"], told)
    assert dropped["classes"].tolist() == [-1, 1, -1, -1]


def test_an_augmented_training_resumes_exactly_and_samples_as_any(tmp_path: Path) -> None:
    recipe = small(augment=0.3, save_every=100)
    straight = runs.open_run(recipe, tmp_path / "straight", "cpu")
    finish(straight)
    assert equal(digest(straight.state), digest(resumed(recipe, tmp_path / "cut", at=200).state))
    net = checkpoint.load(tmp_path / "cut", device="cpu").net
    assert isinstance(net, JiT) and net.augmentation.weight.abs().max() > 0
    plain = runs.open_run(small(init=str(tmp_path / "cut")), tmp_path / "plain", "cpu")
    plain.close()
    with pytest.raises(ValueError, match="augment is 2"):
        small(augment=2.0)
