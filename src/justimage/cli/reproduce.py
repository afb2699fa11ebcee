"""justimage reproduce."""

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Protocol

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from justimage import disk
from justimage.cli.options import checked_device, parse
from justimage.cli.plan import format_duration
from justimage.cli.progress import bar, stage, stages
from justimage.experiments import ALSO, NAMES, experiment
from justimage.reproduction import Job, Lab, Result, Table, scoring
from justimage.reproduction.launch import remaining
from justimage.reproduction.runner import News, devices, read_result, run_jobs
from justimage.reproduction.scales import SCALES, Scale, ScaleName, with_data
from justimage.reproduction.scoring import fingerprint
from justimage.reproduction.tables import format_number, write
from justimage.reproduction.training_job import TrainAndScore
from justimage.stopping import Stopped, requests

DESCRIPTION = """The paper's tables and figures, each by one command, beside the paper's numbers.

examples:
  justimage reproduce --list                             what there is, what it takes, what it should show
  justimage reproduce fig2                               the toy experiment, in minutes
  justimage reproduce table2 fig7 table10                several; what they share is trained once
  justimage reproduce table2 --data photos/              the same on your own images
  justimage reproduce table2 --scale gpu --data cifar10.zip
  justimage reproduce table6 --scale paper --gpus 64 --kind h100     the exact trainings, as commands for a cluster
  justimage reproduce all
  justimage reproduce mine.py                            an experiment of your own (docs/reproduce.md)

laptop: two CPU cores, minutes. gpu: one large GPU, at most an hour (images of 32 x 32). paper: Table 9 on ImageNet: prints what
is left to be trained, as torchrun commands, with its cost; when all of that is finished, the same command scores it. Every
training and score is kept in --out: stopped or killed, the same command goes on; several GPUs (or cores) share the rows. Ends
with table.md, table.json and picture.png in OUT/NAME."""


@dataclass(frozen=True)
class ReproduceOptions:
    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = ()
    """of experiments, or all; or a .py file of your own"""
    list: bool = False
    """say what experiments there are"""
    scale: ScaleName = "laptop"
    """how large"""
    data: str = ""
    """images with classes, as train takes them; {size} stands for the side of an image, where there is a store for each
    [digits; cifar10.zip; stores/imagenet-{size}]"""
    out: Path | None = None
    """where everything is kept [reproduced/SCALE]"""
    features: str = ""
    """the space of scores, as evaluate takes it [a classifier, trained on the data; inception at the paper's scale]"""
    reference: str = ""
    """the real images to score against, as evaluate takes them [the data]"""
    device: str | None = None
    """one device to use [all GPUs; or all cores of the CPU]"""
    gpus: int = 8
    """of a cluster, for the plans of --scale paper"""
    gpu_type: str = "h100"
    """of GPU, for the same"""


def main(words: Sequence[str]) -> int:
    o = parse(ReproduceOptions, words, "reproduce", DESCRIPTION)
    scale = with_data(SCALES[o.scale], o.data, o.features, o.reference)
    if o.list or not o.names:
        overview(scale, o.gpus, o.gpu_type)
        return 0
    asked_for = NAMES if "all" in o.names else [ALSO.get(name, name) for name in o.names]
    named = {Path(name).stem if name.endswith(".py") else name: name for name in asked_for}
    chosen = {name: experiment(word) for name, word in named.items()}
    if o.device and o.device != "cpu":
        checked_device(o.device)
    crew = devices(o.device)
    if scale.name == "gpu" and crew[0] == "cpu" and not o.device:
        raise ValueError("the scale gpu needs one, and there is none here; use --scale laptop, or wait for days: --device cpu")
    lab = Lab(o.out or Path("reproduced") / scale.name, scale, crew[0])
    disk.check_writable(lab.root / "works")
    if scale.name == "paper" and print_left({name: Table(e.cells(scale), lab) for name, e in chosen.items()}, o, words):
        return 0
    with stage(f"reading {scale.data}"):
        lab = replace(lab, fingerprint=fingerprint(scale))
    with requests("this moment; trainings go on from their last checkpoints") as asked:
        for name, e in chosen.items():
            began, table = time.perf_counter(), Table(e.cells(scale), lab)
            run_and_show(name, table, crew, asked)
            command = ["justimage", "reproduce", named[name], *options_of(words, o)]
            claims = write(name, e, table, lab.root / name, time.perf_counter() - began, shlex.join(command))
            for claim in claims:
                print(f"{claim.verdict}: {claim.sentence} ({claim.evidence})")
            if not (lab.root / name / "picture.png").exists():
                print("no picture: that needs matplotlib: pip install 'justimage[plots]'")
            print(lab.root / name / "table.md", flush=True)
    return 0


def options_of(words: Sequence[str], o: ReproduceOptions) -> list[str]:
    """The words of the command after the names of experiments; the names stand together."""
    first = next(i for i, word in enumerate(words) if word in o.names)
    return [*words[:first], *words[first + len(o.names) :]]


def works_of(tables: dict[str, Table]) -> list[tuple[str, Job]]:
    """Every work of some tables, with what the first table calls it."""
    found: dict[str, tuple[str, Job]] = {}
    for name, table in tables.items():
        for cell in table.cells:
            for work in cell.jobs:
                words = f"{cell.row}, {cell.column}" if isinstance(work, TrainAndScore) else work.title
                seed = f", seed {work.recipe.training.seed}" if isinstance(work, TrainAndScore) and len(cell.jobs) > 1 else ""
                found.setdefault(work.key(table.lab), (f"{name}: {words}{seed}", work))
    return list(found.values())


def run_and_show(name: str, table: Table, crew: Sequence[str], asked: Sequence[str]) -> None:
    """Do the works of a table that are missing, with progress shown."""
    lab = table.lab
    works = works_of({name: table})
    missing = [(title, work) for title, work in works if read_result(lab, work) is None]
    print(f"{name}: {len(works) - len(missing)} of {len(works)} works are there", flush=True)
    prepare([work for _, work in missing if isinstance(work, TrainAndScore)], lab, asked)
    titles = {work.key(lab): title.removeprefix(f"{name}: ") for title, work in works}
    with showing(len(missing)) as show, closing(run_jobs([work for _, work in missing], lab, crew)) as going:
        for news in going:
            show(news, titles[news.identity])
            check_stop(asked)
    for _, work in works:
        result = read_result(lab, work)
        assert result is not None
        table.results[work.key(lab)] = result


def prepare(works: Sequence[TrainAndScore], lab: Lab, asked: Sequence[str]) -> None:
    """What many works share: the classifiers in whose spaces images are compared, and the real images there."""
    sides = {(w.reference_size, w.feature_size(lab.scale), w.recipe.model.channels) for w in works}
    for read in sorted({read for _, read, _ in sides}):
        missing = not lab.scale.features and not scoring.classifier_path(lab, read).exists()
        with bar(f"a classifier of {read} x {read}", lab.scale.classifier["images"] if missing else None) as advance:
            accuracy = scoring.train_classifier(lab, read, lambda *n, show=advance: (check_stop(asked), show(*n)))
        if accuracy is not None:
            print(f"a classifier that reads {accuracy:.1%} of held-out images is the space of the scores", flush=True)
    for compared, read, channels in sorted(sides):
        title = f"real images of {compared} x {compared}"
        with stages() as progress:
            progress(title, 0, 0)
            space = scoring.extractor(lab, compared, read)
            advance = lambda *n, title=title, show=progress: show(title, *n)
            _ = scoring.reference(
                lab, space, compared, channels, advance, lambda: bool(asked)
            ).knn_radii  # found once, and kept


def check_stop(asked: Sequence[str]) -> None:
    """`Stopped`, once somebody has asked for that."""
    if asked:
        raise Stopped("stopped as asked; the same command goes on where it was")


class Show(Protocol):
    def __call__(self, news: News, title: str) -> None: ...


@contextmanager
def showing(total: int) -> Iterator[Show]:
    """A bar for the whole, and one for each work under way; lines where there is no terminal."""
    console = Console()
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[what]}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    whole = progress.add_task("all", total=total, what="")
    tasks, fractions, ended, said = {}, {}, 0, time.monotonic()

    def show(news: News, title: str) -> None:
        nonlocal ended, said
        fractions[news.identity] = news.done
        first = news.identity not in tasks
        if first:
            tasks[news.identity] = progress.add_task(title[:50], total=1.0, what="")
        task = tasks[news.identity]
        progress.update(task, completed=news.done, what=news.what)
        if news.result is not None:
            ended += 1
            progress.update(task, visible=False)
            words = f"[{ended}/{total}] {title}: {in_words(news.result)}"
            progress.console.print(words, highlight=False, markup=False) if console.is_terminal else print(words, flush=True)
        elif not console.is_terminal and (first or time.monotonic() - said > 30):
            said = time.monotonic()
            print(f"{title}: {news.what}", flush=True)
        progress.update(whole, completed=sum(fractions.values()), what=f"{ended} of {total} works")

    with progress:
        yield show


def in_words(result: Result) -> str:
    """The main numbers of a result."""
    if "diverged" in result:
        return f"diverged: {result['diverged']}"
    if "parameters_m" in result:
        return f"{format_number(result['parameters_m'])} M parameters"
    if "fid" in result:
        return f"FID {format_number(result['fid'])} at guidance {result['guidance']:g}, {result['seconds']:.0f} s"
    return f"distance {format_number(result['plane'])} from the plane" if "plane" in result else "done"


def overview(scale: Scale, gpus: int, kind: str) -> None:
    """What experiments there are, what each takes at a scale, and what it should show."""
    lab = Lab(Path("reproduced") / scale.name, scale)
    print(f"at the scale {scale.name}:\n")
    for name in NAMES:
        e = experiment(name)
        works = works_of({name: Table(e.cells(scale), lab)})
        trained = {w.group(lab): w.recipe.training.total_images for _, w in works if isinstance(w, TrainAndScore)}
        takes = f"{len(trained)} trainings, {sum(trained.values()):,} images" if trained else f"{len(works)} short works"
        if scale.name == "paper" and trained:
            takes += f"; {sum(job.gpu_days for job in remaining(works, lab, gpus, kind)):,.0f} days of one {kind} (planned)"
        if scale.name == "laptop" and e.minutes:
            takes += f"; {e.minutes:g} minutes on two cores"
        print(f"{name:10} {e.title}\n{'':10} {e.expects}\n{'':10} takes {takes}\n")
    print("justimage reproduce NAME ... does it; what several share is done once")


def print_left(tables: dict[str, Table], o: ReproduceOptions, words: Sequence[str]) -> bool:
    """Print the trainings of the paper's scale that are not finished, and whether there are any."""
    lab = next(iter(tables.values())).lab
    jobs = remaining(works_of(tables), lab, o.gpus, o.gpu_type)
    if not jobs:
        return False
    stores = {job.work.recipe.data: job.work.recipe.model.size[0] for job in jobs}
    missing = {store: size for store, size in stores.items() if not Path(store).expanduser().exists()}
    if missing:
        print("# once: images, decoded and cropped")
    for store, size in missing.items():
        print(shlex.join(["justimage", "prepare", "imagenet/train", store, "--image-size", str(size)]))
    if any(job.plan.nodes > 1 for job in jobs):
        print("\n# each command is run on every one of its nodes; $HEAD is the name of any of them")
    for i, job in enumerate(jobs, 1):
        p = job.plan
        early = "at most " if job.work.recipe.checkpoint.patience else ""
        cost = f"{early}{format_duration(p.days)} on {p.gpus} x {p.gpu_type}, {p.images_per_second:,.0f} images/s (planned, not measured)"
        print(f"\n# {i} of {len(jobs)}: {job.title}: {cost}\n{job.command}")
    total = sum(job.gpu_days for job in jobs)
    print(f"\n# {len(jobs)} trainings, {total:,.0f} GPU days in all; when they are finished, this scores them:")
    print(shlex.join(["justimage", "reproduce", *words]))
    return True
