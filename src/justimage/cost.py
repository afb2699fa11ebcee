"""The cost of a network before it is built: parameters, multiply-adds, and an estimate of the memory to train it."""

import os
import sys
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from justimage.architectures import Architecture
from justimage.transformer import JiT


class Cost(NamedTuple):
    """Of one network: parameters, multiply-adds of one forward pass of one image (the paper's "flops"), and its tokens."""

    parameters: int
    multiply_adds: int
    tokens: int
    patch_dimension: int


def cost(a: Architecture) -> Cost:
    """Counted from the shapes of the weights, on PyTorch's meta device: nothing is computed or stored."""
    with torch.device("meta"):
        net = JiT(replace(a, classes=a.classes if a.classes is not None else 1000))
    patches = a.grid[0] * a.grid[1]
    multiply_adds = 0
    for name, module in net.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if name.startswith(("embed.", "embed_image.", "head.linear")):
            positions = patches
        elif name.startswith("text."):
            positions = a.text_length
        elif name.startswith("blocks") and "modulation" not in name:
            positions = sequence_length(a, int(name.split(".")[1]))
        else:
            positions = 1  # of the condition, or of the mean of all tokens
        multiply_adds += positions * module.weight.numel()
    multiply_adds += sum(2 * sequence_length(a, block) ** 2 * a.width for block in range(a.depth))  # q k and p v
    return Cost(sum(p.numel() for p in net.parameters()), multiply_adds, patches, a.patch_dimension)


@lru_cache
def training_flops(a: Architecture) -> int:
    """Floating-point operations to train on one image: two a multiply-add, forward and twice as much backward."""
    return 6 * cost(a).multiply_adds


def memory_used(device: torch.device) -> int:
    """Peak memory in bytes: of tensors on a GPU, elsewhere of the process; 0 on a system that does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_available(device: torch.device) -> int:
    """Bytes that a GPU has; elsewhere, that this process may use of the machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 16 * 2**30
    with suppress(OSError, ValueError):  # a container's limit; "max" for none
        there = min(there, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return there


def sequence_length(a: Architecture, block: int) -> int:
    """Length of the sequence in a block: the patches, and from the start block on the tokens of class and text."""
    return a.grid[0] * a.grid[1] + (a.context if block >= a.context_start else 0)


def training_memory(a: Architecture, batch: int, emas: int, bf16: bool = True) -> tuple[int, int]:
    """Bytes to train on one device: of weights, gradients, Adam's two moments and the averages, all fp32; and of activations.

    Activations are what autograd keeps per token and block: 88 width + 12 hidden bytes in fp32, 68 width + 6 hidden under bf16
    autocast, hidden being the MLP's inner width. Counted with saved-tensor hooks on S/4, B/16 and L/16 in eager mode, where the
    formula is within 2 %; compiled blocks keep less.
    """
    c = cost(a)
    state = 4 * c.parameters * (4 + emas)
    hidden = int(4 * a.width * 2 / 3) if a.mlp == "swiglu" else 4 * a.width
    a_token = 68 * a.width + 6 * hidden if bf16 else 88 * a.width + 12 * hidden
    return state, batch * sum(sequence_length(a, block) for block in range(a.depth)) * a_token


def image_memory(a: Architecture) -> int:
    """Bytes of what has an image's size at the fullest moment of a step: the image, noise, z, the network's output, its error
    and their gradients. Nine fp32 copies of an image, by which peaks of B at 256 to 1024 pixels differ."""
    return 36 * a.channels * a.size[0] * a.size[1]


def block_parameters(a: Architecture) -> int:
    """Parameters of a block that sees the class tokens."""
    one = replace(a, depth=1, context_start=0, aux_classifier=False)
    return cost(replace(one, depth=2)).parameters - cost(one).parameters


def sharded_copies(a: Architecture, accumulates: bool) -> float:
    """Bytes that a process holds of a sharded network beside its own rows: two blocks gathered in bf16, the gradients of one in
    bf16 and fp32, what is in no block, and its gradients, in fp32. accumulates: over several microbatches a step, between whose
    reductions all gradients are summed whole."""
    parameters, block = cost(a).parameters, block_parameters(a)
    gathered = (2 * 2 + 2 + 4) * block + (4.0 + 4.0) * (parameters - a.depth * block)
    return gathered + (4.0 * parameters if accumulates else 0.0)
