"""Weights from the authors' checkpoints, and back: strict, and without running pickled code.

An official checkpoint is a pickled dict of `model`, `model_ema1` (decay 0.9999), `model_ema2` (0.9996), `args` and
training state. It is read with `weights_only=True` and one allow-listed class, argparse.Namespace.
"""

import argparse
import math
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from justimage import checkpoint, disk, recipe as recipes
from justimage.architectures import SIZES, Architecture
from justimage.checkpoint.model import check_shapes
from justimage.diffusion import Diffusion
from justimage.ema import REFERENCE_BATCH, ema_name
from justimage.layers import sincos_positions
from justimage.recipe import Recipe, Training
from justimage.sampling import Sampling
from justimage.transformer import JiT

EMA_ENTRIES = {"model_ema1": ("ema_decay1", 0.9999), "model_ema2": ("ema_decay2", 0.9996)}
"""The averages in an official checkpoint, where its settings say their decays, and what they are otherwise."""
KEY_MAP = [  # the authors' names, ours; the special before the general, in both directions
    ("x_embedder.proj1.", "embed.reduce."),
    ("x_embedder.proj2.", "embed.expand."),
    ("t_embedder.mlp.0.", "time.hidden."),
    ("t_embedder.mlp.2.", "time.out."),
    ("y_embedder.embedding_table.", "class_table."),
    ("in_context_posemb", "context_positions"),
    ("final_layer.norm_final.", "head.norm."),
    ("final_layer.", "head."),
    (".adaLN_modulation.1.", ".modulation."),
    (".attn.proj.", ".attention.out."),
    (".attn.", ".attention."),
    (".mlp.w12.", ".mlp.gate_and_up."),
    (".mlp.w3.", ".mlp.down."),
]


def to_ours(tensors: Mapping[str, Tensor], a: Architecture, where: str = "official weights") -> dict[str, Tensor]:
    """An official state dict in our names and layouts, without the position table, which is checked. Strict."""
    check_shapes({n: t.shape for n, t in expected_official(a).items()}, {n: t.shape for n, t in tensors.items()}, Path(where))
    ours = {}
    for official, tensor in tensors.items():
        n = official.removeprefix("net.")
        if n == "pos_embed":
            if not torch.allclose(tensor, sincos_positions(*a.grid, a.width), atol=1e-5):
                raise ValueError(f"{where}: net.pos_embed is not the fixed table of sines and cosines")
            continue
        for theirs, new in KEY_MAP:
            n = n.replace(theirs, new)
        if n.startswith("embed.") and n.endswith("weight"):
            tensor = tensor.flatten(1)  # a convolution (out, c, p, q) is a linear map of (c p q)
        elif n.startswith("head.linear."):  # the head emits (p q c); ours (c p q)
            tensor = tensor.unflatten(0, (a.patch_size, a.patch_size, a.channels)).movedim(2, 0).flatten(0, 2)
        ours[n] = tensor.float()
    return ours


def expected_official(a: Architecture) -> dict[str, Tensor]:
    """The official state dict of an architecture, on the meta device: names and shapes."""
    with torch.device("meta"):
        return to_official(dict(JiT(a).named_parameters()), a)


def to_official(tensors: Mapping[str, Tensor], a: Architecture) -> dict[str, Tensor]:
    """Our tensors as an official state dict."""
    official = {"net.pos_embed": sincos_positions(*a.grid, a.width)}
    for n, tensor in tensors.items():
        if n == "embed.reduce.weight":
            tensor = tensor.unflatten(1, (a.channels, a.patch_size, a.patch_size))
        elif n == "embed.expand.weight":
            tensor = tensor[:, :, None, None]
        elif n.startswith("head.linear."):
            tensor = tensor.unflatten(0, (a.channels, a.patch_size, a.patch_size)).movedim(0, 2).flatten(0, 2)
        for theirs, ours in KEY_MAP:
            n = n.replace(ours, theirs)
        official[f"net.{n}"] = tensor.contiguous()
    return official


def infer_architecture(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any], context_start: int | None, where: str
) -> Architecture:
    """The architecture, read off an official state dict's shapes. Where the class tokens enter is known by the size."""
    try:
        bottleneck, channels, patch_size, _ = tensors["net.x_embedder.proj1.weight"].shape
        rows, width = tensors["net.y_embedder.embedding_table.weight"].shape
        heads = width // tensors["net.blocks.0.attn.q_norm.weight"].shape[0]
        context = tensors["net.in_context_posemb"].shape[1] if "net.in_context_posemb" in tensors else 0
        side = math.isqrt(tensors["net.pos_embed"].shape[1]) * patch_size
    except KeyError as error:
        raise ValueError(f"{where} is missing tensors: {error.args[0]}") from error
    except (ValueError, IndexError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(f"{where} is not an official network: its first tensors have other shapes") from error
    depth = len({m[1] for n in tensors if (m := re.match(r"net\.blocks\.(\d+)\.", n))})
    size = next((s for s in SIZES.values() if (s["width"], s["depth"], s["heads"]) == (width, depth, heads)), None)
    if context_start is None and size is None and context:
        raise ValueError(
            f"{where} is of no known size (width {width}, depth {depth}); say where class tokens enter: --context-start"
        )
    start = context_start if context_start is not None else size["context_start"] if size else 0
    return Architecture(
        image_size=side, patch_size=patch_size, channels=channels, classes=rows - 1, width=width, depth=depth, heads=heads,
        bottleneck=bottleneck, context_tokens=context, context_start=start,
        dropout=float(settings.get("proj_dropout", size["dropout"] if size else 0.0)),
    )  # fmt: skip


def check_plain_tensors(tensors: Any, where: str) -> None:
    """ValueError unless these are tensors by name whose every number is stored: a view can pretend to any size."""
    if not isinstance(tensors, dict) or not all(isinstance(n, str) for n in tensors):
        raise ValueError(f"{where} is not tensors by their names")
    for n, t in tensors.items():
        if not isinstance(t, Tensor):
            raise ValueError(f"{where}: {disk.printable(n)} is {type(t).__name__}, not a tensor")
        if t.layout != torch.strided or t.device.type != "cpu" or not t.is_floating_point():
            raise ValueError(f"{where}: {disk.printable(n)} is {t.dtype} {t.layout} on {t.device}, not plain numbers")
        if t.numel() * t.element_size() > t.untyped_storage().nbytes():
            raise ValueError(f"{where}: {disk.printable(n)} is {list(t.shape)}, more numbers than are stored of it")


def check_uncompressed(source: Path) -> None:
    """ValueError for members that PyTorch would unpack into memory, however large; it writes none such."""
    if zipfile.is_zipfile(source):
        try:
            with zipfile.ZipFile(source) as archive:
                packed = [e for e in archive.infolist() if e.compress_type != zipfile.ZIP_STORED]
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, OverflowError, struct.error):
            return  # PyTorch says what is wrong with it
        if packed:
            raise ValueError(f"{source} is not an official checkpoint: {disk.printable(packed[0].filename)} is compressed")


def import_official(source: Path, target: Path, context_start: int | None = None) -> Path:
    """An official checkpoint file as a folder that `justimage.load` and `--from` take, with all its averages.

    Raises ValueError or OSError, in one line, for a file that is something else or whose tensors do not fit; then nothing
    is written.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists; give a new folder")
    if source.is_dir():
        raise ValueError(
            f"{source} is a folder; allowed: an official checkpoint file, a folder of diffusers, or (with --to official) a run"
        )
    check_uncompressed(source)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            file = torch.load(source, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a file that is something else makes the unpickler fail in many ways
        raise ValueError(
            f"{source} is not an official checkpoint, or holds more than tensors and settings; nothing of it was run"
        ) from error
    if not isinstance(file, dict) or not isinstance(file.get("model"), dict):
        keys = ", ".join(k for k in file if isinstance(k, str)) if isinstance(file, dict) else type(file).__name__
        raise ValueError(f"{source} has no entry 'model' with weights; it holds {disk.printable(keys, 100)}")
    for part in ("model", *EMA_ENTRIES):
        if part in file:
            check_plain_tensors(file[part], f"{source} ({part})")
    settings = vars(file["args"]) if isinstance(file.get("args"), argparse.Namespace) else {}
    try:
        network, recipe, emas = infer_recipe(file, settings, context_start, f"{source} (model)")
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        reason = disk.printable(str(error).split("\n")[0])
        raise ValueError(reason if str(source) in reason else f"{source} has settings of no training: {reason}") from error
    groups = {"model": to_ours(file["model"], network, f"{source} (model)")}
    for value, part in emas.items():
        groups[f"ema-{ema_name(value)}"] = to_ours(file[part], network, f"{source} ({part})")
    return checkpoint.write_checkpoint(target, groups, recipe, {"images_seen": 0, "converted_from": source.name})


def infer_recipe(
    file: Mapping[str, Any], settings: Mapping[str, Any], context_start: int | None, where: str
) -> tuple[Architecture, Recipe, dict[float, str]]:
    """The network, the recipe, and the entry of each average by its decay, from a checkpoint's shapes and settings."""
    network = infer_architecture(file["model"], settings, context_start, where)
    decays = {part: float(settings.get(key, decay)) for part, (key, decay) in EMA_ENTRIES.items() if part in file}
    emas = {value: part for part, value in reversed(decays.items()) if value}  # 0, of no average: the weights once more
    clip = float(settings.get("t_eps", 0.05))
    recipe = Recipe(
        model=network,
        diffusion=Diffusion(
            mu=float(settings.get("P_mean", -0.8)), sigma=float(settings.get("P_std", 0.8)), t_clip=clip,
            noise_scale=float(settings.get("noise_scale", network.size[0] / 256)),
            label_drop=float(settings.get("label_drop_prob", 0.1)),
        ),
        training=Training(ema=tuple(sorted(emas, reverse=True)), sample_ema=max(emas, default=0.0), decode="torchvision"),
        sampling=Sampling(
            solver=recipes.parse(settings.get("sampling_method", "heun"), str, "sampling_method"),
            steps=int(settings.get("num_sampling_steps", 50)),
            guidance=float(settings.get("cfg", 2.2)) if network.classes else 1.0, t_clip=clip,
            interval=(float(settings.get("interval_min", 0.1)), float(settings.get("interval_max", 1.0))),
        ),
    )  # fmt: skip
    return network, recipe, emas


def export_official(source: Path, target: Path) -> Path:
    """A run or converted folder as one official checkpoint file.

    model_ema1 becomes the average that the recipe samples with, model_ema2 the shortest; a way of sampling that the authors'
    code does not know becomes theirs (`official_sampling`). Errors as in `import_official`.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists; give a new file")
    place = checkpoint.resolve(source)
    if place.is_file():
        raise ValueError(f"{source} is one set of weights; an official checkpoint is made from a run or a converted folder")
    recipe = checkpoint.read_recipe(place)
    a, p = recipe.model, recipe.diffusion
    theirs: dict[str, Any] = dict(rope=True, qk_norm=True, mlp="swiglu", norm="rms")
    told = dict(augmented=False, image_channels=0, vector=0, text_length=0, text_features=0)
    plain = replace(a, **theirs, aux_classifier=False, **told)
    if a != plain or a.bottleneck is None or not isinstance(a.image_size, int):
        raise ValueError(f"{source} has parts that the authors' network lacks; only the full JiT on square images converts")
    if p != replace(p, prediction="x", interpolant="linear"):
        raise ValueError(f"{source} is read otherwise than the authors' code would: it knows x-prediction on the linear path")
    if recipe.custom:
        raise ValueError(f"{source} was trained with {', '.join(recipe.custom)}, which the authors' code does not have")
    groups, usual = checkpoint.verify(place)["tensors"], recipe.training.sample_ema
    emas = sorted(value for value in recipe.training.ema if checkpoint.group_of(value) in groups)
    averages = {"model_ema1": usual or max(emas, default=0), "model_ema2": min(emas, default=0)}
    weights = {"model": 0 if "model" in groups else usual, **averages}  # a folder may have averages alone
    file, shapes = dict[str, Any](), {n: t.shape for n, t in expected_official(a).items()}
    for part, value in weights.items():
        file[part] = to_official(checkpoint.load_group(place, checkpoint.group_of(value)), a)
        check_shapes(shapes, {n: t.shape for n, t in file[part].items()}, Path(f"{source} ({part})"))
    size = next((s for s, v in SIZES.items() if v["width"] == a.width and v["depth"] == a.depth), "?")
    s = official_sampling(recipe)
    file["args"] = argparse.Namespace(
        model=f"JiT-{size}/{a.patch_size}", img_size=a.image_size, class_num=a.classes, proj_dropout=a.dropout,
        attn_dropout=0.0, P_mean=p.mu, P_std=p.sigma, noise_scale=p.noise_scale, t_eps=p.t_clip, label_drop_prob=p.label_drop,
        ema_decay1=decay(averages["model_ema1"]), ema_decay2=decay(averages["model_ema2"]), sampling_method=s.solver,
        num_sampling_steps=s.steps, cfg=s.guidance, interval_min=s.interval[0], interval_max=s.interval[1],
    )  # fmt: skip
    file["epoch"] = 0
    with disk.replacing(target) as aside:
        torch.save(file, aside)
    return target


def official_sampling(recipe: Recipe) -> Sampling:
    """How the authors' code samples with a recipe: as it says, if that is Heun or Euler in equal steps with the clip of
    training, else by 50 steps of Heun with the same guidance."""
    s, clip = recipe.sampling, recipe.diffusion.t_clip
    known = s.solver in ("heun", "euler") and s == replace(s, times="linear", t_clip=clip, guidance_every=1)
    return s if known else Sampling(guidance=s.guidance, interval=s.interval, t_clip=clip)


def decay(value: float) -> float:
    """An average's decay at batch 1024, of a decay or of a half-life in images."""
    return value if value < 1 else 0.5 ** (REFERENCE_BATCH / value)
