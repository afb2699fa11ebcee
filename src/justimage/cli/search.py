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
from justimage.cli.progress import Show, stages, track_batches
from justimage.distributed import rank_and_size
from justimage.evaluation import passes, search as searching, search_report
from justimage.evaluation.search import Search, format_interval
from justimage.generate import short_hash
from justimage.progress import Progress, finish
from justimage.stopping import requests

DESCRIPTION = """Find the best guidance and the best average of a model's weights, by FID (App. A, "EMA and CFG").

examples:
  justimage search runs/digits --features digits.safetensors --count 2000
  justimage search runs/photos --reference photos/ --interval-values 0.1 1 0 1     with and without interval (Fig. 6)
  justimage search jit-b16 --reference jit_in256_stats.npz --full               the paper's whole grid
  justimage search runs/photos --features photos.safetensors --passes-values 8 13 20 40    solver and grid, too

All settings are compared on the same noise and classes. By default every average is tried coarsely with a quarter of the
images, and the best guidance is found by hill climbing on the grid; --full samples every setting. Writes search.md,
search.json and search.png, and with --passes-values passes.md, .json and .png; features are cached, for evaluate too: stopped
or killed, the same command resumes."""

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
    """sample the whole grid, as the paper does"""
    passes_values: tuple[int, ...] = ()
    """then compare solvers and grids, at the best guidance, in about so many passes of the network each [none]"""
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
    if o.passes_values and min(o.passes_values) < 2:
        raise ValueError(f"passes values are {' '.join(map(str, o.passes_values))}; each must be 2 or more")
    if not checkpoint.read_recipe(checkpoint.resolve(o.source)).model.classes:
        raise ValueError("this model has no classes to guide towards; compare averages by: justimage evaluate --ema")
    is_main, began = rank_and_size()[0] == 0, time.perf_counter()
    with requests("this batch, kept"):
        with stages(is_main) as show:
            sampler, job = open_sampler(o, o.out, show)
        generator = sampler.generator
        intervals = list(zip(o.interval_values[::2], o.interval_values[1::2], strict=True)) or [job.sampling.interval]
        for interval in intervals:
            replace(job.sampling, interval=interval)  # refused before anything is sampled
        emas = o.ema_values or generator.emas
        nets = [generator.denoiser(average).net for average in emas]
        search = Search(sampler, job, o.count, emas, intervals, *o.guidance_range)
        with live_table(is_main) as (search.on_trial, show), track_batches(nets, job.sampling, job.batch, show) as show_batches:
            best = finish(search.full_grid() if o.full else search.coarse_to_fine(), show_batches)
        ways = compare_passes(o, search, best, is_main) if o.passes_values else []
    if not is_main:
        return 0
    key = [sampler.key(search.job), sampler.reference.info, list(emas), intervals, o.guidance_range, o.full]
    out = sampler.root / f"{generator.checkpoint.name}-search-{o.count}-{short_hash(key)[:6]}"
    command = shlex.join(["justimage", "search", *words])
    found = search_report.write_report(search, best, out, time.perf_counter() - began, command)
    for line in found["certainty"]:
        print(line)
    print(f"{search.images_sampled:,} images sampled, {search.images_sampled / search.grid_images:.0%} of the grid; in {out}")
    again = ["--guidance", f"{best.guidance:g}", "--ema", ema.ema_name(best.setting.ema), "--interval"]
    again += [f"{t:g}" for t in best.setting.interval]
    if ways:
        passes.write_passes(ways, out, command)
        for line in passes.summarize_passes(ways):
            print(line)
        again += passes.recommend(ways)[1].options
    searched = "--count", "--guidance-range", "--ema-values", "--interval-values", "--full", "--passes-values"
    given = drop_options([word for word in words if Path(word) != o.source], searched)
    print(f"now try:  {shlex.join(['justimage', 'evaluate', str(o.source), *given, *again])}")
    return 0


def compare_passes(o: SearchOptions, search: Search, best: searching.Trial, shown: bool) -> list[passes.Candidate]:
    """Solvers and grids with the best guidance and average."""
    sampling = replace(search.job.sampling, guidance=best.guidance, interval=best.setting.interval)
    generator, s = search.sampler.generator, best.setting
    job = replace(search.job, weights_hash=generator.weights_hash(s.ema), ema=s.ema, sampling=sampling)
    with stages(shown) as show:
        return finish(passes.compare(search.sampler, job, o.passes_values, o.count), show)


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
def live_table(shown: bool) -> Iterator[tuple[Callable[[Search], None], Show]]:
    """A table that grows with the search, the best in bold, and below it what is being sampled; lines without a terminal."""
    console = Console()
    if not shown or not console.is_terminal:
        printed = -math.inf

        def print_trial(search: Search) -> None:
            if shown:
                print("  ".join(row(search, list(search.trials.values())[-1])), flush=True)

        def print_progress(p: Progress) -> None:
            nonlocal printed
            if shown and time.monotonic() - printed > LINE_SECONDS:
                printed = time.monotonic()
                print(f"{p.what}: {int(p.done):,} of {int(p.total):,} images", flush=True)

        yield print_trial, print_progress
        return
    rows, below = Table(), [""]
    with Live(console=console, refresh_per_second=4, get_renderable=lambda: Group(rows, below[0])):

        def add_trial(search: Search) -> None:
            nonlocal rows
            rows = Table("ema", "interval", "guidance", "images", "FID", "IS", "", box=None)
            best = min(search.trials.values(), key=lambda t: (-t.count, t.fid.value))
            for trial in list(search.trials.values())[-TABLE_ROWS:]:
                rows.add_row(*row(search, trial), "best" if trial is best else "", style="bold" if trial is best else "")

        def show(p: Progress) -> None:
            below[0] = f"{p.what}: {int(p.done):,} of {int(p.total):,} images"

        yield add_trial, show


def row(search: Search, trial: searching.Trial) -> list[str]:
    inception_score = f"{trial.inception_score.value:.3f}" if trial.inception_score else ""
    fid = f"{trial.fid.value:.4f} ± {trial.fid.std:.4f}"
    s = trial.setting
    return [f"{s.ema:g}", format_interval(s.interval), f"{trial.guidance:g}", f"{trial.count:,}", fid, inception_score]
