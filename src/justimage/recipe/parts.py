"""What a recipe is made of (Table 9)."""

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from tyro.conf import Suppress

from justimage.data import Crop, Decode, Source, Store
from justimage.distributed import Parallel
from justimage.ema import half_life
from justimage.process import Model, Process, Units, finite
from justimage.sampling import SolverName, check_settings
from justimage.transformer import Architecture, JiT, architecture

IMAGENET = 1_281_167
"""Images of an epoch in the paper."""


@dataclass(frozen=True)
class Training:
    """How the weights are found (Table 9, "training")."""

    images: int = 600 * IMAGENET
    """images to train on, counted with repetition"""
    batch: int = 1024
    """images a step"""
    learning_rate: float = 2e-4
    """after warm-up"""
    schedule: Literal["constant", "cosine"] = "constant"
    """of the learning rate after warm-up; cosine ends at 0"""
    warmup: int = 5 * IMAGENET
    """images over which the rate rises from 0"""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's"""
    gradient_clip: float | None = None
    """largest norm of the gradient; None for any"""
    ema: tuple[float, ...] = (0.9996, 0.9998, 0.9999)
    """averages of the weights: decays at batch 1024 (below 1), or half-lives in images"""
    ema_ramp: float = 0.0
    """an average's half-life is at most this times the images seen; 0 for no such bound"""
    flip: bool = True
    """mirror half of the images"""
    enlarge: bool = True
    """scale up images that are smaller than the model's; otherwise they are an error"""
    decode: Decode = "photo"
    """photo: upright by EXIF, transparency on white, 16 bits scaled; torchvision: as the authors read ImageNet, none of that"""
    precision: Literal["auto", "bf16", "fp32"] = "bf16"
    """what the network computes in; weights and the sample stay fp32. auto: bf16 on a GPU, on a CPU what is measured to be
    faster"""
    seed: int = 0
    """of all randomness in training"""

    def __post_init__(self) -> None:
        finite(self)
        for name in "images", "batch":
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.learning_rate <= 0 or self.warmup < 0 or (self.gradient_clip is not None and self.gradient_clip <= 0):
            raise ValueError("learning_rate and gradient_clip must be above 0, warmup at least 0")
        if not self.ema_ramp >= 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("ema_ramp must be at least 0, betas at least 0 and below 1")
        for value in self.ema:
            half_life(value)


@dataclass(frozen=True)
class Sampling:
    """How images are drawn unless one says otherwise (Table 9, "sampling"), previews among them."""

    solver: SolverName = "heun"
    """heun (second order) or euler"""
    steps: int = 50
    """steps of the solver, at linear times"""
    guidance: float = 2.2
    """scale of classifier-free guidance; 1 for none"""
    interval: tuple[float, float] = (0.1, 1.0)
    """times between which guidance applies"""
    use_ema: float = 0.9999
    """the average to sample with; 0 for the weights themselves"""

    def __post_init__(self) -> None:
        finite(self)
        check_settings(self.guidance, self.interval, self.steps, self.solver)


@dataclass(frozen=True)
class Machine:
    """How it is computed. Nothing here changes what is drawn or what is learned, beyond rounding; change it at any resume."""

    parallel: Parallel = "ddp"
    """with several processes: a whole copy in each (ddp); weights, moments and averages divided (fsdp); or divided within a
    node and copied across nodes (hsdp)"""
    accumulate: int | None = None
    """parts in which a batch is computed, one after the other, to save memory; with the processes they divide it. None: the
    fewest that fit into memory"""
    activation_checkpointing: bool = False
    """compute blocks again in the backward pass instead of keeping what is in them: a third slower, much less memory"""
    compile: bool = True
    """compile the blocks (torch.compile): slow to start, faster after; on a CPU only where that is measured to be faster"""
    deterministic: bool = False
    """on a GPU, compute so that a resumed training equals the uninterrupted one to the bit, as on a CPU: slower"""
    workers: int = 4
    """processes that read images, for each that trains; 0 for none (small sets are held in memory instead)"""
    peak_tflops: float | None = None
    """what one device can do, for the utilisation in the metrics; None for a known device's data sheet"""
    hang_after: float = 1800
    """seconds without a step after which a run prints where it hangs and ends (code 70); 0 for never"""

    def __post_init__(self) -> None:
        finite(self)
        for name, least in ("accumulate", 1), ("workers", 0), ("hang_after", 0):
            if (least if getattr(self, name) is None else getattr(self, name)) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            raise ValueError(f"peak_tflops is {self.peak_tflops}; it must be above 0")


@dataclass(frozen=True)
class Upkeep:
    """What happens beside the training, and when it ends early."""

    preview_every: int = 2_000_000
    """images between two pictures of how far it is"""
    save_every: int = 2_000_000
    """images between two checkpoints"""
    log_every: int = 20
    """steps between two lines of metrics"""
    preview_count: int = 32
    """images in a preview"""
    keep: int = 2
    """newest checkpoints to keep"""
    not_finite: Literal["stop", "skip", "rollback"] = "stop"
    """when loss or gradient is not finite: end; leave that step out; or go back to the last checkpoint and leave it out then"""
    watch: str = ""
    """a number in metrics.jsonl, such as loss, whose best checkpoint is kept, too; with - before it, more is better"""
    patience: int | None = None
    """images without a better watched number after which the run ends (App. A, "early stop"); None for never"""
    evaluate_every: int | None = None
    """images between two scores of a few samples of every average, fid in metrics.jsonl (--watch fid); None for never"""
    evaluate_count: int = 1000
    """images of each average in such a score"""
    evaluate_features: str = ""
    """the space of that score: inception, or a file, such as justimage features train makes"""
    evaluate_reference: str = ""
    """what to compare with, as justimage evaluate takes it; the training's images where it is empty"""

    def __post_init__(self) -> None:
        if self.evaluate_every is not None and self.evaluate_every < 1:
            raise ValueError(f"evaluate_every is {self.evaluate_every}; it must be 1 or more")
        if self.patience is not None and (self.patience < 1 or not self.watch):
            raise ValueError(f"patience is {self.patience}; it must be 1 or more, with --watch a number to be patient about")
        for name, least in (
            ("preview_every", 1),
            ("save_every", 1),
            ("log_every", 1),
            ("preview_count", 1),
            ("keep", 1),
            ("evaluate_count", 2),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {least} or more")


@dataclass(frozen=True)
class Recipe:
    """A training, whole. The default is JiT-B/16 on ImageNet 256 x 256 (Table 9)."""

    data: str = ""
    """a store, a folder of images (one sub-folder a class, or flat), the same in a .zip or .tar, or "digits\""""
    network: Architecture = field(default_factory=lambda: architecture("B/16", classes=None))
    process: Process = Process()
    training: Training = Training(decode="torchvision")
    sampling: Sampling = Sampling()
    machine: Machine = Machine()
    upkeep: Upkeep = Upkeep()
    class_names: Suppress[tuple[str, ...]] = ()
    """the data's classes by number; filled in when the data is read"""
    units: Suppress[Units] = Units()
    """the data's statistics, where it is floats; filled in when the data is read"""

    def __post_init__(self) -> None:
        ema, known = self.sampling.use_ema, self.training.ema
        if ema and ema not in known:
            raise ValueError(
                f"use_ema is {ema:g}, which training does not keep; allowed: 0, {', '.join(map('{:g}'.format, known))}"
            )
        if self.process.classification and not self.network.classifier:
            raise ValueError("a classification loss needs a network with a classifier: --classifier")

    @property
    def crop(self) -> Crop:
        """How image files are read."""
        return Crop(self.network.size, self.network.channels, self.training.enlarge, self.training.decode)

    def model(self) -> Model:
        """A new model, its weights freshly initialised from PyTorch's generator."""
        return Model(JiT(self.network), self.process, self.units)

    def complete(self, source: Source) -> "Recipe":
        """This recipe with what only the data knows: the number of classes and their names, and the units of floats."""
        found = len(source.class_names)
        classes = found if self.network.classes is None else self.network.classes
        if classes not in (0, found):
            raise ValueError(f"classes is {classes}, but the data has {found}; leave it out, or 0 to ignore them")
        guidance = self.sampling.guidance if classes else 1.0
        return replace(
            self,
            network=replace(self.network, classes=classes),
            sampling=replace(self.sampling, guidance=guidance),
            class_names=tuple(source.class_names) if classes else (),
            units=Units(*source.statistics) if isinstance(source, Store) and source.floats else Units(),
        )


def changed(recipe: Recipe, **values: Any) -> Recipe:
    """The recipe with some of its numbers changed, each by its own name: changed(r, prediction="v", loss="x", bottleneck=None).

    ValueError for a name that nothing in a recipe has.
    """
    for part in fields(recipe):
        inner = getattr(recipe, part.name)
        if is_dataclass(inner) and (mine := {f.name: values.pop(f.name) for f in fields(inner) if f.name in values}):
            values[part.name] = replace(inner, **mine)  # pyright: ignore[reportArgumentType]
        if part.name in values:
            recipe = replace(recipe, **{part.name: values.pop(part.name)})
    if values:
        raise ValueError(f"a recipe has nothing called {next(iter(values))}")
    return recipe
