"""justimage convert."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from justimage import checkpoint, disk, hub
from justimage.cli.options import parse
from justimage.cli.progress import stage
from justimage.convert import diffusers_folder, exports, official
from justimage.sampling import with_passes

DESCRIPTION = """Other programs' formats: the authors' checkpoints and folders of diffusers, both ways; and a model as a file
that runs without this package, ONNX or torch.export's .pt2.

Strict, and no code of a file or folder is run.

examples:
  justimage convert checkpoint-last.pth jit-b16
  justimage sample --from jit-b16 --classes 207 --ema 0.9999
  justimage convert runs/mine mine.pth --to official
  justimage convert runs/mine mine-diffusers --to diffusers
  justimage convert mine-diffusers mine
  justimage convert runs/mine mine.onnx --to onnx
  justimage convert runs/mine sampler.onnx --to onnx --sampler --passes 13 --guidance 2.2
  justimage convert runs/mine mine.pt2 --to pt2 --int8

An exported network is net(z, t, classes) -> output; with --sampler it is (noise, classes) -> images, with all steps inside.
Both take any number of images; a file is compared with PyTorch before it gets its name (docs/exports.md). ONNX needs
pip install 'justimage[export]'."""


@dataclass(frozen=True)
class ConvertOptions:
    source: Positional[Path]
    """an official checkpoint or a folder of diffusers (or hf://organisation/name); with --to a run, a converted folder or a
    file of weights"""
    target: Positional[Path]
    """a new folder, or a new .pth, .onnx or .pt2 file"""
    to: Literal["justimage", "official", "diffusers", "onnx", "pt2"] = "justimage"
    """the format to write"""
    context_start: int | None = None
    """block before which class tokens enter, for an official checkpoint of a size that is not the paper's"""
    sampler: bool = False
    """onnx, pt2: the whole sampler, as the recipe samples, instead of the network"""
    passes: int | None = None
    """of an exported sampler: passes of the network for an image, say 13 [the recipe's solver and steps]"""
    guidance: float | None = None
    """of an exported sampler: scale of classifier-free guidance, 1 for none [the recipe's]"""
    int8: bool = False
    """onnx, pt2: weights as 8-bit integers, a quarter to a third of the file (docs/exports.md has its cost in score)"""
    ema: float | None = None
    """diffusers, onnx, pt2: the average of the weights, 0 for the weights themselves [the recipe's]"""


def main(words: Sequence[str]) -> int:
    o = parse(ConvertOptions, words, "convert", DESCRIPTION)
    check_fitting(o)
    disk.check_writable(o.target)
    if o.to in ("onnx", "pt2"):
        return write_export(o)
    with stage(f"reading {o.source}, writing {o.target}"):
        if o.to == "official":
            written = official.export_official(o.source, o.target)
        elif o.to == "diffusers":
            written = diffusers_folder.export_diffusers(o.source, o.target, o.ema)
        elif diffusers_folder.is_diffusers_folder(source := hub.fetch(o.source) if hub.is_address(o.source) else o.source):
            written = diffusers_folder.import_diffusers(source, o.target, o.context_start)
        else:
            written = official.import_official(source, o.target, o.context_start)
    if o.to == "official":
        recipe = checkpoint.read_recipe(checkpoint.resolve(o.source))
        if (theirs := official.official_sampling(recipe)) != recipe.sampling:
            print(f"the authors' code does not sample as this recipe does; it will by {theirs.solver}, {theirs.steps} steps")
    print(written)
    return 0


def check_fitting(o: ConvertOptions) -> None:
    """ValueError for an option of another format."""
    formats = {
        "context_start": ("justimage",),
        "sampler": ("onnx", "pt2"),
        "passes": ("onnx", "pt2"),
        "guidance": ("onnx", "pt2"),
        "int8": ("onnx", "pt2"),
        "ema": ("diffusers", "onnx", "pt2"),
    }
    for name, fitting in formats.items():
        given = getattr(o, name)
        if given is not None and given is not False and o.to not in fitting:
            raise ValueError(f"--{name.replace('_', '-')} is of {', '.join(fitting)}; this writes {o.to}")


def write_export(o: ConvertOptions) -> int:
    """Write a network or a sampler as ONNX or .pt2, and print how well it agrees and how to run it."""
    if o.target.suffix != f".{o.to}":
        raise ValueError(f"{o.target} must end in .{o.to}")
    exports.check_target(o.target)
    if not o.sampler and (o.passes or o.guidance is not None):
        raise ValueError("--passes and --guidance are of a sampler; add --sampler")
    sampling = None
    if o.sampler:
        sampling = checkpoint.read_recipe(checkpoint.resolve(o.source)).sampling
        sampling = sampling if o.guidance is None else replace(sampling, guidance=o.guidance)
        sampling = with_passes(sampling, o.passes) if o.passes is not None else sampling
    with stage(f"reading {o.source}, writing {o.target}"):
        done = exports.export_file(o.source, o.target, sampling, o.int8, o.ema)
    if sampling:
        print(f"{sampling.solver}, {sampling.steps} steps, {sampling.passes} passes, guidance {sampling.guidance:g}")
    print(f"largest relative error beside PyTorch {done.error:.1e}" + (f"; int8 costs {done.int8_error:.1%}" if o.int8 else ""))
    print(f"{done.usage}\n\n{o.target}, {o.target.stat().st_size / 1e6:.1f} MB")
    return 0
