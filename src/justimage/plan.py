"""Plan a training before anything is rented: bytes per GPU, the time of a step and its parts, days.

Pure arithmetic on the shapes of the network and the data sheets of the GPUs; nothing is measured. `docs/scale.md` has the
same formulas with their sources. Bytes and FLOPs are counted, rates are assumed: each assumption is one constant below.
"""

import difflib
import re
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Literal, NamedTuple

import torch

from justimage.architectures import Architecture
from justimage.cost import block_parameters, cost, image_memory, sequence_length, sharded_copies, training_memory
from justimage.distributed import Parallel
from justimage.recipe import Recipe
from justimage.transformer import JiT

Mode = Parallel | Literal["auto"]
"""How a network is spread over GPUs; "auto" chooses."""


@dataclass(frozen=True)
class GPU:
    """A GPU's data sheet."""

    peak: float
    """dense bf16 FLOP/s of the matrix units, accumulated in fp32"""
    memory: float
    """bytes"""
    bandwidth: float
    """bytes/s of its memory"""
    link: float
    """bytes/s to the other GPUs of the node, one way"""
    network: float = 50e9
    """bytes/s to other nodes, one way: one 400 Gb/s adapter per GPU"""
    node: int = 8
    """GPUs per node"""


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
    # NVLink join two or four; one 400 Gb/s adapter per node is our assumption. H100 data sheet: PCIe 1,513 TFLOPS with
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
"""Fraction of a link's data sheet that NCCL reaches (all_reduce_perf: 230 to 250 of 300 GB/s on A100, 46 to 48 of 50 on a
network)."""
MEMORY_SHARE = 0.8
"""Fraction of the memory's data sheet that the optimizer's element-wise kernels reach; ours."""
OVERLAP = 0.8
"""Largest fraction of the communication that overlaps with computing: the first gather and the last reduction cannot; ours."""
RESERVE = 0.08
"""Fraction of the memory for the CUDA context, NCCL's buffers, cuBLAS' workspaces and the allocator's fragments; ours."""
MIN_MICROBATCH = 8
"""Images per microbatch below which matrices are too small to keep a GPU busy; ours."""
TOLERANCE = 1.1
"""A simpler arrangement is preferred while its step takes at most this times the fastest's."""


NO_CHIP = r"nvidia|geforce|amd|instinct|generation|sxm4|oam|hbm\d?e?|\d+gb"
"""Words of a device's name that do not distinguish chips."""


def peak_of(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a device by the name that it reports ("NVIDIA H100 80GB HBM3"); None for an unknown one.

    Every other word counts: "H100 PCIe" is not the chip "H100", nor "RTX 4090 Laptop GPU" "RTX 4090"; "MIG" is a part of one.
    """
    words = re.findall(r"[a-z0-9]+", device_name.lower())
    name = "".join(word for word in words if not re.fullmatch(NO_CHIP, word))
    return next((gpu.peak for key, gpu in GPUS.items() if key.replace("-", "") == name), None)


@dataclass(frozen=True)
class Request:
    """A training and the GPUs for it; what is None or "auto" is chosen. ValueError for numbers that do not go together."""

    recipe: Recipe
    gpus: int
    gpu_type: str = "h100"
    parallel: Mode = "auto"
    grad_accumulation: int | None = None
    activation_checkpointing: bool | None = None
    mfu: float = MFU
    gpu_memory: float | None = None
    """bytes, instead of the data sheet's"""

    def __post_init__(self) -> None:
        r, gpus, accumulation = self.recipe.training, self.gpus, self.grad_accumulation
        if gpus < 1 or r.batch % gpus:
            near = sorted(divisors(r.batch), key=lambda n: abs(n - gpus))[:3]
            near = ", ".join(map(str, sorted(near)))
            raise ValueError(f"gpus is {gpus}, which does not divide the batch of {r.batch}; perhaps {near}")
        share = r.batch // gpus
        if accumulation is not None and (accumulation < 1 or share % accumulation):
            allowed = f"allowed: {', '.join(map(str, divisors(share)))}"
            raise ValueError(
                f"grad_accumulation is {accumulation}, which does not divide the {share} images of a GPU; {allowed}"
            )
        if not 0 < self.mfu <= 1:
            raise ValueError(f"mfu is {self.mfu:g}; it must be above 0 and at most 1, a fraction of the peak")
        if not 0 < self.gpu.memory < float("inf"):
            raise ValueError(f"a GPU's memory is {self.gpu.memory / 1e9:g} GB; it must be above 0")
        if r.precision not in ("bf16", "auto"):
            raise ValueError(f"precision is {r.precision}; only bf16 can be planned, for which the data sheets give peaks")

    @property
    def gpu(self) -> GPU:
        sheet = gpu_named(self.gpu_type)
        return sheet if self.gpu_memory is None else replace(sheet, memory=self.gpu_memory)

    @property
    def nodes(self) -> int:
        """The fewest nodes of equally many GPUs."""
        return next(n for n in range(-(-self.gpus // self.gpu.node), self.gpus + 1) if self.gpus % n == 0)

    def open(self) -> "Request":
        """The request with everything left to choose."""
        return replace(self, parallel="auto", grad_accumulation=None, activation_checkpointing=None)


class Arrangement(NamedTuple):
    """How a training is arranged on its GPUs."""

    parallel: Parallel
    grad_accumulation: int
    activation_checkpointing: bool


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
    """Time of one step."""

    compute: float
    """forward and backward"""
    communication: float
    """not overlapped with computing"""
    hidden: float
    """communication that is overlapped; no part of the total"""
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
    """images per microbatch on a GPU"""
    memory: Memory
    capacity: float
    """bytes of a GPU"""
    seconds: Seconds
    images_per_second: float
    days: float
    mfu: float
    """of the whole step: FLOPs of the model, without recomputation, as a fraction of the GPUs' peak in that time"""
    data_rate: float
    """bytes/s of raw pixels, all GPUs together"""
    checkpoint: float
    """bytes of one checkpoint"""
    host_memory: float
    """bytes of host memory that each process takes to build the network, beside PyTorch's own"""
    why: str = ""
    """the argument against the simplest arrangement"""
    advice: str = ""
    """the smallest change that makes it fit, where it does not"""
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.capacity

    @property
    def flags(self) -> str:
        """The options of `justimage train` for this arrangement."""
        accumulation = f" --grad-accumulation {self.grad_accumulation}" if self.grad_accumulation > 1 else ""
        return (
            f"--parallel {self.parallel}{accumulation}{' --activation-checkpointing' if self.activation_checkpointing else ''}"
        )


def plan(request: Request) -> TrainingPlan:
    """Plan a training; what the request leaves open is chosen: the simplest arrangement that fits and is fast.

    Simple is ddp before hsdp (on several nodes) before fsdp, no recomputation before recomputation, fewer microbatches before
    more. The first in this order is taken whose step is at most 10 % longer than that of the fastest which fits. Fewer than 8
    images at a time are tried only where nothing else fits. The precision "auto" is bf16, as on a GPU.
    """
    plans = every_plan(request)
    chosen = choose_plan(plans)
    if chosen is None:
        smallest = min(plans, key=lambda p: p.memory.total)
        return replace(smallest, advice=suggest(request))
    simplest, why = plans[0], ""
    if not simplest.fits:
        why = f"{simplest.flags} needs {simplest.memory.total / 1e9:.1f} of {request.gpu.memory / 1e9:.0f} GB"
    elif chosen is not simplest:
        why = f"{simplest.flags} fits, too, but its step is {simplest.seconds.total / chosen.seconds.total - 1:.0%} longer"
    return replace(chosen, why=why)


def every_plan(request: Request) -> list[TrainingPlan]:
    """The plans of every arrangement that the request allows, the simplest first."""
    accumulation, recompute = request.grad_accumulation, request.activation_checkpointing
    share = request.recipe.training.batch // request.gpus
    return [
        estimate(request, Arrangement(parallel, microbatches, recomputed))
        for recomputed in ((False, True) if recompute is None else (recompute,))
        for parallel in parallel_modes(request)
        for microbatches in (divisors(share) if accumulation is None else (accumulation,))
    ]


def parallel_modes(request: Request) -> tuple[Parallel, ...]:
    """The requested mode, or all, the simplest first: hsdp is fsdp on one node, and ddp with one GPU per node."""
    if request.parallel != "auto":
        return (request.parallel,)
    if request.gpus == 1:
        return ("ddp",)
    return ("ddp", "hsdp", "fsdp") if 1 < request.nodes < request.gpus else ("ddp", "fsdp")


def choose_plan(plans: list[TrainingPlan]) -> TrainingPlan | None:
    """The first plan that is about as fast as the fastest which fits; None where none fits."""
    fitting = [p for p in plans if p.fits]
    fitting = [p for p in fitting if p.microbatch >= min(MIN_MICROBATCH, p.batch // p.gpus)] or fitting
    fastest = min((p.seconds.total for p in fitting), default=0)
    return next((p for p in fitting if p.seconds.total <= TOLERANCE * fastest), None)


def suggest(request: Request) -> str:
    """The smallest change that makes it fit: free one forced option, or all; more GPUs; a larger type. Else empty."""
    one_freed = [
        replace(request, parallel="auto"),
        replace(request, grad_accumulation=None),
        replace(request, activation_checkpointing=None),
    ]
    for requests in one_freed, [request.open()]:
        if found := [p for r in requests if (p := choose_plan(every_plan(r)))]:
            return f"it fits with {min(found, key=lambda p: p.seconds.total).flags}"
    for more in divisors(request.recipe.training.batch):
        if more > request.gpus and (found := choose_plan(every_plan(replace(request.open(), gpus=more)))):
            return f"it fits on {more} of them with {found.flags}"
    for name, gpu in sorted(GPUS.items(), key=lambda item: item[1].memory):
        if gpu.memory > request.gpu.memory:
            larger = replace(request.open(), gpu_type=name, gpu_memory=None)
            if found := choose_plan(every_plan(larger)):
                return f"it fits on {request.gpus} of {name} with {found.flags}"
    return ""


def estimate(request: Request, arrangement: Arrangement) -> TrainingPlan:
    """Plan one arrangement, whether it fits or not."""
    r, network, gpus, gpu = request.recipe.training, request.recipe.model, request.gpus, request.gpu
    counts, emas, share = count(network), len(r.ema), r.batch // gpus
    microbatch = share // arrangement.grad_accumulation
    seconds = step_seconds(request, arrangement)
    speed = r.batch / seconds.total
    notes = []
    if share < MIN_MICROBATCH:
        notes.append(f"{share} images per GPU: the batch, not the network, is used up, and the assumed MFU will not be reached")
    elif microbatch < MIN_MICROBATCH:
        notes.append(f"{microbatch} images at a time keep no GPU busy; the assumed MFU will not be reached")
    # sharded weights are initialised tensor by tensor
    host_weights = counts.parameters if arrangement.parallel == "ddp" or gpus == 1 else counts.largest_tensor
    return TrainingPlan(
        gpus, request.nodes, request.gpu_type, *arrangement, counts.parameters, r.batch, r.total_images, microbatch,
        memory=step_memory(request, arrangement),
        capacity=gpu.memory,
        seconds=seconds,
        images_per_second=speed,
        days=r.total_images / speed / 86400,
        mfu=6 * counts.multiply_adds * speed / (gpus * gpu.peak),
        data_rate=network.channels * network.size[0] * network.size[1] * speed,
        checkpoint=4 * counts.parameters * (3 + emas),
        host_memory=4 * host_weights,
        notes=tuple(notes),
    )  # fmt: skip


def shards_of(request: Request, parallel: Parallel) -> int:
    """Into how many shards weights, gradients, moments and averages are divided."""
    return {"ddp": 1, "hsdp": request.gpus // request.nodes, "fsdp": request.gpus}[parallel]


def step_memory(request: Request, arrangement: Arrangement) -> Memory:
    """Bytes on one GPU at the fullest moment of a step."""
    r, network, counts = request.recipe.training, request.recipe.model, count(request.recipe.model)
    parallel, accumulation, recompute = arrangement
    parameters, shards = counts.parameters, shards_of(request, parallel)
    if parallel == "ddp":
        copies = 2.0 * parameters
    else:
        copies = sharded_copies(network, accumulation > 1)
    of_an_image = image_memory(network) + (counts.block_inputs + counts.longest_block if recompute else counts.activations)
    return Memory(
        weights=4 * parameters / shards,
        gradients=4 * parameters / shards,
        moments=8 * parameters / shards,
        averages=4 * len(r.ema) * parameters / shards,
        copies=copies,
        activations=r.batch // request.gpus // accumulation * of_an_image,
        reserve=RESERVE * request.gpu.memory,
    )


def step_seconds(request: Request, arrangement: Arrangement) -> Seconds:
    """The time of one step and its parts."""
    r, gpus, nodes, gpu, counts = request.recipe.training, request.gpus, request.nodes, request.gpu, count(request.recipe.model)
    parallel, accumulation, recompute = arrangement
    parameters, node, emas = counts.parameters, gpus // nodes, len(r.ema)

    flops = 2 * counts.multiply_adds * (r.batch // gpus) * (4 if recompute else 3)
    compute = flops / (request.mfu * gpu.peak)
    last_backward = compute * (3 / 4 if recompute else 2 / 3) / accumulation
    slowest_link = gpu.link if nodes == 1 else min(gpu.link, node * gpu.network)
    sharded = (
        2 * 2 * accumulation + 4
    ) * parameters  # two all-gathers of bf16 per microbatch, one reduce-scatter of fp32 per step
    match parallel:  # seconds of each transfer, and of the computing that it may overlap with
        case "ddp":  # an all-reduce of fp32 is a reduce-scatter and an all-gather
            transfers = [(ring_seconds(2 * 4 * parameters, gpus, slowest_link), last_backward)]
        case "fsdp":
            transfers = [(ring_seconds(sharded, gpus, slowest_link), compute)]
        case "hsdp":  # each GPU of a node reduces its shard with its peers on the other nodes, by its own adapter
            across = ring_seconds(2 * 4 * parameters / node, nodes, min(gpu.link, gpu.network))
            transfers = [(ring_seconds(sharded, node, gpu.link), compute), (across, last_backward)]
    hidden = sum(min(OVERLAP * transfer, window) for transfer, window in transfers)
    stream = parameters / shards_of(request, parallel) / (MEMORY_SHARE * gpu.bandwidth)
    return Seconds(
        compute=compute,
        communication=sum(transfer for transfer, _ in transfers) - hidden,
        hidden=hidden,
        optimizer=(4 + 3) * 4 * stream,  # reads weight, gradient and two moments; writes all but the gradient
        averages=emas * (2 + 1) * 4 * stream,
    )


def ring_seconds(amount: float, n: int, rate: float) -> float:
    """Seconds in which each of n passes on all of `amount` bytes but its own part, at the rate of a data sheet."""
    return amount * (n - 1) / n / (LINK_SHARE * rate)


class Counts(NamedTuple):
    """Sizes of a network: numbers of parameters, and bytes that autograd keeps in bf16 for one image."""

    parameters: int
    multiply_adds: int
    block: int
    """parameters of a block"""
    largest_tensor: int
    """parameters of the largest tensor"""
    activations: int
    """bytes in all blocks"""
    longest_block: int
    """bytes in the block with the longest sequence"""
    block_inputs: int
    """bytes of the blocks' inputs alone, which the residual stream holds in fp32"""


@cache
def count(a: Architecture) -> Counts:
    """Count a network's sizes on PyTorch's meta device."""
    c = cost(a)
    one = replace(a, depth=1, context_start=0, aux_classifier=False)  # a block that sees the class tokens
    block = block_parameters(a)
    with torch.device("meta"):
        largest = max(p.numel() for p in JiT(replace(one, classes=1000 if a.classes is None else a.classes)).parameters())
    longest_block = training_memory(one, 1, 0)[1]
    tokens = sum(sequence_length(a, i) for i in range(a.depth))
    activations = longest_block * tokens // sequence_length(one, 0)
    return Counts(c.parameters, c.multiply_adds, block, largest, activations, longest_block, 4 * a.width * tokens)


def gpu_named(name: str) -> GPU:
    """The GPU of that name; ValueError with the nearest name and the list for an unknown one."""
    if name not in GPUS:
        near = difflib.get_close_matches(name.lower(), GPUS, n=1)
        hint = f"perhaps {near[0]}; " if near else ""
        raise ValueError(f"no GPU is called {name!r}; {hint}there are {', '.join(GPUS)}")
    return GPUS[name]


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def launch_command(p: TrainingPlan, options: str, job: str = "RUN") -> str:
    """The command that trains by the plan; on several nodes the same one on each, HEAD being any of them."""
    if p.gpus == 1:
        return f"justimage train {options} {p.flags}"
    several = f"--nnodes={p.nodes} --rdzv-backend=c10d --rdzv-endpoint=$HEAD:29500 --rdzv-id={job}"
    where = "--standalone" if p.nodes == 1 else several
    return f"torchrun {where} --nproc-per-node={p.gpus // p.nodes} --max-restarts=10 -m justimage train {options} {p.flags}"
