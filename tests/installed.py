"""Try the package as people have it: `python -m tests.installed EXTRA`, in an environment with that extra and no more.

`.ci/release` does so for the core and for each extra. For all of them: the command, every module, a training of two steps and
samples; for an extra also one thing that it is for.
"""

import csv
import importlib
import importlib.util
import json
import os
import pkgutil
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import justimage
from justimage.operators import declare_operators
from justimage.recipe import with_values

CHECKOUT = Path(__file__).resolve().parents[1]
TINY = dict(
    width=16, depth=2, heads=2, bottleneck=4, context_start=1, batch=8, total_images=16, warmup=8, ema=(100,), sample_ema=100,
    steps=2, preview_count=4, precision="fp32", compile=False,
)  # fmt: skip
TINY_OPTIONS = "--width 16 --depth 2 --heads 2 --bottleneck 4 --context-start 1 --batch 8 --warmup 8 --steps 2 --precision fp32"


def command(*words: str | Path, **environment: str) -> str:
    """Run the installed `justimage` and return what it prints."""
    program = shutil.which("justimage")
    assert program and Path(program).parent == Path(sys.executable).parent
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, f"justimage {' '.join(map(str, words))}: {done.stderr}"
    return done.stdout


def noise(count: int) -> list[tuple[torch.Tensor, int]]:
    return [(torch.randint(0, 256, (1, 32, 32), dtype=torch.uint8), i % 10) for i in range(count)]


def train_tiny(out: Path) -> Path:
    """Two steps on noise; the run."""
    *_, last = justimage.train(with_values(justimage.preset("digits"), **TINY, classes=10), out, data=noise(16), device="cpu")
    assert last.images_seen == 16
    return out


def try_all(place: Path, extra: str) -> None:
    """The checks for every extra."""
    package = Path(justimage.__file__).parent
    assert CHECKOUT not in package.parents and (package / "py.typed").exists(), package
    assert "usage: justimage" in command("--help") and command("--version").strip() == justimage.__version__
    report = json.loads(command("doctor", "--quick", "--json"))
    lines = {line["name"]: line for line in report["extras"]}
    assert report["works"] and (extra == "core" or lines[extra]["state"] == "ok"), lines.get(extra)
    for module in pkgutil.walk_packages([str(package)], "justimage."):
        if not module.name.endswith("__main__") and ".carried." not in module.name:  # those are of folders for diffusers
            importlib.import_module(module.name)
    run = train_tiny(place / "run")
    images = justimage.sample(justimage.load(run, device="cpu"), [3, 7], seeds=[0, 1])
    assert images.shape == (2, 1, 32, 32) and images.dtype == torch.uint8
    command("sample", "--from", run, "--count", "2", "--out", place / "grid.png", "--device", "cpu")
    assert Image.open(place / "grid.png").size > (64, 32)


def try_core(place: Path) -> None:
    """Nothing more than the core is here, and what needs more says so."""
    others = "sklearn", "matplotlib", "tensorboard", "datasets", "transformers", "diffusers", "onnx", "gradio", "torchvision"
    assert not [name for name in others if importlib.util.find_spec(name)]
    try:
        command("demo", "--out", place / "demo")
    except AssertionError as error:
        assert "pip install 'justimage[demo]'" in str(error)
    else:
        raise AssertionError("the demo ran without scikit-learn")


def try_demo(place: Path) -> None:
    """The demo with a training that is too short."""
    from justimage.demo import digits
    from justimage.progress import finish

    words = f"{TINY_OPTIONS} --total-images 64 --device cpu".split()
    command("train", "--preset", "digits", *words, "--out", place / "demo" / "run")
    facts = finish(digits.report(place / "demo", *digits.load_run(place / "demo")))
    assert facts["accuracy_on_held_out_real_digits"] > 0.95
    assert {"samples.png", "training.png", "denoising.png"} <= {path.name for path in (place / "demo").iterdir()}


def try_plots(place: Path) -> None:
    from justimage import figures

    curve = figures.loss_curve([{"images_seen": 8 * i, "loss": 1 / i} for i in range(1, 9)])
    assert curve and curve.startswith(b"\x89PNG")


def try_track(place: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(place / "run" / "tensorboard"))
    events.Reload()
    assert "loss" in events.Tags()["scalars"]


def try_hf(place: Path) -> None:
    """A table of images on disk becomes a store."""
    datasets: Any = importlib.import_module("datasets")
    pixels = [Image.fromarray(np.full((8, 8, 3), 40 * i, dtype=np.uint8)) for i in range(4)]
    names = datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    datasets.Dataset.from_dict({"image": pixels, "label": [0, 1, 0, 1]}, features=features).save_to_disk(str(place / "table"))
    command("prepare", place / "table", place / "store", "--image-size", "8")
    from justimage.data.store import open_store

    store = open_store(place / "store")
    assert len(store) == 4 and store.class_names == ["a", "b"]


def try_text(place: Path) -> None:
    """An encoder reads captions."""
    from tests.random_models import save_encoder

    with open(place / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "text"), ("a.png", "a red car"), ("b.png", "a blue car")])
    encoder = save_encoder(place / "encoder")
    command("prepare", place / "captions.csv", place / "captions.safetensors", "--encoder", encoder, "--max-tokens", "20")
    assert (place / "captions.safetensors").stat().st_size > 100


def try_hub(place: Path) -> None:
    """A model is pushed to a stand-in for the Hub, and sampled from there; diffusers runs a folder made of it."""
    from tests.hub_server import HubServer

    server = HubServer()
    environment = {
        "HF_ENDPOINT": server.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "friend", "HF_HOME": str(place / "hf"),
        "JUSTIMAGE_CACHE": str(place / "cache"),
    }  # fmt: skip
    command("push", place / "run", "me/noise", "--device", "cpu", **environment)
    words = "--count", "1", "--device", "cpu", "--out", place / "theirs.png"
    command("sample", "--from", "hf://me/noise", *words, **environment)
    server.shutdown()
    declare_operators()
    from diffusers import DiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]

    folder = str(place / "folder")
    command("convert", place / "run", folder, "--to", "diffusers")
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    pixels = np.array(pipe([3, 7], seeds=[0, 1]).images)
    ours = justimage.sample(justimage.load(place / "run", device="cpu"), [3, 7], seeds=[0, 1])
    assert np.abs(pixels - ours[:, 0].numpy().astype(int)).max() <= 1


def try_export(place: Path) -> None:
    """A model is written as ONNX and runs there."""
    import onnxruntime

    command("convert", place / "run", place / "net.onnx", "--to", "onnx")
    z, t, y = torch.randn(2, 1, 32, 32), torch.tensor([0.2, 0.7]), torch.tensor([3, -1])
    session = onnxruntime.InferenceSession(str(place / "net.onnx"))
    [output] = session.run(None, {"z": z.numpy(), "t": t.numpy(), "classes": y.numpy()})
    assert np.abs(output - justimage.load(place / "run", device="cpu").net(z, t, y).detach().numpy()).max() < 1e-4


def try_web(place: Path) -> None:
    """The page of a model is there, and draws."""
    from justimage.web import build
    from tests.visitor import Visitor

    page = build([place / "run"], device="cpu")
    visitor = Visitor(page.launch(wait=False))
    drawn, _ = visitor.ask("draw")
    visitor.leave()
    page.close()
    assert drawn


def try_eval(place: Path) -> None:
    """Inception's features, and the Frechet distance between them."""
    from justimage.disk import sha256
    from justimage.evaluation.scores import fid, gaussian
    from justimage.features.inception import open_weights
    from tests.random_models import save_inception

    weights = save_inception(place / "inception.pth")
    extractor = open_weights(weights, torch.device("cpu"), sha256(weights))
    features, _ = extractor.extract(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
    assert features.shape == (4, 2048) and abs(fid([features], gaussian([features]))[0].value) < 1e-2


def try_docs(place: Path) -> None:
    """The documents build, without a warning."""
    words = ["build", "--strict", "-q", "-f", str(CHECKOUT / "mkdocs.yml"), "-d", str(place / "site")]
    subprocess.run([sys.executable, "-m", "mkdocs", *words], check=True)
    assert (place / "site" / "index.html").exists()


CHECKS: dict[str, Callable[[Path], None]] = {
    "core": try_core, "demo": try_demo, "plots": try_plots, "track": try_track, "hf": try_hf, "text": try_text, "hub": try_hub,
    "export": try_export, "web": try_web, "eval": try_eval, "docs": try_docs,
}  # fmt: skip
"""By extra, one thing that it is for. The extra `test` is tried by the tests."""


def main(extra: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("JUSTIMAGE_CACHE", str(Path(folder) / "cache"))
        try_all(Path(folder), extra)
        CHECKS[extra](Path(folder))


if __name__ == "__main__":
    main(sys.argv[1])
