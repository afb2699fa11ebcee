"""A model as a folder for diffusers, and back.

The folder is complete: weights as safetensors, configurations as JSON, and the code that runs them, with diffusers and PyTorch
alone. That code is this package's own: each file in carried/ is joined with the rooms that it imports, so there is no second
implementation of anything. Reading a folder runs none of its code and unpickles nothing.

    model_index.json  pipeline.py  README.md
    transformer/      config.json            justimage_transformer.py  diffusion_pytorch_model.safetensors
    scheduler/        scheduler_config.json  justimage_scheduler.py

Foreign folders that are read have the authors' names of weights in one of three spellings:

    pull request 13098 of diffusers    blocks.0.attn.to_q .to_k .to_v .to_out.0 .norm_q; blocks.0.adaLN_modulation; norm_final
    its first versions; JiT-diffusers  blocks.0.attn.qkv .proj .q_norm; blocks.0.adaLN_modulation; norm_final; linear_final
    JiT-diffusers at first             transformer.blocks.0.attn.qkv; transformer.blocks.0.adaLN_modulation.1; ...
"""

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import justimage
from justimage import checkpoint, disk, recipe as recipes
from justimage.checkpoint.model import check_shapes, named_weights
from justimage.checkpoint.shards import open_safetensors, read_tensor, safetensors_bytes, staging_dir
from justimage.convert import official
from justimage.diffusion import Diffusion
from justimage.recipe import Recipe
from justimage.sampling import Sampling
from justimage.transformer import JiT

HOUSE = Path(justimage.__file__).parent
CODE = {"": "pipeline", "transformer": "justimage_transformer", "scheduler": "justimage_scheduler"}
"""The file of carried/ in each folder. diffusers looks for a custom pipeline in pipeline.py; it copies the others to one place,
where names of their own keep them apart from those of other models."""
CLASSES = {"": "JiTPipeline", "transformer": "JiTModel", "scheduler": "JiTScheduler"}
WEIGHTS = "diffusion_pytorch_model"
TWO_CLIPS = {"t_clip": "training_t_clip"}
"""Entries of `Diffusion` by another name in a scheduler's configuration, where `Sampling` has the same."""
ELSEWHERE = ("model", "diffusion", "sampling", "class_names", "normalization")
"""Parts of a recipe that a folder has in another place."""
RENAMED = [  # the pull request's names, the authors'
    (r"^adaLN_modulation_final\.", "final_layer.adaLN_modulation.1."),
    (r"^norm_final\.", "final_layer.norm_final."),
    (r"^linear_final\.", "final_layer.linear."),
    (r"\.adaLN_modulation\.(?!1\.)", ".adaLN_modulation.1."),
    (r"\.attn\.to_out\.0\.", ".attn.proj."),
    (r"\.attn\.norm_([qk])\.", r".attn.\1_norm."),
]


def joined_code(name: str) -> str:
    """A file of carried/ and the rooms that it imports, as one file that imports nothing of this package."""
    imports: dict[str, set[str]] = {}
    bodies: dict[Path, str] = {}

    def join(file: Path) -> None:
        text = file.read_text()
        tree, lines = ast.parse(text), text.splitlines()
        rooms = []
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and any(map(is_ours, ast.walk(node))):  # it leads back into the package
                start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                lines[start - 1 : node.end_lineno] = [""] * (node.end_lineno - start + 1)  # pyright: ignore
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)  # pyright: ignore
                if is_ours(node):
                    rooms.append(HOUSE / f"{node.module.removeprefix('justimage.')}.py")  # pyright: ignore
                else:
                    module = f"from {node.module} import " if isinstance(node, ast.ImportFrom) else "import "
                    imports.setdefault(module, set()).update(map(ast.unparse, node.names))
        for room in rooms:
            if room not in bodies:
                join(room)
        bodies[file] = "\n".join(lines).strip()

    def is_ours(node: ast.AST) -> bool:
        return isinstance(node, ast.ImportFrom) and (node.module or "").startswith("justimage.")

    join(HOUSE / "convert" / "carried" / f"{name}.py")
    plain = [f"import {module}" for module in sorted(imports.pop("import ", ()))]
    named = [head + ", ".join(sorted(names)) for head, names in sorted(imports.items())]
    sections = [f"# {file.relative_to(HOUSE)} {'-' * 100}"[:100] + f"\n\n{body}" for file, body in bodies.items()]
    head = f"# Written by justimage {justimage.__version__} (MIT licence): its {name}, and the parts of it that this one uses."
    text = "\n\n\n".join([f"{head}\n\n" + "\n".join([*plain, *named]), *sections])
    return re.sub(r"\n{4,}", "\n\n\n", text) + "\n"


def export_diffusers(source: str | Path, target: Path, ema: float | None = None) -> Path:
    """One average of a run, converted folder or file of weights as a folder for diffusers: by default the one that the recipe
    samples with. ValueError or OSError, in one line, for what cannot be converted; then nothing is written."""
    if target.exists():
        raise FileExistsError(f"{target} exists; give a new folder")
    place = checkpoint.resolve(source)
    recipe = checkpoint.read_recipe(place)
    if recipe.custom:
        raise ValueError(f"{source} was trained with {', '.join(recipe.custom)}, whose code a folder for diffusers lacks")
    if ema is None:
        ema = checkpoint.ema_of(place) if place.is_file() else recipe.training.sample_ema
    net = checkpoint.load(place, ema, "cpu").net
    recipe = recipe.shared((ema,))
    files = folder_files(recipe, target.name)
    weights = {f"net.{name}": tensor for name, tensor in named_weights(net).items()}

    staging = staging_dir(target)
    disk.remove(staging)
    for part in CODE:
        disk.mkdir(staging / part)
    for name, text in files.items():
        disk.write_durable(staging / name, [text.encode()])
    content = safetensors_bytes(weights, {"format": "pt"})
    disk.write_durable(staging / "transformer" / f"{WEIGHTS}.safetensors", content)
    disk.rename(staging, target)
    return target


def folder_files(recipe: Recipe, name: str) -> dict[str, str]:
    """The text files of a folder for diffusers, by path."""
    parts = {part: [CODE[part], CLASSES[part]] for part in CODE if part}
    kept = {key: value for key, value in recipes.to_json(recipe).items() if key not in ELSEWHERE}
    index = {
        "_class_name": [CODE[""], CLASSES[""]],
        **parts,
        "id2label": {str(i): label for i, label in enumerate(recipe.class_names)} or None,
        "normalization": asdict(recipe.normalization) if recipe.normalization.mean else None,
        "recipe": kept,
    }
    diffusion = {TWO_CLIPS.get(key, key): value for key, value in asdict(recipe.diffusion).items()}
    scheduler = {"_class_name": CLASSES["scheduler"]} | asdict(recipe.sampling) | diffusion
    model = {"_class_name": CLASSES["transformer"]} | asdict(recipe.model)
    texts = {"model_index.json": index, "transformer/config.json": model, "scheduler/scheduler_config.json": scheduler}
    files = {path: json.dumps(values, indent=2) + "\n" for path, values in texts.items()}
    files |= {f"{part}/{code}.py".lstrip("/"): joined_code(code) for part, code in CODE.items()}
    return files | {"README.md": folder_readme(recipe, name)}


def folder_readme(recipe: Recipe, name: str) -> str:
    """A card in a few lines."""
    a, classes = recipe.model, f"{recipe.model.classes} classes" if recipe.model.classes else "no classes"
    told = "class_labels=[0, 1], " if a.classes else ""
    entries = {"image": a.image_channels, "vector": a.vector, "text": a.text_length}
    more = ", ".join(entry for entry, numbers in entries.items() if numbers)
    condition = f"\n`condition=` takes what else it is told, a dict of tensors: {more}.\n" if more else ""
    return f"""---
library_name: diffusers
tags: [diffusion, pixel-space, jit]
---
# {disk.printable(name, 100)}

A JiT ([arXiv 2511.13720](https://arxiv.org/abs/2511.13720)) for images of {a.size[1]} x {a.size[0]}, of {classes}. It needs
diffusers and PyTorch; the code of its parts is in this folder.

```python
from diffusers import DiffusionPipeline

folder = "."  # this one
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
images = pipe({told}seeds=[0, 1]).images
```
{condition}"""


def is_diffusers_folder(source: Path) -> bool:
    """Whether this is a pipeline of diffusers, or a model of one."""
    return any((source / name).is_file() for name in ("model_index.json", "config.json"))


def import_diffusers(source: Path, target: Path, context_start: int | None = None) -> Path:
    """A folder of diffusers - ours, or one with the authors' network - as a folder that `justimage.load` and `--from` take.

    source: of a pipeline, or of its transformer alone. Raises ValueError or OSError, in one line, for a folder whose
    configuration or tensors do not fit; then nothing is written.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists; give a new folder")
    index, place = {}, source
    if (source / "model_index.json").is_file():
        index, place = disk.read_json(source / "model_index.json"), source / "transformer"
    config, tensors = disk.read_json(place / "config.json"), read_weights(place)
    schedule = source / "scheduler" / "scheduler_config.json"
    scheduler = disk.read_json(schedule) if place != source and schedule.is_file() else {}
    try:
        if "net.class_table.weight" in tensors:
            recipe = read_ours(index, config, scheduler)
            weights = {name.removeprefix("net."): tensor.float() for name, tensor in tensors.items()}
            with torch.device("meta"):
                wanted = {name: tensor.shape for name, tensor in named_weights(JiT(recipe.model)).items()}
            check_shapes(wanted, {name: tensor.shape for name, tensor in weights.items()}, place)
        else:
            recipe, weights = read_foreign(index, config, scheduler, tensors, context_start, str(place))
    except (TypeError, KeyError, AttributeError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{source} is configured as no JiT: {disk.printable(str(error).splitlines()[0])}") from error
    value = recipe.training.sample_ema
    group = checkpoint.group_of(value)
    return checkpoint.write_checkpoint(target, {group: weights}, recipe, {"images_seen": 0, "converted_from": source.name})


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a model's safetensors: of one file, of the parts that an index lists, or of its only variant."""
    if (index := folder / f"{WEIGHTS}.safetensors.index.json").is_file():
        listed = disk.read_json(index).get("weight_map")
        names = sorted(set(listed.values())) if isinstance(listed, dict) and set(map(type, listed.values())) == {str} else []
        if not names or any("/" in name or "\\" in name or not name.endswith(".safetensors") for name in names):
            raise ValueError(f"{index} lists no files of weights beside it")
        files = [folder / name for name in names]
    elif (file := folder / f"{WEIGHTS}.safetensors").is_file():
        files = [file]
    else:
        files = sorted(folder.glob(f"{WEIGHTS}.*.safetensors"))
        if len(files) != 1:
            found = ", ".join(disk.printable(file.name, 60) for file in sorted(folder.glob(f"{WEIGHTS}*"))[:3]) or "no weights"
            raise ValueError(f"{folder} has {found}; needed: {WEIGHTS}.safetensors (pickled weights are not read)")
    tensors = {}
    for path in files:
        file = open_safetensors(path)
        for name in file.keys():  # noqa: SIM118
            tensors[name] = read_tensor(file, name, file.get_slice(name).get_shape(), path)
    if wrong := next((n for n, t in tensors.items() if not t.is_floating_point()), None):
        raise ValueError(f"{folder}: {disk.printable(wrong)} is {tensors[wrong].dtype}, not a float")
    return tensors


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what diffusers notes in it."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def read_ours(index: dict[str, Any], config: dict[str, Any], scheduler: dict[str, Any]) -> Recipe:
    """The recipe of a folder that `export_diffusers`, or diffusers after it, wrote."""
    schedule = public(scheduler)
    diffusion = {f.name: TWO_CLIPS.get(f.name, f.name) for f in fields(Diffusion)}
    values = {
        "diffusion": {name: schedule[key] for name, key in diffusion.items() if key in schedule},
        "sampling": {f.name: schedule[f.name] for f in fields(Sampling) if f.name in schedule},
        "model": public(config),
        "class_names": class_names(index),
        "normalization": index.get("normalization") or {},
    }
    kept = index.get("recipe") or recipes.to_json(Recipe().shared((0.0,)))
    return recipes.from_json(kept | values)


def class_names(index: Mapping[str, Any]) -> list[str]:
    """The names of classes in the order of their numbers; none unless each has one."""
    labels = index.get("id2label") or {}
    return [labels[str(i)] for i in range(len(labels))] if labels.keys() == {str(i) for i in range(len(labels))} else []


def read_foreign(
    index: dict[str, Any],
    config: dict[str, Any],
    scheduler: dict[str, Any],
    tensors: Mapping[str, Tensor],
    context_start: int | None,
    where: str,
) -> tuple[Recipe, dict[str, Tensor]]:
    """The recipe and our weights of the authors' network as others spell it."""
    if (clip := config.get("norm_eps", 1e-6)) != 1e-6:
        raise ValueError(f"{where}: norm_eps is {clip}; allowed: 1e-06, the authors'")
    theirs = authors_names(tensors)
    start = config.get("in_context_start") if context_start is None else context_start
    settings = {"proj_dropout": config.get("dropout") or 0.0}
    if scheduler.get("solver") in ("heun", "euler"):
        settings |= {"sampling_method": scheduler["solver"], "t_eps": scheduler.get("t_eps", 0.05)}
    a, recipe, _ = official.infer_recipe({"model": theirs}, settings, start, where)
    names = class_names(index)
    values = recipes.to_json(recipe) | {"class_names": names if len(names) == a.classes else []}
    return recipes.from_json(values), official.to_ours(theirs, a, where)


def authors_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in any of the three spellings as the authors', with q, k and v joined."""
    found = {}
    for name, tensor in tensors.items():
        n = name.removeprefix("transformer.").removeprefix("net.")
        for theirs, authors in RENAMED:
            n = re.sub(theirs, authors, n)
        found[f"net.{n}"] = tensor
    for kind in "weight", "bias":
        for query in [n for n in found if n.endswith(f".attn.to_q.{kind}")]:
            parts = [found.pop(query.replace("to_q", letter), None) for letter in ("to_q", "to_k", "to_v")]
            if any(part is None for part in parts):
                raise ValueError(f"{query} has no to_k or to_v beside it")
            found[query.replace("to_q", "qkv")] = torch.cat(parts)  # pyright: ignore[reportArgumentType]
    return found
