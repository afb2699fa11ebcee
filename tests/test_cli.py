"""The command line as a person meets it: what it writes, and that every mistake is one line and exit code 2."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from justimage import checkpoint, cli
from justimage.cli.options import parse
from justimage.cli.train import one_line_failures
from tests.sets import colours, png

TINY_TRAINING = shlex.split(
    "--width 16 --depth 2 --heads 2 --bottleneck 4 --context-start 1 --batch 8 --warmup 8 --steps 2 --preview-count 4 "
    "--precision fp32"  # as measured, it could differ between two runs that are compared
)


def justimage(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "justimage", *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with a trained run of digits in it, and a few bad things."""
    home = tmp_path_factory.mktemp("home")
    done = justimage("train", "--preset", "digits", *TINY_TRAINING, "--total-images", "64", "--out", "run", cwd=home)
    assert done.returncode == 0, done.stderr
    for i, colour in enumerate(["red", "green", "blue", "white"]):
        (home / "photos" / "abcd"[i // 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), colour).save(home / "photos" / "abcd"[i // 2] / f"{i}.jpg", quality=95)
    return home


def test_help_is_there_without_pytorch(home: Path) -> None:
    code = (
        "import sys; sys.argv = ['justimage', '--help']\nfrom justimage.cli import main\nmain()\n"
        "assert not {'torch', 'numpy', 'tyro', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=home)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout


@pytest.mark.full
@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself_with_examples(command: str, home: Path) -> None:
    done = justimage(command, "--help", cwd=home)
    assert done.returncode == 0 and f"justimage {command}" in done.stdout and "examples:" in done.stdout


class Understood(Exception):
    """The words of a command were; nothing more is done."""


def examples(text: str) -> list[list[str]]:
    """The words of every `justimage` command that stands on a line of its own, started by torchrun or not, without remarks."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    found = [line.strip() for line in lines if re.match(r"\s*(justimage|torchrun) [a-z-]", line)]
    return [shlex.split(re.sub(r"\s{3,}.*|\s+#.*|^.*-m justimage |^justimage ", "", line)) for line in found]


PROJECT = Path(__file__).parents[1]
DOCUMENTS = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]


@pytest.mark.parametrize("where", ["", *cli.COMMANDS, *(d.name for d in DOCUMENTS)])
def test_every_example_is_understood(where: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option of it exists, takes what it is given, and none is missing; whether the images are there is another matter."""
    if where.endswith(".md"):
        text = next(d for d in DOCUMENTS if d.name == where).read_text()
        text = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    else:
        module: Any = import_module(f"justimage.cli.{where.replace('-', '_')}") if where else cli
        text = getattr(module, "DESCRIPTION", "") or module.HELP
    monkeypatch.chdir(tmp_path)
    for name in "photos", "rooms":
        shutil.copytree(run, tmp_path / "runs" / name)
    for folder in "photos", "rooms", "scans", "houses":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").write_bytes(png(colours(0)))

    def understand(kind: type, words: list[str], *others: Any, **options: Any) -> None:
        parse(kind, words, *others, **options)
        raise Understood

    found = examples(text)
    assert found or where in ("api.md", "extending.md", "glossary.md", "method.md", "notebooks.md")
    for command, *words in found:
        module = import_module(f"justimage.cli.{command.replace('-', '_')}")
        if "--help" not in words:
            monkeypatch.setattr(module, "parse", understand)
            with pytest.raises(Understood):
                module.main(words)


def test_a_run_that_began_from_others_weights_resumes_without_them(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "source")
    words = ["train", "--data", "digits", "--init", "source", "--out", "run", "--batch", "8", "--warmup", "0", "--no-compile"]
    words += ["--preview-count", "2", "--save-every", "16", "--precision", "fp32"]
    first = justimage(*words, "--total-images", "32", "--lr-schedule", "constant", cwd=tmp_path)
    assert first.returncode == 0 and "starts from source after 640 images, average 300" in first.stdout, first.stderr
    shutil.rmtree(tmp_path / "source")
    again = justimage(*words, "--total-images", "48", "--lr-schedule", "constant", cwd=tmp_path)
    assert again.returncode == 0 and "resuming from 32 of 48 images" in again.stdout, again.stderr
    assert checkpoint.read_recipe(checkpoint.resolve(tmp_path / "run")).origin.startswith("source after 640 images")


@pytest.mark.full
def test_the_run_tells_what_to_do_next_and_is_complete(home: Path) -> None:
    done = justimage("train", "--preset", "digits", *TINY_TRAINING, "--total-images", "64", "--out", "run", cwd=home)
    assert done.returncode == 0 and "complete" in done.stdout and "justimage sample --from run" in done.stdout


def test_samples_come_as_a_grid_a_folder_and_arrays(home: Path) -> None:
    words = (
        "sample --from run --classes 3 7 --count 6 --guidance 2.2 --interval 0.1 1.0 --solver heun --steps 3 --ema 2000 "
        "--seed 5 --out o/grid.png --folder o/each --npz o/all.npz"
    )
    done = justimage(*words.split(), cwd=home)
    assert done.returncode == 0, done.stderr
    arrays = np.load(home / "o" / "all.npz")
    assert arrays["arr_0"].shape == (6, 32, 32, 1) and arrays["arr_0"].dtype == np.uint8
    assert arrays["arr_1"].tolist() == [3, 7, 3, 7, 3, 7]
    singles = [np.asarray(Image.open(p)) for p in sorted((home / "o" / "each").glob("*.png"))]
    assert np.array_equal(np.stack(singles), arrays["arr_0"][..., 0])
    assert Image.open(home / "o" / "grid.png").size[0] > 6 * 32


def test_an_rgb_folder_trains_previews_and_resumes(home: Path) -> None:
    options = "--preset folder-32 --data photos --image-size 32 --patch-size 8 --no-compile --precision fp32 --preview-every 16"
    words = ["train", *options.split(), *TINY_TRAINING]
    first = justimage(*words, "--total-images", "16", cwd=home)
    assert first.returncode == 0, first.stderr
    assert "4 images, 2 classes" in first.stdout and (home / "runs/folder-32-photos/samples/000000016-grid.png").exists()
    second = justimage(*words, "--total-images", "32", cwd=home)
    assert second.returncode == 0 and "resuming from 16 of 32" in second.stdout, second.stderr
    named = justimage("sample", "--from", "runs/folder-32-photos", "--classes", "b", "--count", "2", "--steps", "2", cwd=home)
    assert named.returncode == 0 and (home / "grid.png").exists(), named.stderr


@pytest.mark.full
def test_ctrl_c_saves_and_says_how_to_go_on(home: Path) -> None:
    words = ["train", "--preset", "digits", *TINY_TRAINING, "--total-images", "1000000", "--out", "long"]
    process = subprocess.Popen([sys.executable, "-m", "justimage", *words], cwd=home, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (home / "long" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=150)
    assert process.returncode == 75
    assert "stopped and saved" in output and "resume with:  justimage train --preset digits" in output
    assert len(list((home / "long" / "checkpoints").iterdir())) == 1


@pytest.mark.full
def test_a_kill_in_the_middle_changes_nothing(home: Path) -> None:
    """SIGKILL at some moment after the first checkpoint; the resumed run's last checkpoint is that of the uninterrupted."""
    words = ["train", "--preset", "digits", *TINY_TRAINING, "--dropout", "0.2", "--total-images", "4000", "--save-every", "400"]
    assert justimage(*words, "--out", "straight", cwd=home).returncode == 0
    process = subprocess.Popen([sys.executable, "-m", "justimage", *words, "--out", "killed"], cwd=home, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list((home / "killed" / "checkpoints").glob("0*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    resumed = justimage(*words, "--out", "killed", cwd=home)
    assert resumed.returncode == 0 and "resuming from" in resumed.stdout, resumed.stdout + resumed.stderr
    ends = [
        json.loads((home / run / "checkpoints" / "000004000" / "MANIFEST.json").read_text())["files"]
        for run in ("straight", "killed")
    ]
    weights = [{n: f["sha256"] for n, f in end.items() if n != "state.json"} for end in ends]
    assert len(weights[0]) == 5 and weights[0] == weights[1]


@pytest.mark.full
def test_photographs_are_prepared_verified_and_trained_on(home: Path) -> None:
    words = ["prepare", "photos", "stores/photos", "--image-size", "16", "24", "--workers", "2"]
    first = justimage(*words, cwd=home)
    assert first.returncode == 0 and "4 images of 3 x 16 x 24 uint8 in stores/photos" in first.stdout, first.stderr
    again = justimage(*words, cwd=home)
    assert again.returncode == 0 and "every hash was verified" in again.stdout
    options = ["--no-compile", "--precision", "fp32", "--total-images", "8", "--patch-size", "8", "--out", "stored"]
    trained = justimage("train", "--data", "stores/photos", *options, *TINY_TRAINING, cwd=home)
    assert trained.returncode == 0 and "4 images, 2 classes" in trained.stdout, trained.stderr
    recipe = json.loads((home / "stored/recipe.json").read_text())
    assert recipe["model"]["image_size"] == [16, 24] and recipe["training"]["flip"]
    wrong = justimage("train", "--data", "stores/photos", "--image-size", "32", cwd=home)
    assert wrong.returncode == 2 and "holds images of 3 x 16 x 24" in wrong.stderr and wrong.stderr.count("\n") == 1


@pytest.mark.full
def test_arrays_are_prepared_trained_on_and_sampled_in_their_units(home: Path) -> None:
    np.save(home / "spectra.npy", np.random.default_rng(0).normal(1000, 5, (6, 2, 8, 16)))
    assert justimage("prepare", "spectra.npy", "stores/spectra", cwd=home).returncode == 0
    options = ["--no-compile", "--precision", "fp32", "--total-images", "8", "--out", "spectra"]
    trained = justimage("train", "--data", "stores/spectra", *options, *TINY_TRAINING, cwd=home)
    assert trained.returncode == 0, trained.stderr
    assert not json.loads((home / "spectra" / "recipe.json").read_text())["training"]["flip"]
    words = ["sample", "--from", "spectra", "--count", "3", "--steps", "2", "--npz", "s.npz", "--out", "s.png", "--folder", "s"]
    drawn = justimage(*words, cwd=home)
    assert drawn.returncode == 0, drawn.stderr
    arrays = np.load(home / "s.npz")
    assert arrays["arr_0"].shape == (3, 2, 8, 16) and arrays["arr_0"].dtype == np.float32
    assert abs(arrays["arr_0"].mean() - 1000) < 20 and len(list((home / "s").glob("*.png"))) == 3


@pytest.mark.full
def test_folders_named_by_numbers_are_classes_by_name(home: Path) -> None:
    for name in "1", "2", "10":
        (home / "numbered" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16), "red").save(home / "numbered" / name / "a.png")
    words = "train --data numbered --image-size 16 --patch-size 8 --no-compile --precision fp32 --total-images 8 --out nums"
    assert justimage(*words.split(), *TINY_TRAINING, cwd=home).returncode == 0
    drawn = justimage(*["sample", "--from", "nums", "--classes", "1", "2", "10", "--count", "3", "--npz", "nums.npz"], cwd=home)
    assert drawn.returncode == 0 and np.load(home / "nums.npz")["arr_1"].tolist() == [0, 2, 1]
    wrong = justimage(*["sample", "--from", "nums", "--classes", "0"], cwd=home)
    assert wrong.returncode == 2 and "names are 1, 10, 2" in wrong.stderr


def test_info_prints_the_table_beside_the_papers(home: Path) -> None:
    done = justimage("info", cwd=home)
    assert done.returncode == 0
    row = next(line for line in done.stdout.splitlines() if "L/32" in line)
    assert [float(w) for w in row.replace("│", " ").split()[1:9]] == [512, 256, 3072, 1024, 461.5, 462, 88.6, 89]
    assert '"prediction": "x"' in justimage("info", "--from", "run", cwd=home).stdout


def bad(home: Path, name: str, content: bytes | None) -> Path:
    folder = home / f"bad-{name}"
    if not folder.exists():
        (folder / "a").mkdir(parents=True)
        if content is not None:
            Image.new("RGB", (40, 40)).save(folder / "a" / "good.png")
            (folder / "a" / name).write_bytes(content)
    return folder


MISTAKES = {
    "misspelt command": ("trian", "perhaps train"),
    "misspelt preset": ("train --preset digit", "perhaps digits"),
    "misspelt option": ("train --preset digits --bach 3", "perhaps --batch"),
    "not a number": ("train --preset digits --batch many", "--batch"),
    "out of range": ("train --preset digits --batch 0", "batch is 0; it must be 1 or more"),
    "not a choice": ("train --preset digits --prediction w", "'w'"),
    "no data": ("train --preset folder-64", "--data"),
    "missing data": ("train --preset folder-64 --data nowhere", "nowhere does not exist"),
    "empty folder": ("train --preset folder-64 --data empty", "empty holds no images"),
    "text among images": ("train --preset folder-32 --data {text}", "notes.txt is not an image"),
    "text with an image's name": ("train --preset folder-32 --data {fake}", "fake.jpg: not a readable image"),
    "truncated jpeg": ("train --preset folder-32 --data {truncated}", "cut.jpg"),
    "no size to prepare to": ("prepare photos new", "--image-size"),
    "nothing to prepare": ("prepare nowhere new --image-size 8", "nowhere does not exist"),
    "nothing that can be prepared": ("prepare photos new --image-size 64", "none of the 4 images"),
    "occupied by another": ("prepare photos run --image-size 8", "holds no store"),
    "arrays that are not prepared": ("train --data arrays.npy", "justimage prepare arrays.npy arrays-store"),
    "small image": ("train --preset folder-64 --data photos", "40 x 40 pixels, smaller than the model's 64 x 64"),
    "indivisible": ("train --preset digits --patch-size 7", "not divisible by patch_size 7"),
    "contradiction": ("train --preset digits --out run --batch 16", "another recipe"),
    "occupied": ("train --preset digits --out photos", "holds no run"),
    "no device": ("train --preset digits --device cuda:99", "cuda:99"),
    "missing run": ("sample --from nowhere", "nowhere does not exist"),
    "class out of range": ("sample --from run --classes 10", "whose names are 0, 1, 2"),
    "missing ema": ("sample --from run --ema 0.9999", "no ema 0.9999"),
    "no images": ("sample --from run --count 0", "count is 0"),
    "wrong steps": ("sample --from run --steps 0", "steps is 0"),
    "wrong interval": ("sample --from run --interval 0.9 0.1", "interval is 0.9 0.1"),
    "occupied folder": ("sample --from run --folder photos", "photos exists"),
    "a pickle": ("sample --from photos/a/0.jpg", "justimage convert"),
    "missing checkpoint": ("convert nowhere.pth new", "nowhere.pth"),
    "no checkpoint": ("convert photos/a/0.jpg new", "not an official checkpoint"),
    "missing argument": ("convert one.pth", "a new folder"),
    "wrong batch": ("info --batch 0", "batch is 0"),
    "not finite": ("train --preset digits --learning-rate inf", "learning_rate is inf"),
    "sampling of a training": ("train --preset digits --interval 0.9 0.1", "interval is 0.9 0.1"),
    "half an interval": ("sample --from run --interval 0.5", "interval"),
    "no such device kind": ("train --preset digits --device meta", "meta"),
    "unknown picture": ("sample --from run --out grid.xyz", "grid.xyz has no picture's name"),
    "one place for two": ("sample --from run --out same.png --npz same.png", "different places"),
    "a file as parent": ("sample --from run --out photos/a/0.jpg/x.png", "0.jpg is a file"),
    "a folder converted": ("convert run new", "--to official"),
}


@pytest.mark.full
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2_and_leaves_nothing(mistake: str, home: Path) -> None:
    (home / "empty").mkdir(exist_ok=True)
    jpeg = (home / "photos" / "a" / "0.jpg").read_bytes()
    places = {
        "text": bad(home, "notes.txt", b"hi"),
        "fake": bad(home, "fake.jpg", b"hi"),
        "truncated": bad(home, "cut.jpg", jpeg[:400]),
    }
    command, words = MISTAKES[mistake]
    before = {p: p.stat().st_mtime_ns for p in home.rglob("*")}
    done = justimage(*command.format(**places).split(), cwd=home)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1 and words.lower() in done.stderr.lower(), done.stderr
    assert before == {p: p.stat().st_mtime_ns for p in home.rglob("*")}


@pytest.mark.full
@pytest.mark.skipif(sys.platform == "win32", reason="permissions work otherwise there")
def test_no_permission_is_one_line(home: Path) -> None:
    """As another user than root, whom nothing is forbidden."""
    place = "/proc/justimage"  # no user may write there
    for words in (["sample", "--from", "run", "--out", f"{place}/grid.png"], ["train", "--preset", "digits", "--out", place]):
        done = justimage(*words, cwd=home)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and place in done.stderr, done.stderr


@pytest.mark.full
def test_a_run_with_which_nothing_can_be_done_is_code_78_and_begins_only_when_asked(home: Path) -> None:
    """And what --fresh sets aside is whole."""
    assert (
        justimage("train", "--preset", "digits", *TINY_TRAINING, "--total-images", "16", "--out", "worn", cwd=home).returncode
        == 0
    )
    (home / "worn" / "recipe.json").write_text("{")
    words = ["train", "--preset", "digits", *TINY_TRAINING, "--total-images", "16", "--out", "worn"]
    broken = justimage(*words, cwd=home)
    assert (broken.returncode, broken.stderr.count("\n")) == (78, 1) and "recipe.json is not a recipe" in broken.stderr
    (home / "worn" / "STOP").touch()
    fresh = justimage(*words, "--fresh", cwd=home)
    assert fresh.returncode == 0 and (home / "worn.old-1" / "checkpoints" / "000000016" / "MANIFEST.json").exists()
    assert (home / "worn" / "checkpoints" / "000000016").is_dir() and "complete" in justimage(*words, cwd=home).stdout


@pytest.mark.full
def test_a_stop_file_keeps_a_run_from_starting(home: Path) -> None:
    (home / "run" / "STOP").touch()
    held = justimage("train", "--preset", "digits", *TINY_TRAINING, "--total-images", "64", "--out", "run", cwd=home)
    (home / "run" / "STOP").unlink()
    assert held.returncode == 75 and "STOP asks this run to stop; remove it" in held.stderr


def test_failures_of_memory_and_compiler_are_one_line() -> None:
    """InductorError, as where the C++ compiler is broken, is a kind of BackendCompilerFailed; TritonMissing is not."""
    from torch._dynamo.exc import BackendCompilerFailed
    from torch._inductor.exc import InductorError, TritonMissing

    assert issubclass(InductorError, BackendCompilerFailed)
    for kind in InductorError, TritonMissing:
        with pytest.raises(ValueError, match=r"torch\.compile failed"), one_line_failures():
            raise kind.__new__(kind)
    with pytest.raises(ValueError, match="out of memory: give"), one_line_failures():
        raise torch.OutOfMemoryError("tried to allocate")
    with pytest.raises(RuntimeError, match="something else"), one_line_failures():
        raise RuntimeError("something else")
