"""The experiments: at the paper's scale exactly its recipes, claims that the paper's numbers fulfil, and the command."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from justimage.cli.train import recipe_file
from justimage.experiments import NAMES, experiment
from justimage.recipe import Recipe, with_values
from justimage.reproduction import Cell, Lab, Table, scales
from justimage.reproduction.launch import CLASSES, remaining
from justimage.reproduction.scales import LAPTOP, PAPER, SCALES
from justimage.reproduction.tables import write_results
from justimage.reproduction.toy_job import true_distances
from justimage.reproduction.training_job import TrainAndScore
from tests.test_cli import justimage

EPOCH = 1_281_167
SIZE = {  # Table 9
    "B": dict(depth=12, width=768, heads=12, dropout=0.0, bottleneck=128, context_start=4),
    "L": dict(depth=24, width=1024, heads=16, dropout=0.0, bottleneck=128, context_start=8),
    "H": dict(depth=32, width=1280, heads=16, dropout=0.2, bottleneck=256, context_start=10),
    "G": dict(depth=40, width=1664, heads=16, dropout=0.2, bottleneck=256, context_start=10),
}
ALL = dict(  # Table 9, training and sampling, where no caption differs; and when checkpoints are saved
    channels=3, context_tokens=32, rope=True, qk_norm=True, mlp="swiglu", norm="rms", aux_classifier=False,
    class_loss_weight=0.0, warmup=5 * EPOCH, betas=(0.9, 0.95), batch=1024, learning_rate=2e-4, lr_schedule="constant",
    gradient_clip=None, ema=(0.9996, 0.9998, 0.9999), ema_ramp=0.0, flip=True, precision="bf16",
    prediction="x", loss_space="v", interpolant="linear", mu=-0.8, sigma=0.8, t_clip=0.05, sampling_t_clip=0.05, label_drop=0.1,
    solver="heun", steps=50, interval=(0.1, 1.0), preview_every=20 * EPOCH, save_every=5 * EPOCH,
)  # fmt: skip
TABLE_2 = dict(bottleneck=None, rope=False, qk_norm=False, context_tokens=0, interval=(0.0, 1.0))
"""Tables 2, 3, 10 and Figs. 4, 7: before the bottleneck and Sec. 4.4, "with CFG"."""
EARLY = dict(  # App. A, "early stop"
    monitor="fid", patience=60 * EPOCH, evaluation_every=20 * EPOCH, evaluation_count=8000, evaluation_features="inception"
)  # fmt: skip


def row(name: str, epochs: int = 200, **caption: Any) -> dict[str, Any]:
    """A transcription: Table 9 for that size and patch, and the changes that a table's caption makes."""
    patch = int(name[2:])
    shape = dict(patch_size=patch, image_size=16 * patch, noise_scale=16 * patch / 256)
    early = EARLY if name[0] == "G" and epochs > 320 else {}
    return ALL | SIZE[name[0]] | shape | early | {"total_images": epochs * EPOCH} | caption


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
    "sampling-clip": [row("B/16", 600), row("H/16", 600)],
    "ema-length": [row("B/16", total_images=part * EPOCH) for part in (50, 100, 200)],
}  # fmt: skip
"""The trainings of each table of the paper, and of ours beyond it."""


def trainings(name: str) -> list[TrainAndScore]:
    jobs = [job for cell in experiment(name).cells(PAPER) for job in cell.jobs]
    lab = Lab(Path("nowhere"), PAPER)
    return list({(j.group(lab), j.recipe.sampling.interval): j for j in jobs if isinstance(j, TrainAndScore)}.values())


@pytest.mark.parametrize("name", CAPTIONS)
def test_the_papers_scale_is_table_9_and_the_captions(name: str) -> None:
    """Exactly these recipes; but for the data, and the guidance, which is searched for."""
    found = [with_values(job.recipe, data="", guidance=2.2) for job in trainings(name)]
    wanted = [with_values(Recipe(), **values) for values in CAPTIONS[name]]
    assert len(found) == len(wanted)
    assert all(recipe in found for recipe in wanted)


@pytest.mark.parametrize("name", CAPTIONS)
def test_the_papers_trainings_are_built_and_their_commands_mean_them(name: str, tmp_path: Path) -> None:
    """Each on the meta device; and `justimage train --recipe` reads the same recipe."""
    lab = Lab(tmp_path, PAPER)
    runs = remaining([(name, job) for job in trainings(name)], lab, 64, "h100")
    assert {run.folder for run in runs} == {lab.run_dir(job) for job in trainings(name)}
    for run in runs:
        with torch.device("meta"):
            model = with_values(run.job.recipe, classes=CLASSES).build()
        assert sum(p.numel() for p in model.net.parameters()) > 1e8
        run.write_recipe()
        assert f" --recipe {run.folder / 'recipe.json'} --out {run.folder} " in run.command
        assert recipe_file(run.folder / "recipe.json")[1] == run.job.recipe


def test_the_papers_trainings_are_printed_once_each(tmp_path: Path) -> None:
    """Tables 2, 3 and 10 share rows; a finished training is not printed, and one that has begun keeps its recipe."""
    lab = Lab(tmp_path, PAPER)
    jobs = {name: [(name, job) for job in trainings(name)] for name in ("table2", "table3", "table10")}
    runs = remaining([pair for pairs in jobs.values() for pair in pairs], lab, 64, "h100")
    assert len(runs) == 18 + (12 - 3) + (9 - 3)
    first = runs[0]
    assert first.command.startswith("torchrun --nnodes=8 ")
    first.folder.mkdir(parents=True)
    (first.folder / "events.jsonl").write_text(json.dumps({"event": "begun"}) + "\n")
    first.write_recipe()
    assert not (first.folder / "recipe.json").exists()
    assert len(remaining(jobs["table2"], lab, 64, "h100")) == 18
    (first.folder / "events.jsonl").write_text(json.dumps({"event": "finished"}) + "\n")
    assert len(remaining(jobs["table2"], lab, 64, "h100")) == 17
    with pytest.raises(ValueError, match="does not fit on 1 x rtx4090"):
        remaining([("G", TrainAndScore(PAPER.recipe("G/16")))], lab, 1, "rtx4090")


def with_results(name: str, scale: scales.Scale, value: Callable[[Cell], float], extra: dict[str, Any]) -> Table:
    """A table in which each cell shows the number that `value` gives it."""
    lab = Lab(Path("nowhere"), scale)
    table = Table(experiment(name), lab)
    for cell in table.cells:
        for job in cell.jobs:
            table.results.setdefault(job.key(lab), dict(extra))[cell.metric] = value(cell)
    return table


def papers(cell: Cell) -> float:
    return math.nan if cell.paper is None else cell.paper


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


def scored(number: int) -> dict[str, Any]:
    """What a training and its score leave, in short."""
    point = dict(ema=5_000, images=1_000, deviation=0.1)
    curve = [point | dict(guidance=1 + g / 2, fid=1 + (g - 2) ** 2, inception_score=10.0 + g) for g in range(7)]
    scores = dict(fid=1 + number / 10, inception_score=10.0, precision=0.5, recall=0.6, class_accuracy=0.9, guidance=2.0)
    return scores | dict(
        deviations={}, ema=5_000, curve=curve, losses=[[64, 0.5]], run=f"runs/{number}", class_names=["0", "1"]
    )


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in CAPTIONS if name != "fig7"])  # whose figure is of the runs
@pytest.mark.parametrize("scale", ["laptop", "overnight"])
def test_a_training_that_diverged_is_an_outcome_of_its_table(name: str, scale: str, tmp_path: Path) -> None:
    """One of several seeds, any of them, or all trainings: the table, its claims and its figure are written."""
    table = Table(experiment(name), Lab(tmp_path, SCALES[scale]))
    jobs = [job for cell in table.cells for job in cell.jobs]
    groups = list(dict.fromkeys(job.group(table.lab) for job in jobs if isinstance(job, TrainAndScore)))
    for diverged in [*([group] for group in groups), groups]:
        for number, job in enumerate(jobs):
            result = scored(number) | dict(parameters_m=1.0, gflops=1.0, patch_dimension=4)
            if job.group(table.lab) in diverged:
                result = dict(diverged="the loss is nan", losses=[[64, 0.5]], run="runs/there")
            table.results[job.key(table.lab)] = result
        claims = table.experiment.claims(table)
        if diverged in (groups[:1], groups):
            written = write_results(name, table, tmp_path, 1.0, f"justimage reproduce {name}")
            assert [c.sentence for c in written] == [c.sentence for c in claims]
            assert "**inf**" in (tmp_path / f"{name}.md").read_text()
        assert claims or name == "fig8"  # whose claim is of the samples


def toys(distance: float = 0.0, **blamed: Any) -> list[str]:
    """The claims of Fig. 2 that hold, where all is as in the paper but the distance of one cell, if any."""

    def value(cell: Cell) -> float:
        if blamed and cell.matches(**blamed):
            return distance
        D, prediction = cell.params["D"], cell.params["prediction"]
        right = dict(zip(("curve", "coverage"), true_distances(), strict=True))[cell.metric]
        return right if D == 2 or prediction == "x" else 20.0 if D == 512 else 0.3

    return [c.sentence for c in experiment("fig2").claims(with_results("fig2", LAPTOP, value, {})) if c.holds]


def test_the_toy_is_right_only_where_samples_are_as_near_the_curve_as_the_data_and_cover_it() -> None:
    everything, (near, covered) = toys(), true_distances()
    assert len(everything) == 8
    for p in ("x", "eps", "v"):
        for metric, right in (("curve", near), ("coverage", covered)):
            for factor in (0.6, 1.6):
                assert toys(factor * right, D=2, prediction=p, metric=metric) == everything[1:]
    for D, place in ((8, 1), (16, 2), (512, 3)):
        assert toys(0.05, D=D, prediction="x", metric="coverage") == everything[:place] + everything[place + 1 :]
    assert toys(covered, D=16, prediction="v", metric="coverage") == everything  # it is still far from the curve
    assert toys(3.0, D=512, prediction="v", metric="curve") == everything[:-1]


@pytest.mark.parametrize("scale", SCALES)
def test_every_experiment_has_cells_with_labels_of_their_own_and_networks_that_are_built(scale: str) -> None:
    lab = Lab(Path("nowhere"), SCALES[scale])
    for name in NAMES:
        table = Table(experiment(name), lab)
        assert table.cells and len(table.grid) == len(table.cells), name
        for cell in table.cells:
            assert table.cell(**cell.params, metric=cell.metric) is cell
            assert cell.jobs and len({job.key(lab) for job in cell.jobs}) == len(cell.jobs)
            for job in cell.jobs:
                if isinstance(job, TrainAndScore):
                    with torch.device("meta"):
                        with_values(job.recipe, classes=10).build()


def test_a_cell_is_found_by_values_and_only_where_they_leave_one() -> None:
    table = Table(experiment("table2"), Lab(Path("nowhere"), LAPTOP))
    cell = table.cell(patch=16, loss="v", prediction="x")
    assert (table.row(cell), table.column(cell)) == ("v-loss", "(a) large patches: x-pred")
    assert len(table.select(patch=4)) == 9 and len(table.select(patch=4, prediction="eps")) == 3
    for where in (dict(patch=16), dict(patch=17), dict(patches=16)):
        with pytest.raises(ValueError, match=r"cells have .*there must be one"):
            table.cell(**where)


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


def test_with_values_changes_numbers_by_their_own_names() -> None:
    r = with_values(PAPER.recipe("B/16"), prediction="v", bottleneck=None, steps=7, data="there")
    assert (r.diffusion.prediction, r.model.bottleneck, r.sampling.steps, r.data) == ("v", None, 7, "there")
    with pytest.raises(ValueError, match="nothing called predicton"):
        with_values(r, predicton="v")


@pytest.mark.full
def test_counting_is_reproduced_by_one_command(tmp_path: Path) -> None:
    ended = justimage("reproduce", "tables7-9", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    out = tmp_path / "reproduced" / "laptop"
    assert {f.name for f in out.iterdir() if f.is_file()} == {
        "claims.md",
        *(f"tables7-9.{kind}" for kind in ("md", "json", "png")),
    }
    found = json.loads((out / "tables7-9.json").read_text())
    assert [c["holds"] for c in found["claims"]] == [False, True]  # B/64's 30 GFLOPs
    numbers = {(c["row"], c["column"]): c["ours"][0] for c in found["cells"]}
    assert round(numbers["parameters m", "G/16"]) == 2007 and numbers["dropout", "H/32"] == 0.2
    written = (out / "tables7-9.md").read_text()
    assert "| parameters m | 131 &#124; **131** |" in written
    assert "| ema 1 | 0.9996 &#124; **0.9996** |" in written and "| ema 3 | 0.9999 &#124; **0.9999** |" in written
    again = justimage("reproduce", "tables7-9", cwd=tmp_path)
    assert again.returncode == 0 and "9 of 9 jobs are done" in again.stdout


@pytest.mark.full
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tabel2"], "no experiment is called 'tabel2'; perhaps table2"),
        (["table2", "--scale", "huge"], "invalid choice"),
        (["table2", "--data", "nowhere"], "nowhere"),
        (["table2", "--device", "cuda:7"], "device 'cuda:7' is not available"),
        (["table6", "--scale", "paper", "--gpus", "1", "--gpu-type", "rtx4090"], "does not fit on 1 x rtx4090"),
        (["table2", "--scale", "paper", "--gpu-type", "h1000"], "h1000"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(words: list[str], said: str, tmp_path: Path) -> None:
    ended = justimage("reproduce", *words, cwd=tmp_path)
    assert ended.returncode == 2 and said in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr
    assert not list(tmp_path.iterdir())


OWN = """
from justimage.reproduction import Cell, Experiment, at_least
from justimage.reproduction.cost_job import CountCost


def cells(s):
    return [Cell({"size": size}, [CountCost(s.recipe(f"{size}/16"))], None, "parameters_m") for size in "GB"]


def claims(table):
    return [at_least("G has twice B's", table, table.cell(size="G"), table.cell(size="B"), 2)]


EXPERIMENT = Experiment(
    title="parameters with size",
    expects="More.",
    cells=cells,
    claims=claims,
    figure=lambda table: None,
    row="{size}",
    column="params M",
)
"""


@pytest.mark.full
def test_an_experiment_in_a_file_is_run_like_ours(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    ended = justimage("reproduce", "mine.py", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    written = (tmp_path / "reproduced" / "laptop" / "mine.md").read_text()
    assert "**holds**: G has twice B's" in written and "`justimage reproduce mine.py`" in written
    assert "| [mine](mine.md) | G has twice B's | holds: " in (tmp_path / "reproduced" / "laptop" / "claims.md").read_text()
    (tmp_path / "other.py").write_text("EXPERIMENT = 3")
    wrong = justimage("reproduce", "other.py", cwd=tmp_path)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "defines no EXPERIMENT" in wrong.stderr


@pytest.mark.full
def test_the_list_names_all_and_the_papers_scale_prints_commands(tmp_path: Path) -> None:
    """The list writes nothing, the commands only the recipes that they read."""
    listed = justimage("reproduce", "--list", cwd=tmp_path)
    assert listed.returncode == 0 and all(f"\n{name} " in listed.stdout for name in NAMES)
    assert not list(tmp_path.iterdir())
    printed = justimage("reproduce", "table11", "--scale", "paper", "--gpus", "32", cwd=tmp_path)
    assert printed.returncode == 0 and printed.stdout.count("torchrun ") == 4 and "GPU days in all" in printed.stdout
    written = [f for f in tmp_path.rglob("*") if f.is_file()]
    assert len(written) == 4 and all(f" --recipe {f.relative_to(tmp_path)} " in printed.stdout for f in written)
    weights = sorted(json.loads(f.read_text())["diffusion"]["class_loss_weight"] for f in written)
    assert weights == [0.0, 0.0, 100.0, 100.0]
