"""Opening a run: what may begin or go on in a directory, and the first changes there, after everything has been checked."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from justimage import checkpoint, data, disk, distributed, log, recipe as recipes, training
from justimage.checkpoint import Damaged, Unusable
from justimage.data import Source
from justimage.evaluation.watching import open_judge
from justimage.recipe import Recipe
from justimage.run.kept import Run
from justimage.stopping import StopFile, Stopped
from justimage.tuning import tune


def open_run(
    recipe: Recipe,
    directory: str | Path,
    device: torch.device | str | None = None,
    decoding: Callable[[int, int], None] | None = None,
    fresh: bool = False,
    measuring: Callable[[str], object] = lambda what: None,
) -> Run:
    """The run in a directory: begun there, or, where it has a checkpoint, restored exactly.

    decoding is called with the number of images read into memory so far and in all, measuring with the way of computing that is
    being timed. fresh: set an older run in the directory aside and begin anew. Raises ValueError or OSError, in one line and
    before anything is written, for a recipe or data that contradict the run, unusable data, or damaged checkpoints; every
    process of several raises alike.
    """
    directory, world = Path(directory), distributed.join(device)
    fresh = fresh and not distributed.started_again()
    if not recipe.data:
        raise ValueError("no data is given; say where the images are: --data FOLDER, --data FILE.zip, or --data digits")
    source, sizes = world.once(lambda: listed(recipe))
    with world.together():
        data.refuse_other_files(sizes)
        recipe = recipe.complete(source)
    world.agree("the data", source.fingerprint)
    world.agree("the recipe", recipes.to_json(recipe))
    if world.first(lambda: refuse_another(directory, recipe, fresh)):
        raise Stopped(f"{directory / 'STOP'} asks this run to stop; remove it to go on")
    total = len(source)
    with world.together():
        source = data.in_memory(source, (lambda done: decoding(done, total)) if decoding else None)
        judge = open_judge(recipe, source, world.device, decoding or nothing) if recipe.upkeep.evaluate_every else None
    newest, damage = world.first(lambda: (None, []) if fresh else look_for_newest(directory, recipe, source))
    if newest and recipe.training.precision == "auto":
        begun = checkpoint.stored_recipe(Path(newest)).training.precision
        recipe = replace(recipe, training=replace(recipe.training, precision=begun))
    kept = world.first(lambda: None if fresh else log.last(directory, "tuning"))
    recipe, tuning = tune(recipe, world, kept, measuring)
    with world.together():
        state = training.begin(recipe, world)
        run = Run(directory, recipe, source, state, judge=judge, tuning=tuning)
        if newest:
            run.restore(Path(newest))
    run.ended_early = world.first(lambda: enter(run, damage, fresh))
    run.warnings += [f"{error}; set aside, and gone on from {newest}" for _, error in damage]
    return run


def listed(recipe: Recipe) -> tuple[Source, dict[str, int]]:
    """The data of a recipe, and the sizes of some of its files: a million of them are listed by one process for all."""
    source = data.open_source(recipe.data, recipe.crop)
    return source, data.some_sizes(source)


def nothing(done: int, total: int) -> None:
    """Progress that nobody looks at."""


def refuse_another(directory: Path, recipe: Recipe, fresh: bool) -> bool:
    """ValueError where the directory holds something else than a run by this recipe; before a checkpoint any may begin.

    Returns whether a run is there that a person asked to stop.
    """
    disk.writable(directory / "recipe.json")
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file; a run needs a directory")
    if not fresh:
        refuse_links(directory)
    stored = directory / "recipe.json"
    if not stored.exists():
        if directory.exists() and any(not p.name.startswith((".tmp-", ".lock")) for p in directory.iterdir()):
            raise ValueError(f"{directory} is not empty and holds no run; give another --out")
        return False
    if fresh:
        return False
    if StopFile(directory).there():
        return True
    if checkpoint.published(directory) or log.last_saved(directory):
        try:
            old = recipes.from_json(disk.read_json(stored))
        except ValueError as error:
            raise Unusable(f"{stored} is not a recipe: {error}") from error
        if differences := "; ".join(recipes.contradictions(recipe, old)):
            raise ValueError(f"{directory} was begun with another recipe: {differences}. Use its values, or another --out")
    return False


def refuse_links(directory: Path) -> None:
    """ValueError where something that a run writes is not its own: what is written there would change other places."""
    for name in "recipe.json", "events.jsonl", "metrics.jsonl", ".lock", "samples", "checkpoints", "tensorboard":
        path = directory / name
        if path.is_symlink():
            raise ValueError(f"{path} is a link; a run keeps its own files, so let --out be where they are")
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ValueError(f"{path} is neither a file nor a folder; remove it")


def look_for_newest(directory: Path, recipe: Recipe, source: Source) -> tuple[str | None, list[tuple[str, str]]]:
    """The newest intact checkpoint, if there ever was one, and those that are damaged with what is wrong."""
    damage: list[tuple[str, str]] = []

    def damaged(folder: Path, error: Damaged) -> None:
        damage.append((str(folder), str(error)))

    newest = checkpoint.newest(directory, damaged=damaged)
    if newest is None:
        if last := log.last_saved(directory):
            raise Unusable(
                f"{directory} had a checkpoint at {last} images, and has none now; put it back, or begin again with --fresh"
            )
        return None, []
    state = checkpoint.read_state(newest)
    if state.get("images_seen") != int(newest.name):
        raise Damaged(f"{newest / 'state.json'} says that it is of another moment than its folder's name")
    if state.get("fingerprint") != source.fingerprint:
        raise ValueError(f"{recipe.data} is not the data that {directory} was trained on (its files or classes changed)")
    return str(newest), damage


def enter(run: Run, damage: list[tuple[str, str]], fresh: bool) -> bool:
    """The first changes to the directory: from here on the run is on disk. Whether it has ended early before."""
    directory, seen = run.directory, run.state.images_seen
    if fresh and directory.exists():
        disk.rename(directory, vacant_beside(directory))
    disk.make(directory)
    run.lock = disk.claimed(directory / ".lock")
    disk.write(directory / "recipe.json", json.dumps(recipes.to_json(run.recipe), indent=1).encode())
    for folder, error in damage:
        checkpoint.set_aside(Path(folder))
        run.event("damaged", what=error)
    log.forget_after(run.metrics.file, seen)
    facts = dict(processes=run.world.size, device=str(run.world.device), tuning=asdict(run.tuning))
    run.event("resumed" if run.resumed else "begun", **facts)
    run.watched = log.watched(directory, run.recipe.upkeep.watch)
    return run.out_of_patience()


def vacant_beside(directory: Path) -> Path:
    """A name for an old run, beside the new one's."""
    count = 1
    while (aside := directory.with_name(f"{directory.name}.old-{count}")).exists():
        count += 1
    return aside
