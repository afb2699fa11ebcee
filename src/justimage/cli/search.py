"""justimage search."""

import math
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from justimage import checkpoint, ema
from justimage.cli.evaluate import EvalOptions, open_sampler
from justimage.cli.options import parse
from justimage.cli.progress import Report, stages, track_batches
from justimage.distributed import rank_and_size
from justimage.evaluation import search as searching, search_report
from justimage.evaluation.search import Search, format_interval as in_words
from justimage.generate import short_hash
from justimage.stopping import requests

DESCRIPTION = """Find the best guidance and the best average of a model's weights, by FID (App. A, "EMA and CFG").

examples:
  justimage search runs/digits --features digits.safetensors --count 2000
  justimage search runs/photos --reference photos/ --intervals 0.1 1 0 1        with and without the guidance interval (Fig. 6)
  justimage search jit-b16 --reference jit_in256_stats.npz --full               the paper's whole grid

All settings are compared on the same noise and classes. By default every average is looked at coarsely with a quarter of the
images, and the best guidance found by steps down the grid; --full draws every setting. Writes search.md, search.json and
search.png; features are kept and reused, by evaluate too: stopped or killed, the same command goes on."""

TABLE_ROWS = 12
"""Rows of the table while it grows."""
LINE_SECONDS = 10.0
"""Between two lines of progress, without a terminal."""


@dataclass(frozen=True)
class SearchOptions(EvalOptions):
    count: int = 8000
    """images a setting"""
    guidance_range: tuple[float, float, float] = (searching.LOW, searching.HIGH, searching.STEP)
    """lowest, highest and step"""
    ema_values: tuple[float, ...] = ()
    """averages to choose from [all that the run has]"""
    interval_values: tuple[float, ...] = ()
    """one or more times low high between which guidance applies [the recipe's]"""
    full: bool = False
    """draw the whole grid, as the paper does"""
    out: Path | None = None
    """where the result and the features are kept [RUN/evaluations]"""


def main(words: Sequence[str]) -> int:
    o = parse(SearchOptions, words, "search", DESCRIPTION)
    for name in "guidance", "interval", "ema":
        if getattr(o, name) is not None:
            raise ValueError(f"--{name} is searched for; see --help for the values to search, or use justimage evaluate")
    if len(o.interval_values) % 2:
        raise ValueError(f"intervals are {' '.join(map(str, o.interval_values))}; they are pairs, low and high")
    searching.check_grid(o.count, *o.guidance_range)
    if not checkpoint.read_recipe(checkpoint.resolve(o.source)).model.classes:
        raise ValueError("this model has no classes to guide towards; compare averages by: justimage evaluate --ema")
    leads, began = rank_and_size()[0] == 0, time.perf_counter()
    with requests("this batch, kept") as asked:
        with stages(leads) as progress:
            examiner, job = open_sampler(o, o.out, progress, lambda: bool(asked))
        recipe = examiner.generator.recipe
        intervals = list(zip(o.interval_values[::2], o.interval_values[1::2], strict=True)) or [recipe.sampling.interval]
        emas = o.ema_values or examiner.generator.emas
        for average in emas:
            for interval in intervals:
                replace(job.sampling, interval=interval)  # refused before anything is sampled
            examiner.generator.denoiser(average)
        nets = [examiner.generator.denoiser(average).net for average in emas]
        search = Search(examiner, job, o.count, emas, intervals, *o.guidance_range)
        with (
            live_table(leads) as (search.on_trial, progress),
            track_batches(nets, job.sampling, job.batch, progress) as examiner.progress,
        ):
            best = search.full_grid() if o.full else search.coarse_to_fine()
    if not leads:
        return 0
    asked = [examiner.key(search.job), examiner.reference.info, list(emas), intervals, o.guidance_range, o.full]
    out = examiner.root / f"{examiner.generator.checkpoint.name}-search-{o.count}-{short_hash(asked)[:6]}"
    command = shlex.join(["justimage", "search", *words])
    found = search_report.write_report(search, best, out, time.perf_counter() - began, command)
    for line in found["certainty"]:
        print(line)
    print(
        f"{search.images_sampled:,} images drawn, {search.images_sampled / search.grid_images:.0%} of the whole grid's; in {out}"
    )
    again = ["--guidance", f"{best.guidance:g}", "--ema", ema.ema_name(best.setting.ema), "--interval"]
    again += [f"{t:g}" for t in best.setting.interval]
    given = drop_options(words, ("--count", "--guidance-range", "--ema-values", "--interval-values", "--full"))
    print(f"now try:  {shlex.join(['justimage', 'evaluate', *given, *again])}")
    return 0


def drop_options(words: Sequence[str], options: Sequence[str]) -> list[str]:
    """The words of a command without some options and their values."""
    kept, dropped = [], False
    for word in words:
        if word.startswith("--"):
            dropped = word.partition("=")[0].replace("_", "-") in options
        if not dropped:
            kept.append(word)
    return kept


@contextmanager
def live_table(leads: bool) -> Iterator[tuple[Callable[[Search], None], Report]]:
    """A table that grows with the search, the best in bold, and below it what is being drawn; lines without a terminal."""
    console = Console()
    if not leads or not console.is_terminal:
        said = -math.inf

        def line(search: Search) -> None:
            if leads:
                found = list(search.trials.values())[-1]
                print("  ".join(row(search, found)), flush=True)

        def under_way(what: str, done: float, total: int) -> None:
            nonlocal said
            if leads and time.monotonic() - said > LINE_SECONDS:
                said = time.monotonic()
                print(f"{what}: {int(done):,} of {total:,} images", flush=True)

        yield line, under_way
        return
    rows, below = Table(), [""]
    with Live(console=console, refresh_per_second=4, get_renderable=lambda: Group(rows, below[0])):

        def grown(search: Search) -> None:
            nonlocal rows
            rows = Table("ema", "interval", "guidance", "images", "FID", "IS", "", box=None)
            best = min(search.trials.values(), key=lambda f: (-f.count, f.fid.value))
            for found in list(search.trials.values())[-TABLE_ROWS:]:
                rows.add_row(*row(search, found), "best" if found is best else "", style="bold" if found is best else "")

        def progress(what: str, done: float, total: int) -> None:
            below[0] = f"{what}: {int(done):,} of {total:,} images"

        yield grown, progress


def row(search: Search, found: searching.Trial) -> list[str]:
    answer = f"{found.inception_score.value:.3f}" if found.inception_score else ""
    fid = f"{found.fid.value:.4f} ± {found.fid.std:.4f}"
    s = found.setting
    return [f"{s.ema:g}", in_words(s.interval), f"{found.guidance:g}", f"{found.count:,}", fid, answer]
