"""Exported networks beside PyTorch: speed on a CPU, and int8 weights in size, error and score.

    python benchmarks/exports.py speed --networks runs/cifar B/16 --threads 1 2
    python benchmarks/exports.py score runs/cifar --features judge.safetensors --reference cifar10.npz --count 2000

speed: a network in ONNX by onnxruntime and in PyTorch (eager, fp32) by the same number of threads, turn by turn; a name in
place of a run is a network with random weights. "dynamic" is onnxruntime's quantize_dynamic, which also rounds what enters
each product.
score: images of the same seeds and classes by the same solver (guidance and all of it PyTorch's) with PyTorch's network and
with each file's, in Fréchet distance; a difference is paired, and ± is its own standard deviation.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import justimage
from justimage import checkpoint
from justimage.convert import exports
from justimage.data import open_source
from justimage.evaluation.scores import fid, gaussian, standard_error
from justimage.features import open_features
from justimage.sampling import Denoiser


def open_model(word: str) -> Denoiser:
    """A run, or a network by name with random weights, none of them zero."""
    if Path(word).exists():
        return justimage.load(word, device="cpu")
    torch.manual_seed(0)
    net = justimage.JiT(word).eval().requires_grad_(False)
    for weight in net.parameters():
        if not weight.any():
            weight.normal_(std=0.02)
    return Denoiser(net)


def write_files(model: Denoiser, folder: Path) -> dict[str, Path]:
    """The network in ONNX: fp32, with int8 weights, and as onnxruntime quantizes it."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    files = {name: folder / f"{name}.onnx" for name in ("fp32", "int8", "dynamic")}
    for name, int8 in ("fp32", False), ("int8", True):
        done = exports.export(model, files[name], int8=int8)
        print(f"{name}: error beside PyTorch {done.error:.1e}, int8 beside fp32 {done.int8_error:.2%}", flush=True)
    quantize_dynamic(files["fp32"], files["dynamic"], per_channel=True, weight_type=QuantType.QInt8)
    for name, file in files.items():
        print(f"{name}: {file.stat().st_size / 1e6:.1f} MB")
    return files


class OnnxNetwork(nn.Module):
    """A file as a network, `net(z, t, classes)`."""

    def __init__(self, file: Path, threads: int) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.device_marker = nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor, t: Tensor, classes: Tensor) -> Tensor:
        inputs = {"z": z.numpy(), "t": t.numpy(), "classes": classes.numpy()}
        return torch.from_numpy(self.session.run(None, inputs)[0])


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@torch.no_grad()
def speed(o: argparse.Namespace) -> None:
    for word in o.networks:
        model = open_model(word)
        with tempfile.TemporaryDirectory() as folder:
            files = write_files(model, Path(folder))
            for threads in o.threads:
                torch.set_num_threads(threads)
                nets = {"eager": model.net} | {name: OnnxNetwork(file, threads) for name, file in files.items()}
                for batch in o.batches:
                    inputs = exports.arguments(exports.random_inputs(model, batch, False))
                    taken = {name: [] for name in nets}
                    for turn in range(1 + o.rounds):
                        for name, net in nets.items():
                            s = seconds(lambda net=net, inputs=inputs: net(*inputs))
                            taken[name] += [s] if turn else []
                    cells = [
                        f"{name} {statistics.median(times) * 1e3:.1f} ms"
                        f" ({statistics.median(s / e for s, e in zip(times, taken['eager'], strict=True)):.2f})"
                        for name, times in taken.items()
                    ]
                    print(f"{word} threads {threads} batch {batch}: {', '.join(cells)}", flush=True)


def score(o: argparse.Namespace) -> None:
    torch.set_num_threads(o.threads)
    model, recipe = open_model(o.run), checkpoint.read_recipe(checkpoint.resolve(o.run))
    extract = open_features(o.features, torch.device("cpu")).extract
    source = open_source(o.reference or recipe.data, recipe.crop)
    real = gaussian(
        extract(torch.stack([torch.as_tensor(source[i][0]) for i in range(s, min(s + 500, len(source)))]))[0]
        for s in range(0, len(source), 500)
    )
    classes = [i % max(model.classes, 1) for i in range(o.count)]
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(model, Path(folder))
        found = {}
        for name in ("PyTorch", *files):
            net = model.net if name == "PyTorch" else OnnxNetwork(files[name], o.threads)
            now = replace(model, net=net, shape=model.shape, classes=model.classes)
            start = time.perf_counter()
            images = justimage.sample(now, classes, seeds=0)
            taken = time.perf_counter() - start
            distance, influences = fid([extract(part)[0] for part in images.split(500)], real)
            found[name] = images, distance.value, influences
            exact, usual, its_influences = found["PyTorch"]
            rms = (images.float() - exact.float()).square().mean().sqrt()
            change, paired = distance.value - usual, standard_error(influences - its_influences)
            print(
                f"{name}: distance {distance.value:.3f} ({change:+.3f} ± {paired:.3f}), images differ by {rms:.2f} "
                f"levels (rms), {o.count / taken:.1f} images/s",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("speed")
    part.add_argument("--networks", nargs="+", default=["B/16"])
    part.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    part.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    part.add_argument("--rounds", type=int, default=15)
    part.set_defaults(do=speed)
    part = parts.add_parser("score")
    part.add_argument("run")
    part.add_argument("--features", required=True)
    part.add_argument("--reference", default="", help="real images [what the run was trained on]")
    part.add_argument("--count", type=int, default=2000)
    part.add_argument("--threads", type=int, default=os.cpu_count())
    part.set_defaults(do=score)
    o = parser.parse_args()
    o.do(o)


if __name__ == "__main__":
    main()
