"""The experiments: at the paper's scale exactly its recipes; claims that its own numbers fulfil; each work done once."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from justimage.cli.options import parse
from justimage.cli.train import Options
from justimage.experiments import NAMES, experiment
from justimage.laboratory import Cell, Experiment, Lab, Result, Table, Talk, Work, better, scales
from justimage.laboratory.commands import CLASSES, flat, left, options
from justimage.laboratory.doing import done, result_of, told
from justimage.laboratory.judging import fingerprint, learn_to_read
from justimage.laboratory.scales import LAPTOP, PAPER, SCALES
from justimage.laboratory.sheets import tiles
from justimage.laboratory.toy import Toy, curve, distances, toy
from justimage.laboratory.trained import Trained
from justimage.laboratory.writing import write
from justimage.process import Process
from justimage.recipe import Recipe, changed, preset
from justimage.stopping import Stopped
from tests.test_cli import justimage

ROOT = Path(__file__).parents[1]
EPOCH = 1_281_167
SIZE = {  # Table 9
    "B": dict(depth=12, width=768, heads=12, dropout=0.0, bottleneck=128, context_start=4),
    "L": dict(depth=24, width=1024, heads=16, dropout=0.0, bottleneck=128, context_start=8),
    "H": dict(depth=32, width=1280, heads=16, dropout=0.2, bottleneck=256, context_start=10),
    "G": dict(depth=40, width=1664, heads=16, dropout=0.2, bottleneck=256, context_start=10),
}
ALL = dict(  # Table 9, training and sampling; what no caption changes
    channels=3, context_tokens=32, rope=True, qk_norm=True, mlp="swiglu", norm="rms", classifier=False, classification=0.0,
    warmup=5 * EPOCH, betas=(0.9, 0.95), batch=1024, learning_rate=2e-4, schedule="constant", gradient_clip=None,
    ema=(0.9996, 0.9998, 0.9999), ema_ramp=0.0, flip=True, precision="bf16",
    prediction="x", loss="v", path="linear", mu=-0.8, sigma=0.8, clip=0.05, sampling_clip=0.05, label_drop=0.1,
    solver="heun", steps=50, interval=(0.1, 1.0),
)  # fmt: skip
TABLE_2 = dict(bottleneck=None, rope=False, qk_norm=False, context_tokens=0, interval=(0.0, 1.0))
"""Tables 2, 3, 10 and Figs. 4, 7: before the bottleneck and Sec. 4.4, "with CFG"."""


EARLY = {"watch", "patience", "evaluate_every", "evaluate_count", "evaluate_features"}


def row(name: str, epochs: int = 200, **caption: Any) -> dict[str, Any]:
    """A transcription: Table 9 for that size and patch, and what a table's caption changes."""
    patch = int(name[2:])
    by_size = {**SIZE[name[0]], "patch_size": patch, "image_size": 16 * patch, "noise_scale": 16 * patch / 256}
    return ALL | by_size | {"images": epochs * EPOCH} | caption


SPACES = "x", "eps", "v"
CAPTIONS: dict[str, list[dict[str, Any]]] = {
    "table2": [row(n, **TABLE_2, prediction=p, loss=q) for n in ("B/16", "B/4") for q in SPACES for p in SPACES],
    "table3": [row("B/16", **TABLE_2, prediction=p, mu=mu) for mu in (0.0, -0.4, -0.8, -1.2) for p in SPACES],
    "fig4": [row("B/16", **TABLE_2 | {"bottleneck": d}) for d in (16, 32, 64, 128, 256, 512, None)],
    "table4": [
        row("B/16", mlp="gelu", norm="layer", rope=False, qk_norm=False, context_tokens=0, interval=(0.0, 1.0)),
        *(row("B/16", rope=False, qk_norm=False, context_tokens=0, interval=(low, 1.0)) for low in (0.0, 0.1)),
        *(row("B/16", context_tokens=0, interval=(low, 1.0)) for low in (0.0, 0.1)),
        *(row(f"{size}/16", interval=(low, 1.0)) for size in "BL" for low in (0.0, 0.1)),
    ],
    "table5": [row("B/16"), row("B/32"), row("B/64")],
    "table6": [row(f"{size}/{patch}", epochs) for patch in (16, 32) for epochs in (200, 600) for size in "BLHG"],
    "fig6": [row("L/16", 600, interval=(low, 1.0)) for low in (0.0, 0.1)],
    "fig7": [row("B/16", **TABLE_2, prediction=p) for p in ("x", "v", "eps")],
    "table10": [row("B/16", **TABLE_2, prediction=p, loss=q) for q in SPACES for p in ("x", "edm", "linear")],
    "table11": [
        row(f"{size}/16", **extra) for extra in ({}, dict(classifier=True, classification=100.0)) for size in "BL"
    ],
    "table12": [row("G/16", 600), row("G/32", 600)],
    "table13": [row(f"{size}/16", 600) for size in "BLHG"],
    "fig8": [row("G/16", 600)],
    "clip": [row("B/16", 600), row("H/16", 600)],
    "length": [row("B/16", images=part * EPOCH) for part in (50, 100, 200)],
}  # fmt: skip
"""What the paper trains for each table, and ours beyond it."""


def trained(name: str) -> list[Trained]:
    works = [work for cell in experiment(name).cells(PAPER) for work in cell.works]
    lab = Lab(Path("nowhere"), PAPER)
    return list({(w.group(lab), w.recipe.sampling.interval): w for w in works if isinstance(w, Trained)}.values())


@pytest.mark.parametrize("name", CAPTIONS)
def test_the_papers_scale_is_table_9_and_the_captions(name: str) -> None:
    found = [flat(work.recipe) for work in trained(name)]
    wanted = CAPTIONS[name]
    assert len(found) == len(wanted)
    names = wanted[0].keys()
    for here in wanted:
        assert here.keys() == names and here in [{k: numbers[k] for k in names} for numbers in found]
    usual = flat(changed(Recipe(), preview_every=20 * EPOCH, save_every=5 * EPOCH))
    for numbers in found:  # nothing else differs from the default
        others = set(usual) - set(names) - {"data", "guidance"} - EARLY
        assert {k: numbers[k] for k in others} == {k: usual[k] for k in others}
        early = numbers["width"] == 1664 and numbers["images"] > 320 * EPOCH  # App. A, "early stop"
        assert [numbers[k] for k in sorted(EARLY)] == (
            [8000, 20 * EPOCH, "inception", 60 * EPOCH, "fid"] if early else [usual[k] for k in sorted(EARLY)]
        )


@pytest.mark.parametrize("name", CAPTIONS)
def test_the_papers_trainings_are_built_and_their_commands_mean_them(name: str) -> None:
    """Each on the meta device; and `justimage train`, given the command's options, has the same recipe."""
    for recipe in [work.recipe for work in trained(name)]:
        with torch.device("meta"):
            model = changed(recipe, classes=CLASSES).model()
        assert sum(p.numel() for p in model.net.parameters()) > 1e8
        words = options(recipe)
        assert parse(Options, words, "train", "", default=Options(preset(words[1]), words[1])).recipe == recipe


def test_the_papers_trainings_are_printed_once_each(tmp_path: Path) -> None:
    """Tables 2, 3 and 10 share rows; what is finished is not printed."""
    lab = Lab(tmp_path, PAPER)
    works = {name: [(name, w) for w in trained(name)] for name in ("table2", "table3", "table10")}
    jobs = left([pair for pairs in works.values() for pair in pairs], lab, 64, "h100")
    assert len(jobs) == 18 + (12 - 3) + (9 - 3)
    first = jobs[0]
    assert first.command.startswith("torchrun --nnodes=8 ") and "--preset jit-b16-256 " in first.command
    place = first.work.place(lab)
    place.mkdir(parents=True)
    (place / "events.jsonl").write_text(json.dumps({"event": "finished"}) + "\n")
    assert len(left(works["table2"], lab, 64, "h100")) == 17
    with pytest.raises(ValueError, match="does not fit on 1 x rtx4090"):
        left([("G", Trained(PAPER.recipe("G/16")))], lab, 1, "rtx4090")


def with_results(name: str, scale: scales.Scale, value: Callable[[Cell], float], extra: dict[str, Any]) -> Table:
    """A table in which each cell shows what `value` says."""
    lab = Lab(Path("nowhere"), scale)
    table = Table(experiment(name).cells(scale), lab)
    for cell in table.cells:
        for work in cell.works:
            table.results.setdefault(work.identity(lab), dict(extra))[cell.shows] = value(cell)
    return table


def papers(cell: Cell) -> float:
    assert cell.paper is not None
    return cell.paper


@pytest.mark.parametrize("name", ["table2", "table3", "table4", "table5", "table6", "table10", "table11", "table12", "table13"])
def test_the_papers_numbers_fulfil_its_claims(name: str) -> None:
    claims = experiment(name).claims(with_results(name, PAPER, papers, {}))
    assert claims and all(claim.holds for claim in claims), claims


@pytest.mark.parametrize("name", ["table2", "table3", "table4", "table5", "table6", "table10", "table11", "table12", "table13"])
def test_numbers_that_are_all_alike_do_not_fulfil_them(name: str) -> None:
    """A claim of a difference is refused where there is none; those of no harm (two of Tables 5, 12, 13) stay."""
    claims = experiment(name).claims(with_results(name, PAPER, lambda cell: 5.0, {}))
    held = [c.sentence for c in claims if c.holds]
    harmless = "cost grows", "the score stays", "scaled down", "precision hardly"
    assert len(held) < len(claims) or name == "table5"
    assert all(sentence.startswith(harmless) for sentence in held), held


@pytest.mark.parametrize("scale", SCALES)
def test_every_experiment_is_made_of_works_at_every_scale(scale: str) -> None:
    for name in NAMES:
        e = experiment(name)
        cells = e.cells(SCALES[scale])
        keys = [(c.row, c.column) for c in cells]
        assert cells and len(set(keys)) == len(keys), name
        lab = Lab(Path("nowhere"), SCALES[scale])
        for cell in cells:
            assert cell.works and len({w.identity(lab) for w in cell.works}) == len(cell.works)
            for work in cell.works:
                if isinstance(work, Trained):
                    with torch.device("meta"):
                        changed(work.recipe, classes=10).model()


def test_an_experiments_file_is_short_and_its_name_is_in_the_list() -> None:
    folder = Path(scales.__file__).parents[1] / "experiments"
    files = {f.stem for f in folder.glob("*.py")} - {"__init__"}
    assert files == {name.replace("-", "_") for name in NAMES}
    assert max(len(f.read_text().splitlines()) for f in folder.glob("*.py")) <= 80


def test_large_patches_are_wider_than_the_network_and_small_ones_are_not() -> None:
    for scale in (LAPTOP, SCALES["gpu"]):
        large, small = scale.recipe("B/16").network, scale.recipe("B/4").network
        assert large.patch_dimension >= 256 and large.patch_dimension > large.width > small.patch_dimension
    assert 4 <= LAPTOP.recipe("B/4").network.patch_dimension <= 16


TINY = replace(
    LAPTOP,
    scoring=replace(LAPTOP.scoring, searched=16, count=32, step=1.0),
    images={200: 128, 600: 128},
    sizes={size: dict(numbers, width=16, depth=2, context_start=1) for size, numbers in LAPTOP.sizes.items()},
    training=replace(LAPTOP.training, warmup=64),
    sampling=replace(LAPTOP.sampling, steps=2),
    upkeep=replace(LAPTOP.upkeep, save_every=64),
    classifier=dict(width=4, features=16, images=256, batch=32),
)  # fmt: skip


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A laboratory in which only the classifier is."""
    lab = Lab(tmp_path_factory.mktemp("lab"), TINY, fingerprint=fingerprint(TINY))
    assert learn_to_read(lab, 32, lambda done, total: None) is not None
    assert learn_to_read(lab, 32, lambda done, total: None) is None
    return lab.place


def laboratory(read: Path, place: Path) -> Lab:
    shutil.copytree(read, place)
    return Lab(place, TINY, fingerprint=fingerprint(TINY))


def everything(lab: Lab, works: list[Work], crew: int) -> dict[str, Result]:
    missing = {w.identity(lab) for w in works if result_of(lab, w) is None}
    news = list(done(works, lab, ["cpu"] * crew))
    assert {n.identity for n in news if n.result is not None} == missing
    timeless = {"seconds", "seconds_of_training", "machine", "date"}
    found = {w.identity(lab): result_of(lab, w) or {} for w in works}
    return {name: {k: v for k, v in result.items() if k not in timeless} for name, result in found.items()}


def pair() -> list[Work]:
    base = TINY.recipe("B/16")
    plain, v = Trained(base), Trained(changed(base, prediction="v"))
    return [plain, v, Trained(base, sampling_clip=0.0), replace(plain, whole=True)]


def test_works_are_the_same_by_one_process_and_by_two_and_are_done_once(read: Path, tmp_path: Path) -> None:
    one, two = laboratory(read, tmp_path / "one"), laboratory(read, tmp_path / "two")
    first = everything(one, pair(), 1)
    assert first == everything(two, pair(), 2)
    assert len(list((one.place / "runs").iterdir())) == 2 and len(first) == 4  # three works share a training
    before = {f: f.stat().st_mtime_ns for f in one.place.rglob("*") if f.is_file()}
    assert list(done(pair(), one, ["cpu"])) == []
    assert before == {f: f.stat().st_mtime_ns for f in one.place.rglob("*") if f.is_file()}
    scores = first[pair()[0].identity(one)]
    assert scores["fid"] > 0 and scores["guidance"] in (1, 2, 3, 4) and len(scores["losses"]) == 2
    assert len(first[pair()[3].identity(one)]["curve"]) == 4  # every guidance of the grid


def test_a_work_that_is_stopped_goes_on_to_the_same_result(read: Path, tmp_path: Path) -> None:
    whole, parts = laboratory(read, tmp_path / "whole"), laboratory(read, tmp_path / "parts")
    work = pair()[0]
    expected = everything(whole, [work], 1)
    stops = 0
    for limit in range(1, 30):  # each time it says a little more before it is stopped
        said = iter(range(limit))
        talk = Talk(lambda what, fraction, said=said: next(said, None), lambda said=said: said.__length_hint__() == 0)
        try:
            work.do(parts, talk)
            break
        except Stopped:
            stops += 1
    assert stops >= 3
    assert everything(parts, [work], 1) == expected


def test_what_is_found_is_written_beside_the_papers(read: Path, tmp_path: Path) -> None:
    """Every kind of picture; the tables are Markdown with a number in each cell, the JSON strict."""
    lab = laboratory(read, tmp_path / "lab")
    for name in ("fig6", "fig7", "fig8", "table5"):
        e = experiment(name)
        table = Table(e.cells(TINY), lab)
        works = {w.identity(lab): w for c in table.cells for w in c.works}
        table.results.update(everything(lab, list(works.values()), 2))
        claims = write(name, e, table, lab.place / name, 1.0, f"justimage reproduce {name}")
        assert len(claims) == len(e.claims(table)) > 0
        lines = (lab.place / name / "table.md").read_text().splitlines()
        rows = [line for line in lines if line.startswith("| ")]
        assert len(rows) == 1 + len(table.rows)
        assert all(row.count("**") == 2 * len(table.columns) for row in rows[1:])
        stored = json.loads((lab.place / name / "table.json").read_text(), parse_constant=pytest.fail)
        assert len(stored["cells"]) == len(table.cells) and all(cell["ours"][0] is not None for cell in stored["cells"])
        with Image.open(lab.place / name / "picture.png") as picture:
            assert min(picture.size) > 100 and len(np.unique(np.asarray(picture.convert("L")))) > 10
    sheet = np.asarray(Image.open(lab.place / "fig8" / "picture.png"))
    assert sheet.shape[0] > 10 * 64  # ten classes below each other
    assert "fig8: uncurated" in (lab.place / "README.md").read_text()


AGAIN = """
import sys
from pathlib import Path
from justimage.laboratory import Lab
from justimage.laboratory.judging import fingerprint
from tests.test_experiments import TINY, everything, pair

if __name__ == "__main__":
    everything(Lab(Path(sys.argv[1]), TINY, fingerprint=fingerprint(TINY)), pair(), 2)
"""


def test_killed_with_all_its_processes_it_goes_on_to_the_same_results(read: Path, tmp_path: Path) -> None:
    """SIGKILL at several moments, from the first steps to the scores; then the same command."""
    whole, parts = laboratory(read, tmp_path / "whole"), laboratory(read, tmp_path / "parts")
    expected = everything(whole, pair(), 2)
    (tmp_path / "again.py").write_text(AGAIN)
    killed = 0
    for wait in (0.1, 0.4, 0.8, 1.2, 600.0):
        child = subprocess.Popen(
            [sys.executable, tmp_path / "again.py", parts.place], env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        there = {f for f in parts.place.rglob("*") if f.is_file()}
        while child.poll() is None and there >= {f for f in parts.place.rglob("*") if f.is_file()}:
            time.sleep(0.05)  # until it works
        try:
            assert child.wait(wait) == 0
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            killed += 1
            time.sleep(1)  # its workers notice at their next news
    assert killed >= 2
    assert everything(parts, pair(), 1) == expected


def test_a_training_that_diverges_is_a_finding(read: Path, tmp_path: Path) -> None:
    """Its cell is infinite, so that what claims to be better is; the others are as they are."""
    lab = laboratory(read, tmp_path / "lab")
    base = TINY.recipe("B/16")
    wild = changed(base, learning_rate=1e38, warmup=0, gradient_clip=None, not_finite="stop")
    table = Table([Cell("wild", "FID", (Trained(wild),)), Cell("tame", "FID", (Trained(base),))], lab)
    works = [work for cell in table.cells for work in cell.works]
    table.results.update(everything(lab, works, 1))
    assert table("wild", "FID") == math.inf and "became nan" in table.found(table.cells[0])[0]["diverged"]
    assert better("tame is better", table, ("tame", "FID"), ("wild", "FID")).holds
    own = Experiment("wildness", "", lambda s: [], lambda t: [better("x", t, ("tame", "FID"), ("wild", "FID"))], tiles)
    assert write("wild", own, table, lab.place / "wild", 1.0, "none")[0].holds
    assert "| wild | **inf** |" in (lab.place / "wild" / "table.md").read_text()


def test_ones_own_images_in_colour_and_few_classes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for i in range(120):
        place = tmp_path / "photos" / ("cats" if i % 2 else "dogs") / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(place)
    scale = scales.on(TINY, str(tmp_path / "photos"))
    lab = Lab(tmp_path / "lab", scale, fingerprint=fingerprint(scale))
    assert lab.fingerprint == fingerprint(scales.on(TINY, f"{tmp_path}/photos/"))
    learn_to_read(lab, 32, lambda done, total: None)
    e = experiment("fig8")
    table = Table(e.cells(scale), lab)
    table.results.update(everything(lab, list(table.cells[0].works), 1))
    assert table.found(table.cells[0])[0]["class_names"] == ["cats", "dogs"]
    small = Trained(scale.recipe("B/4"))  # 8 x 8, compared with real ones of that size
    assert everything(lab, [small], 1)[small.identity(lab)]["fid"] > 0
    write("fig8", e, table, lab.place / "fig8", 1.0, "justimage reproduce fig8")
    with Image.open(lab.place / "fig8" / "picture.png") as picture:
        assert 2 * 64 < picture.height < 3 * 64 + 40  # two classes, not ten
    flat = scales.on(TINY, str(tmp_path / "photos" / "cats"))
    with pytest.raises(ValueError, match="has no classes"):
        fingerprint(flat)


def test_a_difference_within_the_noise_is_no_verdict() -> None:
    """Two deviations of it decide; over seeds the deviation is theirs."""
    lab = Lab(Path("nowhere"), LAPTOP)
    works = [[toy(D, p) for D in (2, 8, 16)] for p in ("x", "v")]
    table = Table([Cell(name, "FID", tuple(row)) for name, row in zip("ab", works, strict=True)], lab)

    def verdict(a: list[float], b: list[float]) -> str:
        for row, values in zip(works, (a, b), strict=True):
            table.results.update({w.identity(lab): {"fid": v} for w, v in zip(row, values, strict=True)})
        return better("a is better", table, ("a", "FID"), ("b", "FID")).verdict

    assert verdict([1.0, 1.1, 0.9], [2.0, 2.1, 1.9]) == "holds"
    assert verdict([2.0, 2.1, 1.9], [1.0, 1.1, 0.9]) == "does not hold here"
    assert verdict([1.0, 2.0, 0.5], [1.2, 2.2, 0.8]) == "cannot be told here"


def test_whoever_stops_listening_stops_the_work() -> None:
    def endless(talk: Talk) -> Result:
        while not talk.stop():
            talk.tell("on and on", 0.5)
        raise Stopped("stopped")

    listening = told(endless)
    assert next(listening) == ("on and on", 0.5)
    listening.close()


@dataclass(frozen=True)
class Broken:
    """A work that cannot be done."""

    title = "broken"

    def group(self, lab: Lab) -> str:
        return "broken"

    def identity(self, lab: Lab) -> str:
        return "broken"

    def do(self, lab: Lab, talk: Talk) -> Result:
        raise ValueError("this cannot be done")


@pytest.mark.parametrize("crew", [1, 2])
def test_an_error_in_a_work_reaches_whoever_asked_for_it(tmp_path: Path, crew: int) -> None:
    lab = Lab(tmp_path, TINY)
    with pytest.raises(ValueError, match="this cannot be done"):
        list(done([Broken(), toy(2, "x")][: crew or 1], lab, ["cpu"] * crew))
    assert result_of(lab, Broken()) is None


def test_points_on_the_curve_have_no_distance_and_others_theirs() -> None:
    buried = Toy(512)
    P = buried.projection()
    assert torch.allclose(P.T @ P, torch.eye(2), atol=1e-6)
    on = curve(torch.rand(100, generator=torch.Generator().manual_seed(1)))
    off = torch.randn(100, 512, generator=torch.Generator().manual_seed(2))
    off = 0.3 * torch.nn.functional.normalize(off - off @ P @ P.T, dim=1)
    along, out = distances(on @ P.T + off, P)
    assert along.max() < 3e-3 and torch.allclose(out, torch.full((100,), 0.3), atol=1e-5)
    outwards = on * (1 + 0.05 / on.norm(dim=1, keepdim=True))
    assert 0.03 < distances(outwards @ P.T, P)[0].mean() < 0.051


def test_a_short_toy_is_the_same_again(tmp_path: Path) -> None:
    short = Toy(8, Process(prediction="v"), steps=5, batch=8)
    lab = Lab(tmp_path, LAPTOP)
    first, again = short.do(lab, Talk()), short.do(lab, Talk())
    assert {k: v for k, v in first.items() if k != "seconds"} == {k: v for k, v in again.items() if k != "seconds"}


def test_changed_changes_numbers_by_their_own_names() -> None:
    r = changed(PAPER.recipe("B/16"), prediction="v", bottleneck=None, steps=7, data="there")
    assert (r.process.prediction, r.network.bottleneck, r.sampling.steps, r.data) == ("v", None, 7, "there")
    with pytest.raises(ValueError, match="nothing called predicton"):
        changed(r, predicton="v")


def test_counting_is_reproduced_by_one_command(tmp_path: Path) -> None:
    ended = justimage("reproduce", "tables7-9", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    out = tmp_path / "reproduced" / "laptop" / "tables7-9"
    assert {f.name for f in out.iterdir()} == {"table.md", "table.json", "picture.png"}
    found = json.loads((out / "table.json").read_text())
    assert [c["holds"] for c in found["claims"]] == [False, True]  # B/64's 30 GFLOPs
    numbers = {(c["row"], c["column"]): c["ours"][0] for c in found["cells"]}
    assert round(numbers["parameters m", "G/16"]) == 2007 and numbers["dropout", "H/32"] == 0.2
    assert "| parameters m | 131 &#124; **131** |" in (out / "table.md").read_text()
    again = justimage("reproduce", "tables7-9", cwd=tmp_path)
    assert again.returncode == 0 and "9 of 9 works are there" in again.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tabel2"], "no experiment is called 'tabel2'; perhaps table2"),
        (["table2", "--scale", "huge"], "invalid choice"),
        (["table2", "--data", "nowhere"], "nowhere"),
        (["table2", "--device", "cuda:7"], "device 'cuda:7' is not to be had here"),
        (["table6", "--scale", "paper", "--gpus", "1", "--kind", "rtx4090"], "does not fit on 1 x rtx4090"),
        (["table2", "--scale", "paper", "--kind", "h1000"], "h1000"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(words: list[str], said: str, tmp_path: Path) -> None:
    ended = justimage("reproduce", *words, cwd=tmp_path)
    assert ended.returncode == 2 and said in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr
    assert not list(tmp_path.iterdir())


OWN = """
from justimage.laboratory import Cell, Experiment, at_least
from justimage.laboratory.counted import Counted

EXPERIMENT = Experiment(
    title="parameters with size",
    expects="More.",
    cells=lambda s: [Cell(n, "params M", (Counted(s.recipe(n + "/16")),), None, "parameters_m") for n in "GB"],
    claims=lambda table: [at_least("G has twice B's", table("G", "params M"), table("B", "params M"), 2)],
    picture=lambda table: None,
)
"""


def test_an_experiment_of_ones_own_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    ended = justimage("reproduce", "mine.py", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    written = (tmp_path / "reproduced" / "laptop" / "mine" / "table.md").read_text()
    assert "**holds**: G has twice B's" in written and "`justimage reproduce mine.py`" in written
    assert "parameters with size" in (tmp_path / "reproduced" / "laptop" / "README.md").read_text()
    (tmp_path / "other.py").write_text("EXPERIMENT = 3")
    wrong = justimage("reproduce", "other.py", cwd=tmp_path)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "defines no EXPERIMENT" in wrong.stderr


def test_the_list_names_all_and_the_papers_scale_prints_commands(tmp_path: Path) -> None:
    listed = justimage("reproduce", "--list", cwd=tmp_path)
    assert listed.returncode == 0 and all(f"\n{name} " in listed.stdout for name in NAMES)
    printed = justimage("reproduce", "table11", "--scale", "paper", "--gpus", "32", cwd=tmp_path)
    assert printed.returncode == 0 and printed.stdout.count("torchrun ") == 4
    assert "--classifier --classification 100.0" in printed.stdout and "GPU days in all" in printed.stdout
    assert not list(tmp_path.iterdir())
