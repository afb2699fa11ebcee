"""Images a second: plain decode and crop, `prepare`, a folder or archive read by training, and a store read by training.
And seconds until a large set is open.

    python benchmarks/data.py --imagenet ../shared/data/imagenet-sample --cifar ../shared/data/cifar10.zip

Everything on one core, in one process, alternating in the same run; the medians of the rounds and their ratio are printed.
`plain` is what anyone would write: Pillow opens, converts, crops at the centre with `data.decode`'s own resize; `prepare`
adds the checks, the hash, the statistics, fsync and publishing. Reading is by `Stream.batch` in batches, in the shuffled
order and with the flips of training, the pages of the file system warm. The large sets are one file under many names, so that
what is measured is the names: a folder of `--files`, and a store of `--shards` of 65 images of 96 x 96.
"""

import argparse
import io
import json
import os
import pickle
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from justimage import disk
from justimage.data import Crop, Files, Stream, open_source
from justimage.data.images import center_crop
from justimage.data.prepare import prepare
from justimage.data.store import INDEX, LABELS, open_store, shard_name


def plain(files: Files, count: int, size: int) -> None:
    for i in range(count):
        center_crop(Image.open(io.BytesIO(files.contents.read_bytes(i % len(files)))).convert("RGB"), (size, size)).tobytes()


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def read(stream: Stream, count: int, batch: int) -> None:
    for start in range(0, count, batch):
        stream.batch(start, min(batch, count - start))


def measure(source: str, size: int, count: int, stored: int, batch: int, rounds: int, place: Path) -> dict[str, float]:
    """Images a second, medians over rounds: `count` images decoded, `stored` read from the store."""
    files = open_source(source, Crop((size, size), upscale=True))
    assert isinstance(files, Files)
    speeds: dict[str, list[float]] = {"plain Pillow": [], "prepare": [], "folder or zip": [], "store": []}
    store = place / str(size)
    for number in range(rounds):
        speeds["plain Pillow"].append(count / seconds(partial(plain, files, count, size)))
        if number == 0 or len(files) <= count:  # the whole set; a large one only once
            store = place / f"{size}-{number}"
            taken = seconds(partial(prepare, source, store, image_size=size, upscale=True, workers=1))
            speeds["prepare"].append(len(files) / taken)
        folder, stored_ones = (Stream(q, 0, flip=True) for q in (files, open_source(str(store), Crop((size, size)))))
        speeds["folder or zip"].append(count / seconds(partial(read, folder, count, batch)))
        read(stored_ones, min(stored, len(files)), batch)  # map and warm
        speeds["store"].append(stored / seconds(partial(read, stored_ones, stored, batch)))
    return {name: median(values) for name, values in speeds.items()}


def folder_of_links(place: Path, count: int) -> Path:
    for number in range(count):
        path = place / f"{number % 1000:03d}" / f"{number}.png"
        if number < 1000:
            path.parent.mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(path)
        else:
            os.link(path.with_name(f"{number % 1000}.png"), path)
    return place


def store_of_links(place: Path, count: int) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (65, 3, 96, 96), dtype=np.uint8)
    np.save(place / "images.npy", images)
    store = place / "store"
    prepare(str(place / "images.npy"), store, shard_images=65)
    index = json.loads((store / INDEX).read_text())
    np.save(store / LABELS, np.full(65 * count, -1))
    index |= {"count": 65 * count, "shards": index["shards"] * count, "labels": {"sha256": disk.sha256(store / LABELS)}}
    (store / INDEX).write_text(json.dumps(index | {"sha256": disk.self_checksum(index)}))
    for number in range(1, count):
        os.link(store / shard_name(0), store / shard_name(number))
    return store


def measure_large(files: int, shards: int, place: Path) -> None:
    folder = folder_of_links(place / "folder", files)
    taken = seconds(partial(open_source, str(folder), Crop((16, 16))))
    print(f"a folder of {files:,} files is open in {taken:.2f} s, {1e6 * taken / files:.1f} us a file")
    root = store_of_links(place, shards)
    taken, store = seconds(partial(open_store, root)), open_store(root)
    again = seconds(lambda: pickle.loads(pickle.dumps(store)))
    stream = Stream(store, 0, flip=True)
    read(stream, 6400, 64)
    speed = 6400 / seconds(partial(read, stream, 6400, 64))
    print(
        f"a store of {shards:,} shards, {len(store):,} images, is open in {taken:.2f} s, in another process in {again:.2f} s;"
    )
    print(f"of it, {speed:,.0f} images a second are read")


def main() -> None:
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imagenet", default=str(shared / "imagenet-sample"), help="a folder of large JPEGs")
    parser.add_argument("--cifar", default=str(shared / "cifar10.zip"), help="an archive of small ones")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--shards", type=int, default=20_000)
    options = parser.parse_args()
    print(f"{'images a second':24}{'plain Pillow':>14}{'prepare':>10}{'folder or zip':>15}{'store':>10}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as place:
        for title, source, *numbers in (
            ("ImageNet JPEGs at 256", options.imagenet, 256, 126, 6300, 64),
            ("CIFAR JPEGs at 32", options.cifar, 32, 5120, 102400, 256),
        ):
            size, count, stored, batch = numbers
            speed = measure(source, size, count, stored, batch, options.rounds, Path(place))
            row = "".join(f"{value:>{width},.0f}" for value, width in zip(speed.values(), (14, 10, 15, 10), strict=True))
            print(f"{title:24}{row}{speed['store'] / speed['folder or zip']:>7.0f}x", flush=True)
        measure_large(options.files, options.shards, Path(place))


if __name__ == "__main__":
    main()
