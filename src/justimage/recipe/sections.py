"""The sections of a recipe (Table 9): everything that determines a training, as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from math import inf
from pathlib import PurePath
from typing import Any, Literal, get_args

from torch import Tensor

from justimage.architectures import Architecture, architecture
from justimage.checks import check_choice, check_finite, check_range
from justimage.data import Crop, Decode, Source, Told, ToldSource
from justimage.data.encoded import is_local
from justimage.diffusion import Diffusion
from justimage.distributed import Parallel
from justimage.ema import half_life
from justimage.normalization import Normalization, identity
from justimage.sampling import Denoiser, Sampling
from justimage.tasks import open_task
from justimage.transformer import JiT

IMAGENET = 1_281_167
"""Images of an epoch in the paper."""


@dataclass(frozen=True)
class Training:
    """Optimization, averages, and how images are read (Table 9, "training")."""

    total_images: int = 600 * IMAGENET
    """images to train on, repetitions counted"""
    budget: float | None = None
    """seconds that the training may take, from which total_images follows when it begins; None for total_images as given"""
    batch: int = 1024
    """images per step"""
    learning_rate: float = 2e-4
    """peak learning rate, after warm-up"""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """schedule of the learning rate after warm-up; cosine ends at 0"""
    warmup: int = 5 * IMAGENET
    """images over which the learning rate rises from 0"""
    betas: tuple[float, float] = (0.9, 0.95)
    """betas of Adam"""
    gradient_clip: float | None = None
    """maximum norm of the gradient; None for no clipping"""
    ema: tuple[float, ...] = (0.9996, 0.9998, 0.9999)
    """averages of the weights (EMA): decays at batch 1024 (below 1), or half-lives in images"""
    ema_ramp: float = 0.0
    """upper bound of an average's half-life, as a fraction of the images seen; 0 for none"""
    sample_ema: float = 0.9999
    """the average to sample with; 0 for the weights themselves"""
    optimizer: str = "adam"
    """name of the optimizer: adam"""
    flip: bool = True
    """mirror half of the images"""
    task: str = ""
    """what a network is told of each image, beside its class: colour (it in grey), upscale:4, deblur:1.5, denoise:0.2, inpaint,
    edges; empty for nothing"""
    augment: float = 0.0
    """probability of each of four changes of an image, of which the network is told, so that it does not draw them: scaled,
    turned, stretched, moved (for sets of some hundreds or thousands; 0.12 in EDM)"""
    balance_classes: bool = False
    """show every class equally often, images of small ones repeatedly"""
    upscale: bool = True
    """scale up images smaller than the model's; without it they are an error"""
    decode: Decode = "photo"
    """photo: EXIF orientation, transparency on white, 16 bits scaled; torchvision: none of these, as the authors read
    ImageNet"""
    precision: Literal["auto", "bf16", "fp32"] = "bf16"
    """type that the network computes in; weights stay fp32. auto: bf16 on a GPU, on a CPU whichever is measured to be faster"""
    seed: int = 0
    """seed of all randomness in training"""
    init: str = ""
    """trained weights to start from: a run, a converted checkpoint, a file of weights; empty for new ones"""
    init_rate: float = 1.0
    """learning rate of what `init` gave, as a fraction of that of the rest, such as a table of other classes; 0 keeps it"""

    def __post_init__(self) -> None:
        check_finite(self)
        check_range(self, total_images=(1, inf), budget=(1, inf), batch=(1, inf), warmup=(0, inf), ema_ramp=(0, inf))
        check_range(self, augment=(0, 1), init_rate=(0, inf))
        if self.learning_rate <= 0 or (self.gradient_clip is not None and self.gradient_clip <= 0):
            raise ValueError("learning_rate and gradient_clip must be above 0")
        if self.init_rate != 1 and not self.init:
            raise ValueError(f"init_rate is {self.init_rate:g}, the rate of what init gives, and init is empty")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas must be at least 0 and below 1")
        for value in self.ema:
            half_life(value)
        if self.sample_ema and self.sample_ema not in self.ema:
            kept = ", ".join(map("{:g}".format, self.ema))
            raise ValueError(f"sample_ema is {self.sample_ema:g}, which training does not keep; allowed: 0, {kept}")


@dataclass(frozen=True)
class Parallelism:
    """How training is computed. Nothing here changes the random numbers or, beyond rounding, the result; any resume may change
    it."""

    parallel: Parallel = "ddp"
    """with several processes: replicas (ddp); weights, optimizer state and averages sharded (fsdp); or sharded within a node
    and replicated across nodes (hsdp)"""
    grad_accumulation: int | None = None
    """microbatches per step and process, to save memory; times the processes they divide the batch. None: the fewest that
    fit"""
    activation_checkpointing: bool = False
    """recompute blocks in the backward pass instead of storing their activations: a third slower, much less memory"""
    compile: bool = True
    """compile the blocks (torch.compile): a slow start, then faster; on a CPU only where it is measured to be faster"""
    deterministic: bool = False
    """on a GPU, use deterministic algorithms, so that a resumed training equals the uninterrupted one to the bit, as on a
    CPU"""
    workers: int = 4
    """data-loading processes per training process; 0 for none (small sets are cached in memory)"""
    watchdog_timeout: float = 1800
    """seconds without a step after which a run prints where it hangs and exits with code 70; 0 for never"""

    def __post_init__(self) -> None:
        check_finite(self)
        check_choice(self, parallel=get_args(Parallel))
        check_range(self, grad_accumulation=(1, inf), workers=(0, inf), watchdog_timeout=(0, inf))


@dataclass(frozen=True)
class Logging:
    """Metrics and previews."""

    log_every: int = 20
    """steps between two lines of metrics"""
    preview_every: int = 2_000_000
    """images between two previews: samples, and real images denoised in one step"""
    preview_count: int = 32
    """samples in a preview"""
    peak_tflops: float | None = None
    """peak of one device, for the utilisation (MFU) in the metrics; None for a known device's data sheet"""

    def __post_init__(self) -> None:
        check_finite(self)
        check_range(self, log_every=(1, inf), preview_every=(1, inf), preview_count=(1, inf))
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            raise ValueError(f"peak_tflops is {self.peak_tflops}; it must be above 0")


@dataclass(frozen=True)
class Checkpointing:
    """When checkpoints are saved and kept, and when a run ends early."""

    save_every: int = 2_000_000
    """images between two checkpoints"""
    keep_checkpoints: int = 2
    """newest checkpoints to keep"""
    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """where loss or gradient is not finite: stop; skip that step; or roll back to the last checkpoint and skip the step
    there"""
    monitor: str = ""
    """a number in metrics.jsonl, such as loss or fid, whose best checkpoint is kept, too"""
    monitor_mode: Literal["min", "max"] = "min"
    """whether the monitored number is better when it is smaller or larger"""
    patience: int | None = None
    """images without a better monitored number after which the run ends (App. A, "early stop"); None for never"""

    stop_at_copies: float | None = None
    """share of a preview's samples that copy a training image at which the run ends: the set is being memorised; None for
    never"""

    def __post_init__(self) -> None:
        check_range(self, stop_at_copies=(0, 1))
        check_choice(self, on_nonfinite=("stop", "skip", "rollback"), monitor_mode=("min", "max"))
        check_range(self, save_every=(1, inf), keep_checkpoints=(1, inf), patience=(1, inf))
        if self.patience is not None and not self.monitor:
            raise ValueError(f"patience is {self.patience}; it needs a number to monitor: --monitor fid")


@dataclass(frozen=True)
class OnlineEvaluation:
    """Scores of a few samples during training."""

    every: int | None = None
    """images between two scores of every average: fid in metrics.jsonl (--monitor fid); None for never"""
    count: int = 1000
    """samples of each average"""
    features: str = ""
    """the feature space: inception, or a file, such as justimage feature-space train makes"""
    reference: str = ""
    """what to compare with, as justimage evaluate takes it; empty for the training's images"""

    def __post_init__(self) -> None:
        check_range(self, every=(1, inf), count=(2, inf))


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a training. The default is JiT-B/16 on ImageNet 256 x 256 (Table 9)."""

    data: str = ""
    """a store, a folder of images (one sub-folder a class, or flat), the same in a .zip or .tar, or "digits\""""
    model: Architecture = field(default_factory=lambda: architecture("B/16", classes=None))
    diffusion: Diffusion = Diffusion()
    training: Training = Training(decode="torchvision")
    sampling: Sampling = Sampling(guidance=2.2, interval=(0.1, 1.0))
    parallelism: Parallelism = Parallelism()
    logging: Logging = Logging()
    checkpoint: Checkpointing = Checkpointing()
    evaluation: OnlineEvaluation = OnlineEvaluation()
    class_names: tuple[str, ...] = ()
    """the data's classes by number; filled in when the data is read"""
    normalization: Normalization = Normalization()
    """the data's statistics, where it is floats; filled in when the data is read"""
    custom: tuple[str, ...] = ()
    """names of the network, optimizer and loss that were given to `justimage.train`, as "net MyNet"; filled in there"""
    origin: str = ""
    """what the first weights are from, where they are not new; filled in when the run begins"""
    anew: tuple[str, ...] = ()
    """parts of the network that begin anew there, wholly or for some classes; filled in when the run begins"""
    condition: str = ""
    """what the network is told beside the classes: images of the same names, in a folder, an archive or a store; or a table
    (.csv) with a row for each image: a column text, or columns of numbers; empty for nothing"""
    told: Told = Told()
    """how that becomes a condition; filled in when the data is read"""

    def __post_init__(self) -> None:
        check_size(self.model)
        if self.diffusion.class_loss_weight and not (self.model.aux_classifier or self.custom):
            raise ValueError("a classification loss needs a network with a classifier: --aux-classifier")

    @property
    def crop(self) -> Crop:
        """How image files are read."""
        return Crop(self.model.size, self.model.channels, self.training.upscale, self.training.decode)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return (self.model.channels, *self.model.size)

    def shared(self, emas: Sequence[float]) -> "Recipe":
        """This recipe as it is given away: with some of its averages (0: the weights themselves), and without the paths of this
        machine."""
        kept, usual = tuple(ema for ema in emas if ema), self.training.sample_ema
        ema = usual if usual in kept else max(kept, default=0.0)
        given = replace(self.training, ema=kept, sample_ema=ema, init="", init_rate=1.0)
        told, origin = self.told, self.origin
        if is_local(told.encoder):
            told = replace(told, encoder=f"./{PurePath(told.encoder).name}")
        if not origin.startswith("hf://"):
            origin = origin.replace("\\", "/").rpartition("/")[2]
        return replace(self, data="", condition="", training=given, told=told, origin=origin, evaluation=OnlineEvaluation())

    def denoiser(self, net: Any) -> Denoiser:
        """A network with everything that is needed to sample from it."""
        return Denoiser(net, self.diffusion, self.normalization, self.sampling, self.shape, self.model.classes or 0)

    def build(self) -> Denoiser:
        """A new denoiser, its weights freshly initialised from PyTorch's generator."""
        return self.denoiser(JiT(self.model))

    def resolve(self, source: Source) -> "Recipe":
        """This recipe with what only the data knows: the number of classes and their names, and the normalization of floats."""
        found = len(source.class_names)
        classes = found if self.model.classes is None else self.model.classes
        if classes and found and classes != found:
            raise ValueError(f"classes is {classes}, but the data has {found}; leave it out, or 0 to ignore them")
        return replace(
            self,
            model=replace(self.model, classes=classes, augmented=self.training.augment > 0, **self.sizes_told(source)),
            sampling=self.sampling if classes or not source.has_class_numbers else replace(self.sampling, guidance=1.0),
            class_names=tuple(source.class_names) if classes else (),
            normalization=normalization_of(source),
            told=source.told if isinstance(source, ToldSource) else Told(),
        )

    def sizes_told(self, source: Source) -> dict[str, int]:
        """The sizes of image, vector and text that a network is told, from a task or from the conditions of the data."""
        first = {} if source.has_class_numbers or any(name.startswith("net ") for name in self.custom) else source[0][1]
        entries = first if isinstance(first, dict) else {}
        for name, tensor in entries.items():
            check_entry(name, tensor, self.model.size)
        sizes = {"image_channels": "image", "vector": "vector", "text_length": "text"}
        found = {size: len(entries[name]) if name in entries else 0 for size, name in sizes.items()}
        found["text_features"] = entries["text"].shape[1] if found["text_length"] and entries["text"].ndim == 2 else 0
        if found["image_channels"] and (self.training.task or self.training.augment):
            other = f"task {self.training.task}" if self.training.task else "augment"
            raise ValueError(f"the network is told images of the data already; {other} does not go with them")
        if self.training.task:
            found["image_channels"] = open_task(self.training.task, self.shape).channels
        return found


def check_entry(name: str, tensor: Tensor, size: tuple[int, int]) -> None:
    """ValueError for an entry of a condition that a JiT has no use for."""
    forms = {
        "classes": (tensor.ndim == 0 and not tensor.is_floating_point(), "a class number"),
        "vector": (tensor.ndim == 1 and tensor.is_floating_point(), "floats (n,)"),
        "image": (tensor.is_floating_point() and tuple(tensor.shape[1:]) == size, "floats (channels, {}, {})".format(*size)),
        "text": (tensor.ndim == (2 if tensor.is_floating_point() else 1), "bytes (n,), -1 for none, or floats (n, features)"),
    }
    if name not in forms:
        raise ValueError(
            f"a condition has the entry {name!r}; a JiT is told {', '.join(forms)}, a network of your own anything"
        )
    fits, allowed = forms[name]
    if not fits:
        raise ValueError(f"the entry {name!r} of a condition is {tensor.dtype} {tuple(tensor.shape)}; allowed: {allowed}")
    if name == "text" and not tensor.is_floating_point() and not bool(((tensor >= -1) & (tensor < 256)).all()):
        raise ValueError(f"the entry 'text' of a condition has {int(tensor.max())}; bytes are 0 to 255, and -1 for none")


def normalization_of(source: Source) -> Normalization:
    """Pixels as they are; floats by their statistics, or, without any, as floats in [-1, 1]."""
    if not source.floats:
        return Normalization()
    return Normalization(*source.statistics) if source.statistics else identity(source.shape[0])


LIMITS = dict(
    width=65_536, depth=1_000, context_tokens=65_536, bottleneck=65_536, classes=10**8, image_channels=65_536, vector=65_536,
    text_length=65_536,
)  # fmt: skip
"""The largest architecture that is built: a recipe may come from a file that nobody checked."""


def check_size(a: Architecture) -> None:
    """ValueError for an architecture that no machine holds, before memory is taken for it."""
    check_range(a, **{name: (0, most) for name, most in LIMITS.items()})
    patches = a.grid[0] * a.grid[1]
    if patches > 2**18:
        raise ValueError(f"an image of {a.size[0]} x {a.size[1]} is {patches} patches; allowed: up to {2**18}")
    if a.patch_dimension > 2**24:
        raise ValueError(f"a patch is {a.patch_dimension} numbers; allowed: up to {2**24}")
    if patches * a.width > 2**26:
        raise ValueError(
            f"{patches} patches of width {a.width} need tables of positions that are too large; allowed: up to "
            f"{2**26 // a.width} patches"
        )


def with_values(recipe: Recipe, **values: Any) -> Recipe:
    """The recipe with other values, each by its own name: with_values(r, prediction="v", loss_space="x", bottleneck=None).

    A name that two sections have is the first one's; with its section before it, it is that one's: sampling_t_clip. ValueError
    for a name that nothing in a recipe has.
    """
    for section in fields(recipe):
        inner = getattr(recipe, section.name)
        if is_dataclass(inner) and not isinstance(inner, type):
            names = {key: f.name for f in fields(inner) for key in (f.name, f"{section.name}_{f.name}") if key in values}
            if mine := {name: values.pop(key) for key, name in names.items()}:
                values[section.name] = replace(inner, **mine)
        if section.name in values:
            recipe = replace(recipe, **{section.name: values.pop(section.name)})
    if values:
        raise ValueError(f"a recipe has nothing called {next(iter(values))}")
    return recipe
