"""Training speed: images/s, utilisation of the device (MFU) and memory, and where a step's time goes.

    python benchmarks/train.py --device cuda                        # B/16, L/16, H/16; with and without compile, recomputation
    python benchmarks/train.py --networks B/16 --batches 32 64 128 --device cuda
    python benchmarks/train.py --networks T/8 --batches 32 --precision fp32 --device cpu --compile no

Steps are those of `justimage.train` (loss, gradient norm, Adam, three averages), on random images in memory. MFU counts 6
operations a multiply-add of the forward pass, recomputation not counted, of the device's dense bf16 peak (--peak, TFLOP/s).
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from justimage import cost, data, distributed, plan, training
from justimage.architectures import architecture
from justimage.recipe import Parallelism, Recipe, Training


def seconds(work: Callable[[], object], device: str, repeat: int = 5) -> float:
    def once() -> float:
        began = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()
    return statistics.median(once() for _ in range(repeat))


def measure(recipe: Recipe, source: data.ArraySource, device: str, steps: int, peak: float | None) -> str:
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    state = training.init_state(recipe, distributed.init(device))
    times, waited, began = [], 0.0, time.perf_counter()
    for step in training.train(recipe, source, state):  # a step ends with the device waited for
        times.append(time.perf_counter() - began)
        waited += step.data_seconds
        began = time.perf_counter()
    step = statistics.median(times[-steps:])
    speed = recipe.training.batch / step
    weights = state.optimizer.param_groups[0]["params"]
    for w in weights:
        w.grad = torch.zeros_like(w)
    adam = seconds(state.optimizer.step, device)
    ema = seconds(lambda: state.ema.update(recipe.training.batch, state.images_seen), device)
    x = torch.zeros(recipe.training.batch, *state.denoiser.shape, device=device)
    draws = seconds(lambda: training.draw(recipe.diffusion, 0, 0, x), device)
    mfu = f"{speed * cost.training_flops(recipe.model) / peak:6.1%}" if peak else "      "
    memory = cost.memory_used(torch.device(device)) / 1e9
    shares = f"{1 - (adam + ema + draws) / step:4.0%} {adam / step:4.0%} {ema / step:4.0%} {draws / step:4.0%}"
    return f"{speed:9.1f} {mfu} {memory:7.1f}   {1e3 * step:8.1f} {shares} {waited / sum(times):5.1%}  {times[0]:6.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["B/16", "L/16", "H/16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 64, 128])
    parser.add_argument("--compile", nargs="+", choices=["yes", "no"], default=["no", "yes"])
    parser.add_argument("--recompute", nargs="+", choices=["yes", "no"], default=["no", "yes"])
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--peak", type=float, help="TFLOP/s [the device's data sheet]")
    o = parser.parse_args()
    world = distributed.init(o.device)
    peak = o.peak * 1e12 if o.peak else plan.peak_of(world.device_name)
    print(f"{world.device_name}, torch {torch.__version__}, {o.precision}; peak {peak and peak / 1e12} TFLOP/s")
    print("network  batch compile recompute  images/s    MFU      GB    ms/step  net Adam  EMA draw  data  1st, s")
    for name, batch, compiled, again in itertools.product(o.networks, o.batches, o.compile, o.recompute):
        network = architecture(name, classes=1000)
        images = torch.randint(0, 256, (batch, network.channels, *network.size), dtype=torch.uint8)
        source = data.ArraySource(images, torch.randint(0, 1000, (batch,)), [str(i) for i in range(1000)], "random")
        recipe = Recipe(
            model=network,
            training=Training(total_images=batch * (o.steps + 3), batch=batch, warmup=0, precision=o.precision),
            parallelism=Parallelism(compile=compiled == "yes", activation_checkpointing=again == "yes", workers=0),
        )  # fmt: skip
        try:
            result = measure(replace(recipe), source, o.device, o.steps, peak)
        except torch.OutOfMemoryError:
            result = "out of memory"
        print(f"{name:8} {batch:5} {compiled:7} {again:9} {result}", flush=True)


if __name__ == "__main__":
    main()
