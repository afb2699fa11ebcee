"""What a training will take before anything is rented: bytes a GPU, where a step's time goes, days.

Pure arithmetic on the shapes of the network and the data sheets of the GPUs; nothing is measured. `docs/scale.md` has the
same formulas with their sources. Bytes and FLOPs are counted, rates are assumed: each assumption is one constant below.
"""

import difflib
import re
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Literal

import torch

from justimage.cost import cost, sequence_length, training_memory
from justimage.distributed import Parallel
from justimage.recipe import Recipe
from justimage.transformer import Architecture, JiT

Mode = Parallel | Literal["auto"]
"""How a network is spread over GPUs, or that it is to be chosen."""


@dataclass(frozen=True)
class GPU:
    """A GPU, as its data sheet has it."""

    peak: float
    """dense bf16 FLOP/s of the matrix units, accumulated in fp32"""
    memory: float
    """bytes"""
    bandwidth: float
    """bytes/s of its memory"""
    link: float
    """bytes/s to the other GPUs of its node, one way"""
    network: float = 50e9
    """bytes/s to other nodes, one way: one 400 Gb/s adapter a GPU"""
    node: int = 8
    """GPUs a node"""


GPUS = {
    # NVIDIA's H100 data sheet, SXM: 989.4 TFLOPS dense (1,979 "with sparsity"), 3.35 TB/s, NVLink 900 GB/s both ways
    "h100": GPU(989.4e12, 80e9, 3.35e12, 450e9),
    # H200 data sheet, SXM: the same chip with 141 GB at 4.8 TB/s
    "h200": GPU(989.4e12, 141e9, 4.8e12, 450e9),
    # DGX and HGX B200 data sheets: 2.25 PFLOPS dense; 1,440 GB, 64 TB/s and 14.4 TB/s of NVLink for eight
    "b200": GPU(2.25e15, 180e9, 8e12, 900e9),
    # A100 data sheet, SXM: 312 TFLOPS, 2,039 or 1,555 GB/s, NVLink 600 GB/s both ways; DGX A100: eight adapters of 200 Gb/s
    "a100": GPU(312e12, 80e9, 2.039e12, 300e9, network=25e9),
    "a100-40": GPU(312e12, 40e9, 1.555e12, 300e9, network=25e9),
    # MI300X and MI325X data sheets: 1,307.4 TFLOPS, 5.3 and 6 TB/s, seven links of 128 GB/s both ways
    "mi300x": GPU(1307.4e12, 192e9, 5.3e12, 448e9),
    "mi325x": GPU(1307.4e12, 256e9, 6e12, 448e9),
    # Cards for PCIe: a ring of eight crosses that, 128 GB/s both ways for PCIe 5 x16 and 64 for PCIe 4, as their bridges of
    # NVLink join two or four; one 400 Gb/s adapter a node is our assumption. H100 data sheet: PCIe 1,513 TFLOPS with
    # sparsity, 2 TB/s; NVL 1,671, 94 GB at 3.9 TB/s. H200 data sheet: NVL 1,671. A100 data sheet: PCIe 1,935 or 1,555 GB/s
    "h100-pcie": GPU(756e12, 80e9, 2e12, 64e9, network=6.25e9),
    "h100-nvl": GPU(835e12, 94e9, 3.9e12, 64e9, network=6.25e9),
    "h200-nvl": GPU(835e12, 141e9, 4.8e12, 64e9, network=6.25e9),
    "a100-pcie": GPU(312e12, 80e9, 1.935e12, 32e9, network=6.25e9),
    "a100-pcie-40": GPU(312e12, 40e9, 1.555e12, 32e9, network=6.25e9),
    # data sheets of L40S, L40, L4 (242 TFLOPS "with sparsity"), A40, A30 and A10; all PCIe 4
    "l40s": GPU(362.05e12, 48e9, 864e9, 32e9, network=6.25e9),
    "l40": GPU(181.05e12, 48e9, 864e9, 32e9, network=6.25e9),
    "l4": GPU(121e12, 24e9, 300e9, 32e9, network=6.25e9),
    "a40": GPU(149.7e12, 48e9, 696e9, 32e9, network=6.25e9),
    "a30": GPU(165e12, 24e9, 933e9, 32e9, network=6.25e9),
    "a10": GPU(125e12, 24e9, 600e9, 32e9, network=6.25e9),
    # Ampere GA102 and Ada (professional) architecture papers, fp32 accumulation; PCIe 4
    "rtx-a6000": GPU(154.8e12, 48e9, 768e9, 32e9, network=6.25e9),
    "rtx6000-ada": GPU(364.2e12, 48e9, 960e9, 32e9, network=6.25e9),
    # Ampere GA102, Ada and RTX Blackwell architecture papers, fp32 accumulation; GeForce cards do not read each other's memory,
    # so PCIe (4; 5 for the 5090) is crossed twice, by way of the host
    "rtx3090": GPU(71e12, 24e9, 936e9, 16e9, network=6.25e9),
    "rtx4090": GPU(165.2e12, 24e9, 1.008e12, 16e9, network=6.25e9),
    "rtx5090": GPU(209.5e12, 32e9, 1.792e12, 32e9, network=6.25e9),
}

MFU = 0.4
"""Fraction of the peak that forward and backward reach; 0.33 to 0.43 is published for large language models on H100."""
LINK_SHARE = 0.8
"""Of a link's data sheet, what NCCL reaches (all_reduce_perf: 230 to 250 of 300 GB/s on A100, 46 to 48 of 50 on a network)."""
MEMORY_SHARE = 0.8
"""Of the memory's data sheet, what the optimizer's element-wise kernels reach; ours."""
OVERLAP = 0.8
"""Of the communication, at most this hides behind computing: the first gather and the last reduction cannot; ours."""
RESERVE = 0.08
"""Of the memory, kept for the CUDA context, NCCL's buffers, cuBLAS' workspaces and the allocator's fragments; ours."""
MIN_MICROBATCH = 8
"""Images at a time below which matrices are too small to keep a GPU busy; ours."""
TOLERANCE = 1.1
"""A simpler arrangement is preferred while its step takes at most this times the fastest one's."""


EXTRA_ROOM = r"nvidia|geforce|amd|instinct|generation|sxm4|oam|hbm\d?e?|\d+gb"
"""Words of a device's name that do not tell one chip from another."""


def peak_of(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a device by the name it gives itself ("NVIDIA H100 80GB HBM3"); None where it is not known.

    Every word counts: "H100 PCIe" is another chip than "H100", "RTX 4090 Laptop GPU" than "RTX 4090"; "MIG" is a part of one.
    """
    words = re.findall(r"[a-z0-9]+", device_name.lower())
    name = "".join(word for word in words if not re.fullmatch(EXTRA_ROOM, word))
    return next((kind.peak for key, kind in GPUS.items() if key.replace("-", "") == name), None)


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the fullest moment of a step."""

    weights: float
    gradients: float
    moments: float
    """Adam's two"""
    averages: float
    """of the weights (EMA)"""
    copies: float
    """ddp: weights in bf16. Else: two blocks gathered in bf16, one's gradients in bf16 and fp32; the rest in fp32, both"""
    activations: float
    reserve: float

    @property
    def total(self) -> float:
        return sum(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True)
class Seconds:
    """Of one step."""

    compute: float
    """forward and backward"""
    communication: float
    """what does not hide behind computing"""
    hidden: float
    """communication that does; no part of the total"""
    optimizer: float
    averages: float

    @property
    def total(self) -> float:
        return self.compute + self.communication + self.optimizer + self.averages


@dataclass(frozen=True)
class TrainingPlan:
    """One arrangement of a training on GPUs, and what it takes."""

    gpus: int
    nodes: int
    gpu_type: str
    parallel: Parallel
    grad_accumulation: int
    activation_checkpointing: bool
    parameters: int
    batch: int
    images: int
    """of the whole training"""
    microbatch: int
    """images at a time on a GPU"""
    memory: Memory
    capacity: float
    """bytes of a GPU"""
    seconds: Seconds
    images_per_second: float
    days: float
    mfu: float
    """of the whole step: FLOPs of the model, without recomputation, over what the GPUs could do in that time"""
    data_rate: float
    """bytes/s of raw pixels, all GPUs together"""
    checkpoint: float
    """bytes of one checkpoint"""
    host_memory: float
    """bytes of the host's that each process takes to make the network, beside what PyTorch takes"""
    why: str = ""
    """what speaks against the simpler arrangement"""
    advice: str = ""
    """the least change that makes it fit, where it does not"""
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.capacity

    @property
    def flags(self) -> str:
        """Options of `justimage train` that arrange it so."""
        parts = f" --accumulate {self.grad_accumulation}" if self.grad_accumulation > 1 else ""
        return f"--parallel {self.parallel}{parts}{' --activation-checkpointing' if self.activation_checkpointing else ''}"


def plan(
    recipe: Recipe,
    gpus: int,
    kind: str = "h100",
    parallel: Mode = "auto",
    accumulate: int | None = None,
    activation_checkpointing: bool | None = None,
    mfu: float = MFU,
    gpu_memory: float | None = None,
) -> TrainingPlan:
    """The recipe on that many GPUs. What is left open ("auto", None) is chosen: the simplest that fits and is fast.

    Simple is ddp before hsdp (on several nodes) before fsdp, no recomputation before recomputation, fewer parts before more.
    The first in this order is taken whose step is at most 10 % longer than that of the fastest which fits. Parts of fewer than
    8 images are tried only where nothing else fits. The precision "auto" is bf16, as on a GPU. gpu_memory, in bytes, stands in
    for the data sheet's. ValueError where numbers do not go together.
    """
    card = gpu_named(kind) if gpu_memory is None else replace(gpu_named(kind), memory=gpu_memory)
    check(recipe, gpus, accumulate, mfu, card)
    tried = arrangements(recipe, gpus, kind, card, parallel, accumulate, activation_checkpointing, mfu)
    chosen = choose(tried)
    if chosen is None:
        smallest = min(tried, key=lambda p: p.memory.total)
        return replace(smallest, advice=suggest(recipe, gpus, kind, card, parallel, accumulate, activation_checkpointing, mfu))
    simplest, why = tried[0], ""
    if not simplest.fits:
        why = f"{simplest.flags} needs {simplest.memory.total / 1e9:.1f} of {card.memory / 1e9:.0f} GB"
    elif chosen is not simplest:
        why = f"{simplest.flags} fits, too, but its step is {simplest.seconds.total / chosen.seconds.total - 1:.0%} longer"
    return replace(chosen, why=why)


def check(recipe: Recipe, gpus: int, accumulate: int | None, mfu: float, card: GPU) -> None:
    """ValueError, with what would be allowed, where the numbers do not go together."""
    batch = recipe.training.batch
    if gpus < 1 or batch % gpus:
        near = sorted(divisors(batch), key=lambda n: abs(n - gpus))[:3]
        raise ValueError(
            f"gpus is {gpus}, which does not divide the batch of {batch}; perhaps {', '.join(map(str, sorted(near)))}"
        )
    if accumulate is not None and (accumulate < 1 or batch // gpus % accumulate):
        allowed = ", ".join(map(str, divisors(batch // gpus)))
        raise ValueError(
            f"accumulate is {accumulate}, which does not divide the {batch // gpus} images of a GPU; allowed: {allowed}"
        )
    if not 0 < mfu <= 1:
        raise ValueError(f"mfu is {mfu:g}; it must be above 0 and at most 1, a fraction of the peak")
    if not 0 < card.memory < float("inf"):
        raise ValueError(f"a GPU's memory is {card.memory / 1e9:g} GB; it must be above 0")
    if recipe.training.precision not in ("bf16", "auto"):
        raise ValueError(
            f"precision is {recipe.training.precision}; only bf16 can be planned, whose peaks the data sheets give"
        )


def arrangements(
    recipe: Recipe, gpus: int, kind: str, card: GPU, parallel: Mode, accumulate: int | None, again: bool | None, mfu: float
) -> list[TrainingPlan]:
    """Everything that is left open tried, the simplest first."""
    return [
        estimate(recipe, gpus, kind, card, how, parts, recompute, mfu)
        for recompute in ((False, True) if again is None else (again,))
        for how in options(parallel, gpus, card)
        for parts in (divisors(recipe.training.batch // gpus) if accumulate is None else (accumulate,))
    ]


def options(parallel: Mode, gpus: int, card: GPU) -> tuple[Parallel, ...]:
    """The forced one, or those to choose from, the simplest first: hsdp is fsdp on one node, and ddp with one GPU a node."""
    if parallel != "auto":
        return (parallel,)
    if gpus == 1:
        return ("ddp",)
    return ("ddp", "hsdp", "fsdp") if 1 < nodes_of(gpus, card) < gpus else ("ddp", "fsdp")


def nodes_of(gpus: int, card: GPU) -> int:
    """The fewest nodes of equally many GPUs."""
    return next(n for n in range(-(-gpus // card.node), gpus + 1) if gpus % n == 0)


def choose(tried: list[TrainingPlan]) -> TrainingPlan | None:
    """The first that is about as fast as the fastest which fits; None where none does."""
    fitting = [p for p in tried if p.fits]
    fitting = [p for p in fitting if p.microbatch >= min(MIN_MICROBATCH, p.batch // p.gpus)] or fitting
    fastest = min((p.seconds.total for p in fitting), default=0)
    return next((p for p in fitting if p.seconds.total <= TOLERANCE * fastest), None)


def suggest(
    recipe: Recipe, gpus: int, kind: str, card: GPU, parallel: Mode, accumulate: int | None, again: bool | None, mfu: float
) -> str:
    """What to change to make it fit: one option that was forced, or all; else more GPUs; else a larger kind. Empty for none."""
    freed: list[list[tuple[Mode, int | None, bool | None]]] = [
        [("auto", accumulate, again), (parallel, None, again), (parallel, accumulate, None)],
        [("auto", None, None)],
    ]
    for options in freed:
        if found := [p for o in options if (p := choose(arrangements(recipe, gpus, kind, card, *o, mfu)))]:
            return f"it fits with {min(found, key=lambda p: p.seconds.total).flags}"
    for more in divisors(recipe.training.batch):
        if more > gpus and (found := choose(arrangements(recipe, more, kind, card, "auto", None, None, mfu))):
            return f"it fits on {more} of them with {found.flags}"
    for other, larger in sorted(GPUS.items(), key=lambda item: item[1].memory):
        if larger.memory > card.memory and (
            found := choose(arrangements(recipe, gpus, other, larger, "auto", None, None, mfu))
        ):
            return f"it fits on {gpus} of {other} with {found.flags}"
    return ""


def estimate(
    recipe: Recipe, gpus: int, kind: str, card: GPU, parallel: Parallel, accumulate: int, again: bool, mfu: float
) -> TrainingPlan:
    """One arrangement, `again` saying whether blocks are computed again in the backward pass (activation checkpointing)."""
    r, network = recipe.training, recipe.model
    parameters, multiply_adds, block, largest, whole, inside, inputs = count(network)
    share = r.batch // gpus
    part = share // accumulate
    emas = len(r.ema)
    nodes = nodes_of(gpus, card)
    node = gpus // nodes
    shards = {"ddp": 1, "hsdp": node, "fsdp": gpus}[parallel]

    if parallel == "ddp":
        copies = 2.0 * parameters
    else:
        outside = parameters - network.depth * block
        copies = (2 * 2 + 2 + 4) * block + (4.0 + 4.0) * outside
        if accumulate > 1:  # between reductions the gradients of the parts are summed whole
            copies += 4.0 * parameters
    memory = Memory(
        weights=4 * parameters / shards,
        gradients=4 * parameters / shards,
        moments=8 * parameters / shards,
        averages=4 * emas * parameters / shards,
        copies=copies,
        activations=part * (inputs + inside if again else whole),
        reserve=RESERVE * card.memory,
    )

    flops = 2 * multiply_adds * share * (4 if again else 3)
    compute = flops / (mfu * card.peak)
    behind = compute * (3 / 4 if again else 2 / 3) / accumulate  # the last part's backward pass
    everywhere = card.link if nodes == 1 else min(card.link, node * card.network)
    sharded = (2 * 2 * accumulate + 4) * parameters  # two all-gathers of bf16 a part, one reduce-scatter of fp32 a step
    match parallel:  # what is transferred, in seconds, and the computing that it may hide behind
        case "ddp":  # an all-reduce of fp32 is a reduce-scatter and an all-gather
            transfers = [(ring_seconds(2 * 4 * parameters, gpus, everywhere), behind)]
        case "fsdp":
            transfers = [(ring_seconds(sharded, gpus, everywhere), compute)]
        case "hsdp":  # each GPU of a node reduces its shard with its like on the other nodes, by its own adapter
            across = ring_seconds(2 * 4 * parameters / node, nodes, min(card.link, card.network))
            transfers = [(ring_seconds(sharded, node, card.link), compute), (across, behind)]
    hidden = sum(min(OVERLAP * transfer, window) for transfer, window in transfers)
    stream = parameters / shards / (MEMORY_SHARE * card.bandwidth)
    seconds = Seconds(
        compute=compute,
        communication=sum(transfer for transfer, _ in transfers) - hidden,
        hidden=hidden,
        optimizer=(4 + 3) * 4 * stream,  # reads weight, gradient and two moments; writes all but the gradient
        averages=emas * (2 + 1) * 4 * stream,
    )
    speed = r.batch / seconds.total
    notes = []
    if share < MIN_MICROBATCH:
        notes.append(f"{share} images a GPU: the batch, not the network, is used up, and the assumed MFU will not be reached")
    elif part < MIN_MICROBATCH:
        notes.append(f"{part} images at a time keep no GPU busy; the assumed MFU will not be reached")
    pixels = network.channels * network.size[0] * network.size[1]
    return TrainingPlan(
        gpus, nodes, kind, parallel, accumulate, again, parameters, r.batch, r.total_images, part, memory, card.memory, seconds,
        images_per_second=speed,
        days=r.total_images / speed / 86400,
        mfu=6 * multiply_adds * speed / (gpus * card.peak),
        data_rate=pixels * speed,
        checkpoint=4 * parameters * (3 + emas),
        host_memory=4 * (parameters if parallel == "ddp" or gpus == 1 else largest),  # sharded ones are drawn tensor by tensor
        notes=tuple(notes),
    )  # fmt: skip


def ring_seconds(amount: float, n: int, rate: float) -> float:
    """Seconds in which each of n passes all of `amount` bytes but its own part on to the next, at a rate of a data sheet."""
    return amount * (n - 1) / n / (LINK_SHARE * rate)


@cache
def count(a: Architecture) -> tuple[int, int, int, int, int, int, int]:
    """Parameters, multiply-adds, parameters of a block and of the largest tensor; bytes that autograd keeps in bf16 of an
    image: in all blocks, in the longest one, and of nothing but the blocks' inputs, which the residual stream holds in fp32."""
    c = cost(a)
    one = replace(a, depth=1, context_start=0, aux_classifier=False)  # a block that sees the class tokens
    block = cost(replace(one, depth=2)).parameters - cost(one).parameters
    with torch.device("meta"):
        largest = max(p.numel() for p in JiT(replace(one, classes=1000 if a.classes is None else a.classes)).parameters())
    inside = training_memory(one, 1, 0)[1]
    length = sum(sequence_length(a, i) for i in range(a.depth))
    return (
        c.parameters,
        c.multiply_adds,
        block,
        largest,
        inside * length // sequence_length(one, 0),
        inside,
        4 * a.width * length,
    )


def gpu_named(kind: str) -> GPU:
    """The GPU of that name; ValueError with the nearest name and the list where there is none."""
    if kind not in GPUS:
        near = difflib.get_close_matches(kind.lower(), GPUS, n=1)
        hint = f"perhaps {near[0]}; " if near else ""
        raise ValueError(f"no GPU is called {kind!r}; {hint}there are {', '.join(GPUS)}")
    return GPUS[kind]


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def launch_command(p: TrainingPlan, train: str, job: str = "RUN") -> str:
    """The command that runs it; with several nodes the same one on each, HEAD being any of them."""
    if p.gpus == 1:
        return f"justimage train {train} {p.flags}"
    several = f"--nnodes={p.nodes} --rdzv-backend=c10d --rdzv-endpoint=$HEAD:29500 --rdzv-id={job}"
    where = "--standalone" if p.nodes == 1 else several
    return f"torchrun {where} --nproc-per-node={p.gpus // p.nodes} --max-restarts=10 -m justimage train {train} {p.flags}"
