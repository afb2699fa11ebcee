"""Small sets of images in every form that a source may have, and malicious files."""

import io
import json
import os
import tarfile
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from PIL import Image

from justimage import disk
from justimage.data import prepare as preparation
from justimage.data.prepare import PrepareReport, to_rows
from justimage.data.store import INDEX, LABELS, VERSION, ArrayEntry, Index, StorePlan, shard_name
from justimage.progress import finish


def prepare(source: str, store: str | Path, **settings: Any) -> PrepareReport:
    """Prepare a store, unseen."""
    return finish(preparation.prepare(source, store, **settings))


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, "PNG")
    return buffer.getvalue()


def colours(seed: int, side: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def paper_crop(content: bytes, side: int, mode: str = "RGB") -> np.ndarray:
    """An image file as the paper's code reads it, (channels, side, side): Pillow's `convert`, then ADM's centre crop. It halves
    the image with a box filter k times, for the largest k that leaves the short side at least `side`; scales it (bicubic) until
    the short side is `side`; and crops the centre."""
    image = Image.open(io.BytesIO(content)).convert(mode)
    for _ in range((min(image.size) // side).bit_length() - 1):
        image = image.resize((image.size[0] // 2, image.size[1] // 2), Image.Resampling.BOX)
    factor = side / min(image.size)
    image = image.resize((round(image.size[0] * factor), round(image.size[1] * factor)), Image.Resampling.BICUBIC)
    pixels = np.atleast_3d(np.asarray(image))
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side].transpose(2, 0, 1)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"compress_level": 1} if kind == "PNG" else {}), **options)
    return buffer.getvalue()


def rotated(jpeg: bytes, orientation: int) -> bytes:
    """A JPEG file with an EXIF orientation, its pixels unchanged."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    segment = exif.tobytes()
    return jpeg[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + jpeg[2:]


def variants(jpeg: bytes, number: int) -> dict[str, bytes]:
    """A photograph as sixteen files by name: rotated by EXIF, small or narrow, and in other modes and formats."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    (width, height), ramp = image.size, Image.linear_gradient("L").resize(image.size)
    transparent, seed = image.copy(), 10 + number
    transparent.putalpha(ramp)
    odd = [
        ("webp", lambda: saved(image, "WEBP", quality=80)),
        ("bmp", lambda: saved(image, "BMP")),
        ("gif", lambda: saved(image, "GIF")),
        ("tif", lambda: saved(image.convert("CMYK"), "TIFF")),
        ("png", lambda: saved(transparent.convert("LA"), "PNG")),
        ("png", lambda: saved(image.convert("1"), "PNG")),
        ("png", lambda: saved(image.quantize(64, Image.Quantize.FASTOCTREE), "PNG", transparency=number % 64)),
        ("ppm", lambda: saved(image, "PPM")),
    ]
    suffix, make = odd[number % len(odd)]
    return {
        **{f"rotated-{o}.jpg": rotated(jpeg, o) for o in range(1, 9)},
        "short.jpg": saved(image.resize((width, 32 + 7 * seed % 224)), "JPEG"),
        "narrow.png": saved(image.resize((3 + number, height)), "PNG"),
        "small.jpg": saved(image.resize((20 + 5 * seed % 236, 20 + 3 * seed % 236)), "JPEG"),
        "grey.jpg": saved(image.convert("L"), "JPEG"),
        "transparent.png": saved(transparent, "PNG"),
        "palette.png": saved(image.quantize(200, Image.Quantize.FASTOCTREE), "PNG"),
        "cmyk.jpg": saved(image.convert("CMYK"), "JPEG", quality=90),
        f"other.{suffix}": make(),
    }


def folder_of(place: Path, count: int = 5, side: int = 16) -> Path:
    """PNGs in the classes cat and dog, half each (cat has the odd one)."""
    for i in range(count):
        name = place / ("cat" if i < (count + 1) // 2 else "dog") / f"{i:03d}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(png(colours(i, side)))
    return place


def store_of_links(place: Path, shards: int, each: int, side: int) -> Path:
    """A store of any number of shards, all links to one file."""
    images = np.random.default_rng(0).integers(0, 256, (each, 3, side, side), dtype=np.uint8)
    head = io.BytesIO()
    npy.write_array_header_1_0(head, npy.header_data_from_array_1_0(images))
    first, labels = place / shard_name(0), io.BytesIO()
    np.save(labels, np.arange(shards * each) % 1000)
    disk.write(first, head.getvalue() + images.tobytes())
    disk.write(place / LABELS, labels.getvalue())
    for number in range(1, shards):
        os.link(first, place / shard_name(number))
    count, names = shards * each, tuple(str(i) for i in range(1000))
    plan = StorePlan("links", "links", count, (side, side), 3, False, "photo", "uint8", each)
    labels_entry = ArrayEntry(count, len(labels.getvalue()), disk.sha256(place / LABELS))
    entries = (ArrayEntry(each, first.stat().st_size, disk.sha256(first)),) * shards
    index = asdict(
        Index(VERSION, count, plan.shape, "uint8", names, "links", (127.5,) * 3, (74.0,) * 3, plan, (), labels_entry, entries)
    )
    disk.write(place / INDEX, to_rows(index | {"sha256": disk.self_checksum(index)}))
    return place


def zipped(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            file.write(path, path.relative_to(folder).as_posix())
    return archive


def tarred(members: dict[str, bytes], archive: Path) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w") as file:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return archive


def as_members(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


def linked(archive: Path) -> Path:
    """A tar of an image, a link out of it, a device and a named pipe."""
    with tarfile.open(archive, "w") as file:
        for kind, name in (tarfile.SYMTYPE, "b.png"), (tarfile.LNKTYPE, "c.png"), (tarfile.CHRTYPE, "d.png"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            file.addfile(entry)
        entry = tarfile.TarInfo("a.png")
        content = png(colours(0))
        entry.size = len(content)
        file.addfile(entry, io.BytesIO(content))
    return archive


def header_of(name: str, size: int, kind: bytes) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


def npy_header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    """The header of an .npy file, without the numbers that it claims."""
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def npz_of(members: dict[str, bytes], path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name + ".npy", content)
    return path


def hostile(place: Path) -> dict[str, tuple[Path, str]]:
    """Malicious files, each with words of the error that it must raise."""
    place.mkdir(parents=True, exist_ok=True)
    one = png(colours(0))

    def raw(name: str, content: bytes) -> Path:
        (place / name).write_bytes(content)
        return place / name

    pickled = io.BytesIO()
    np.save(pickled, np.array([{"a": 1}] * 3, dtype=object), allow_pickle=True)
    npy3 = b"\x93NUMPY\x02\x00" + (2**32 - 1).to_bytes(4, "little") + b"{" * 100
    deep = b"\x93NUMPY\x01\x00" + (4000).to_bytes(2, "little") + (b"(" * 3999 + b"\n")
    beyond = header_of("a.png", 2**40, tarfile.REGTYPE)
    long_name = header_of("././@LongLink", 2**33, tarfile.GNUTYPE_LONGNAME)
    pax = header_of("p", 2**33, tarfile.XHDTYPE)
    backwards = header_of("a.png", -1024, tarfile.REGTYPE)
    small = np.zeros((4, 1, 8, 8), dtype=np.uint8)
    npz = io.BytesIO()
    np.savez(npz, a=small, labels=np.full(4, 2**62))
    return {
        "a member above": (tarred({"../x.png": one}, place / "above.tar"), "outside"),
        "an absolute member": (tarred({"/tmp/x.png": one}, place / "absolute.tar"), "outside"),
        "a member that is too long": (raw("beyond.tar", beyond), "not a usable tar"),
        "a name that is too long": (raw("long.tar", long_name + b"x" * 512), "not a usable tar"),
        "an extended header that is too long": (raw("pax.tar", pax + b"x" * 512), "not a usable tar"),
        "headers that point backwards": (raw("back.tar", header_of("b", 0, tarfile.REGTYPE) + backwards), "not a usable tar"),
        "a class that is code": (
            tarred({"a.png": one, "a.cls": b"__import__('os')"}, place / "code.tar"),
            "a class is a number",
        ),
        "a class beyond": (tarred({"a.png": one, "a.cls": b"9999999"}, place / "class.tar"), "a class is a number"),
        "a missing class": (tarred({"a.png": one, "a.cls": b"1", "b.png": one}, place / "some.tar"), "has no class"),
        "noise as a tar": (raw("noise.tar", np.random.default_rng(0).bytes(4096)), "not a usable tar"),
        "a compressed tar": (raw("a.tar.gz", b"\x1f\x8b"), "unpack it to a plain .tar"),
        "an .npy of pickled objects": (raw("pickled.npy", pickled.getvalue()), "pickled objects"),
        "a pickle with an array's name": (raw("pickle.npy", b"\x80\x04cos\nsystem\n."), "not an .npy array"),
        "a shape that is too large": (raw("huge.npy", npy_header((10**6, 3, 10**4, 10**4))), "is not what its"),
        "a shape that overflows": (raw("wrap.npy", npy_header((2**32, 2**32, 16, 16))), "is not what its"),
        "a negative side": (raw("negative.npy", npy_header((-1, 3, 4, 4))), "is not what its"),
        "a header without end": (raw("endless.npy", npy3), "its header is not"),
        "a deep header": (raw("deep.npy", deep), "header"),
        "an .npz with a huge shape": (
            npz_of({"a": npy_header((10**6, 3, 10**4, 10**4))}, place / "huge.npz"),
            "is not what its",
        ),
        "an .npz of pickled objects": (npz_of({"a": pickled.getvalue()}, place / "pickled.npz"), "pickled objects"),
        "an .npz with class 2^62": (raw("labels.npz", npz.getvalue()), "has class"),
        "an .npz that is no zip": (raw("noise.npz", b"PK\x03\x04" + bytes(100)), "noise.npz"),
        "whole numbers": (raw("whole.npy", npy_header((1, 1, 2, 2), "<i2") + bytes(8)), "its numbers are int16"),
        "one axis": (raw("one.npy", npy_header((8,), "<f4") + bytes(32)), "its shape is (8,)"),
    }


def web_dataset(place: Path, images: list[np.ndarray], labels: list[int], shards: int = 2) -> Path:
    """Tar shards as WebDataset writes them: key.png, key.cls, key.txt, key.json."""
    each = -(-len(images) // shards)
    for shard in range(shards):
        members: dict[str, bytes] = {}
        for i in range(shard * each, min((shard + 1) * each, len(images))):
            members[f"{i:06d}.png"] = png(images[i])
            members[f"{i:06d}.cls"] = f"{labels[i]}\n".encode()
            members[f"{i:06d}.txt"] = b"a caption"
            members[f"{i:06d}.json"] = json.dumps({"caption": "a"}).encode()
        tarred(members, place / f"train-{shard:04d}.tar")
    return place
