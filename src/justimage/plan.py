"""What a training will take before anything is rented: bytes a GPU, where a step's time goes, days.

Pure arithmetic on the shapes of the network and the data sheets of the GPUs; nothing is measured. `docs/scale.md` has the
same formulas with their sources. Bytes and FLOPs are counted, rates are assumed: each assumption is one constant below.
"""

import difflib
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Literal

from justimage.cost import cost, tokens, training_memory
from justimage.distributed import Parallel
from justimage.recipe import Recipe
from justimage.transformer import Architecture


@dataclass(frozen=True)
class Kind:
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


KINDS = {
    # NVIDIA's H100 data sheet, SXM: 989.4 TFLOPS dense (1,979 "with sparsity"), 3.35 TB/s, NVLink 900 GB/s both ways
    "h100": Kind(989.4e12, 80e9, 3.35e12, 450e9),
    # H200 data sheet, SXM: the same chip with 141 GB at 4.8 TB/s
    "h200": Kind(989.4e12, 141e9, 4.8e12, 450e9),
    # DGX and HGX B200 data sheets: 2.25 PFLOPS dense; 1,440 GB, 64 TB/s and 14.4 TB/s of NVLink for eight
    "b200": Kind(2.25e15, 180e9, 8e12, 900e9),
    # A100 data sheet, SXM: 312 TFLOPS, 2,039 or 1,555 GB/s, NVLink 600 GB/s both ways; DGX A100: eight adapters of 200 Gb/s
    "a100": Kind(312e12, 80e9, 2.039e12, 300e9, network=25e9),
    "a100-40": Kind(312e12, 40e9, 1.555e12, 300e9, network=25e9),
    # L40S data sheet: 362.05 TFLOPS, 864 GB/s, PCIe 4 x16 of 64 GB/s both ways; one 400 Gb/s adapter a node is our assumption
    "l40s": Kind(362.05e12, 48e9, 864e9, 32e9, network=6.25e9),
    # Ada architecture paper: 165.2 TFLOPS with fp32 accumulation, 1,008 GB/s; it has no peer-to-peer, so PCIe 4 x16 is crossed
    # twice, by way of the host
    "rtx4090": Kind(165.2e12, 24e9, 1.008e12, 16e9, network=6.25e9),
    # MI300X data sheet: 1,307.4 TFLOPS, 5.3 TB/s, seven links of 128 GB/s both ways
    "mi300x": Kind(1307.4e12, 192e9, 5.3e12, 448e9),
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
FEW = 8
"""Images at a time below which matrices are too small to keep a GPU busy; ours."""
WITHIN = 1.1
"""A simpler arrangement is preferred while its step takes at most this times the fastest one's."""


def peak_of(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a device by the name it gives itself ("NVIDIA H100 80GB HBM3"); None where it is not known."""
    name = device_name.replace(" ", "").lower()
    return next((kind.peak for key, kind in KINDS.items() if key in name), None)


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
    """ddp: weights in bf16. fsdp: two blocks gathered in bf16, one's gradients in bf16 and fp32; the rest in fp32, both"""
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
class Plan:
    """One arrangement of a training on GPUs, and what it takes."""

    gpus: int
    nodes: int
    kind: str
    parallel: Parallel
    accumulate: int
    activation_checkpointing: bool
    parameters: int
    batch: int
    images: int
    """of the whole training"""
    part: int
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
        parts = f" --accumulate {self.accumulate}" if self.accumulate > 1 else ""
        return f"--parallel {self.parallel}{parts}{' --activation-checkpointing' if self.activation_checkpointing else ''}"


def plan(
    recipe: Recipe,
    gpus: int,
    kind: str = "h100",
    parallel: Literal["auto", "ddp", "fsdp"] = "auto",
    accumulate: int | None = None,
    activation_checkpointing: bool | None = None,
    mfu: float = MFU,
    gpu_memory: float | None = None,
) -> Plan:
    """The recipe on that many GPUs. What is left open ("auto", None) is chosen: the simplest that fits and is fast.

    Simple is ddp before fsdp, no recomputation before recomputation, fewer parts before more. The first in this order is
    taken whose step is at most 10 % longer than that of the fastest which fits. Parts of fewer than 8 images are tried only
    where nothing else fits. gpu_memory, in bytes, stands in for the data sheet's. ValueError where numbers do not go together.
    """
    card = known(kind) if gpu_memory is None else replace(known(kind), memory=gpu_memory)
    check(recipe, gpus, accumulate, mfu, card)
    tried = arrangements(recipe, gpus, kind, card, parallel, accumulate, activation_checkpointing, mfu)
    chosen = choice(tried)
    if chosen is None:
        smallest = min(tried, key=lambda p: p.memory.total)
        return replace(
            smallest, advice=least_change(recipe, gpus, kind, card, parallel, accumulate, activation_checkpointing, mfu)
        )
    simplest, why = tried[0], ""
    if not simplest.fits:
        why = f"{simplest.flags} needs {simplest.memory.total / 1e9:.1f} of {card.memory / 1e9:.0f} GB"
    elif chosen is not simplest:
        why = f"{simplest.flags} fits, too, but its step is {simplest.seconds.total / chosen.seconds.total - 1:.0%} longer"
    return replace(chosen, why=why)


def check(recipe: Recipe, gpus: int, accumulate: int | None, mfu: float, card: Kind) -> None:
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
    if recipe.training.precision != "bf16":
        raise ValueError(
            f"precision is {recipe.training.precision}; only bf16 can be planned, whose peaks the data sheets give"
        )


def arrangements(
    recipe: Recipe, gpus: int, kind: str, card: Kind, parallel: str, accumulate: int | None, again: bool | None, mfu: float
) -> list[Plan]:
    """Everything that is left open tried, the simplest first."""
    return [
        estimate(recipe, gpus, kind, card, how, parts, recompute, mfu)
        for recompute in ((False, True) if again is None else (again,))
        for how in ("ddp", "fsdp")
        if how == parallel or (parallel == "auto" and (how == "ddp" or gpus > 1))
        for parts in (divisors(recipe.training.batch // gpus) if accumulate is None else (accumulate,))
    ]


def choice(tried: list[Plan]) -> Plan | None:
    """The first that is about as fast as the fastest which fits; None where none does."""
    fitting = [p for p in tried if p.fits]
    fitting = [p for p in fitting if p.part >= min(FEW, p.batch // p.gpus)] or fitting
    fastest = min((p.seconds.total for p in fitting), default=0)
    return next((p for p in fitting if p.seconds.total <= WITHIN * fastest), None)


def least_change(
    recipe: Recipe, gpus: int, kind: str, card: Kind, parallel: str, accumulate: int | None, again: bool | None, mfu: float
) -> str:
    """What to change to make it fit: one option that was forced, or all; else more GPUs; else a larger kind. Empty for none."""
    one = ("auto", accumulate, again), (parallel, None, again), (parallel, accumulate, None)
    for options in one, [("auto", None, None)]:
        if found := [p for o in options if (p := choice(arrangements(recipe, gpus, kind, card, *o, mfu)))]:
            return f"it fits with {min(found, key=lambda p: p.seconds.total).flags}"
    for more in divisors(recipe.training.batch):
        if more > gpus and (found := choice(arrangements(recipe, more, kind, card, "auto", None, None, mfu))):
            return f"it fits on {more} of them with {found.flags}"
    for other, larger in sorted(KINDS.items(), key=lambda item: item[1].memory):
        if larger.memory > card.memory and (
            found := choice(arrangements(recipe, gpus, other, larger, "auto", None, None, mfu))
        ):
            return f"it fits on {gpus} of {other} with {found.flags}"
    return ""


def estimate(
    recipe: Recipe, gpus: int, kind: str, card: Kind, parallel: Parallel, accumulate: int, again: bool, mfu: float
) -> Plan:
    """One arrangement, `again` saying whether blocks are computed again in the backward pass (activation checkpointing)."""
    r, network = recipe.training, recipe.network
    parameters, multiply_adds, block, whole, inside, inputs = counted(network, r.precision == "bf16")
    share = r.batch // gpus
    part = share // accumulate
    shards = gpus if parallel == "fsdp" else 1
    emas = len(r.ema)
    nodes = next(n for n in range(-(-gpus // card.node), gpus + 1) if gpus % n == 0)

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
    ring = (gpus - 1) / gpus / (LINK_SHARE * (card.link if nodes == 1 else min(card.link, gpus // nodes * card.network)))
    if parallel == "ddp":  # all-reduce = reduce-scatter and all-gather, of fp32, behind the last part's backward pass
        transfer = 2 * 4 * parameters * ring
        window = compute * (3 / 4 if again else 2 / 3) / accumulate
    else:  # two all-gathers of bf16 a part, one reduce-scatter of fp32 a step
        transfer = (2 * 2 * accumulate + 4) * parameters * ring
        window = compute
    hidden = min(OVERLAP * transfer, window)
    stream = parameters / shards / (MEMORY_SHARE * card.bandwidth)
    seconds = Seconds(
        compute=compute,
        communication=transfer - hidden,
        hidden=hidden,
        optimizer=(4 + 3) * 4 * stream,  # reads weight, gradient and two moments; writes all but the gradient
        averages=emas * (2 + 1) * 4 * stream,
    )
    speed = r.batch / seconds.total
    notes = []
    if share < FEW:
        notes.append(f"{share} images a GPU: the batch, not the network, is used up, and the assumed MFU will not be reached")
    elif part < FEW:
        notes.append(f"{part} images at a time keep no GPU busy; the assumed MFU will not be reached")
    pixels = network.channels * network.size[0] * network.size[1]
    return Plan(
        gpus, nodes, kind, parallel, accumulate, again, parameters, r.batch, r.images, part, memory, card.memory, seconds,
        images_per_second=speed,
        days=r.images / speed / 86400,
        mfu=6 * multiply_adds * speed / (gpus * card.peak),
        data_rate=pixels * speed,
        checkpoint=4 * parameters * (3 + emas),
        notes=tuple(notes),
    )  # fmt: skip


@cache
def counted(a: Architecture, bf16: bool) -> tuple[int, int, int, int, int, int]:
    """Parameters, multiply-adds and parameters of a block; bytes that autograd keeps for one image of all blocks, of the
    longest block, and of nothing but the blocks' inputs, which the residual stream holds in fp32."""
    c = cost(a)
    one = replace(a, depth=1, context_start=0, classifier=False)  # a block that sees the class tokens
    block = cost(replace(one, depth=2)).parameters - cost(one).parameters
    inside = training_memory(one, 1, 0, bf16)[1]
    length = sum(tokens(a, i) for i in range(a.depth))
    return c.parameters, c.multiply_adds, block, inside * length // tokens(one, 0), inside, 4 * a.width * length


def known(kind: str) -> Kind:
    """The GPU of that name; ValueError with the nearest name and the list where there is none."""
    if kind not in KINDS:
        near = difflib.get_close_matches(kind.lower(), KINDS, n=1)
        hint = f"perhaps {near[0]}; " if near else ""
        raise ValueError(f"no GPU is called {kind!r}; {hint}there are {', '.join(KINDS)}")
    return KINDS[kind]


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def launch(p: Plan, train: str, job: str = "RUN") -> str:
    """The command that runs it; with several nodes the same one on each, HEAD being any of them."""
    if p.gpus == 1:
        return f"justimage train {train} {p.flags}"
    several = f"--nnodes={p.nodes} --rdzv-backend=c10d --rdzv-endpoint=$HEAD:29500 --rdzv-id={job}"
    where = "--standalone" if p.nodes == 1 else several
    return f"torchrun {where} --nproc-per-node={p.gpus // p.nodes} --max-restarts=10 -m justimage train {train} {p.flags}"
