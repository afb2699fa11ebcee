"""Starting from trained weights: what fits is the same network, and what is adapted computes what its rule says."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from justimage import checkpoint, data, run as runs
from justimage.checkpoint import initial
from justimage.recipe import Recipe, with_values
from justimage.transformer import JiT
from tests.test_training import digest, equal, finish, small


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, all its weights drawn anew, so that none is zero."""
    place = tmp_path_factory.mktemp("initial") / "run"
    run = runs.open_run(small(8 * 8), place, "cpu")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for p in run.state.denoiser.net.parameters():
            p.normal_(0, 0.2)
        for average in run.state.ema.averages.values():
            for p in average:
                p.normal_(0, 0.2)
    finish(run)
    return place


def started(trained: Path, recipe: Recipe) -> tuple[JiT, JiT]:
    """The trained network, and one of the recipe that starts from it."""
    old = checkpoint.load(trained, device="cpu").net
    new = JiT(recipe.model).eval()
    found = checkpoint.read_initial(str(trained), recipe)
    for name, weight in found.weights.items():
        new.get_parameter(name).data.copy_(weight)
    assert isinstance(old, JiT)
    return old, new


def called(net: JiT, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out = net(z, torch.linspace(0.1, 0.9, len(z)), y)
    assert isinstance(out, torch.Tensor)
    return out


def resolved(trained: Path, **values) -> Recipe:
    return with_values(checkpoint.read_recipe(checkpoint.resolve(trained)), **values)


def test_the_same_network_is_taken_as_it_is(trained: Path) -> None:
    found = checkpoint.read_initial(str(trained), resolved(trained))
    net = checkpoint.load(trained, device="cpu").net
    assert not found.notes and all(torch.equal(net.get_parameter(n), w) for n, w in found.weights.items())
    assert found.weights.keys() == dict(net.named_parameters()).keys()
    assert found.origin.startswith(f"{trained} after 64 images, average 100, ")


def test_scaled_patches_are_the_same_tokens_and_are_drawn_scaled(trained: Path) -> None:
    """Twice the image in patches twice as large: an input scaled patch by patch gives the old output, scaled alike."""
    old, new = started(trained, resolved(trained, image_size=64, patch_size=16))
    z, y = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 7, -1])

    def scaled(images: torch.Tensor) -> torch.Tensor:
        """Each patch of 8 alone to one of 16."""
        each = images.unflatten(2, (4, 8)).unflatten(4, (4, 8)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        large = F.interpolate(each, size=(16, 16), mode="bicubic", antialias=True)
        return large.unflatten(0, (3, 4, 4)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    difference = called(new, scaled(z), y) - scaled(called(old, z, y))
    assert difference.abs().max() < 1e-4 * called(old, z, y).abs().max()


def test_grey_becomes_colour_and_colour_grey(trained: Path) -> None:
    old, colour = started(trained, resolved(trained, channels=3))
    z, y = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 3, 9])
    expected = called(old, z, y)
    assert (called(colour, z.expand(-1, 3, -1, -1), y) - expected).abs().max() < 1e-4 * expected.abs().max()
    torch.nn.init.normal_(colour.head.linear.weight)  # three channels that differ
    weights = {name: p.detach() for name, p in colour.named_parameters()}
    grey = JiT(old.architecture).eval()
    assert list(initial.adapt_patches(weights, colour.architecture, old.architecture)) == ["3 channels are made 1"]
    grey.load_state_dict(weights)
    expected = called(colour, z.expand(-1, 3, -1, -1), y).mean(1, keepdim=True)
    assert (called(grey, z, y) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_classes_keep_their_names(trained: Path) -> None:
    recipe = replace(resolved(trained, classes=3), class_names=("7", "seven", "2"))
    old, new = started(trained, recipe)
    table = old.class_table.weight
    assert torch.equal(new.class_table.weight, table[[7, 10, 2, 10]])
    notes = checkpoint.read_initial(str(trained), recipe).notes
    assert notes == ['2 of 3 classes are taken over by name, the others begin as "no class"']
    without = checkpoint.read_initial(str(trained), replace(resolved(trained, classes=0), class_names=()))
    assert torch.equal(without.weights["class_table.weight"], table[[10]])


def test_a_run_begins_from_it_and_resumes_without_it(trained: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(trained, tmp_path / "source"))
    recipe = small(16 * 8, init=str(source), save_every=8 * 8, seed=3)
    straight, cut = (runs.open_run(recipe, tmp_path / name, "cpu") for name in ("straight", "cut"))
    first = checkpoint.load(source, device="cpu").net
    for net in straight.state.denoiser.net, cut.state.denoiser.net:
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), first.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(straight.state.ema.averages["400"], first.parameters(), strict=True))
    finish(straight)
    for step in runs.steps(cut):
        if step.images_seen == 8 * 8:
            break
    cut.close()
    shutil.rmtree(source)
    again = runs.open_run(recipe, tmp_path / "cut", "cpu")
    assert again.resumed and again.state.images_seen == 8 * 8 and not again.initial
    finish(again)
    assert equal(digest(straight.state), digest(again.state))
    stored = json.loads((tmp_path / "cut" / "recipe.json").read_text())
    assert stored["origin"].startswith(f"{source} after 64 images, average 100, ")


def test_what_was_taken_learns_at_its_own_rate(trained: Path, tmp_path: Path) -> None:
    """Adam's first step is as large as the rate: at a tenth of it, what was taken moves a tenth as far as the table of other
    classes. At 0 that alone changes, also after a resume that has no source any more."""
    source, first = Path(shutil.copytree(trained, tmp_path / "source")), checkpoint.load(trained, device="cpu").net
    digits = data.digits()
    others = replace(digits, class_names=[f"another {name}" for name in digits.class_names])

    def moved(out: str, rate: float, images: int) -> dict[str, float]:
        """How far the farthest number of each parameter is from where it began; the table's all began as "no class"."""
        recipe = small(images, init=str(source), init_rate=rate, warmup=0, gradient_clip=None)
        run = runs.open_run(recipe, tmp_path / out, "cpu", data=others)
        assert run.recipe.anew == ("class_table",)
        finish(run)
        began = {name: p.detach() for name, p in first.named_parameters()}
        began["class_table.weight"] = began["class_table.weight"][-1]
        now = run.state.denoiser.net.named_parameters()
        return {name: float((p.detach() - began[name]).abs().max()) for name, p in now}

    rate = small().training.learning_rate
    slow = moved("slow", 0.1, 8)
    assert slow.pop("class_table.weight") == pytest.approx(rate, rel=1e-2)
    assert max(slow.values()) == pytest.approx(rate / 10, rel=1e-2)

    moved("frozen", 0.0, 8 * 8)
    shutil.rmtree(source)
    assert [name for name, far in moved("frozen", 0.0, 16 * 8).items() if far] == ["class_table.weight"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(width=32), "cannot start this network: its width is 16, here 32"),
        (dict(depth=2, rope=False), "its depth is 4, here 2; its rope is True, here False"),
        (dict(prediction="v"), "its prediction is x, here v"),
    ],
)
def test_weights_that_cannot_start_a_network_are_one_line(trained: Path, tmp_path: Path, values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        runs.open_run(small(init=str(trained), **values), tmp_path / "run", "cpu")
    with pytest.raises(FileNotFoundError, match="nothing does not exist; give a run"):
        runs.open_run(small(init="nothing"), tmp_path / "run", "cpu")
    with pytest.raises(ValueError, match="the rate of what init gives, and init is empty"):
        small(init_rate=0.1)
    assert not (tmp_path / "run").exists()
