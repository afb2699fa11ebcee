"""The textured digits: the same everywhere, at any size, and no two alike."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from justimage import data
from justimage.data import built_in as module
from justimage.data.images import Crop


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(module, "IMAGES", 200)
    monkeypatch.setenv("JUSTIMAGE_CACHE", str(tmp_path / "cache"))
    module.textured_digits.cache_clear()
    yield
    module.textured_digits.cache_clear()


def test_they_are_drawn_once(few: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = data.textured_digits((16, 16))
    with monkeypatch.context() as patched:
        patched.setattr(module, "draw_textured", lambda *_: pytest.fail("drawn again"))
        module.textured_digits.cache_clear()
        again = data.textured_digits((16, 16))
    assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    (kept,) = (tmp_path / "cache" / "textured-digits").iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])  # damaged
    module.textured_digits.cache_clear()
    assert torch.equal(first.images, data.textured_digits((16, 16)).images)


def test_an_image_depends_on_its_number_alone(few: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = data.textured_digits((32, 32))
    monkeypatch.setattr(module, "CHUNK", 50)
    monkeypatch.setenv("JUSTIMAGE_CACHE", str(tmp_path / "another"))
    module.textured_digits.cache_clear()
    again = data.textured_digits((32, 32))
    assert torch.equal(first.images, again.images) and first.fingerprint == again.fingerprint
    assert len({hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in first.images}) == 200
    assert first.labels.tolist() == [i % 100 for i in range(200)]
    assert first.class_names[37] == "3 on coarse rising" and len(set(first.class_names)) == 100


def test_a_larger_one_shows_the_same_with_more_detail(few: None) -> None:
    small, large = (data.textured_digits((side, side)) for side in (64, 128))
    assert small.fingerprint != large.fingerprint
    halved = F.avg_pool2d(large.images.float(), 2)
    error = (halved - small.images).abs().mean((1, 2, 3))
    assert error.max() < 12 and error.mean() < 4
    other = (halved - small.images.roll(100, 0)).abs().mean((1, 2, 3))  # the same classes, other images
    assert other.min() > error.max()
    lost = F.interpolate(halved, scale_factor=2, mode="bicubic", antialias=True) - large.images
    assert lost.abs().mean() > 1.5  # what scaling down has taken


def test_the_digit_is_white_before_the_pattern_of_its_class(few: None) -> None:
    source = data.textured_digits((64, 64))
    images = source.images[:, 0].float() / 255
    strokes = (images > 0.9).flatten(1).float().mean(1)
    assert strokes.min() > 0.02 and strokes.max() < 0.4
    corner = images[:, :6, :6].reshape(200, -1)  # beside every digit
    assert corner.max() < module.LIGHT + 0.01 and corner.min() == 0
    names = [source.class_names[label].split(" on ")[1] for label in source.labels]
    for name, (along, across) in {"fine rows": (2, 1), "coarse columns": (1, 2)}.items():
        chosen = images[[n == name for n in names]]
        assert chosen.diff(dim=across).abs().mean() > 1.2 * chosen.diff(dim=along).abs().mean()


def test_it_is_data_like_any_other(few: None) -> None:
    source = data.open_source("textured-digits", Crop((16, 16), 1))
    assert source.shape == (1, 16, 16) and len(source) == 200
    images, labels = source.batch(np.arange(4))
    assert images.dtype == torch.uint8 and labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="the textured-digits have 1 channel; the recipe asks for 3"):
        data.open_source("textured-digits", Crop((16, 16), 3))
