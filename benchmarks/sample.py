"""Sampling throughput: images/s and passes/s of networks with random weights, by `justimage.sample`.

    python benchmarks/sample.py
    python benchmarks/sample.py --networks B/16 L/16 --batches 16 64 256
    python benchmarks/sample.py --networks T/8 --batches 16 --steps 6 --device cpu

Solver, steps, guidance and interval are Table 9's unless said otherwise: 50 Heun steps are 187 passes with a batch that is
counted twice where guidance applies. A first call, not counted, warms up.
"""

import argparse
import statistics
import time

import torch

from justimage import cost, distributed, plan
from justimage.diffusion import Diffusion
from justimage.sampling import Denoiser, Sampling, sample
from justimage.transformer import JiT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["B/16", "L/16", "H/16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=2.2)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default=None, help="[bf16 on a GPU, fp32 on a CPU]")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeat", type=int, default=3)
    o = parser.parse_args()
    world = distributed.init(o.device)
    peak = plan.peak_of(world.device_name)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32, None: None}[o.precision]
    print(f"{world.device_name}, torch {torch.__version__}; Heun, {o.steps} steps, guidance {o.guidance:g} on (0.1, 1)")
    print("network  batch  images/s  passes/s of a batch    MFU      GB")
    for name in o.networks:
        net = JiT(name, classes=1000).to(world.device).eval()
        passes = 0

        def passed(module: object, inputs: tuple[torch.Tensor, ...], output: object) -> None:
            nonlocal passes
            passes += len(inputs[0])

        net.register_forward_hook(passed)
        model = Denoiser(net, Diffusion())
        operations = 2 * cost.cost(net.architecture).multiply_adds
        for batch in o.batches:
            if world.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            taken = []
            try:
                for turn in range(1 + o.repeat):
                    passes, began = 0, time.perf_counter()
                    sample(
                        model, [i % 1000 for i in range(batch)], 0,
                        Sampling(steps=o.steps, guidance=o.guidance, interval=(0.1, 1.0)), batch=batch, dtype=dtype,
                    )  # fmt: skip
                    if turn:
                        taken.append(time.perf_counter() - began)
            except torch.OutOfMemoryError:
                print(f"{name:8} {batch:5}  out of memory", flush=True)
                continue
            seconds = statistics.median(taken)
            mfu = f"{passes * operations / seconds / peak:6.1%}" if peak else "      "
            memory = cost.memory_used(world.device) / 1e9
            print(
                f"{name:8} {batch:5} {batch / seconds:9.2f} {passes / batch / seconds:12.1f}         {mfu} {memory:7.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
