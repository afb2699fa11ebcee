"""justimage: pixel-space diffusion with plain Transformers ("Back to Basics: Let Denoising Generative Models Denoise").

model = justimage.load("runs/digits")
images = justimage.sample(model, [3, 7], seeds=[0, 1], sampling=justimage.Sampling(guidance=2.2, steps=50))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from justimage.architectures import Architecture as Architecture, architecture as architecture
    from justimage.checkpoint import load as load
    from justimage.diffusion import Diffusion as Diffusion
    from justimage.mlp import MLP as MLP
    from justimage.recipe import Recipe as Recipe, preset as preset
    from justimage.run import train as train
    from justimage.sampling import Denoiser as Denoiser, Sampling as Sampling, sample as sample, trajectory as trajectory
    from justimage.transformer import JiT as JiT

__version__ = "0.1.0"

PUBLIC = {
    "JiT": "transformer", "Architecture": "architectures", "architecture": "architectures", "MLP": "mlp",
    "Diffusion": "diffusion", "Denoiser": "sampling", "Sampling": "sampling", "Recipe": "recipe", "preset": "recipe",
    "train": "run", "load": "checkpoint", "sample": "sampling", "trajectory": "sampling",
}  # fmt: skip
"""Each public name and its room; imported when first used, so that `justimage --help` need not wait for PyTorch."""

__all__ = list(PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'justimage' has no attribute {name!r}")
    return getattr(import_module(f"justimage.{PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])
