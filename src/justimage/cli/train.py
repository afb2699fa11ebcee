"""justimage train."""

import difflib
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tyro.conf import OmitArgPrefixes

from justimage import checkpoint, disk, log, recipe as recipes, run as runs, tuning
from justimage.architectures import Architecture
from justimage.chunks import cpu_count
from justimage.cli import STOPPED
from justimage.cli.estimate import Estimate, format_time
from justimage.cli.options import checked_device, parse, parse_known
from justimage.cli.progress import Advance, bar
from justimage.data import BUILT_IN, is_table, look
from justimage.data.encoded import ENCODED
from justimage.data.store import is_store, open_store
from justimage.diffusion import Diffusion
from justimage.distributed import rank_and_size
from justimage.recipe import Checkpointing, Logging, OnlineEvaluation, Parallelism, Recipe, Training
from justimage.sampling import Sampling
from justimage.stopping import requests
from justimage.training import Step

DESCRIPTION = f"""Train a model in a directory, or resume there: the same command resumes, exactly.

examples:
  justimage train --data photos/                 one sub-folder per class, or a flat folder; in 15 minutes on a CPU
  justimage train --data photos/ --budget 1h     in an hour; of the same run, goes on
  justimage train --data rooms/ --init runs/photos             from its weights; other classes, sizes and channels are adapted
  justimage train --data photos/ --condition captions.csv      told words, or numbers: file,text / file,area,price
  justimage train --data photos/ --condition sketches/         told images of the same names
  justimage train --data photos/ --task upscale:4              told something made from each image
  justimage train --preset folder-64 --data photos/            for a GPU
  justimage train --preset folder-32 --data cifar10.zip --out runs/cifar
  justimage train --preset folder-64 --data scans/ --image-size 96 --channels 1
  justimage train --recipe runs/photos --learning-rate 1e-4 --out runs/slower     another run's recipe, one value changed
  justimage train --preset jit-b16-256 --data stores/imagenet-256 --grad-accumulation 8     a store knows its size
  torchrun --standalone --nproc-per-node=gpu --max-restarts=10 -m justimage train --preset jit-l16-256 \\
      --data stores/imagenet-256 --parallel fsdp --out runs/l16

Every value of the recipe is an option, with or without its section: --batch or --training.batch, --guidance or
--sampling.guidance. --t-clip is the diffusion's, --sampling.t-clip the sampling's. Ctrl-C, SIGTERM, SIGUSR1 and a file called
STOP in the directory save and stop (exit code 75: start it again). The directory holds recipe.json, metrics.jsonl,
events.jsonl, samples/ and checkpoints/.

presets: {", ".join(recipes.PRESETS)}"""


@dataclass(frozen=True)
class TrainOptions:
    data: str
    """a store, a folder of images (one sub-folder per class, or flat), the same in a .zip or .tar, or "digits\""""
    model: OmitArgPrefixes[Architecture]
    diffusion: OmitArgPrefixes[Diffusion]
    training: OmitArgPrefixes[Training]
    sampling: Sampling
    parallelism: OmitArgPrefixes[Parallelism]
    logging: OmitArgPrefixes[Logging]
    checkpoint: OmitArgPrefixes[Checkpointing]
    evaluation: OnlineEvaluation
    condition: str = ""
    """what the network is told beside the classes: images of the same names, in a folder, an archive or a store; a table
    (.csv, .tsv) with a row for each image: a column file, and a column text or columns of numbers; or its texts, encoded
    (.safetensors, by justimage prepare)"""
    preset: str | None = None
    """the recipe to start from; the options below change single values [digits for --data digits or textured-digits; else
    folder-64 on a GPU, and on a CPU laptop, which fits itself to the images and to --budget]"""
    recipe: Path | None = None
    """a recipe.json, or a run, whose recipe to start from instead of a preset"""
    out: Path | None = None
    """the run's directory [runs/PRESET-DATA]"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps [cuda if there is one; under torchrun, one per process]"""
    fresh: bool = False
    """begin anew; an older run in the directory is set aside as OUT.old-1"""


@dataclass(frozen=True)
class Start:
    """The options from which the defaults of all others follow."""

    preset: str | None = None
    recipe: Path | None = None
    data: str | None = None
    condition: str = ""
    init: str = ""
    device: str | None = None
    image_size: int | tuple[int, int] | None = None
    budget: float | None = None
    out: Path | None = None
    fresh: bool = False


SECTIONS = ("model", "diffusion", "training", "sampling", "parallelism", "logging", "checkpoint", "evaluation")
SECONDS = {"s": 1, "m": 60, "h": 3600}
PREFIXED = ("sampling", "evaluation")
"""Sections whose options carry their name, as --sampling.steps."""


def spellings() -> dict[str, str]:
    """Every spelling of a recipe's options, and tyro's: training.batch is batch, guidance is sampling.guidance."""
    default = Recipe()
    names = {section: [f.name.replace("_", "-") for f in fields(getattr(default, section))] for section in SECTIONS}
    short = {n: f"sampling.{n}" for n in names["sampling"]}
    flat = {f"{s}.{no}{n}": no + n for s in names if s not in PREFIXED for n in names[s] for no in ("", "no-")}
    prefixed = {f"{s}-{n}": f"{s}.{n}" for s in PREFIXED for n in names[s]}
    unprefixed = {n: n for n in flat.values()}
    return short | unprefixed | flat | prefixed  # later ones win: --t-clip is the diffusion's, --sampling-t-clip sampling's


def in_tyros_spelling(word: str, known: Mapping[str, str]) -> str:
    """An argument; an option of a recipe is renamed to what tyro calls it."""
    if not word.startswith("--"):
        return word
    name, sign, value = word[2:].partition("=")
    name = name.replace("_", "-")
    near = [name] if name in known else difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    if near and known[near[0]] == f"sampling.{near[0]}":  # a misspelt one gets its section, so that tyro suggests the right one
        return f"--sampling.{name}{sign}{value}"
    return f"--{known.get(name, name)}{sign}{value}"


def in_seconds(words: Sequence[str]) -> list[str]:
    """The arguments with a budget such as 15m, 1h or overnight in seconds."""
    joined = [*words]
    for i, word in enumerate(words):
        name, sign, value = word.partition("=")
        if name == "--budget" and (sign or i + 1 < len(words)):
            joined[i if sign else i + 1] = f"{name}={seconds(value)}" if sign else seconds(words[i + 1])
    return joined


def seconds(text: str) -> str:
    """A time such as 900, 90s, 15m, 1.5h or overnight as a number of seconds; anything else as it is."""
    number, unit = ("8", "h") if text == "overnight" else (text[:-1], text[-1:])
    try:
        return f"{float(number) * SECONDS[unit]:g}"
    except (ValueError, KeyError):
        return text


def main(argv: Sequence[str]) -> int:
    known = spellings()
    words = in_seconds([in_tyros_spelling(word, known) for word in argv])
    start = parse_known(Start, words)
    name, recipe = starting_recipe(start)
    if "--total-images" in (word.partition("=")[0] for word in words):
        recipe = recipes.with_values(recipe, budget=None)
    default = TrainOptions(recipe.data, *(getattr(recipe, section) for section in SECTIONS), condition=recipe.condition)
    o = parse(TrainOptions, words, "train", DESCRIPTION, default=default)
    recipe = replace(recipe, data=o.data, condition=o.condition, **{section: getattr(o, section) for section in SECTIONS})
    out = directory(o.out, name, recipe.data)
    return run_training(recipe, out, checked_device(o.device), shlex.join(["justimage", "train", *argv]), o.fresh)


def starting_recipe(start: Start) -> tuple[str, Recipe]:
    """The name and the recipe of a preset or a file, fitted to the images' size."""
    if start.recipe and start.preset:
        raise ValueError(f"preset is {start.preset} and recipe is {start.recipe}; give one of them")
    if start.recipe:
        name, recipe = recipe_file(start.recipe)
    else:
        on_cpu = checked_device(start.device).type == "cpu"
        name = start.preset or ("digits" if start.data in BUILT_IN else "laptop" if on_cpu else "folder-64")
        earlier = None if start.fresh else directory(start.out, name, start.data or "")
        recipe = recipe_for(start.data or "", name, checked_device(start.device), start.budget, earlier)
        if start.init:
            if earlier and (earlier / "recipe.json").exists():  # begun, and may need its source no longer
                _, known = recipe_file(earlier)
            else:
                known = checkpoint.read_recipe(checkpoint.resolve(start.init))
            recipe = recipes.fine_tuned(recipe, known)
    if start.image_size is not None:
        recipe = recipes.resized(recipe, start.image_size)
    if is_table(start.condition) or start.condition.endswith(ENCODED):  # whose words may say left and right
        recipe = recipes.with_values(recipe, flip=False)
    data = recipe.data if start.data is None else start.data
    if data and is_store(place := Path(data).expanduser()):
        recipe = recipes.for_store(recipe, open_store(place))
    return name, recipe


def directory(out: Path | None, name: str, data: str) -> Path:
    """Where a run is by default."""
    source = Path(data).stem
    return out or Path("runs") / (name if source in ("", name) else f"{name}-{source}")


def recipe_for(data: str, name: str, device: torch.device, budget: float | None = None, earlier: Path | None = None) -> Recipe:
    """A preset. The one for a laptop is fitted to the images, the device and the budget; where a run by it is there already, it
    is that run's."""
    recipe = recipes.preset(name)
    if name != "laptop" or not data:
        return recipe
    if budget:
        recipe = recipes.with_values(recipe, budget=budget)
    if earlier and (earlier / "recipe.json").exists():
        _, known = recipe_file(earlier)
        if known.training.budget:
            return recipes.with_values(known, budget=recipe.training.budget)
    return recipes.for_budget(recipes.for_images(recipe, look(data)), device.type, cpu_count())


def recipe_file(path: Path) -> tuple[str, Recipe]:
    """A name for the recipe in a file or a run's directory, and the recipe without what its data and its device filled in."""
    file = path / "recipe.json" if path.is_dir() else path
    recipe = recipes.from_json(disk.read_json(file))
    if recipe.custom:
        raise ValueError(f"{file} is of a training with {', '.join(recipe.custom)}, given in Python; use justimage.train")
    if recipe.class_names:
        recipe = recipes.with_values(recipe, classes=None)
    if path.is_dir():
        recipe = tuning.as_asked(recipe, log.last_value(path, "tuning"))
    return file.absolute().parent.name if file.stem == "recipe" else file.stem, recipe


def run_training(recipe: Recipe, out: Path, device: torch.device, again: str, fresh: bool = False, hint: bool = True) -> int:
    """Train with progress shown; asked to stop, save and end after a step that all processes agree on. Returns the exit code.

    again: the command that resumes. hint: print at the end what to try with the model.
    """
    is_main = rank_and_size()[0] == 0
    say = partial(print, flush=True) if is_main else lambda *words, **options: None
    with one_line_failures():
        run = open_shown(recipe, out, device, fresh, say)
    total, seen = run.recipe.training.total_images, run.state.images_seen
    say(describe_run(run))
    sample = f"now try:  {shlex.join(['justimage', 'sample', '--from', str(out), *asked(run.recipe), '--out', 'grid.png'])}"
    if seen >= total or run.ended_early:
        run.log_event("finished early" if run.ended_early else "finished")
        say(f"this run is complete, at {seen:,} images" + (f"; {sample}" if hint else ""))
        return 0
    if budget := run.recipe.training.budget:
        say(f"{total:,} images, as many as it sees in {format_time(budget)}")
    if run.initial:
        say(f"starts from {'; '.join([run.initial.origin, *run.initial.notes])}")
    if run.resumed:
        say(f"resuming from {seen:,} of {total:,} images")
    estimate = Estimate(run)
    for line in estimate.before():
        say(line)

    def on_forward(images_done: float) -> None:
        for line in estimate.update(images_done):
            say(line)

    with (
        requests(),
        bar("training", shown=is_main) as advance,
        track_microbatches(run, advance, on_forward) as on_step,
        one_line_failures(),
    ):
        for step in runs.steps(run):
            on_step(step)
    stopped = run.state.images_seen < total and not run.ended_early
    monitor = run.recipe.checkpoint.monitor
    early = (f", as {monitor} no longer improved" if monitor else ", as it copies its images") if run.ended_early else ""
    say(f"{'stopped and saved' if stopped else 'done'} at {run.state.images_seen:,} images{early}, in {out}")
    if stopped or hint:
        say(f"resume with:  {again}" if stopped else sample)
    return STOPPED if stopped else 0


def asked(recipe: Recipe) -> list[str]:
    """What a model may be asked for, as options of justimage sample."""
    if recipe.training.task in ("", "inpaint") and recipe.model.text_length:
        return ["--prompt", "WORDS"]
    if recipe.told.columns:
        return ["--numbers", *(f"{name}={mean:.3g}" for name, mean in zip(recipe.told.columns, recipe.told.mean, strict=True))]
    return ["--condition", "IMAGE.png"] if recipe.model.image_channels and recipe.training.task != "inpaint" else []


def open_shown(recipe: Recipe, out: Path, device: torch.device, fresh: bool, say: Callable[..., None]) -> runs.Run:
    """Open a run, with progress and warnings shown."""
    say(f"reading {recipe.data or 'images'}")
    with bar("reading images", shown=rank_and_size()[0] == 0) as advance:

        def on_progress(what: str, done: int, total: int) -> None:
            advance(done, total) if total else say(what)

        run = runs.open_run(recipe, out, device, fresh, on_progress=on_progress)
    for warning in run.warnings:
        say(f"warning: {warning}", file=sys.stderr)
    a = run.recipe.model
    tokens, (height, width) = a.grid[0] * a.grid[1], a.size
    if not run.recipe.custom and not FEWEST_TOKENS <= tokens <= MOST_TOKENS:
        made = f"patches of {a.patch_size} x {a.patch_size} make {tokens:,} tokens of {width} x {height} pixels"
        say(f"warning: {made}; give --patch-size, or an --image-size with other divisors", file=sys.stderr)
    return run


FEWEST_TOKENS, MOST_TOKENS = 4, 1024
"""Tokens of an image outside of which training warns: the presets and the paper have 16 to 256."""


def describe_run(run: runs.Run) -> str:
    """The run's data, network and devices, in one line."""
    names, world = run.recipe.class_names, run.world
    parameters = sum(p.numel() for p in run.state.denoiser.net.parameters())
    classes = f"{len(names)} classes" if names else "no classes"
    a = run.recipe.model
    patches = "" if run.recipe.custom else f", {a.grid[0] * a.grid[1]:,} patches of {a.patch_size} x {a.patch_size},"
    where = f"{world.device}" if world.size == 1 else f"{world.size} processes ({run.recipe.parallelism.parallel})"
    return f"{len(run.source):,} images, {classes}; {parameters / 1e6:.3g} M parameters{patches} on {where}; in {run.directory}"


COMPILER_FAILURES = {"BackendCompilerFailed", "TritonMissing", "GPUTooOldForTriton"}
"""Errors of torch.compile, by name: their modules are slow to import, and move."""


@contextmanager
def one_line_failures() -> Iterator[None]:
    """Within the block, turn failures of memory and compiler into a ValueError that says what helps."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        remedy = "give a larger --grad-accumulation, --activation-checkpointing, or a smaller network"
        raise ValueError(f"out of memory: {remedy} ({error})") from error
    except RuntimeError as error:
        if COMPILER_FAILURES & {kind.__name__ for kind in type(error).__mro__}:
            raise ValueError(
                "torch.compile failed, which needs a working C++ compiler, on a GPU Triton, too; or add --no-compile"
            ) from error
        raise


@contextmanager
def track_microbatches(
    run: runs.Run, advance: Advance, on_forward: Callable[[float], object]
) -> Iterator[Callable[[Step], None]]:
    """Within the block, move the bar with every microbatch and every image of a preview; call the yielded function per step.

    on_forward: called as a microbatch begins, with the images done before it.
    """
    total, seen, note = run.recipe.training.total_images, run.state.images_seen, ""
    size, count = run.recipe.training.batch / run.tuning.grad_accumulation, 0

    def on_step(step: Step) -> None:
        nonlocal seen, count, note
        seen, count, note = step.images_seen, 0, f"loss {step.loss:.4f}"
        advance(min(seen, total), total, lambda: note)

    def forward(net: Any, *_: Any) -> None:
        nonlocal count
        if net.training:
            on_forward(seen + count * size)
            advance(min(seen + count * size, total), total, lambda: note or "first step")
            count += 1

    hook = run.state.denoiser.net.register_forward_pre_hook(forward)
    run.on_warning = lambda what: print(f"warning: {what}", file=sys.stderr, flush=True)
    run.on_progress = lambda what, done, of: advance(min(seen, total), total, lambda: f"{what} {done} of {of}")
    try:
        yield on_step
    finally:
        hook.remove()
