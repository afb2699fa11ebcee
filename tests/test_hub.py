"""The Hub, by a stand-in for its HTTP: what is pushed is what is loaded, whatever happens on the way."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import justimage
from justimage import checkpoint, disk, hub
from justimage.cli.push import newest_report
from tests.hub_server import HubServer

pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    found = HubServer()
    yield found
    found.shutdown()


class Command:
    """Runs a command, or Python, with the stand-in for the Hub, in a folder with a cache of its own."""

    def __init__(self, server: HubServer, place: Path) -> None:
        self.place = place
        self.environment = os.environ | {
            "HF_ENDPOINT": server.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "friend", "HF_HOME": str(place / "hf"),
            "JUSTIMAGE_CACHE": str(place / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }  # fmt: skip

    def __call__(self, *words: str | Path, **changes: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, *(["-m", "justimage"] if words[0] != "-c" else []), *map(str, words)]
        environment = self.environment | changes
        return subprocess.run(line, env=environment, cwd=self.place, capture_output=True, text=True, timeout=200)


@pytest.fixture
def command(server: HubServer, tmp_path: Path) -> Command:
    return Command(server, tmp_path)


@pytest.fixture(scope="module")
def pushed(server: HubServer, run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    words = "--all", "--license", "cc0-1.0", "--data", "digits of scikit-learn", "--device", "cpu"
    done = Command(server, tmp_path_factory.mktemp("push"))("push", run, "me/digits", *words)
    assert done.returncode == 0, done.stderr
    return "hf://me/digits"


def test_a_model_comes_back_as_it_was_pushed(
    command: Command, pushed: str, server: HubServer, run: Path, tmp_path: Path
) -> None:
    words = "--count", "4", "--steps", "2", "--device", "cpu", "--classes", "3", "--precision", "fp32"
    for source, out in (str(run), "ours.npz"), (pushed, "theirs.npz"):
        done = command("sample", "--from", source, *words, "--npz", out)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "ours.npz").read_bytes() == (tmp_path / "theirs.npz").read_bytes()

    place = tmp_path / "cache" / "hub" / "me--digits" / server.commit_of("me/digits", "main")
    newest = checkpoint.resolve(run)
    recipe = checkpoint.read_recipe(newest)
    for group in ("model", *(f"ema-{value:g}" for value in recipe.training.ema)):
        ours, theirs = (checkpoint.load_group(folder, group) for folder in (newest, place))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert not list(place.glob("*.png")) and not list(place.glob("*.md"))  # JSON and safetensors only
    card = server.repositories["me/digits"]["main"]["README.md"].decode()
    assert card.startswith('---\nlicense: "cc0-1.0"\n') and "digits of scikit-learn" in card and pushed in card
    assert server.repositories["me/digits"]["main"]["samples.png"].startswith(b"\x89PNG")

    offline = command("sample", "--from", pushed, *words, "--npz", "again.npz", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "ours.npz").read_bytes()


def test_a_cut_connection_goes_on(command: Command, pushed: str, server: HubServer) -> None:
    server.cut_after = 10_000
    code = f"import justimage; print(sum(p.numel() for p in justimage.JiT.from_pretrained('{pushed}').parameters()))"
    done = command("-c", code)
    assert done.returncode == 0, done.stderr
    assert server.cut_after is None and int(done.stdout) > 10_000


def test_nothing_but_json_and_safetensors_is_fetched(command: Command, pushed: str, server: HubServer, tmp_path: Path) -> None:
    harm = {"pytorch_model.bin": b"\x80\x04.", "weights.pth": b"\x80\x04.", "code.pkl": b"\x80\x04.", "modeling.py": b"raise"}
    server.repositories["me/digits"]["main"] |= harm
    server.requests[:] = []
    done = command("sample", "--from", pushed, "--count", "1", "--steps", "1", "--device", "cpu", "--out", "a.png")
    assert done.returncode == 0, done.stderr
    assert not [line for line in server.requests if any(name in line for name in harm)]
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name in harm]


def test_a_revision_is_a_branch_or_a_commit(command: Command, pushed: str, server: HubServer, run: Path) -> None:
    done = command("push", run, "me/digits", "--revision", "second", "--ema", "0", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    commit = server.commit_of("me/digits", "second")
    assert "now try:  justimage sample --from hf://me/digits@second" in done.stdout
    assert b'load("hf://me/digits@second")' in server.repositories["me/digits"]["second"]["README.md"]
    for revision in "second", commit:
        words = "--count", "1", "--steps", "1", "--device", "cpu", "--out", "a.png"
        done = command("sample", "--from", f"{pushed}@{revision}", *words)
        assert done.returncode == 0, done.stderr


def test_what_a_repository_no_longer_has_is_not_used(command: Command, pushed: str, server: HubServer, tmp_path: Path) -> None:
    """Its newest commit is a folder of its own; and one that breaks off leaves the one before as it was, for use offline."""
    code = "import sys; from justimage import hub; print(hub.fetch(sys.argv[1]))"
    files = server.repositories["me/digits"]["main"]
    server.repositories["me/changes"] = {"main": dict(files)}
    first = Path(command("-c", code, "hf://me/changes").stdout.strip())
    server.repositories["me/changes"]["main"] = {"MANIFEST.json": files["MANIFEST.json"]}
    second = Path(command("-c", code, "hf://me/changes").stdout.strip())
    assert first != second and [p.name for p in second.iterdir() if p.is_file()] == ["MANIFEST.json"]
    offline = command("-c", code, "hf://me/changes", HF_HUB_OFFLINE="1")
    assert Path(offline.stdout.strip()) == second, offline.stderr


def test_a_folder_for_diffusers_is_not_replaced(command: Command, server: HubServer, run: Path) -> None:
    files = {"model_index.json": b"{}", "transformer/diffusion_pytorch_model.safetensors": b"weights"}
    server.repositories["me/dif"] = {"main": dict(files)}
    done = command("push", run, "me/dif", "--device", "cpu")
    assert done.returncode == 2 and "me/dif holds a folder for diffusers" in done.stderr, done.stderr
    assert server.repositories["me/dif"]["main"] == files
    for words, message in (
        (("me/two@v1",), "me/two@v1 is no name of a repository"),
        (("me/two", "--ema", "0.5"), f"there is no ema 0.5 in {run}; it has ema-"),
    ):
        done = command("push", run, *words, "--device", "cpu")
        assert done.returncode == 2 and message in done.stderr and "me/two" not in server.repositories, done.stderr


def test_a_card_has_the_scores_of_its_own_weights(tmp_path: Path) -> None:
    """The newest report of this checkpoint with one of these averages, however new others are."""
    for number, (ema, step) in enumerate([(1000, "0256"), (1000, "0256"), (5000, "0256"), (1000, "0128")]):
        path = tmp_path / "evaluations" / str(number) / "report.json"
        disk.write(path, json.dumps({"number": number, "sampling": {"ema": ema}, "model": {"path": f"a/{step}"}}).encode())
        os.utime(path, (number, number))
    (tmp_path / "checkpoints").mkdir()
    found = newest_report(tmp_path, tmp_path / "checkpoints" / "0256", [1000])
    assert found and found["number"] == 1 and newest_report(tmp_path, tmp_path / "0512", [1000]) is None


def test_what_is_to_be_private_is_not_pushed_where_all_see_it(command: Command, server: HubServer, run: Path) -> None:
    words = "--ema", "0", "--device", "cpu", "--private"
    done = command("push", run, "me/hidden", *words)
    assert done.returncode == 0 and "me/hidden" in server.private, done.stderr
    server.repositories["me/open"] = {"main": {}}
    done = command("push", run, "me/open", *words)
    assert done.returncode == 2 and "me/open is there and public; make it private on the Hub" in done.stderr, done.stderr
    assert server.repositories["me/open"] == {"main": {}}


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://me/nothing", "hf://me/nothing does not exist, or is private and you are not logged in"),
        ("hf://me/digits@nowhere", "hf://me/digits@nowhere: there is no such revision"),
        ("hf://digits", "hf:/digits is no address on the Hub; allowed: hf://organisation/name"),
        ("hf://me/secret", "hf://me/secret does not exist, or is private"),
        ("hf://me/damaged", "was changed: its SHA-256 is not the manifest's"),
        ("hf://me/pickles", "holds no checkpoint"),
    ],
)
def test_what_cannot_be_used_is_one_line(address: str, message: str, command: Command, pushed: str, server: HubServer) -> None:
    files = server.repositories["me/digits"]["main"]
    damaged = {name: data[:-1] + b"x" if name.endswith(".safetensors") else data for name, data in files.items()}
    server.repositories |= {"me/secret": {"main": files}, "me/damaged": {"main": damaged}}
    server.repositories["me/pickles"] = {"main": {"pytorch_model.bin": b"\x80\x04."}}
    server.private.add("me/secret")
    done = command("sample", "--from", address, "--count", "1", "--device", "cpu", "--out", "a.png", HF_TOKEN="stranger")
    assert done.returncode in (2, 78) and message in done.stderr and len(done.stderr.strip().split("\n")) == 1, done.stderr


def test_no_hub_and_no_cache_is_one_line(command: Command) -> None:
    for changes in {"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}:
        done = command("sample", "--from", "hf://me/digits", "--out", "a.png", **changes)
        assert done.returncode in (2, 74) and "hf://me/digits" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_addresses() -> None:
    assert hub.parse_address("hf://a/b") == ("a/b", None) and hub.parse_address(Path("hf://a/b@v1.0")) == ("a/b", "v1.0")
    assert hub.is_address(Path("hf://a/b")) and not hub.is_address("runs/hf")
    assert disk.cache_dir("hub").name == "hub" and callable(justimage.JiT.from_pretrained)
