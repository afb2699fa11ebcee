"""Presets: the paper's recipes, and ours for smaller data; and recipes for images of another size."""

import difflib
import math
from collections.abc import Callable
from dataclasses import replace

from justimage.architectures import SIZES, architecture
from justimage.cost import training_flops
from justimage.data import Look, Store
from justimage.diffusion import Diffusion
from justimage.recipe.sections import IMAGENET, Checkpointing, Logging, Parallelism, Recipe, Training
from justimage.sampling import Sampling

FEW_STEPS = Sampling("unipc", steps=8, times="logsnr", guidance=1.5, interval=(0.1, 1.0), t_clip=0.0)
"""13 passes of the network, as good as 50 steps of Heun, which are 187 (docs/sampling.md)."""
SQUARE = 1.15
"""Images whose sides differ by less are trained on as squares."""
LARGER = "S", "B"
"""Networks that the preset for a laptop takes instead of its own, where its budget affords them."""
MIN_IMAGES = 200_000
"""Images that such a network must be expected to see in the budget."""
FLOPS = {"cpu": 5e10, "cuda": 1e14, "mps": 1e12}
"""Floating-point operations a second in training that a core of a CPU, or a GPU, is expected to reach at least."""


def paper_recipe(name: str, epochs: int = 600) -> Recipe:
    """The paper's recipe for a network such as "B/16": patch = image size / 16, noise scale = image size / 256 (Table 9)."""
    network = architecture(name, classes=None)
    return Recipe(
        model=network,
        diffusion=Diffusion(noise_scale=network.size[0] / 256),
        training=Training(total_images=epochs * IMAGENET, decode="torchvision"),
        sampling=Sampling(guidance=2.9 if name.startswith("B") else 2.2, interval=(0.1, 1.0)),
    )


def folder_recipe(size: str, image_size: int, batch: int, images: int) -> Recipe:
    """Ours, for a folder of some hundreds to some hundred thousands of images, on one GPU."""
    return Recipe(
        model=architecture(f"{size}/{max(1, image_size // 16)}", image_size=image_size, classes=None),
        diffusion=Diffusion(noise_scale=image_size / 256),
        training=Training(
            total_images=images, batch=batch, learning_rate=2e-4, warmup=50_000, gradient_clip=1.0,
            ema=(100_000, 500_000), ema_ramp=0.1, sample_ema=500_000, upscale=False, precision="auto",
        ),
        sampling=FEW_STEPS,
        logging=Logging(preview_every=200_000),
        checkpoint=Checkpointing(save_every=200_000),
    )  # fmt: skip


def digits_recipe() -> Recipe:
    """Ours: handwritten digits from scratch on two CPU cores, in minutes."""
    return Recipe(
        data="digits",
        model=architecture("T/8", image_size=32, channels=1, classes=None),
        diffusion=Diffusion(mu=-0.4, noise_scale=1.0),
        training=Training(
            total_images=50_000, batch=32, learning_rate=2e-3, lr_schedule="cosine", warmup=2_000, gradient_clip=1.0,
            ema=(1_000, 2_000, 5_000), ema_ramp=0.1, sample_ema=5_000, flip=False, precision="auto",
        ),
        sampling=FEW_STEPS,
        parallelism=Parallelism(workers=0),
        logging=Logging(preview_every=10_000, preview_count=20),
        checkpoint=Checkpointing(save_every=10_000),
    )  # fmt: skip


def laptop_recipe() -> Recipe:
    """Ours: somebody's own images on a CPU, in a quarter of an hour; `for_images` fits it to them (docs/your-images.md)."""
    return Recipe(
        model=architecture("T/6", image_size=48, width=192, classes=None),
        diffusion=Diffusion(mu=-0.8, noise_scale=0.5),
        training=Training(
            budget=900, batch=32, learning_rate=1e-3, warmup=2_000, gradient_clip=1.0,
            ema=(3_000, 1_000_000), ema_ramp=0.1, sample_ema=1_000_000, precision="auto",
        ),
        sampling=FEW_STEPS,
        parallelism=Parallelism(workers=0),
        logging=Logging(preview_every=10_000, preview_count=20),
        checkpoint=Checkpointing(save_every=10_000),
    )  # fmt: skip


PRESETS: dict[str, Callable[[], Recipe]] = {
    "digits": digits_recipe,
    "laptop": laptop_recipe,
    "folder-32": lambda: folder_recipe("S", 32, batch=256, images=20_000_000),
    "folder-64": lambda: folder_recipe("S", 64, batch=256, images=20_000_000),
    "folder-128": lambda: folder_recipe("B", 128, batch=256, images=20_000_000),
    **{
        f"jit-{size.lower()}{patch}-{16 * patch}": lambda size=size, patch=patch: paper_recipe(f"{size}/{patch}")
        for patch in (16, 32, 64)
        for size in "BLHG"
    },
    "jit-b4-64": lambda: paper_recipe("B/4", epochs=200),
}


def preset(name: str) -> Recipe:
    """The recipe of that name; ValueError with the nearest names for an unknown one."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3)
        hint = f"perhaps {' or '.join(near)}" if near else f"there are {', '.join(PRESETS)}"
        raise ValueError(f"no preset is called {name!r}; {hint}")
    return PRESETS[name]()


def resized(recipe: Recipe, image_size: int | tuple[int, int]) -> Recipe:
    """The recipe for another image size, with patch size and noise scale in proportion, as between the paper's sizes.

    The patch size is the nearest one that divides both sides.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 1:
        raise ValueError(f"image_size is {image_size}; it must be 1 or more")
    factor = min(height, width) / min(recipe.model.size)
    proportional = recipe.model.patch_size * factor
    common = math.gcd(height, width)
    dividing = [p for p in range(1, common + 1) if common % p == 0]
    patch = min(dividing, key=lambda p: abs(math.log(p / proportional)))
    return replace(
        recipe,
        model=replace(recipe.model, image_size=image_size, patch_size=patch),
        diffusion=replace(recipe.diffusion, noise_scale=recipe.diffusion.noise_scale * factor),
    )


def for_images(recipe: Recipe, look: Look) -> Recipe:
    """The recipe for somebody's images: of their shape where they agree on one, else square; no larger than they are; grey
    where they are, and mirrored only in colour, as writing is mostly grey and has a left and a right. The noise scale is in
    proportion to the side, as in the paper; in grey in inverse proportion, up to 1 (docs/your-images.md, "What was tried")."""
    area = recipe.model.size[0] * recipe.model.size[1]
    aspect = look.size[1] / look.size[0] if look.same_shape else 1.0
    aspect = 1.0 if 1 / SQUARE < aspect < SQUARE else aspect
    height = min(math.sqrt(area / aspect), look.size[0], look.size[1] / aspect)
    patch = max(1, round(recipe.model.patch_size * height * math.sqrt(aspect) / math.sqrt(area)))
    size = max(1, round(height / patch)) * patch, max(1, round(height * aspect / patch)) * patch
    smaller, noise = math.sqrt(size[0] * size[1] / area), recipe.diffusion.noise_scale
    noise = noise * smaller if look.channels > 1 else min(noise / smaller, 1.0)
    side = size[0] if size[0] == size[1] else size
    return replace(
        recipe,
        model=replace(recipe.model, image_size=side, patch_size=patch, channels=look.channels),
        diffusion=replace(recipe.diffusion, noise_scale=noise),
        training=replace(recipe.training, flip=look.channels > 1),
    )


def for_budget(recipe: Recipe, device: str, cores: int) -> Recipe:
    """The recipe with the largest network that is expected to see MIN_IMAGES in its budget; rates in inverse proportion to the
    width."""
    flops = (recipe.training.budget or 0) * FLOPS[device] * (cores if device == "cpu" else 1)
    for name in LARGER:
        larger = replace(recipe.model, **SIZES[name])
        if flops / training_flops(larger) < MIN_IMAGES:
            break
        rate = recipe.training.learning_rate * recipe.model.width / larger.width
        recipe = replace(recipe, model=larger, training=replace(recipe.training, learning_rate=rate))
    return recipe


def fine_tuned(recipe: Recipe, trained: Recipe) -> Recipe:
    """The recipe for going on from a trained network: its architecture, formulation and sampling, but no class of its own."""
    model = replace(trained.model, classes=None)
    return replace(recipe, model=model, diffusion=trained.diffusion, sampling=trained.sampling)


def for_store(recipe: Recipe, store: Store) -> Recipe:
    """The recipe for a store's images: their size and channels; floats are not flipped, as their left and right may differ."""
    channels, *size = store.shape
    recipe = recipe if tuple(size) == recipe.model.size else resized(recipe, (size[0], size[1]))
    flip = recipe.training.flip and not store.floats
    return replace(
        recipe, model=replace(recipe.model, channels=channels), training=replace(recipe.training, flip=flip)
    )  # fmt: skip
