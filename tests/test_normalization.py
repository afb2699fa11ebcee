"""Numbers of any scale: normalization, arrays as stores, and a model that samples in the units of its data."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import justimage
from justimage import figures, recipe as recipes, sampling
from justimage.data import Crop, open_source
from justimage.data.store import open_store
from justimage.normalization import Normalization, from_uint8, identity, to_uint8
from justimage.recipe import for_store, preset, with_values
from tests.sets import prepare

MEAN = np.array([280.0, -3.0, 1e5, 0.5, 2e-6])
DEVIATION = np.array([15.0, 4.0, 800.0, 0.2, 5e-7])


def fields(count: int, seed: int = 0) -> np.ndarray:
    """Waves of random phases (count, 5, 24, 40) whose channels hang together, each of its own mean and deviation."""
    laws, random = np.random.default_rng(0), np.random.default_rng(seed)
    y, x = np.mgrid[0:24, 0:40]
    wave = 2 * np.pi * np.stack([a * y / 24 + b * x / 40 for a, b in ((0, 1), (1, 0), (1, 1))])
    strength = np.abs(laws.standard_normal((5, 3, 1, 1))) + 0.3
    strength *= np.sqrt(2 / (strength**2).sum(1, keepdims=True))
    phase = laws.uniform(0, 2 * np.pi, (5, 3, 1, 1)) + random.uniform(0, 2 * np.pi, (count, 1, 3, 1, 1))
    standard = (strength * np.sin(wave + phase)).sum(2)
    return (standard * DEVIATION[:, None, None] + MEAN[:, None, None]).astype(np.float32)


@pytest.fixture(scope="module")
def weather(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("weather")
    np.save(place / "weather.npy", fields(2048))
    prepare(str(place / "weather.npy"), place / "store", workers=1)
    return place / "store"


def test_pixels_have_no_statistics() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(Normalization().normalize(levels), from_uint8(levels))
    assert torch.equal(Normalization().denormalize(from_uint8(levels)), levels) and Normalization().to_uint8(levels) is levels


def test_floats_in_minus_1_to_1_are_left_as_they_are() -> None:
    data = torch.rand(2, 3, 4, 4) * 2 - 1
    assert torch.equal(identity(3).normalize(data), data) and torch.equal(identity(3).denormalize(data), data)


def test_floats_inside_have_mean_0_and_deviation_a_half_and_come_back() -> None:
    data = torch.from_numpy(fields(512))
    normalization = Normalization(tuple(data.double().mean((0, 2, 3)).tolist()), tuple(data.double().std((0, 2, 3)).tolist()))
    x = normalization.normalize(data)
    assert x.mean((0, 2, 3)).abs().max() < 1e-3 and (x.std((0, 2, 3)) - 0.5).abs().max() < 1e-3
    back = normalization.denormalize(x)
    assert back.dtype == torch.float32
    assert ((back - data).abs() / torch.tensor(normalization.std)[:, None, None]).max() < 1e-4
    assert torch.equal(normalization.to_uint8(data), to_uint8(x)) and 100 < normalization.to_uint8(data).float().mean() < 155


def test_a_constant_channel_is_zero_inside_and_its_constant_outside() -> None:
    data = torch.stack([torch.full((4, 4), 1e5), torch.randn(4, 4)])[None]
    for deviation in 0.0, 1e-9:  # exactly, or up to rounding
        normalization = Normalization((1e5, 0.0), (deviation, 1.0))
        assert torch.equal(normalization.normalize(data)[:, 0], torch.zeros(1, 4, 4))
        assert torch.equal(normalization.denormalize(torch.randn(1, 2, 4, 4))[:, 0], data[:, 0])


def test_a_normalization_must_make_sense() -> None:
    for mean, deviation in (((0.0,), ()), ((0.0,), (-1.0,)), ((float("nan"),), (1.0,))):
        with pytest.raises(ValueError):
            Normalization(mean, deviation)


def test_the_statistics_of_a_store_are_those_of_its_numbers(tmp_path: Path) -> None:
    data = fields(100).astype(np.float64)
    np.save(tmp_path / "a.npy", data)
    deviations = []
    for shard_images in 7, 100:
        prepare(str(tmp_path / "a.npy"), tmp_path / f"s{shard_images}", shard_images=shard_images, workers=1)
        store = open_store(tmp_path / f"s{shard_images}")
        kept = data.astype(np.float32).astype(np.float64)
        mean, deviation = store.statistics
        assert np.allclose(mean, kept.mean((0, 2, 3)), rtol=1e-12)
        assert np.allclose(deviation, kept.std((0, 2, 3)), rtol=1e-12)
        assert store.floats and torch.equal(store.batch(np.arange(100))[0].double(), torch.from_numpy(kept))
        deviations.append(deviation)


def test_what_is_not_finite_is_refused(tmp_path: Path) -> None:
    data = fields(10).astype(np.float64)
    data[3, 0, 0, 0], data[5, 4, 1, 1], data[7, 1, 2, 2] = np.nan, np.inf, 1e300  # the last has no float32
    np.save(tmp_path / "a.npy", data)
    report = prepare(str(tmp_path / "a.npy"), tmp_path / "s", workers=1)
    assert report.refused == [(f"image {i}", "has numbers that are not finite") for i in (3, 5, 7)] and report.count == 7
    with pytest.raises(ValueError, match="are not cropped; leave out the size"):
        prepare(str(tmp_path / "a.npy"), tmp_path / "t", image_size=8)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_of_every_kind_and_arrays_without_channels(kind: str, tmp_path: Path) -> None:
    data = np.asfortranarray(np.random.default_rng(0).standard_normal((6, 8, 12)).astype(kind))
    np.savez_compressed(tmp_path / "a.npz", spectra=data, labels=np.array([0, 1, 2, 0, 1, 2]))
    prepare(str(tmp_path / "a.npz"), tmp_path / "s", workers=2)
    store = open_store(tmp_path / "s")
    assert store.shape == (1, 8, 12) and store.class_names == ["0", "1", "2"]
    assert np.array_equal(store.batch(np.arange(6))[0][:, 0].numpy(), data.astype(np.float32))


def test_a_recipe_is_fitted_to_a_store_and_keeps_its_units(weather: Path) -> None:
    store = open_store(weather)
    recipe = for_store(preset("folder-64"), store)
    assert recipe.model.size == (24, 40) and recipe.model.channels == 5 and not recipe.training.flip
    assert 24 % recipe.model.patch_size == 0 == 40 % recipe.model.patch_size
    recipe = recipe.resolve(open_source(str(weather), Crop((24, 40), 5)))
    assert recipe.normalization == Normalization(*store.statistics) == recipe.build().normalization
    assert recipes.from_json(json.loads(json.dumps(recipes.to_json(recipe)))) == recipe
    assert any("mean" in line for line in recipes.incompatibilities(recipe, replace(recipe, normalization=Normalization())))


def test_any_number_of_channels_has_a_picture() -> None:
    for channels in 1, 2, 3, 4, 5, 9:
        images = torch.randint(0, 256, (4, channels, 24, 40), dtype=torch.uint8)
        assert figures.image_grid(images, 2).size[0] > 80


@pytest.mark.parametrize(
    ("label", "lines"),
    [
        ("cat", ["cat"]),
        ("8 left of a small 0", ["8 left", "of a", "small 0"]),
        ("living_room", ["living_", "room"]),
        ("hippopotamus", ["hippop"]),
        ("", [""]),
    ],
)
def test_labels_are_broken_into_lines(label: str, lines: list[str]) -> None:
    class Font:
        getlength = len

    assert figures.wrap(label, 7 if " " in label or "_" in label else 6, Font) == lines


@pytest.mark.full
def test_a_model_of_five_channels_samples_in_the_units_of_its_data(weather: Path, tmp_path: Path) -> None:
    """Mean and deviation of each channel come out within 5 % (the mean: of the deviation)."""
    recipe = for_store(preset("digits"), open_store(weather))
    recipe = with_values(
        recipe, data=str(weather), patch_size=8, width=64, depth=2, heads=4, bottleneck=64, context_tokens=0, context_start=0,
        total_images=24_000, batch=32, learning_rate=3e-3, noise_scale=1.0, preview_every=10**9, save_every=10**9,
        preview_count=4,
    )  # fmt: skip
    for _ in justimage.train(recipe, tmp_path / "run", device="cpu"):
        pass
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 2
    drawn = sampling.sample(justimage.load(tmp_path / "run"), None, range(512), sampling.Sampling(steps=12), batch=256)
    assert drawn.dtype == torch.float32 and drawn.shape == (512, 5, 24, 40)

    def moments(images: Tensor) -> tuple[Tensor, Tensor]:
        return images.double().mean((0, 2, 3)), images.double().std((0, 2, 3))

    (mean, deviation), (true_mean, true_deviation) = moments(drawn), moments(torch.from_numpy(fields(2048)))
    assert ((mean - true_mean) / true_deviation).abs().max() < 0.05
    assert (deviation / true_deviation - 1).abs().max() < 0.05
