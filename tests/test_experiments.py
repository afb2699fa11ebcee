"""The experiments: at the paper's scale exactly its recipes, claims that its own numbers fulfil, and the command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from justimage.cli.options import parse
from justimage.cli.train import TrainOptions
from justimage.experiments import NAMES, experiment
from justimage.recipe import Recipe, preset, with_values
from justimage.reproduction import Cell, Lab, Table, scales
from justimage.reproduction.launch import CLASSES, flatten, options, remaining
from justimage.reproduction.scales import LAPTOP, PAPER, SCALES
from justimage.reproduction.training_job import TrainAndScore
from tests.test_cli import justimage

EPOCH = 1_281_167
SIZE = {  # Table 9
    "B": dict(depth=12, width=768, heads=12, dropout=0.0, bottleneck=128, context_start=4),
    "L": dict(depth=24, width=1024, heads=16, dropout=0.0, bottleneck=128, context_start=8),
    "H": dict(depth=32, width=1280, heads=16, dropout=0.2, bottleneck=256, context_start=10),
    "G": dict(depth=40, width=1664, heads=16, dropout=0.2, bottleneck=256, context_start=10),
}
ALL = dict(  # Table 9, training and sampling; what no caption changes
    channels=3, context_tokens=32, rope=True, qk_norm=True, mlp="swiglu", norm="rms", aux_classifier=False, class_loss_weight=0.0,
    warmup=5 * EPOCH, betas=(0.9, 0.95), batch=1024, learning_rate=2e-4, lr_schedule="constant", gradient_clip=None,
    ema=(0.9996, 0.9998, 0.9999), ema_ramp=0.0, flip=True, precision="bf16",
    prediction="x", loss_space="v", interpolant="linear", mu=-0.8, sigma=0.8, t_clip=0.05, sampling_t_clip=0.05, label_drop=0.1,
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
    "table2": [row(n, **TABLE_2, prediction=p, loss_space=q) for n in ("B/16", "B/4") for q in SPACES for p in SPACES],
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
    "table10": [row("B/16", **TABLE_2, prediction=p, loss_space=q) for q in SPACES for p in ("x", "edm", "linear")],
    "table11": [
        row(f"{size}/16", **extra) for extra in ({}, dict(aux_classifier=True, class_loss_weight=100.0)) for size in "BL"
    ],
    "table12": [row("G/16", 600), row("G/32", 600)],
    "table13": [row(f"{size}/16", 600) for size in "BLHG"],
    "fig8": [row("G/16", 600)],
    "clip": [row("B/16", 600), row("H/16", 600)],
    "length": [row("B/16", total_images=part * EPOCH) for part in (50, 100, 200)],
}  # fmt: skip
"""What the paper trains for each table, and ours beyond it."""


def trained(name: str) -> list[TrainAndScore]:
    works = [work for cell in experiment(name).cells(PAPER) for work in cell.jobs]
    lab = Lab(Path("nowhere"), PAPER)
    return list({(w.group(lab), w.recipe.sampling.interval): w for w in works if isinstance(w, TrainAndScore)}.values())


@pytest.mark.parametrize("name", CAPTIONS)
def test_the_papers_scale_is_table_9_and_the_captions(name: str) -> None:
    found = [flatten(work.recipe) for work in trained(name)]
    wanted = CAPTIONS[name]
    assert len(found) == len(wanted)
    names = wanted[0].keys()
    for here in wanted:
        assert here.keys() == names and here in [{k: numbers[k] for k in names} for numbers in found]
    usual = flatten(with_values(Recipe(), preview_every=20 * EPOCH, save_every=5 * EPOCH))
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
            model = with_values(recipe, classes=CLASSES).build()
        assert sum(p.numel() for p in model.net.parameters()) > 1e8
        words = options(recipe)
        assert parse(TrainOptions, words, "train", "", default=TrainOptions(preset(words[1]), words[1])).recipe == recipe


def test_the_papers_trainings_are_printed_once_each(tmp_path: Path) -> None:
    """Tables 2, 3 and 10 share rows; what is finished is not printed."""
    lab = Lab(tmp_path, PAPER)
    works = {name: [(name, w) for w in trained(name)] for name in ("table2", "table3", "table10")}
    jobs = remaining([pair for pairs in works.values() for pair in pairs], lab, 64, "h100")
    assert len(jobs) == 18 + (12 - 3) + (9 - 3)
    first = jobs[0]
    assert first.command.startswith("torchrun --nnodes=8 ") and "--preset jit-b16-256 " in first.command
    place = first.work.run_dir(lab)
    place.mkdir(parents=True)
    (place / "events.jsonl").write_text(json.dumps({"event": "finished"}) + "\n")
    assert len(remaining(works["table2"], lab, 64, "h100")) == 17
    with pytest.raises(ValueError, match="does not fit on 1 x rtx4090"):
        remaining([("G", TrainAndScore(PAPER.recipe("G/16")))], lab, 1, "rtx4090")


def with_results(name: str, scale: scales.Scale, value: Callable[[Cell], float], extra: dict[str, Any]) -> Table:
    """A table in which each cell shows what `value` says."""
    lab = Lab(Path("nowhere"), scale)
    table = Table(experiment(name).cells(scale), lab)
    for cell in table.cells:
        for work in cell.jobs:
            table.results.setdefault(work.key(lab), dict(extra))[cell.shows] = value(cell)
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


def toys(blamed: tuple[str, str], distance: float) -> list[str]:
    """The claims of Fig. 2 that hold, where all is as in the paper but one distance, of a row and a column."""

    def value(cell: Cell) -> float:
        if (cell.row, cell.column) == blamed:
            return distance
        good = cell.row == "D = 2" or cell.column.startswith("x-pred")
        return 0.005 if good else 20.0 if cell.row == "D = 512" else 0.1

    return [c.sentence for c in experiment("fig2").claims(with_results("fig2", LAPTOP, value, {})) if c.holds]


def test_the_toy_is_found_only_by_samples_that_are_near_the_curve_and_cover_it() -> None:
    everything = toys(("", ""), 0.0)
    assert len(everything) == 8
    for p in ("x", "eps", "v"):
        for way in ("to", "from"):
            assert toys(("D = 2", f"{p}-pred: {way} the curve"), 0.05) == everything[1:]
    for row, place in (("D = 8", 1), ("D = 16", 2), ("D = 512", 3)):
        assert toys((row, "x-pred: from the curve"), 0.05) == everything[:place] + everything[place + 1 :]
    assert toys(("D = 16", "v-pred: from the curve"), 0.005) == everything  # it is still far from the curve
    assert toys(("D = 512", "v-pred: to the curve"), 3.0) == everything[:-1]


@pytest.mark.parametrize("scale", SCALES)
def test_every_experiment_is_made_of_works_at_every_scale(scale: str) -> None:
    for name in NAMES:
        e = experiment(name)
        cells = e.cells(SCALES[scale])
        keys = [(c.row, c.column) for c in cells]
        assert cells and len(set(keys)) == len(keys), name
        lab = Lab(Path("nowhere"), SCALES[scale])
        for cell in cells:
            assert cell.jobs and len({w.key(lab) for w in cell.jobs}) == len(cell.jobs)
            for work in cell.jobs:
                if isinstance(work, TrainAndScore):
                    with torch.device("meta"):
                        with_values(work.recipe, classes=10).build()


def test_an_experiments_file_is_short_and_its_name_is_in_the_list() -> None:
    folder = Path(scales.__file__).parents[1] / "experiments"
    files = {f.stem for f in folder.glob("*.py")} - {"__init__"}
    assert files == {name.replace("-", "_") for name in NAMES}
    assert max(len(f.read_text().splitlines()) for f in folder.glob("*.py")) <= 80


def test_large_patches_are_wider_than_the_network_and_small_ones_are_not() -> None:
    for scale in (LAPTOP, SCALES["gpu"]):
        large, small = scale.recipe("B/16").model, scale.recipe("B/4").model
        assert large.patch_dimension >= 256 and large.patch_dimension > large.width > small.patch_dimension
    assert 4 <= LAPTOP.recipe("B/4").model.patch_dimension <= 16


def test_changed_changes_numbers_by_their_own_names() -> None:
    r = with_values(PAPER.recipe("B/16"), prediction="v", bottleneck=None, steps=7, data="there")
    assert (r.diffusion.prediction, r.model.bottleneck, r.sampling.steps, r.data) == ("v", None, 7, "there")
    with pytest.raises(ValueError, match="nothing called predicton"):
        with_values(r, predicton="v")


def test_counting_is_reproduced_by_one_command(tmp_path: Path) -> None:
    ended = justimage("reproduce", "tables7-9", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    out = tmp_path / "reproduced" / "laptop" / "tables7-9"
    assert {f.name for f in out.iterdir()} == {"table.md", "table.json", "picture.png"}
    found = json.loads((out / "table.json").read_text())
    assert [c["holds"] for c in found["claims"]] == [False, True]  # B/64's 30 GFLOPs
    numbers = {(c["row"], c["column"]): c["ours"][0] for c in found["cells"]}
    assert round(numbers["parameters m", "G/16"]) == 2007 and numbers["dropout", "H/32"] == 0.2
    written = (out / "table.md").read_text()
    assert "| parameters m | 131 &#124; **131** |" in written
    assert "| ema 1 | 0.9996 &#124; **0.9996** |" in written and "| ema 3 | 0.9999 &#124; **0.9999** |" in written
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
from justimage.reproduction import Cell, Experiment, at_least
from justimage.reproduction.cost_job import Counted

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
