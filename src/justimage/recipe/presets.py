"""Presets: the paper's recipes, and ours for smaller data; and a recipe fitted to images of another size."""

import difflib
import math
from collections.abc import Callable
from dataclasses import replace

from justimage.data import Store
from justimage.process import Process
from justimage.recipe.parts import IMAGENET, Machine, Recipe, Sampling, Training, Upkeep
from justimage.transformer import architecture


def jit(name: str, epochs: int = 600) -> Recipe:
    """The paper's recipe for a network such as "B/16": patch = image size / 16, noise scale = image size / 256 (Table 9)."""
    network = architecture(name, classes=None)
    return Recipe(
        network=network,
        process=Process(noise_scale=network.size[0] / 256),
        training=Training(images=epochs * IMAGENET, decode="torchvision"),
        sampling=Sampling(guidance=2.9 if name.startswith("B") else 2.2),
    )


def folder(size: str, image_size: int, batch: int, images: int) -> Recipe:
    """Ours, for a folder of some hundreds to some hundred thousands of images, on one GPU."""
    return Recipe(
        network=architecture(f"{size}/{max(1, image_size // 16)}", image_size=image_size, classes=None),
        process=Process(noise_scale=image_size / 256),
        training=Training(
            images=images, batch=batch, learning_rate=2e-4, warmup=50_000, gradient_clip=1.0,
            ema=(100_000, 500_000), ema_ramp=0.1, enlarge=False, precision="auto",
        ),
        sampling=Sampling(guidance=1.5, use_ema=500_000),
        upkeep=Upkeep(preview_every=200_000, save_every=200_000),
    )  # fmt: skip


def digits() -> Recipe:
    """Ours: handwritten digits from scratch on two CPU cores, in minutes."""
    return Recipe(
        data="digits",
        network=architecture("T/8", image_size=32, channels=1, classes=None),
        process=Process(mu=-0.4, noise_scale=1.0),
        training=Training(
            images=50_000, batch=32, learning_rate=2e-3, schedule="cosine", warmup=2_000, gradient_clip=1.0,
            ema=(1_000, 2_000, 5_000), ema_ramp=0.1, flip=False, precision="fp32",
        ),
        sampling=Sampling(steps=12, guidance=1.5, use_ema=5_000),
        machine=Machine(compile=False, workers=0),
        upkeep=Upkeep(preview_every=10_000, save_every=10_000, preview_count=20),
    )  # fmt: skip


PRESETS: dict[str, Callable[[], Recipe]] = {
    "digits": digits,
    "folder-32": lambda: folder("S", 32, batch=256, images=20_000_000),
    "folder-64": lambda: folder("S", 64, batch=256, images=20_000_000),
    "folder-128": lambda: folder("B", 128, batch=256, images=20_000_000),
    **{
        f"jit-{size.lower()}{patch}-{16 * patch}": lambda size=size, patch=patch: jit(f"{size}/{patch}")
        for patch in (16, 32, 64)
        for size in "BLHG"
    },
    "jit-b4-64": lambda: jit("B/4", epochs=200),
}


def preset(name: str) -> Recipe:
    """The recipe of that name; ValueError with the nearest names where there is none."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3)
        hint = f"perhaps {' or '.join(near)}" if near else f"there are {', '.join(PRESETS)}"
        raise ValueError(f"no preset is called {name!r}; {hint}")
    return PRESETS[name]()


def resized(recipe: Recipe, image_size: int | tuple[int, int]) -> Recipe:
    """The recipe for another image size, its patch and noise in proportion, as between the paper's sizes.

    The patch is the nearest to that which divides both sides.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    factor = min(height, width) / min(recipe.network.size)
    proportional = recipe.network.patch_size * factor
    common = math.gcd(height, width)
    dividing = [p for p in range(1, common + 1) if common % p == 0]
    patch = min(dividing, key=lambda p: abs(math.log(p / proportional)))
    return replace(
        recipe,
        network=replace(recipe.network, image_size=image_size, patch_size=patch),
        process=replace(recipe.process, noise_scale=recipe.process.noise_scale * factor),
    )


def fitted(recipe: Recipe, store: Store) -> Recipe:
    """The recipe for a store's images: their size, their channels, and no flips of floats, whose left may not be like their
    right."""
    channels, *size = store.shape
    recipe = recipe if tuple(size) == recipe.network.size else resized(recipe, (size[0], size[1]))
    flip = recipe.training.flip and not store.floats
    return replace(
        recipe, network=replace(recipe.network, channels=channels), training=replace(recipe.training, flip=flip)
    )  # fmt: skip
