"""Our speed beside the authors': their code, from a person's own checkout of it, and ours, alternating in one run.

    git clone https://github.com/LTH14/JiT ../JiT
    python benchmarks/compare.py --authors ../JiT                                 # B/16 in bf16: forward, training step, images
    python benchmarks/compare.py --authors ../JiT --only train --batch 4
    python benchmarks/compare.py --authors ../JiT --device cuda --network L/16 --batch 64 --images 64

Theirs runs as it is, with the compiled blocks that it asks for (--eager: without), in bf16 by autocast; where there is no GPU
a copy without its calls of `.cuda()`. Needed of the checkout: model_jit.py, denoiser.py and util/model_util.py; what
einops its environment installs. Weights are random, and the same in both; ratios are medians over rounds.

forward: one pass, batch images. train: loss, gradients, Adam, two averages. images: sampled with guidance 2.9 on (0.1, 1) from
the first noise to the last pixel, by their 50 Heun steps (198 passes) and by ours, 187 for the same and 13 for an equal score
(docs/sampling.md).
"""

import argparse
import atexit
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from justimage import data, distributed, training, tuning
from justimage.architectures import architecture
from justimage.convert.official import to_ours
from justimage.inference import compile_denoiser
from justimage.recipe import Parallelism, Recipe, Training
from justimage.sampling import Denoiser, Sampling, sample, with_passes
from justimage.transformer import JiT

PAPER = Sampling(guidance=2.9, interval=(0.1, 1.0))


def authors_denoiser(checkout: Path, network: str, size: int, device: str, eager: bool) -> nn.Module:
    """The authors' Denoiser with the settings of their README."""
    if not (checkout / "model_jit.py").is_file():
        raise SystemExit(f"{checkout} is no checkout of the authors' code: it has no model_jit.py")
    copy = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, copy)
    for name in "denoiser.py", "model_jit.py", "util/model_util.py":
        source = (checkout / name).read_text()
        if device == "cpu":
            source = source.replace(".cuda()", "")
        if eager:
            source = source.replace("@torch.compile", "")
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text(source)
    sys.path.insert(0, str(copy))
    from denoiser import Denoiser as Authors  # pyright: ignore[reportMissingImports]

    low, high = PAPER.interval
    return Authors(
        SimpleNamespace(
            model=f"JiT-{network}", img_size=size, class_num=1000, attn_dropout=0.0, proj_dropout=0.0, label_drop_prob=0.1,
            P_mean=-0.8, P_std=0.8, t_eps=0.05, noise_scale=1.0, ema_decay1=0.9999, ema_decay2=0.9996, sampling_method="heun",
            num_sampling_steps=PAPER.steps, cfg=PAPER.guidance, interval_min=low, interval_max=high,
        )
    ).to(device)  # fmt: skip


def authors_step(model: Any, batch: int, size: int, device: str) -> Callable[[], object]:
    """A step as in their train_one_epoch, on images in memory."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, betas=(0.9, 0.95), weight_decay=0.0)
    model.ema_params1 = [p.detach().clone() for p in model.parameters()]
    model.ema_params2 = [p.detach().clone() for p in model.parameters()]
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
    labels = torch.randint(0, 1000, (batch,), device=device)

    def step() -> None:
        model.train()
        x = images.float().div(255) * 2 - 1
        with torch.autocast(device, torch.bfloat16):
            loss = model(x, labels)
        loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.update_ema()

    return step


def our_step(recipe: Recipe, device: str) -> Callable[[], object]:
    """A step of `justimage.train`, tuned to the device, on images in memory."""
    world = distributed.init(device)
    recipe, tuned = tuning.tune(recipe, world, tell=lambda what: print(f"tuning: {what}", flush=True))
    print(
        f"ours trains in {tuned.precision}, {'compiled' if tuned.compile else 'eager'}: {tuned.images_per_second}", flush=True
    )
    batch = recipe.training.batch
    images = torch.randint(0, 256, (batch, 3, *recipe.model.size), dtype=torch.uint8)
    source = data.ArraySource(images, torch.randint(0, 1000, (batch,)), [str(i) for i in range(1000)], "random")
    steps = training.train(recipe, source, training.init_state(recipe, world))
    return lambda: next(steps)


def alternate(work: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each, a round at a time in turn; a first round is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, run in work.items():
            began = time.perf_counter()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            if turn:
                taken[name].append(time.perf_counter() - began)
    return taken


def report(title: str, taken: dict[str, list[float]], images: int) -> None:
    """A row for each, with its speed as a multiple of the authors'."""
    print(f"\n{title}\n\n| | s | images/s | times the authors' speed, by round |\n|---|---|---|---|")
    for name, seconds in taken.items():
        ratios = [a / s for a, s in zip(taken["authors"], seconds, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        median = statistics.median(seconds)
        print(f"| {name} | {median:.3f} | {images / median:.3g} | {spread} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--network", default="B/16", help="one that the checkout has: B, L or H, with patches of 16 or 32")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--images", type=int, default=4, help="sampled in one batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=["forward", "train", "images"], default=["forward", "train", "images"])
    parser.add_argument("--eager", action="store_true", help="the authors' code without its compiled blocks")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    o = parser.parse_args()
    device, bf16 = o.device, torch.bfloat16
    a = architecture(o.network)
    recipe = Recipe(
        model=a,
        training=Training(total_images=10**9, batch=o.batch, warmup=0, ema=(0.9999, 0.9996), flip=False),
        parallelism=Parallelism(workers=0),
    )  # fmt: skip
    size = a.size[0]
    where = torch.cuda.get_device_name() if device != "cpu" else f"{torch.get_num_threads()} CPU threads"
    print(f"{o.network}, bf16, {where}, torch {torch.__version__}; the authors' blocks {'eager' if o.eager else 'compiled'}")
    theirs: Any = authors_denoiser(o.authors, o.network, size, device, o.eager)
    if "train" in o.only:
        work = {"authors": authors_step(theirs, o.batch, size, device), "ours": our_step(recipe, device)}
        report(f"training step, batch {o.batch}", alternate(work, o.rounds, device), o.batch)
    theirs.eval()
    ours = Denoiser(JiT(a).to(device).eval())
    ours.net.load_state_dict(to_ours(theirs.state_dict(), a))
    compiled = compile_denoiser(ours, bf16)
    if "forward" in o.only:
        z, t = torch.randn(o.batch, *ours.shape, device=device), torch.rand(o.batch, device=device)
        y = torch.randint(0, 1000, (o.batch,), device=device)

        def passed(net: nn.Module, autocast: bool = True) -> Callable[[], object]:
            def run() -> None:
                with torch.no_grad(), torch.autocast(device, bf16, enabled=autocast):
                    net(z, t, y)

            return run

        work = {"authors": passed(theirs.net), "ours": passed(ours.net), "ours, --compile": passed(compiled.net, False)}
        report(f"forward, batch {o.batch}", alternate(work, 3 * o.rounds, device), o.batch)
    if "images" in o.only:
        labels = torch.arange(o.images, device=device) % 1000
        few = with_passes(PAPER, 13)

        def sampled(model: Denoiser, sampling: Sampling) -> Callable[[], object]:
            return lambda: sample(model, labels.tolist(), 0, sampling, batch=o.images, dtype=bf16)

        def authors() -> None:
            with torch.autocast(device, bf16):
                theirs.generate(labels)

        work: dict[str, Callable[[], object]] = {"authors": authors, f"ours, {PAPER.passes} passes": sampled(ours, PAPER)}
        work |= {"ours, 13 passes": sampled(ours, few), "ours, 13 passes, --compile": sampled(compiled, few)}
        report(f"images, {o.images} in a batch", alternate(work, 1 if device == "cpu" else o.rounds, device), o.images)


if __name__ == "__main__":
    main()
