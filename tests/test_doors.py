"""Open doors: somebody's own data, network, condition, optimizer and loss train, resume and sample like the package's own."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import justimage
from justimage import checkpoint, randomness, run as runs
from justimage.conditions import drop, join, null_like
from justimage.diffusion import Diffusion
from justimage.recipe import Recipe
from justimage.sampling import Sampling
from tests.test_training import digest, equal, finish, small


class Shapes:
    """Floats in [-1, 1] whose brightness follows from a map and a vector."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int):
        vector = torch.tensor([i / 40, 1.0])
        grey = torch.full((1, 8, 8), i / 20 - 1)
        return grey, {"map": grey[:, :4, :4], "vector": vector}


class Net(nn.Module):
    """A convolution that is told a map and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.vector = nn.Conv2d(2, 1, 3, padding=1), nn.Linear(2, 1)
        self.seen: list[torch.Tensor] = []

    def forward(self, z, t, condition):
        self.seen.append(condition["vector"])
        low = nn.functional.interpolate(condition["map"], z.shape[-2:])
        return self.conv(torch.cat([z, low], 1)) + self.vector(condition["vector"])[:, :, None, None]


class Sign(torch.optim.Optimizer):
    """Steps by the sign of a running mean; keeps a tensor like the weight, one of another shape, a number and a word."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, dict(lr=1e-3, beta=0.9))

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state |= {
                        "mean": torch.zeros_like(p),
                        "largest": torch.zeros(3, dtype=torch.float64),
                        "count": 0,
                        "kind": "sign",
                    }
                state["count"] += 1
                state["largest"][state["count"] % 3] = p.grad.abs().max()
                state["mean"].lerp_(p.grad, 1 - group["beta"])
                p -= group["lr"] * state["mean"].sign() / (1 + state["largest"].sum().float())


def recipe(total_images: int = 96, **values) -> Recipe:
    base = small(total_images, image_size=8, patch_size=8, channels=1, classes=None, guidance=1.5, save_every=48)
    return justimage.recipe.with_values(base, **values) if values else base


DOORS = dict(data=Shapes(), net=Net, optimizer=Sign)


def test_own_parts_resume_to_the_bit(tmp_path: Path) -> None:
    straight = runs.open_run(recipe(), tmp_path / "straight", "cpu", **DOORS)
    finish(straight)
    for step in justimage.train(recipe(), tmp_path / "cut", device="cpu", **DOORS):
        if step.images_seen == 48:
            break
    resumed = runs.open_run(recipe(), tmp_path / "cut", "cpu", **DOORS)
    assert resumed.resumed and resumed.state.images_seen == 48
    finish(resumed)
    for run in straight, resumed:
        states = [s for p in run.state.denoiser.net.parameters() for s in [run.state.optimizer.state[p]]]
        assert all(s["count"] == 12 and s["kind"] == "sign" and s["largest"].dtype == torch.float64 for s in states)
    for a, b in zip(straight.state.denoiser.net.parameters(), resumed.state.denoiser.net.parameters(), strict=True):
        mine, its = straight.state.optimizer.state[a], resumed.state.optimizer.state[b]
        assert torch.equal(a, b) and torch.equal(mine["mean"], its["mean"]) and torch.equal(mine["largest"], its["largest"])
    averages = [[t for average in run.state.ema.averages.values() for t in average] for run in (straight, resumed)]
    assert equal(*averages)


def test_a_given_optimizer_is_the_recipes_own_where_it_is_the_same(tmp_path: Path) -> None:
    r = small(48)
    adam = lambda parameters: torch.optim.Adam(parameters, betas=r.training.betas, fused=True)
    own, given = (runs.open_run(r, tmp_path / str(i), "cpu", optimizer=o) for i, o in enumerate((None, adam)))
    own = runs.open_run(replace(r, data="digits"), tmp_path / "own", "cpu")
    finish(own, given)
    assert equal(digest(own.state), digest(given.state))


def test_nothing_is_dropped_and_guided_as_null_like_says(tmp_path: Path) -> None:
    run = runs.open_run(recipe(label_drop=0.5), tmp_path / "run", "cpu", **DOORS)
    net, dropped = run.state.denoiser.net, randomness.uniform(0, "drop", range(96)) < 0.5
    finish(run)
    assert isinstance(net, Net)
    seen = torch.cat(net.seen[:12])
    assert (seen == 0).all(1).tolist() == dropped.tolist() and 20 < dropped.sum() < 76
    model = checkpoint.load(tmp_path / "run", device="cpu", net=Net)
    images = justimage.sample(model, Shapes()[3][1] | {"map": torch.zeros(1, 1, 4, 4), "vector": torch.ones(1, 2)}, 0)
    assert images.shape == (1, 1, 8, 8) and images.dtype == torch.float32  # floats in, floats out
    assert isinstance(model.net, Net) and {len(v) for v in model.net.seen} == {1, 2}


def test_what_nothing_looks_like_is_said_once() -> None:
    condition = {"classes": torch.tensor([3, 5]), "text": torch.tensor([[7, 8], [9, 1]]), "image": torch.ones(2, 1, 2, 2)}
    null = {"classes": torch.tensor([-1, -1]), "text": torch.full((2, 2), -1), "image": torch.zeros(2, 1, 2, 2)}
    found = null_like(condition)
    assert isinstance(found, dict) and all(torch.equal(found[k], null[k]) for k in null)
    half = drop(condition, torch.tensor([True, False]))
    both = join(condition, null)
    assert isinstance(half, dict) and isinstance(both, dict)
    for k in null:
        assert torch.equal(half[k], torch.stack([null[k][0], condition[k][1]]))
        assert torch.equal(both[k], torch.cat([condition[k], null[k]]))
    assert null_like(None) is None and drop(None, torch.tensor([True])) is None


def test_a_loss_from_outside_weights_what_is_learnt(tmp_path: Path) -> None:
    def weighted(diffusion: Diffusion, net, batch) -> torch.Tensor:
        return 3 * diffusion.loss(net, batch)

    r = replace(small(16), data="digits")
    plain, tripled = ([s.loss for s in justimage.train(r, tmp_path / str(i), device="cpu", loss=loss)] for i, loss in
                      enumerate((Diffusion.loss, weighted)))  # fmt: skip
    assert tripled[0] == pytest.approx(3 * plain[0])


def test_a_run_is_resumed_only_with_the_parts_it_was_begun_with(tmp_path: Path) -> None:
    for _ in justimage.train(recipe(48), tmp_path / "run", device="cpu", **DOORS):
        pass
    with pytest.raises(ValueError, match=r"custom is \('net Net',\), was \('net Net', 'optimizer Sign'\)"):
        next(justimage.train(recipe(96), tmp_path / "run", device="cpu", **DOORS | {"optimizer": None}))
    with pytest.raises(ValueError, match="a custom network, Net; give it: load"):
        justimage.load(tmp_path / "run")


class Items(list):
    """Data with class names."""

    class_names = ("low", "high")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "length above 0"),
        (7, "data is a int"),
        ([torch.zeros(1, 8, 8)], r"data\[0\] must be \(image, condition\)"),
        ([(torch.zeros(8, 8), 0)], r"data\[0\] has torch.float32 \(8, 8\)"),
        ([(torch.zeros(1, 8, 8, dtype=torch.int64), 0)], "uint8 or floats"),
        ([("cat.png", 0)], "has a str for an image"),
        ([(torch.zeros(3, 8, 8), 0)], "images of 3 x 8 x 8, the recipe asks for 1 x 8 x 8"),
        ([(torch.zeros(1, 8, 8), 1)], "class_names"),
        (Items([(torch.zeros(1, 8, 8), 2)]), r"data\[0\] has class 2; there are 2"),
    ],
)
def test_data_that_does_not_fit_is_named_before_anything_is_written(data, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        next(justimage.train(recipe(), tmp_path / "run", data=data, device="cpu"))
    assert not (tmp_path / "run").exists()


def test_own_class_numbers_are_named_and_sampled_by_number(tmp_path: Path) -> None:
    data = Items((torch.full((1, 8, 8), 255 * (i % 2), dtype=torch.uint8), i % 2) for i in range(20))
    for _ in justimage.train(recipe(16), tmp_path / "run", data=data, device="cpu"):
        pass
    model = justimage.load(tmp_path / "run", device="cpu")
    assert checkpoint.read_recipe(checkpoint.resolve(tmp_path / "run")).class_names == ("low", "high")
    assert justimage.sample(model, [0, 1], 0, Sampling(steps=1)).dtype == torch.uint8
