"""Tiles: a network that sees a tile at a time computes what it would have seen at once, where that can be known."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from justimage import Denoiser, sample
from justimage.sampling import Sampling
from justimage.tiles import TiledNet, starts, tiled
from justimage.transformer import JiT
from tests.test_cli import justimage


class Told(nn.Module):
    """What it is told, plus the noisy image: the same for any tile."""

    shape, classes = (3, 16, 16), 0

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, z: Tensor, t: Tensor, y: dict[str, Tensor]) -> Tensor:
        assert z.shape[-2:] == (16, 16) == y["image"].shape[-2:]
        return self.factor * z + y["image"] * t.view(-1, 1, 1, 1)


@pytest.mark.parametrize(("length", "align"), [(16, 1), (17, 1), (40, 4), (64, 4), (161, 1)])
def test_tiles_cover_everything(length: int, align: int) -> None:
    found = starts(length, 16, align)
    assert found[0] == 0 and found[-1] == length - 16 and all(start % align == 0 for start in found)
    assert all(0 < b - a <= 8 + align for a, b in pairwise(found))


def test_what_is_the_same_for_any_tile_is_the_same_by_tiles() -> None:
    net, size = Told(), (40, 27)
    z, t, y = torch.randn(2, 3, *size), torch.rand(2), {"image": torch.randn(2, 3, *size)}
    direct = 0.5 * z + y["image"] * t.view(-1, 1, 1, 1)
    assert torch.allclose(TiledNet(net, size, (16, 16))(z, t, y), direct, atol=1e-5)


def test_one_tile_is_the_network() -> None:
    net = JiT("T/4", image_size=16, classes=3, image_channels=1).eval()
    for linear in net.head.linear, net.head.modulation:
        nn.init.normal_(linear.weight, std=0.1)
    denoiser, classes = Denoiser(net, sampling=Sampling(steps=3)), torch.tensor([0, 2])
    condition = {"classes": classes, "image": torch.randn(2, 1, 16, 16)}
    one, direct = (sample(d, condition, [3, 4]).int() for d in (tiled(denoiser, (16, 16)), denoiser))
    assert (one - direct).abs().max() <= 1 and (one != direct).float().mean() < 0.01
    large = sample(tiled(denoiser, (20, 30)), {"classes": classes, "image": torch.randn(2, 1, 20, 30)}, [3, 4])
    assert large.shape == (2, 3, 20, 30)


@pytest.mark.parametrize(
    ("size", "align", "message"),
    [((8, 40), 1, "40 x 8 is smaller than the model's 16 x 16"), ((18, 40), 4, "must differ by multiples of 4")],
)
def test_a_size_that_tiles_cannot_have_is_one_line(size: tuple[int, int], align: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiled(Denoiser(Told()), size, align)


def test_a_photograph_keeps_its_size(run: Path, tmp_path: Path) -> None:
    Image.effect_noise((45, 37), 60).save(tmp_path / "large.png")
    words = ["edit", "large.png", "--from", str(run), "--strength", "0.5", "--steps", "2", "--answers", "1", "--device", "cpu"]
    done = justimage(*words, "--tiles", "--out", "out.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out.png") as sheet:
        assert sheet.width >= 2 * 45 and sheet.height >= 37
