"""justimage reproduce."""

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from justimage import disk, progress, stopping
from justimage.cli.options import checked_device, parse
from justimage.cli.plan import format_duration
from justimage.cli.progress import stage, stages
from justimage.experiments import ALIASES, NAMES, experiment
from justimage.reproduction import Job, Lab, Result, Table, scoring
from justimage.reproduction.launch import remaining
from justimage.reproduction.runner import Update, devices, read_result, run_jobs
from justimage.reproduction.scales import SCALES, Scale, ScaleName, with_data
from justimage.reproduction.tables import format_number, write_results
from justimage.reproduction.training_job import TrainAndScore

T = TypeVar("T")
DESCRIPTION = """The paper's tables and figures, each by one command, beside the paper's numbers.

examples:
  justimage reproduce --list                             the experiments, what they take and should show
  justimage reproduce fig2                               the toy experiment, in minutes
  justimage reproduce table2 fig7 table10                several; what they share is trained once
  justimage reproduce table2 --data photos/              the same on your own images
  justimage reproduce table4 table11 --scale overnight   what ten easy classes cannot tell
  justimage reproduce table2 --scale gpu --data cifar10.zip
  justimage reproduce table4 table11 --scale overnight --at-once 16     on one large GPU
  justimage reproduce table6 --scale paper --gpus 64 --gpu-type h100     the exact trainings, as commands for a cluster
  justimage reproduce all
  justimage reproduce mine.py                            an experiment of your own (docs/reproduce.md)

laptop: two CPU cores, minutes. overnight: two CPU cores, hours; textured digits, a hundred classes, three seeds where an
effect is small. gpu: one large GPU, at most an hour (images of 32 x 32). paper: Table 9 on ImageNet: prints the trainings that
are left, as torchrun commands, with their cost; when all are finished, the same command scores them. Every training and score
is stored in --out: stopped or killed, the same command resumes; several GPUs (or cores) share the rows.
Writes OUT/NAME.md, OUT/NAME.json and OUT/NAME.png; the claims of all experiments so far into OUT/claims.md; and into
reproduced/claims.md, once several scales stand there, those of all, each at the largest scale that it was run at."""


@dataclass(frozen=True)
class ReproduceOptions:
    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = ()
    """experiments, or all; or a .py file of your own"""
    list: bool = False
    """list the experiments"""
    scale: ScaleName = "laptop"
    """size of networks, images and trainings"""
    data: str = ""
    """images with classes, as train takes them; {size} stands for the image size, where there is a store for each
    [digits; textured-digits; cifar10.zip; stores/imagenet-{size}]"""
    out: Path | None = None
    """the folder for everything [reproduced/SCALE]"""
    features: str = ""
    """the feature space of scores, as evaluate takes it [a classifier, trained on the data; inception at the paper's scale]"""
    reference: str = ""
    """the real images to score against, as evaluate takes them [the data]"""
    device: str | None = None
    """one device to use [all GPUs; or all cores of the CPU]"""
    at_once: int = 1
    """jobs at a time on each GPU, where they are too small to fill one"""
    gpus: int = 8
    """GPUs of a cluster, for the plans of --scale paper"""
    gpu_type: str = "h100"
    """their type"""


def main(argv: Sequence[str]) -> int:
    o = parse(ReproduceOptions, argv, "reproduce", DESCRIPTION)
    scale = with_data(SCALES[o.scale], o.data, o.features, o.reference)
    if o.list or not o.names:
        print_list(scale, o.gpus, o.gpu_type)
        return 0
    asked_for = NAMES if "all" in o.names else [ALIASES.get(name, name) for name in o.names]
    words = {Path(word).stem if word.endswith(".py") else word: word for word in asked_for}
    chosen = {name: experiment(word) for name, word in words.items()}
    if o.device and o.device != "cpu":
        checked_device(o.device)
    if o.at_once < 1:
        raise ValueError(f"--at-once is a number of jobs, at least 1; {o.at_once} was given")
    on = devices(o.device, o.at_once)
    if scale.name == "gpu" and on[0] == "cpu" and not o.device:
        raise ValueError("the scale gpu needs one, and there is none here; use --scale laptop, or wait for days: --device cpu")
    lab = Lab(o.out or Path("reproduced") / scale.name, scale, on[0])
    disk.check_writable(lab.root / "results")
    if scale.name == "paper" and print_plans({name: Table(e, lab) for name, e in chosen.items()}, o, argv):
        return 0
    with stage(f"reading {scale.data}"):
        lab = replace(lab, fingerprint=scoring.fingerprint_of_data(scale))
    with stopping.requests("this moment; trainings resume from their last checkpoints"):
        began = time.perf_counter()
        for name, table in run_tables({name: Table(e, lab) for name, e in chosen.items()}, on):
            command = shlex.join(["justimage", "reproduce", words[name], *options_of(argv, o)])
            for claim in write_results(name, table, lab.root, time.perf_counter() - began, command):
                print(f"{claim.verdict}: {claim.sentence} ({claim.evidence})")
            if not (lab.root / f"{name}.png").exists():
                print("no picture: that needs matplotlib: pip install 'justimage[plots]'")
            print(lab.root / f"{name}.md", flush=True)
    return 0


def options_of(argv: Sequence[str], o: ReproduceOptions) -> list[str]:
    """The command line without the names of experiments, which stand together, and without the folder."""
    first = next(i for i, word in enumerate(argv) if word in o.names)
    rest = [*argv[:first], *argv[first + len(o.names) :]]
    place = rest.index("--out") if "--out" in rest else len(rest)
    return rest[:place] + rest[place + 2 :]


def jobs_of(tables: dict[str, Table]) -> list[tuple[str, Job]]:
    """Every job of some tables, with a title from the first cell that shows it."""
    found: dict[str, tuple[str, Job]] = {}
    for name, table in tables.items():
        for (row, column), cell in table.grid.items():
            for job in cell.jobs:
                title = job.title
                if isinstance(job, TrainAndScore):
                    title = f"{row}, {column}" + (f", seed {job.recipe.training.seed}" if len(cell.jobs) > 1 else "")
                found.setdefault(job.key(table.lab), (f"{name}: {title}", job))
    return list(found.values())


def run_tables(tables: dict[str, Table], on: Sequence[str]) -> Iterator[tuple[str, Table]]:
    """Run the jobs of some tables that have no result, in order, with progress shown; yields each table when it has all of its
    results."""
    lab, waiting = next(iter(tables.values())).lab, dict(tables)
    jobs = {job.key(lab): (title, job) for title, job in jobs_of(tables)}
    results = {key: result for key, (_, job) in jobs.items() if (result := read_result(lab, job)) is not None}
    missing = {key: found for key, found in jobs.items() if key not in results}
    print(f"{', '.join(tables)}: {len(results)} of {len(jobs)} jobs are done", flush=True)

    def complete() -> Iterator[tuple[str, Table]]:
        for name, table in list(waiting.items()):
            keys = {job.key(lab) for _, job in jobs_of({name: table})}
            if keys <= results.keys():
                table.results.update({key: results[key] for key in keys})
                yield name, waiting.pop(name)

    yield from complete()
    prepare_shared([job for _, job in missing.values() if isinstance(job, TrainAndScore)], lab)
    with job_bars(len(missing)) as show, closing(run_jobs([job for _, job in missing.values()], lab, on)) as updates:
        for update in updates:
            show(update, missing[update.key][0])
            stopping.check()
            if update.result is not None:
                results[update.key] = update.result
                yield from complete()


def prepare_shared(jobs: Sequence[TrainAndScore], lab: Lab) -> None:
    """Compute what many jobs share: the classifiers in whose spaces images are compared, and the real images there."""
    sides = sorted({(job.reference_size, job.feature_size(lab.scale), job.recipe.model.channels) for job in jobs})
    for feature_size in sorted({feature_size for _, feature_size, _ in sides}):
        if (accuracy := follow(scoring.ensure_classifier(lab, feature_size))) is not None:
            print(f"a classifier that reads {accuracy:.1%} of held-out images is the space of the scores", flush=True)
    for side, feature_size, channels in sides:
        reference = follow(scoring.reference(lab, scoring.extractor(lab, side, feature_size), side, channels))
        with stage(f"neighbours among real images of {side} x {side}"):
            _ = reference.knn_radii  # stored, too


def follow(job: progress.Job[T]) -> T:
    """Run a job with its progress shown; `Stopped` where a person asks for that."""
    with stages() as show:
        return progress.finish(job, lambda p: (stopping.check(), show(p)))


class Show(Protocol):
    def __call__(self, update: Update, title: str) -> None: ...


@contextmanager
def job_bars(total: int) -> Iterator[Show]:
    """Show a bar for all jobs, and one for each that runs; lines where there is no terminal."""
    console = Console()
    bars = Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[what]}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    all_jobs = bars.add_task("all", total=total, what="")
    tasks, fractions, ended, printed = {}, {}, 0, time.monotonic()

    def show(update: Update, title: str) -> None:
        nonlocal ended, printed
        (key, (what, done, of), result), first = update, update.key not in tasks
        fractions[key] = done / of if of else 0.0
        if first:
            tasks[key] = bars.add_task(title[:50], total=1.0, what="")
        bars.update(tasks[key], completed=fractions[key], what=what, visible=result is None)
        if result is not None:
            ended += 1
            line = f"[{ended}/{total}] {title}: {in_words(result)}"
            bars.console.print(line, highlight=False, markup=False) if console.is_terminal else print(line, flush=True)
        elif not console.is_terminal and (first or time.monotonic() - printed > 30):
            printed = time.monotonic()
            print(f"{title}: {what}", flush=True)
        bars.update(all_jobs, completed=sum(fractions.values()), what=f"{ended} of {total} jobs")

    with bars:
        yield show


def in_words(result: Result) -> str:
    """The main numbers of a result."""
    if "diverged" in result:
        return f"diverged: {result['diverged']}"
    if "parameters_m" in result:
        return f"{format_number(result['parameters_m'])} M parameters"
    if "fid" in result:
        fid = f"FID {format_number(result['fid'])}"
        if "guidance" not in result:
            return fid
        return f"{fid} at guidance {result['guidance']:g}, {result['seconds_of_training'] + result['seconds']:.0f} s"
    return f"distance {format_number(result['plane'])} from the plane" if "plane" in result else "done"


def print_list(scale: Scale, gpus: int, gpu_type: str) -> None:
    """Print the experiments, what each takes at a scale, and what it should show."""
    lab = Lab(Path("reproduced") / scale.name, scale)
    width = max(map(len, NAMES))
    print(f"at the scale {scale.name}:\n")
    for name in NAMES:
        e = experiment(name)
        jobs = jobs_of({name: Table(e, lab)})
        images = {job.group(lab): job.recipe.training.total_images for _, job in jobs if isinstance(job, TrainAndScore)}
        takes = f"{len(images)} trainings, {sum(images.values()):,} images" if images else f"{len(jobs)} short jobs"
        if scale.name == "paper" and images:
            days = sum(run.gpu_days for run in remaining(jobs, lab, gpus, gpu_type))
            takes += f"; {days:,.0f} days of one {gpu_type} (planned)"
        if minutes := e.minutes.get(scale.name):
            takes += f"; {minutes:g} minutes on two cores"
        print(f"{name:{width}} {e.title}\n{'':{width}} {e.expects}\n{'':{width}} takes {takes}\n")
    print("justimage reproduce NAME ... runs it; what several share is trained once")


def print_plans(tables: dict[str, Table], o: ReproduceOptions, argv: Sequence[str]) -> bool:
    """Print the commands of the paper's trainings that are not finished, and write their recipes; whether there are any."""
    lab = next(iter(tables.values())).lab
    runs = remaining(jobs_of(tables), lab, o.gpus, o.gpu_type)
    if not runs:
        return False
    stores = {run.job.recipe.data: run.job.recipe.model.size[0] for run in runs}
    missing = {store: size for store, size in stores.items() if not Path(store).expanduser().exists()}
    if missing:
        print("# once: images, decoded and cropped")
    for store, size in missing.items():
        print(shlex.join(["justimage", "prepare", "imagenet/train", store, "--image-size", str(size)]))
    if any(run.plan.nodes > 1 for run in runs):
        print("\n# run each command on every one of its nodes; $HEAD is the name of any of them")
    for i, run in enumerate(runs, 1):
        run.write_recipe()
        p = run.plan
        early = "at most " if run.job.recipe.checkpoint.patience else ""
        cost = f"{early}{format_duration(p.days)} on {p.gpus} x {p.gpu_type}, {p.images_per_second:,.0f} images/s"
        print(f"\n# {i} of {len(runs)}: {run.title}: {cost} (planned, not measured)\n{run.command}")
    total = sum(run.gpu_days for run in runs)
    print(f"\n# {len(runs)} trainings, {total:,.0f} GPU days in all; when they are finished, this scores them:")
    print(shlex.join(["justimage", "reproduce", *argv]))
    return True
