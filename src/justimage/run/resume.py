"""Opening a run: what may begin or resume in a directory, and the first changes there, after everything has been checked."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from justimage import checkpoint, data as datasets, disk, distributed, log, recipe as recipes, training
from justimage.checkpoint import CorruptCheckpoint, NoUsableCheckpoint
from justimage.data import Source
from justimage.diffusion import Diffusion
from justimage.distributed import World
from justimage.evaluation.copies import watch_copies
from justimage.evaluation.online import open_online_fid
from justimage.progress import finish
from justimage.recipe import Recipe
from justimage.run.budget import fit_length
from justimage.run.run import Run
from justimage.stopping import StopFile, Stopped
from justimage.training import Loss, MakeNet, MakeOptimizer
from justimage.tuning import tune


def open_run(
    recipe: Recipe,
    directory: str | Path,
    device: torch.device | str | None = None,
    fresh: bool = False,
    *,
    data: Any = None,
    net: MakeNet | None = None,
    optimizer: MakeOptimizer | None = None,
    loss: Loss = Diffusion.loss,
    on_progress: Callable[[str, int, int], object] = lambda what, done, total: None,
) -> Run:
    """The run in a directory: begun there, or, where it has a checkpoint, restored exactly.

    fresh: set an older run in the directory aside and begin anew. on_progress: receives what is being done, how much of it is,
    and of how much (0: not known). For the rest see `justimage.train`. Raises ValueError or OSError, in one line and before
    anything is written, for a recipe or data that contradict the run, unusable data, or damaged checkpoints; every process of
    several raises alike.
    """
    directory, world = Path(directory), distributed.init(device)
    fresh = fresh and not distributed.is_restart()
    show = lambda progress: on_progress(progress.what, int(progress.done), int(progress.total))

    # what is trained, the same in every process
    source = open_data(recipe, data, world)
    with world.all_or_none():
        recipe = replace(recipe, custom=names_of(net=net, optimizer=optimizer, loss=None if loss is Diffusion.loss else loss))
        recipe = recipe.resolve(source)
        if recipe.training.balance_classes:
            datasets.balanced(source)  # refused now
    world.assert_same("the data", source.fingerprint)
    world.assert_same("the recipe", recipes.to_json(recipe))

    # what is in the directory
    if world.on_main(lambda: check_compatible(directory, recipe, fresh)):
        raise Stopped(f"{directory / 'STOP'} asks this run to stop; remove it to resume")
    newest, damage = world.on_main(lambda: (None, []) if fresh else find_newest(directory, recipe, source))

    # what takes long
    with world.all_or_none():
        initial = None if newest or not recipe.training.init else checkpoint.read_initial(recipe.training.init, recipe)
        source = finish(datasets.cache_in_ram(source), show)
        online_fid = finish(open_online_fid(recipe, source, world.device), show) if recipe.evaluation.every else None
    begun = checkpoint.read_recipe(Path(newest)) if newest else None
    if begun and recipe.training.precision == "auto":
        recipe = recipes.with_values(recipe, precision=begun.training.precision)
    kept = world.on_main(lambda: None if fresh else log.last_value(directory, "tuning"))
    recipe, tuning = tune(recipe, world, kept, lambda way: on_progress(f"measuring how fast this device is: {way}", 0, 0))

    if recipe.training.budget:
        stored = world.on_main(lambda: read_recipe_json(directory) if newest else None)
        earlier = recipes.from_json(stored) if stored else None
        if not (earlier and earlier.training.budget):
            on_progress("measuring how fast it trains, for some seconds", 0, 0)
        recipe = fit_length(recipe, source, world, earlier, loss, net=net, optimizer=optimizer)

    # the run, and its first changes on disk
    with world.all_or_none():
        begin = initial or begun
        recipe = replace(recipe, origin=begin.origin if begin else "", anew=begin.anew if begin else ())
        state = training.init_state(recipe, world, net, optimizer, initial.weights if initial else None)
        checkpoint.optimizer_numbers(state.denoiser.net, state.optimizer)  # refused now, not at the first save
        run = Run(directory, recipe, source, state, tuning, loss, online_fid, initial)
        plain = source.source if isinstance(source, datasets.ToldSource) else source
        run.copies = None if recipe.training.task else watch_copies(plain, recipe.training.flip)
        if newest:
            run.restore(Path(newest))
    run.ended_early = world.on_main(lambda: lock_and_begin(run, damage, fresh))
    if datasets.all_alike(source):
        run.warnings.append(f"all {len(source)} images are the same; there is nothing to learn")
    if recipe.training.flip and recipe.model.text_length:
        run.warnings.append("half of the images are mirrored, and their texts are not; if a text says left or right: --no-flip")
    run.warnings += [f"{error}; set aside, and resumed from {newest}" for _, error in damage]
    return run


def open_data(recipe: Recipe, data: Any, world: World) -> Source:
    """The data of a recipe, listed by one process for all (a million files); or somebody's own."""
    if data is not None:
        with world.all_or_none():
            if recipe.condition:
                raise ValueError(f"condition is {recipe.condition}, but data that is given brings its own conditions")
            source = datasets.as_source(data)
            check_own_data(source, recipe)
        return source
    if not recipe.data:
        raise ValueError("no data is given; say where the images are: --data FOLDER, --data FILE.zip, or --data digits")

    def listed() -> tuple[Source, dict[str, int]]:
        source = datasets.open_source(recipe.data, recipe.crop)
        if recipe.condition:
            source = datasets.tell(source, recipe.condition, recipe.crop, keep_classes=recipe.model.classes != 0)
        return source, datasets.sample_sizes(source)

    source, sizes = world.broadcast_from_main(listed)
    with world.all_or_none():
        datasets.check_same_files(sizes)
    return source


def check_own_data(source: Source, recipe: Recipe) -> None:
    """ValueError for images of another shape than the recipe's, and for class numbers that nobody counts."""
    if source.shape != recipe.shape:
        found, asked = (" x ".join(map(str, shape)) for shape in (source.shape, recipe.shape))
        raise ValueError(f"data has images of {found}, the recipe asks for {asked} (channels x height x width)")
    if source.has_class_numbers and source[0][1] >= 0 and not source.class_names and recipe.model.classes is None:
        raise ValueError(
            "data has class numbers, but not how many there are: give it a list class_names, or the recipe classes"
        )


def names_of(**given: Any) -> tuple[str, ...]:
    """The names of a network, optimizer or loss that was given, by which a resumed run knows that it is given the same."""
    kinds = {kind: given[kind] if hasattr(given[kind], "__qualname__") else type(given[kind]) for kind in given}
    return tuple(f"{kind} {kinds[kind].__qualname__}" for kind, value in given.items() if value is not None)


def check_compatible(directory: Path, recipe: Recipe, fresh: bool) -> bool:
    """Whether a run is there that a STOP file asks to stop; ValueError where the directory holds anything but a run by this
    recipe. Before its first checkpoint any recipe may begin."""
    disk.check_writable(directory / "recipe.json")
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file; a run needs a directory")
    if not fresh:
        reject_symlinks(directory)
    stored = directory / "recipe.json"
    if not stored.exists():
        if directory.exists() and any(not p.name.startswith((".tmp-", ".lock")) for p in directory.iterdir()):
            raise ValueError(f"{directory} is not empty and holds no run; give another --out")
        return False
    if fresh:
        return False
    if StopFile(directory).exists():
        return True
    if checkpoint.list_checkpoints(directory) or log.last_saved(directory):
        try:
            old = recipes.from_json(disk.read_json(stored))
        except ValueError as error:
            raise NoUsableCheckpoint(f"{stored} is not a recipe: {error}") from error
        if differences := "; ".join(recipes.incompatibilities(recipe, old)):
            raise ValueError(f"{directory} was begun with another recipe: {differences}. Use its values, or another --out")
    return False


def read_recipe_json(directory: Path) -> dict[str, Any] | None:
    """The recipe of the run in a directory; None where there is none."""
    stored = directory / "recipe.json"
    return disk.read_json(stored) if stored.exists() else None


def reject_symlinks(directory: Path) -> None:
    """ValueError where something that a run writes is not its own: what is written there would change other places."""
    for name in "recipe.json", "events.jsonl", "metrics.jsonl", ".lock", "samples", "checkpoints", "tensorboard":
        path = directory / name
        if path.is_symlink():
            raise ValueError(f"{path} is a link; a run keeps its own files, so let --out be where they are")
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ValueError(f"{path} is neither a file nor a folder; remove it")


def find_newest(directory: Path, recipe: Recipe, source: Source) -> tuple[str | None, list[tuple[str, str]]]:
    """The newest intact checkpoint, if there ever was one, and those that are damaged with what is wrong."""
    damage: list[tuple[str, str]] = []

    def damaged(folder: Path, error: CorruptCheckpoint) -> None:
        damage.append((str(folder), str(error)))

    newest = checkpoint.newest(directory, damaged=damaged)
    if newest is None:
        if last := log.last_saved(directory):
            raise NoUsableCheckpoint(
                f"{directory} had a checkpoint at {last} images, and has none now; put it back, or begin again with --fresh"
            )
        return None, []
    state = checkpoint.read_state(newest)
    if state.get("images_seen") != int(newest.name):
        raise CorruptCheckpoint(f"{newest / 'state.json'} says that it is of another moment than its folder's name")
    changed = f"its files or classes, or {recipe.condition}," if recipe.condition else "its files or classes"
    if state.get("fingerprint") != source.fingerprint:
        raise ValueError(f"{recipe.data} is not the data that {directory} was trained on ({changed} changed)")
    return str(newest), damage


def lock_and_begin(run: Run, damage: list[tuple[str, str]], fresh: bool) -> bool:
    """The first changes to the directory: from here on the run is on disk. Whether it has ended early before."""
    directory, seen = run.directory, run.state.images_seen
    if fresh and directory.exists():
        earlier = disk.file_lock(directory / ".lock")  # a run that still goes on there keeps its directory
        if disk.WINDOWS:  # which renames nothing with an open file in it
            earlier.close()
        disk.rename(directory, backup_path(directory))
        earlier.close()
    disk.mkdir(directory)
    run.lock = disk.file_lock(directory / ".lock")
    disk.write(directory / "recipe.json", json.dumps(recipes.to_json(run.recipe), indent=1).encode())
    for folder, error in damage:
        checkpoint.set_aside(Path(folder))
        run.log_event("damaged", what=error)
    facts: dict[str, Any] = dict(processes=run.world.size, device=str(run.world.device), tuning=asdict(run.tuning))
    if run.initial:
        facts |= {"origin": run.initial.origin, "adapted": run.initial.notes}
    run.log_event("resumed" if run.resumed else "begun", **facts)
    run.metrics.resume(seen)
    return run.memorised_before(seen) or run.metrics.early_stop.out_of_patience


def backup_path(directory: Path) -> Path:
    """A name for an old run, beside the new one's."""
    count = 1
    while (aside := directory.with_name(f"{directory.name}.old-{count}")).exists():
        count += 1
    return aside
