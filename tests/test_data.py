"""Data: the reference's crop, every kind of file, folders and archives alike, stateless streams, any dataset as a source."""

import hashlib
import io
import json
import multiprocessing
import os
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, strategies as st
from PIL import Image

from justimage.data import (
    ArraySource,
    Crop,
    Decode,
    Files,
    Stream,
    as_source,
    batches,
    cache_in_ram,
    conditions_of,
    decode,
    digits,
    open_source,
)  # fmt: skip
from justimage.data.arrays import open_array_file
from justimage.evaluation.reference import open_reference
from justimage.features import Extractor
from justimage.progress import finish
from justimage.recipe import Recipe, preset
from tests.reference import SHARED, needs_shared
from tests.sets import colours, paper_crop, png, saved


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, of three and two images, and files of file managers."""
    for name, count in ("cat", 3), ("dog", 2):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(count):
            (tmp_path / "set" / name / f"{i}.png").write_bytes(png(colours(i + 10 * count)))
    (tmp_path / "set" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "set" / "cat" / "Thumbs.db").write_bytes(b"x")
    return tmp_path / "set"


def zipped(folder: Path, prefix: str = "") -> Path:
    archive = folder.with_name(f"set{len(prefix)}.zip")
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, prefix + path.relative_to(folder).as_posix())
    return archive


@needs_shared
def test_the_centre_crop_is_the_references_bit_for_bit() -> None:
    hashes = json.loads((SHARED / "reference" / "crop_sha256.json").read_text())
    assert len(hashes) == 63
    for name, sizes in hashes.items():
        content = (SHARED / "data" / "imagenet-sample" / name).read_bytes()
        for size, digest in sizes.items():
            pixels = decode(io.BytesIO(content), Crop((int(size), int(size)), upscale=True)).transpose(1, 2, 0)
            assert hashlib.sha256(pixels.tobytes()).hexdigest() == digest, (name, size)


@given(width=st.integers(1, 700), height=st.integers(1, 700), side=st.integers(1, 40))
@example(width=1, height=700, side=40)
@example(width=1024, height=8, side=8)
@example(width=15, height=16, side=8)
def test_the_crop_of_a_square_halves_as_adms(width: int, height: int, side: int) -> None:
    """This crop halves while both sides are at least twice the target and scales by the larger ratio; ADM's looks at the short
    side. For a square they are the same."""
    content = png(np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8))
    assert np.array_equal(decode(io.BytesIO(content), Crop((side, side), upscale=True)), paper_crop(content, side))


def test_an_image_too_narrow_is_refused_before_it_is_scaled() -> None:
    content = png(np.zeros((1, 3000, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="3000 x 1 pixels, of which a crop would be scaled to 768000 x 256"):
        decode(io.BytesIO(content), Crop((256, 256), upscale=True))


PAPER = {1: "L", 3: "RGB", 4: "RGBA"}


@pytest.mark.parametrize("channels", PAPER)
def test_the_papers_data_is_what_pillow_converts(channels: int) -> None:
    """Orientation, transparency and 16-bit greys are as Pillow converts them; decoded as photographs they differ."""
    photo, paper = (Crop((16, 16), channels, decode=how) for how in ("photo", "torchvision"))
    pixels = colours(7)
    files = {"rotated": png_of(pixels, 6), "transparent": transparent(), "deep": png(ramp(np.uint16)), "cmyk": cmyk()}
    for name, content in files.items():
        plain = Image.open(io.BytesIO(content)).convert(PAPER[channels])
        read = decode(io.BytesIO(content), paper)
        assert np.array_equal(read, np.atleast_3d(np.asarray(plain)).transpose(2, 0, 1)), name
        same = np.array_equal(read, decode(io.BytesIO(content), photo))
        assert same == (name == "cmyk" or (name == "transparent" and channels == 4)), name


def test_the_papers_presets_decode_as_torchvision_and_the_others_photographs() -> None:
    assert preset("jit-h16-256").crop == Recipe().crop == Crop((256, 256), 3, upscale=True, decode="torchvision")
    assert preset("jit-b4-64").crop == Crop((64, 64), 3, upscale=True, decode="torchvision")
    for side in 32, 64, 128:
        assert preset(f"folder-{side}").crop == Crop((side, side), 3, upscale=False, decode="photo")


@pytest.mark.parametrize("decode", ["photo", "torchvision"])
def test_a_reference_is_decoded_as_the_recipe_says(decode: Decode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of real images are computed from the pixels that were trained on, and cached apart from those decoded
    differently."""
    monkeypatch.setenv("JUSTIMAGE_CACHE", str(tmp_path / "cache"))
    halves = Extractor(
        "halves", "halves", 2, lambda x: (torch.stack([x[..., :8, :], x[..., 8:, :]], 1).float().mean((2, 3, 4)), None)
    )
    (tmp_path / "set").mkdir()
    for i in range(4):
        pixels = np.zeros((16, 16, 3), dtype=np.uint8)
        pixels[:8] = 50 * i
        (tmp_path / "set" / f"{i}.png").write_bytes(png_of(pixels, 3))  # upside down
    for how in "photo", "torchvision", decode:
        found = finish(open_reference(str(tmp_path / "set"), halves, Crop((16, 16), decode=how)))
    assert found.statistics.mean.tolist() == ([0, 75] if decode == "photo" else [75, 0])


def test_a_crop_of_another_shape_is_centred_and_undistorted() -> None:
    pixels = np.zeros((40, 80, 3), dtype=np.uint8)
    pixels[:, 30:50] = 255  # a band in the middle, which a 20 x 10 crop shows only
    out = decode(io.BytesIO(png(pixels)), Crop((20, 10)))
    assert out.shape == (3, 20, 10) and out.min() > 200


def test_folder_zip_and_wrapped_zip_are_the_same_data(folder: Path) -> None:
    sources = [open_source(str(p), Crop((8, 8))) for p in (folder, zipped(folder))]
    sources.append(open_source(str(zipped(folder, "wrap/train/")), Crop((8, 8))))
    sources.append(open_source(f"{zipped(folder, 'wrap/train/')}/wrap/train", Crop((8, 8))))
    for source in sources:
        assert source.class_names == ["cat", "dog"] and len(source) == 5
        assert source.fingerprint == sources[0].fingerprint
        assert [source[i][1] for i in range(5)] == [0, 0, 0, 1, 1]
        assert all(torch.equal(source[i][0], sources[0][i][0]) for i in range(5))
    loaded = finish(cache_in_ram(sources[1]))
    assert all(torch.equal(loaded[i][0], sources[0][i][0]) for i in range(5)) and loaded.fingerprint == sources[0].fingerprint


def test_a_flat_folder_has_no_classes(folder: Path) -> None:
    source = open_source(str(folder / "cat"), Crop((8, 8)))
    assert source.class_names == [] and len(source) == 3 and source[0][1] == -1


def test_among_splits_train_is_taken(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "splits").mkdir()
    folder.rename(tmp_path / "splits" / "train")
    (tmp_path / "splits" / "test" / "cat").mkdir(parents=True)
    (tmp_path / "splits" / "test" / "cat" / "0.png").write_bytes(png(colours(0)))
    assert len(open_source(str(tmp_path / "splits"), Crop((8, 8)))) == 5


def ramp(dtype) -> np.ndarray:
    return np.tile(np.linspace(0, np.iinfo(dtype).max, 16).astype(dtype), (16, 1))


def cmyk() -> bytes:
    return saved(Image.merge("CMYK", [Image.new("L", (16, 16), v) for v in (0, 255, 255, 0)]), "JPEG", quality=100)


def transparent() -> bytes:
    rgba = np.zeros((16, 16, 4), dtype=np.uint8)
    rgba[:, 8:, 3] = 255  # left half transparent, right half opaque black
    return png(rgba)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_file_has_the_models_channels(channels: int) -> None:
    def read(content: bytes) -> np.ndarray:
        out = decode(io.BytesIO(content), Crop((16, 16), channels))
        assert out.shape == (channels, 16, 16) and out.dtype == np.uint8
        return out

    grey = ramp(np.uint8)
    assert np.array_equal(read(png(grey))[0], grey)
    assert abs(read(png(ramp(np.uint16)))[0].astype(int) - grey).max() <= 1  # 16 bits, not clipped
    assert abs(read(png(grey, "P"))[0].astype(int) - grey).max() <= 1
    assert np.array_equal(read(png(grey, "1"))[0] > 128, read(png(grey, "1"))[0] == 255)
    assert read(transparent())[:, :, :8].min() == 255 and read(transparent())[:, :, 8:].max() == 0
    red = read(cmyk())
    assert red[0].mean() > 200 if channels == 3 else 60 < red.mean() < 100
    if channels == 3:
        assert red[1:].mean() < 60


def png_of(pixels: np.ndarray, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(Image.fromarray(pixels), "PNG", exif=exif)


def test_photographs_are_turned_upright() -> None:
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[:8] = 255
    out = decode(io.BytesIO(png_of(pixels, 3)), Crop((16, 16)))  # upside down
    assert out[:, 8:].min() == 255 and out[:, :8].max() == 0


def test_image_files_of_floats_are_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((16, 16), dtype=np.float32)).save(buffer, "TIFF")
    with pytest.raises(ValueError, match="floats"):
        decode(io.BytesIO(buffer.getvalue()), Crop((16, 16)))


def test_the_digits() -> None:
    source = digits()
    assert source.images.shape == (1797, 1, 32, 32) and source.class_names == [str(i) for i in range(10)]
    assert source.labels[:10].tolist() == list(range(10))


def test_each_epoch_has_every_image_once_and_flips_differ(folder: Path) -> None:
    source = finish(cache_in_ram(open_source(str(folder), Crop((8, 8)))))
    plain, flipped = Stream(source, 0, flip=False), Stream(source, 0, flip=True)
    for epoch in range(3):
        seen = sorted(plain.batch(epoch * 5, 5)[0].sum((1, 2, 3)).tolist())
        assert seen == sorted(source[i][0].sum().item() for i in range(5))
    pairs = list(zip(plain.batch(0, 200)[0], flipped.batch(0, 200)[0], strict=True))
    mirrored, same = (
        [torch.equal(turn(a), b) for a, b in pairs] for turn in (lambda image: image.flip(-1), lambda image: image)
    )
    assert all(a != b for a, b in zip(mirrored, same, strict=True)) and 60 < sum(mirrored) < 140


def test_a_worker_that_is_gone_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after the system ended it for want of memory; a process of its own group, which a signal to ours does not reach."""
    reader, groups = os.getpid(), multiprocessing.get_context("fork").SimpleQueue()

    def dying(stream: Stream, start: int, size: int) -> None:
        if os.getpid() != reader:
            groups.put(os.getpgid(0))
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Stream, "batch", dying)
    source = open_source(str(zipped(folder)), Crop((8, 8)))
    with pytest.raises(OSError, match=r"a process that reads images is gone, .* fewer --workers") as caught:
        list(batches(Stream(source, 0, flip=False), range(0, 24, 4), 4, workers=1))
    assert "\n" not in str(caught.value) and groups.get() != os.getpgid(0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_dies_while_nobody_waits_for_it_is_noticed_by_who_does(folder: Path, number: int) -> None:
    """PyTorch would raise its error in the middle of a step; and SIGTERM to all of a service's processes ends none of ours at
    once."""
    source = open_source(str(zipped(folder)), Crop((8, 8)))
    read = batches(Stream(source, 0, flip=False), range(0, 4 * 10_000, 4), 4, workers=1)
    next(read)
    (child,) = multiprocessing.active_children()
    assert child.pid
    os.kill(child.pid, number)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        sum(range(1000))
    assert child.is_alive() == (number == signal.SIGTERM)
    if number == signal.SIGTERM:
        assert len(next(read)[0]) == 4
    else:
        with pytest.raises(OSError, match="a process that reads images is gone"):
            for _ in range(10):
                next(read)
    read.close()


def test_batches_do_not_depend_on_workers_or_where_they_begin(folder: Path) -> None:
    source = open_source(str(zipped(folder)), Crop((8, 8)))
    stream = Stream(source, 7, flip=True)
    straight = list(batches(stream, range(0, 24, 4), 4))
    for workers in 1, 2:
        assert all(
            torch.equal(a, b)
            for p, q in zip(straight, batches(stream, range(0, 24, 4), 4, workers), strict=True)
            for a, b in zip(p, q, strict=True)
        )
    later = list(batches(stream, range(12, 24, 6), 6))
    assert torch.equal(torch.cat([images for images, _ in later]), torch.cat([images for images, _ in straight[3:]]))


def test_a_bad_image_is_named_wherever_it_is_read(folder: Path) -> None:
    path = folder / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    source = open_source(str(folder), Crop((8, 8)))
    assert isinstance(source, Files)
    for attempt in (
        lambda: finish(cache_in_ram(source)),
        lambda: list(batches(Stream(source, 0, False), range(0, 10, 5), 5, workers=1)),
    ):
        with pytest.raises(ValueError, match=r"dog/1\.png") as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_paths_without_images_are_errors_of_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    for path, message in [
        ("missing", "does not exist"),
        ("empty", "holds no images"),
        ("notes.txt", "neither a folder nor a zip"),
    ]:
        with pytest.raises((ValueError, OSError), match=message):
            open_source(str(tmp_path / path), Crop((8, 8)))
    with pytest.raises(ValueError, match="channels is 2"):
        open_source(str(folder), Crop((8, 8), 2))
    (folder / "cat" / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"cat/notes\.txt is not an image"):
        open_source(str(folder), Crop((8, 8)))
    (folder / "cat" / "notes.txt").unlink()
    (folder / "stray.png").write_bytes(png(colours(0)))
    with pytest.raises(ValueError, match="beside class folders"):
        open_source(str(folder), Crop((8, 8)))


def test_a_damaged_archive_and_a_cycle_of_links(folder: Path) -> None:
    archive = zipped(folder)
    content = bytearray(archive.read_bytes())
    content[content.rindex(b"PK\x01\x02")] ^= 255
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="damaged zip"):
        open_source(str(archive), Crop((8, 8)))
    (folder / "cat" / "again").symlink_to(folder)
    assert len(open_source(str(folder), Crop((8, 8)))) == 5


def test_a_small_image_is_refused_unless_it_is_upscaled(folder: Path) -> None:
    with pytest.raises(ValueError, match="16 x 16 pixels, smaller than the model's 32 x 32"):
        open_source(str(folder), Crop((32, 32)))[0]
    assert open_source(str(folder), Crop((32, 32), upscale=True))[0][0].shape == (3, 32, 32)


# datasets from outside -------------------------------------------------------------------------------------------------


class Dataset:
    """A dataset as anyone writes it: `items` by index, and attributes."""

    def __init__(self, items: Any, **attributes: Any) -> None:
        self.items = items
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        item = self.items[index]
        return item() if callable(item) else item


def pixels(seed: int = 0, shape: tuple[int, ...] = (3, 8, 8)) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_a_dataset_like_torchvisions_has_named_classes() -> None:
    """Pillow's images, class numbers of any integer type, names in `classes`."""
    arrays = [pixels(i).permute(1, 2, 0).numpy() for i in range(4)]
    numbers = [0, np.int32(1), torch.tensor(1), np.array(0)]
    source = as_source(Dataset([(Image.fromarray(a), n) for a, n in zip(arrays, numbers, strict=True)], classes=["cat", "dog"]))
    assert source.class_names == ["cat", "dog"] and source.has_class_numbers and not source.floats
    assert source.shape == (3, 8, 8) and len(source) == 4
    images, classes = source.batch(np.array([3, 0, 1, 2]))
    assert torch.equal(images, torch.stack([pixels(i) for i in (3, 0, 1, 2)])) and classes.tolist() == [0, 0, 1, 1]
    assert as_source(source) is source
    assert as_source([(Image.fromarray(a[..., 0]), 0) for a in arrays]).shape == (1, 8, 8)


@pytest.mark.parametrize("how", ["read-only", "strided", "float64", "float16", "grad"])
def test_images_of_any_array(how: str) -> None:
    """Arrays that PyTorch would not take as they are; floats become float32, whatever they were."""
    image: Any = pixels().numpy()
    if how == "read-only":
        image.flags.writeable = False
    elif how == "strided":
        image = image[:, ::-1]
    elif how == "grad":
        image = torch.from_numpy(image).float().requires_grad_()
    else:
        image = image.astype(how)
    source = as_source([(image, 0)] * 2)
    found, _ = source.batch(np.array([1]))
    expected = np.asarray(image.detach() if how == "grad" else image)
    assert np.array_equal(found[0].numpy(), expected) and not found.requires_grad
    assert found.dtype == (torch.float32 if source.floats else torch.uint8) and source.floats == (how[:5] in ("float", "grad"))


def test_conditions_of_every_form() -> None:
    """None, floats, vectors, maps and dicts; arrays and numbers in them become tensors, integers int64."""
    none, number, vector = (as_source([(pixels(), c)] * 3) for c in (None, 0.5, np.array([1.0, 2.0])))
    assert none.batch(np.arange(2))[1].tolist() == [-1, -1] and none.has_class_numbers and none.class_names == []
    assert torch.equal(number.batch(np.arange(2))[1], torch.tensor([0.5, 0.5])) and not number.has_class_numbers
    assert vector.batch(np.arange(2))[1].dtype == torch.float32 and vector.batch(np.arange(2))[1].shape == (2, 2)
    condition = {"classes": 3, "map": pixels(), "text": np.array([5, 6], np.int32), "size": 0.5, "seen": True}
    source = as_source(Dataset([(pixels(), condition)] * 3, classes=["a"]))
    assert not source.has_class_numbers and source.class_names == []
    found = source.batch(np.arange(2))[1]
    assert {n: (t.dtype, tuple(t.shape)) for n, t in found.items()} == {
        "classes": (torch.int64, (2,)), "map": (torch.int64, (2, 3, 8, 8)), "text": (torch.int64, (2, 2)),
        "size": (torch.float32, (2,)), "seen": (torch.bool, (2,)),
    }  # fmt: skip
    assert all(torch.equal(conditions_of(source, 0, [1, 4])[n], found[n]) for n in found)
    assert conditions_of(none, 3, range(5)).tolist() == [0, 1, 2, 0, 1] and conditions_of(none, 0, [7]).tolist() == [-1]


def test_statistics_of_floats_are_per_channel() -> None:
    items = [(torch.randn(2, 4, 4), None)] * 2
    source = as_source(Dataset(items, statistics=(np.array([1, 2]), torch.tensor([3.0, 4.0]))))
    assert source.floats and source.statistics == ((1.0, 2.0), (3.0, 4.0))
    assert as_source(items).statistics is None
    for wrong in ((1.0,), (2.0,)), 5, ("ab", "cd"), ((1, 2), (3, 4), (5, 6)):
        with pytest.raises(ValueError, match=r"data\.statistics must be \(means, standard deviations\), 2 numbers each"):
            as_source(Dataset(items, statistics=wrong))


def fail(error: Exception) -> Callable[[], Any]:
    def item() -> Any:
        raise error

    return item


WRONG_ITEMS: list[tuple[Any, str]] = [
    (pixels(), r"must be \(image, condition\), None for no condition; it is torch\.uint8"),
    ((pixels(), 0, 0), r"must be \(image, condition\)"),
    ({"image": pixels(), "label": 0}, r"must be \(image, condition\).* it is \{image: torch\.uint8 .*label: a int\}"),
    ((Image.new("P", (8, 8)), 0), "has a Image for an image"),
    ((np.zeros((3, 8, 8), dtype=object), 0), r"has object \(3, 8, 8\) for an image"),
    ((torch.zeros(3, 8, 8, dtype=torch.complex64), 0), "has torch.complex64 .* for an image"),
    ((pixels(), "cat"), "has a str for a condition; allowed: a class number, a tensor, a dict of tensors, None"),
    ((pixels(), {"text": "a cat"}), r"has \{text: a str\} for a condition"),
    ((pixels(), {}), r"has \{\} for a condition"),
    ((pixels(), None, None), r"must be \(image, condition\)"),
    (fail(KeyError("no key")), "raised KeyError: 'no key'"),
    (fail(RuntimeError("line 1\nline 2")), "raised RuntimeError: line 1 line 2$"),
]


@pytest.mark.parametrize(("item", "message"), WRONG_ITEMS)
def test_an_item_that_is_no_image_with_a_condition_is_named(item: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^data\[0\] {message}") as caught:
        as_source(Dataset([item]))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=rf"^data\[1\] {message}"):
        as_source(Dataset([(pixels(), 0), item]))


@pytest.mark.full
@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            (pixels(shape=(3, 8, 9)), 0),
            r"is \(torch\.uint8 \(3, 8, 9\), a int\), but data\[0\] is \(torch\.uint8 \(3, 8, 8\), a int\)",
        ),
        ((pixels().float(), 0), r"is \(torch\.float32"),
        ((pixels(), 0.5), r"is \(torch\.uint8 \(3, 8, 8\), torch\.float32 \(\)\)"),
        ((pixels(), {"a": 0.5}), r"is \(torch\.uint8 \(3, 8, 8\), \{a: torch\.float32 \(\)\}\)"),
        ((pixels(), 2), "has class 2; there are 2 class names"),
        ((pixels(), -2), "has class -2"),
    ],
)
def test_items_that_differ_are_named_where_they_are_read(item: Any, message: str) -> None:
    """In this process, in workers, and as an error of one line."""
    source = as_source(Dataset([(pixels(), 0)] * 40 + [item] + [(pixels(), 1)] * 40, class_names=("a", "b"), fingerprint="f"))
    for workers in 0, 2:
        with pytest.raises(ValueError, match=rf"^data\[40\] {message}") as caught:
            list(batches(Stream(source, 0, False), range(0, 81, 9), 9, workers))
        assert "\n" not in str(caught.value)


def test_data_without_length_items_or_names_is_refused() -> None:
    for data in [], 7, iter([(pixels(), 0)]), None:
        with pytest.raises(ValueError, match=r"^data is a \w+; it must have a length above 0, and data\[i\]"):
            as_source(data)
    for names in 10, "cat":
        with pytest.raises(ValueError, match=r"^the class names of data are .*; they must be a list, by class number"):
            as_source(Dataset([(pixels(), 0)], classes=names))


def test_a_missing_file_of_a_dataset_is_named_by_its_own_error() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        as_source(Dataset([lambda: (Image.open("nowhere.png"), 0)]))


def test_a_fingerprint_knows_content_length_names_and_conditions() -> None:
    items = [(pixels(i), i % 2) for i in range(20)]
    plain = as_source(items).fingerprint
    assert plain == as_source(list(items)).fingerprint
    others = [
        items[:-1], [(pixels(99), 0), *items[1:]], [(items[0][0], 1), *items[1:]], Dataset(items, classes=["a", "b"]),
    ]  # fmt: skip
    assert len({plain, *(as_source(other).fingerprint for other in others)}) == 5
    assert as_source(Dataset(items, fingerprint="mine")).fingerprint == "mine"


def test_random_augmentation_does_not_change_a_fingerprint() -> None:
    """What is drawn anew at each reading cannot tell data apart; lengths and shapes still do."""
    draw = np.random.default_rng()
    item = lambda: (torch.from_numpy(draw.random((3, 8, 8), np.float32)), None)
    first, again, longer = (as_source(Dataset([item] * n)).fingerprint for n in (20, 20, 21))
    assert first == again != longer


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_dataset_streams_alike_for_any_number_of_workers(workers: int) -> None:
    condition = lambda i: {"vector": np.array([i], np.float32), "map": pixels(i, (1, 4, 4)).float()}
    source = as_source([(pixels(i), condition(i)) for i in range(30)])
    straight = [Stream(source, 3, flip=True).batch(start, 10) for start in range(0, 90, 10)]
    for (images, found), (expected, wanted) in zip(
        batches(Stream(source, 3, flip=True), range(0, 90, 10), 10, workers), straight, strict=True
    ):
        assert torch.equal(images, expected) and found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in found)


def test_maps_are_flipped_with_their_images() -> None:
    source = as_source([(pixels(i), {"map": pixels(i)[:1].float(), "vector": torch.ones(2)}) for i in range(30)])
    images, condition = Stream(source, 0, flip=True).batch(0, 300)
    assert torch.equal(images[:, :1].float(), condition["map"])
    assert not torch.equal(images, Stream(source, 0, flip=False).batch(0, 300)[0])


@pytest.mark.filterwarnings("ignore:Got pickle error")
def test_data_that_cannot_be_pickled_is_refused_where_workers_are_spawned() -> None:
    """As on Windows and macOS."""
    source = as_source(Dataset([lambda: (pixels(), 0)] * 4))
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        with pytest.raises(ValueError, match=r"cannot be sent to worker processes .*--workers 0"):
            next(batches(Stream(source, 0, False), [0, 2], 2, workers=1))
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_arrays_in_memory_and_in_a_file_are_sources(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((5, 2, 4, 6))
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([0, 1, 1, 0, 1]))
    file = open_array_file(tmp_path / "a.npz")
    memory = ArraySource(torch.from_numpy(images).float(), torch.tensor([0, 1, 1, 0, 1]), ["0", "1"], "f")
    for source in file, memory:
        assert as_source(source) is source and source.floats and source.statistics is None and source.has_class_numbers
        assert source.shape == (2, 4, 6) and source.class_names == ["0", "1"] and len(source) == 5
        found, labels = source.batch(np.array([4, 0]))
        assert torch.equal(found, torch.from_numpy(images[[4, 0]]).float()) and labels.tolist() == [1, 0]
