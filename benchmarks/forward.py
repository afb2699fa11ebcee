"""How near a forward pass of JiT comes to the matrix products in it, on this machine.

    python benchmarks/forward.py                                  # B/16, batch 8, bf16, CPU
    python benchmarks/forward.py --network L/16 --device cuda --batch 64 --compile

Prints the time of a forward pass, the time of plain products of the same shapes (each weight's `x @ w.T`, and attention's
two products), measured alternating in one run, their ratio, and which operations take the rest. Ratio 1 would mean that the
network costs nothing but its products.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from justimage.inference import CompiledNetwork
from justimage.transformer import JiT


def products(net: JiT, batch: int, device: str, dtype: torch.dtype) -> Callable[[], None]:
    """All matrix products of one forward pass, and nothing else."""
    a = net.architecture
    rows, columns = a.grid
    work: list[tuple[Tensor, Tensor]] = []

    def linear(count: int, weight: Tensor) -> None:
        work.append((torch.randn(count, weight.shape[1], device=device, dtype=dtype), weight.detach().t()))

    patches = batch * rows * columns
    for layer in (net.embed.reduce, net.embed.expand, net.head.linear):
        if isinstance(layer, torch.nn.Linear):
            linear(patches, layer.weight)
    for layer in (net.time.hidden, net.time.out, net.head.modulation):
        linear(batch, layer.weight)
    for i, block in enumerate(net.blocks):
        tokens = rows * columns + (a.context_tokens if i >= a.context_start else 0)
        for name, weight in block.named_parameters():
            if weight.ndim == 2:
                linear(batch if name.startswith("modulation") else batch * tokens, weight)
        q = torch.randn(batch * a.heads, tokens, a.width // a.heads, device=device, dtype=dtype)
        p = torch.randn(batch * a.heads, tokens, tokens, device=device, dtype=dtype)
        work += [(q, q.transpose(1, 2)), (p, q)]

    def run() -> None:
        for x, w in work:
            torch.matmul(x, w)

    return run


def timed(work: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="B/16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile the network for sampling")
    parser.add_argument("--rounds", type=int, default=15)
    o = parser.parse_args()
    dtype = torch.bfloat16
    net = JiT(o.network).to(o.device, dtype).eval()
    network = CompiledNetwork(net, dtype) if o.compile else net
    z = torch.randn(o.batch, *net.shape, device=o.device)
    t, y = torch.rand(o.batch, device=o.device), torch.randint(0, net.classes, (o.batch,), device=o.device)
    plain = products(net, o.batch, o.device, dtype)

    def forward() -> None:
        network(z, t, y)

    for _ in range(3):
        forward()
        plain()
    pairs = [(timed(forward, o.device), timed(plain, o.device)) for _ in range(o.rounds)]
    whole, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / w for w, b in pairs)
    where = torch.cuda.get_device_name() if o.device != "cpu" else f"{torch.get_num_threads()} CPU threads"
    print(f"{o.network} batch {o.batch} bf16 {'compiled' if o.compile else 'eager'} on {where}, torch {torch.__version__}")
    print(f"forward {whole * 1e3:.1f} ms ({o.batch / whole:.1f} images/s); its products alone {bare * 1e3:.1f} ms")
    print(f"ratio {ratio:.2f}; where the forward pass spends its time:")
    activities = [ProfilerActivity.CPU] if o.device == "cpu" else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as profiler:
        for _ in range(5):
            forward()
    key = "self_cpu_time_total" if o.device == "cpu" else "self_device_time_total"
    events = sorted(profiler.key_averages(), key=lambda e: -getattr(e, key))
    total = sum(getattr(e, key) for e in events)
    for event in events[:10]:
        print(f"{getattr(event, key) / total:6.1%}  {event.key}")


if __name__ == "__main__":
    main()
