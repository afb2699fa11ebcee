"""justimage info."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from justimage import checkpoint, recipe as recipes
from justimage.architectures import architecture
from justimage.cli.options import parse
from justimage.cost import cost, training_memory

DESCRIPTION = """The networks: parameters and multiply-adds beside the paper's, and memory to train.

examples:
  justimage info
  justimage info --batch 64            memory at another batch on one device
  justimage info --from runs/digits    one model's recipe"""

PAPER = {
    "B/16": (131, 25), "L/16": (459, 88), "H/16": (953, 182), "G/16": (2000, 383),
    "B/32": (133, 26), "L/32": (462, 89), "H/32": (956, 183), "G/32": (2000, 384), "B/64": (141, 30),
}  # fmt: skip
"""Millions of parameters and 10^9 multiply-adds in the paper (Tables 5, 7, 8)."""


@dataclass(frozen=True)
class InfoOptions:
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """a run, a converted folder, or one .safetensors file"""
    batch: int = 32
    """images on one device at a time, for the estimate of memory"""


def main(words: Sequence[str]) -> int:
    o = parse(InfoOptions, words, "info", DESCRIPTION)
    if o.batch < 1:
        raise ValueError(f"batch is {o.batch}; it must be 1 or more")
    if o.source:
        recipe = checkpoint.read_recipe(checkpoint.resolve(o.source))
        print(json.dumps(recipes.to_json(recipe), indent=1))
        if recipe.custom:
            print(f"trained with {', '.join(recipe.custom)}, given in Python: what it costs is not known")
            return 0
        c, (state, activations) = cost(recipe.model), training_memory(recipe.model, o.batch, len(recipe.training.ema))
        print(f"{c.parameters / 1e6:.1f} M parameters, {c.multiply_adds / 1e9:.2f} GFLOPs")
        print(f"{c.tokens} patches of {c.patch_dimension} numbers")
        memory = f"{state / 1e9:.2f} GB for weights etc. and {activations / 1e9:.2f} GB for activations"
        print(f"to train {o.batch} images at a time: {memory}")
        return 0
    print(f"JiT at 1,000 classes; memory in GB to train {o.batch} images at a time in bf16 with three averages", flush=True)
    table = Table()
    for column in (
        "network",
        "image",
        "tokens",
        "patch dim",
        "width",
        "params M",
        "paper",
        "GFLOPs",
        "paper",
        "weights etc.",
        "activations",
    ):
        table.add_column(column, justify="right")
    for name in ["T/8", "S/2", "S/4", "B/8", *(f"{s}/{p}" for p in (16, 32, 64) for s in "BLHG"), "B/4"]:
        a = architecture(name)
        c, (state, activations) = cost(a), training_memory(a, o.batch, emas=3)
        numbers = (a.size[0], c.tokens, c.patch_dimension, a.width, f"{c.parameters / 1e6:.1f}", f"{c.multiply_adds / 1e9:.1f}")
        params, flops = PAPER.get(name, ("", ""))
        table.add_row(
            name, *map(str, numbers[:5]), str(params), numbers[5], str(flops), f"{state / 1e9:.1f}", f"{activations / 1e9:.1f}"
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    print("GFLOPs are 10^9 multiply-adds of one forward pass of one image. T and S are ours. Memory is an estimate.")
    return 0
