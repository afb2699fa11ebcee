"""Tasks: what a network is told of an image, and that a network which is told nothing is the one it was."""

from pathlib import Path

import pytest
import torch

from justimage import checkpoint, run as runs
from justimage.tasks import NUMBERS, known_parts, open_task
from justimage.transformer import JiT
from tests.test_training import digest, equal, finish, resumed, small

WORDS = "colour", "upscale:4", "deblur:1.5", "denoise:0.2", "inpaint", "edges"
IMAGES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("word", WORDS)
def test_what_is_told_is_a_function_of_image_and_position(word: str) -> None:
    task = open_task(word, (3, 16, 16))
    told = task.make(IMAGES, 3, range(10, 16))
    assert told.shape == (6, task.channels, 16, 16) and told.isfinite().all()
    again = torch.cat([task.make(IMAGES[i : i + 2], 3, range(10 + i, 12 + i)) for i in (0, 2, 4)])
    assert torch.allclose(told, again, atol=1e-6)
    assert not torch.allclose(told[:, : min(3, task.channels)].expand(-1, 3, -1, -1), IMAGES, atol=0.05)


def test_what_each_task_tells() -> None:
    tell = {word: open_task(word, (3, 16, 16)).make(IMAGES, 0, range(6)) for word in WORDS}
    assert torch.allclose(tell["colour"], IMAGES.mean(1, keepdim=True))
    assert torch.allclose(tell["upscale:4"][:, :, 0, 0], IMAGES[:, :, :4, :4].mean((2, 3)), atol=1e-6)
    assert tell["deblur:1.5"].std() < 0.5 * IMAGES.std()
    assert 0.17 < (tell["denoise:0.2"] - IMAGES).std() < 0.23
    known = tell["inpaint"][:, 3:]
    assert torch.equal(tell["inpaint"][:, :3], IMAGES * known) and set(known.unique().tolist()) == {0.0, 1.0}
    ramp = torch.arange(16.0).expand(1, 3, 16, 16)
    assert torch.allclose(open_task("edges", (3, 16, 16)).make(ramp, 0, [0])[..., 1:-1], torch.tensor(2.0))


def test_parts_are_boxes_and_strokes_of_a_fair_size() -> None:
    hidden = (1 - known_parts(0, range(400), (48, 48))).mean((1, 2, 3))
    assert hidden.min() > 0.01 and hidden.max() < 0.4 and 0.05 < hidden.mean() < 0.25


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("color", "no task is called 'color'; perhaps colour"),
        ("upscale", "task is 'upscale'; allowed: upscale:NUMBER, of 2 to 64"),
        ("upscale:5", "its number must divide 16 x 16"),
        ("deblur:x", "allowed: deblur:NUMBER, of 0.1 to 100"),
        ("edges:2", "task is 'edges:2'; allowed: edges"),
    ],
)
def test_a_task_that_there_is_not_is_one_line(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_task(word, (3, 16, 16))
    assert word.partition(":")[0] in (*NUMBERS, "color")


def test_colour_needs_colours() -> None:
    with pytest.raises(ValueError, match="task colour needs images of 3 channels; these have 1"):
        open_task("colour", (1, 16, 16))


def test_a_network_begins_as_one_that_is_told_nothing() -> None:
    net = JiT("T/4", image_size=16, classes=3, image_channels=1).eval()
    for linear in net.head.linear, net.head.modulation:
        torch.nn.init.normal_(linear.weight, std=0.1)
    z, t, y, told = torch.randn(4, 3, 16, 16), torch.rand(4), torch.tensor([0, 1, 2, -1]), torch.randn(4, 1, 16, 16)
    assert torch.equal(net(z, t, y), net(z, t, {"classes": y, "image": told}))
    torch.nn.init.normal_(net.embed_image.expand.weight, std=0.1)
    assert not torch.allclose(net(z, t, y), net(z, t, {"classes": y, "image": told}))
    assert torch.equal(net(z, t, y), net(z, t, {"classes": y, "image": 0 * told}))


@pytest.mark.parametrize("word", ["upscale:4", "inpaint"])
def test_a_training_for_a_task_begins_from_another_and_resumes_exactly(word: str, tmp_path: Path) -> None:
    plain = runs.open_run(small(8 * 8), tmp_path / "plain", "cpu")
    finish(plain)
    recipe = small(48 * 8, task=word, init=str(tmp_path / "plain"), save_every=24 * 8, preview_every=20 * 8)
    straight = runs.open_run(recipe, tmp_path / "straight", "cpu")
    assert straight.initial and straight.initial.notes == ["the embedding of images that it is told is new"]
    finish(straight)
    assert equal(digest(straight.state), digest(resumed(recipe, tmp_path / "cut", at=24 * 8).state))
    net = checkpoint.load(tmp_path / "cut", device="cpu").net
    assert isinstance(net, JiT) and net.embed_image.expand.weight.abs().max() > 0
    assert len(list((tmp_path / "cut" / "samples").glob("*-grid.png"))) == 3
