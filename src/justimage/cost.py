"""What a network costs before it is built: parameters, multiply-adds, and an estimate of the memory to train it."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from justimage.transformer import Architecture, JiT


class Cost(NamedTuple):
    """Of one network: parameters, multiply-adds of one forward pass of one image (the paper's "flops"), and its tokens."""

    parameters: int
    multiply_adds: int
    tokens: int
    patch_dimension: int


def cost(a: Architecture) -> Cost:
    """Counted on PyTorch's meta device: nothing is computed or stored."""
    a = replace(a, classes=a.classes if a.classes is not None else 1000)
    with torch.device("meta"):
        net = JiT(a).eval()
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            net(torch.empty(1, *net.shape), torch.empty(1), torch.zeros(1, dtype=torch.int64))
    rows, columns = a.grid
    parameters = sum(p.numel() for p in net.parameters())
    return Cost(parameters, counter.get_total_flops() // 2, rows * columns, a.patch_dimension)


def training_memory(a: Architecture, batch: int, emas: int, bf16: bool = True) -> tuple[int, int]:
    """Bytes to train on one device: of weights, gradients, Adam's two moments and the averages, all fp32; and of activations.

    Activations are what backward keeps of a block without checkpointing, per token: in units of the width, its input twice
    (norms), q, k, v, attention's output and projection twice each over, and the MLP's three hidden tensors: about
    14 width + 3 hidden numbers of the compute type, and as many again for fp32 norms under autocast. An estimate, good to a
    factor of about 1.5; benchmarks/RESULTS.md has measured values.
    """
    c = cost(a)
    state = 4 * c.parameters * (4 + emas)
    hidden = int(4 * a.width * 2 / 3) if a.mlp == "swiglu" else 4 * a.width
    late = a.depth - a.context_start
    tokens = c.tokens * a.depth + a.context_tokens * late
    activations = batch * tokens * (14 * a.width + 3 * hidden) * (2 if bf16 else 4)
    return state, activations
