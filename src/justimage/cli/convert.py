"""justimage convert."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from justimage import checkpoint, disk, hub
from justimage.cli.options import parse
from justimage.cli.progress import stage
from justimage.convert import diffusers_folder, official

DESCRIPTION = """The authors' checkpoints, and folders of diffusers, into a folder that --from and justimage.load take,
and back.

Strict, and no code of a file or folder is run.

examples:
  justimage convert checkpoint-last.pth jit-b16
  justimage sample --from jit-b16 --classes 207 --ema 0.9999
  justimage convert runs/mine mine.pth --to official
  justimage convert runs/mine mine-diffusers --to diffusers
  justimage convert mine-diffusers mine"""


@dataclass(frozen=True)
class ConvertOptions:
    source: Positional[Path]
    """an official checkpoint or a folder of diffusers (or hf://organisation/name); with --to a run or converted folder"""
    target: Positional[Path]
    """a new folder, or a new .pth file"""
    to: Literal["justimage", "official", "diffusers"] = "justimage"
    """the direction"""
    ema: float | None = None
    """with --to diffusers: the average, 0 for the weights themselves [the one that the recipe samples with]"""
    context_start: int | None = None
    """block before which class tokens enter, for a size that is not the paper's"""


def main(words: Sequence[str]) -> int:
    o = parse(ConvertOptions, words, "convert", DESCRIPTION)
    disk.check_writable(o.target)
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
