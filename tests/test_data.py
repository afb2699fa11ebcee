"""Data: the reference's crop, every kind of file, folders and archives alike, and streams without state."""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, strategies as st
from PIL import Image

from justimage.data import Crop, Decode, Files, Stream, batches, cache_in_ram, decode, digits, open_source
from justimage.evaluation.reference import open_reference
from justimage.features import Extractor
from justimage.recipe import Recipe, preset
from tests.reference import SHARED, needs_shared
from tests.sets import colours, paper_crop, png, saved


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, of three and two images, and what file managers leave behind."""
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
def test_for_a_square_both_sides_are_twice_as_long_where_the_short_one_is(width: int, height: int, side: int) -> None:
    """Our crop halves while both sides are at least twice the target, and scales by the larger quotient; ADM's looks at the
    short side only."""
    content = png(np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8))
    assert np.array_equal(decode(io.BytesIO(content), Crop((side, side), upscale=True)), paper_crop(content, side))


def test_a_picture_without_width_is_refused_before_it_is_scaled() -> None:
    content = png(np.zeros((1, 3000, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="3000 x 1 pixels, of which a crop would be scaled to 768000 x 256"):
        decode(io.BytesIO(content), Crop((256, 256), upscale=True))


PAPER = {1: "L", 3: "RGB", 4: "RGBA"}


@pytest.mark.parametrize("channels", PAPER)
def test_the_papers_data_is_what_pillow_converts(channels: int) -> None:
    """Orientation, transparency and deep greys are as Pillow leaves them; a photograph is read otherwise."""
    photo, paper = (Crop((16, 16), channels, decode=how) for how in ("photo", "torchvision"))
    pixels = colours(7)
    files = {"turned": png_of(pixels, 6), "transparent": transparent(), "deep": png(ramp(np.uint16)), "cmyk": cmyk()}
    for name, content in files.items():
        plain = Image.open(io.BytesIO(content)).convert(PAPER[channels])
        read = decode(io.BytesIO(content), paper)
        assert np.array_equal(read, np.atleast_3d(np.asarray(plain)).transpose(2, 0, 1)), name
        same = np.array_equal(read, decode(io.BytesIO(content), photo))
        assert same == (name == "cmyk" or (name == "transparent" and channels == 4)), name


def test_the_papers_presets_read_the_papers_data_and_ours_photographs() -> None:
    assert preset("jit-h16-256").crop == Recipe().crop == Crop((256, 256), 3, upscale=True, decode="torchvision")
    assert preset("jit-b4-64").crop == Crop((64, 64), 3, upscale=True, decode="torchvision")
    for side in 32, 64, 128:
        assert preset(f"folder-{side}").crop == Crop((side, side), 3, upscale=False, decode="photo")


@pytest.mark.parametrize("decode", ["photo", "torchvision"])
def test_a_reference_is_read_as_the_recipe_reads(decode: Decode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The features of real images are those of the pixels that were trained on, and are not taken for the others'."""
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
        found = open_reference(str(tmp_path / "set"), halves, Crop((16, 16), decode=how))
    assert found.statistics.mean.tolist() == ([0, 75] if decode == "photo" else [75, 0])


def test_a_crop_of_another_shape_is_centred_and_undistorted() -> None:
    pixels = np.zeros((40, 80, 3), dtype=np.uint8)
    pixels[:, 30:50] = 255  # a band in the middle fifth... of which a 20 x 10 crop shows the middle half
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
    loaded = cache_in_ram(sources[1])
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
def test_every_kind_of_file_comes_out_as_the_model_wants_it(channels: int) -> None:
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


def test_floats_are_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((16, 16), dtype=np.float32)).save(buffer, "TIFF")
    with pytest.raises(ValueError, match="floats"):
        decode(io.BytesIO(buffer.getvalue()), Crop((16, 16)))


def test_the_digits() -> None:
    source = digits()
    assert source.images.shape == (1797, 1, 32, 32) and source.class_names == [str(i) for i in range(10)]
    assert source.labels[:10].tolist() == list(range(10))


def test_each_epoch_shows_every_image_once_and_flips_differ(folder: Path) -> None:
    source = cache_in_ram(open_source(str(folder), Crop((8, 8))))
    plain, flipped = Stream(source, 0, flip=False), Stream(source, 0, flip=True)
    for epoch in range(3):
        seen = sorted(plain[epoch * 5 + i][0].sum().item() for i in range(5))
        assert seen == sorted(source[i][0].sum().item() for i in range(5))
    turned = [torch.equal(plain[p][0].flip(-1), flipped[p][0]) for p in range(200)]
    kept = [torch.equal(plain[p][0], flipped[p][0]) for p in range(200)]
    assert all(a != b for a, b in zip(turned, kept, strict=True)) and 60 < sum(turned) < 140


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
        lambda: cache_in_ram(source),
        lambda: list(batches(Stream(source, 0, False), range(0, 10, 5), 5, workers=1)),
    ):
        with pytest.raises(ValueError, match=r"dog/1\.png") as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_what_is_not_a_set_of_images_is_said_in_one_line(folder: Path, tmp_path: Path) -> None:
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


def test_a_damaged_archive_and_a_circle_of_links(folder: Path) -> None:
    archive = zipped(folder)
    content = bytearray(archive.read_bytes())
    content[content.rindex(b"PK\x01\x02")] ^= 255
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="damaged zip"):
        open_source(str(archive), Crop((8, 8)))
    (folder / "cat" / "again").symlink_to(folder)
    assert len(open_source(str(folder), Crop((8, 8)))) == 5


def test_a_small_image_is_refused_unless_it_may_be_enlarged(folder: Path) -> None:
    with pytest.raises(ValueError, match="16 x 16 pixels, smaller than the model's 32 x 32"):
        open_source(str(folder), Crop((32, 32)))[0]
    assert open_source(str(folder), Crop((32, 32), upscale=True))[0][0].shape == (3, 32, 32)
