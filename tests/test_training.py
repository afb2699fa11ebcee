"""Training: what a step computes, and that an interrupted training is the uninterrupted one, bit for bit."""

import errno
import json
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import justimage
from justimage import checkpoint, cost, data, disk, distributed, log, randomness, run as runs, stopping, training
from justimage.data import ArraySource
from justimage.diffusion import Batch
from justimage.normalization import from_uint8
from justimage.preview import preview as preview_of
from justimage.recipe import Recipe, Training, preset, with_values
from justimage.training import learning_rate


def small(total_images: int = 48 * 8, **changes) -> Recipe:
    """Dropout, dropped labels, three averages, a clipped gradient: everything that has a state or draws a number."""
    base = with_values(
        preset("digits"), width=16, depth=4, heads=2, bottleneck=4, context_start=1, dropout=0.2, compile=False, workers=0,
        batch=8, warmup=80, ema=(100, 200, 400), sample_ema=100, lr_schedule="constant", flip=True, precision="fp32", steps=2,
        log_every=6, preview_every=10**9, save_every=10**9,
    )  # fmt: skip
    return with_values(base, total_images=total_images, **changes)


def finish(*open_runs: runs.Run) -> None:
    for run in open_runs:
        for _ in runs.steps(run):
            pass


def resumed(recipe: Recipe, directory: Path, at: int) -> runs.Run:
    """A run that was left after so many images, opened again and finished."""
    cut = runs.open_run(recipe, directory, "cpu")
    for step in runs.steps(cut):
        if step.images_seen == at:
            break
    cut.close()
    again = runs.open_run(recipe, directory, "cpu")
    assert again.resumed and again.state.images_seen == at
    finish(again)
    return again


def digest(state: training.TrainState) -> list[torch.Tensor]:
    adam = [t for p in state.optimizer.param_groups[0]["params"] for t in state.optimizer.state[p].values()]
    averages = [t for average in state.ema.averages.values() for t in average]
    return [t.detach().clone() for t in [*state.denoiser.net.parameters(), *adam, *averages]]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def losses(directory: Path) -> list[tuple[int, float]]:
    return [(m["images_seen"], m["loss"]) for m in map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_48_steps_are_24_and_a_kill_and_a_resume(accumulate: int, tmp_path: Path) -> None:
    recipe = small(grad_accumulation=accumulate)
    recipe = with_values(recipe, save_every=24 * 8)
    straight = runs.open_run(recipe, tmp_path / "straight", "cpu")
    finish(straight)
    killed = runs.open_run(recipe, tmp_path / "killed", "cpu")
    for step in runs.steps(killed):
        if step.images_seen == 24 * 8 + 40:  # five steps after the save, never to be seen again
            break
    del killed
    folders = sorted((tmp_path / "killed" / "checkpoints").iterdir())
    for late in folders[1:]:  # leaving the loop saved; a kill would not have
        for file in late.iterdir():
            file.unlink()
        late.rmdir()
    torch.manual_seed(123)  # a new process has another generator state
    resumed = runs.open_run(recipe, tmp_path / "killed", "cpu")
    assert resumed.resumed and resumed.state.images_seen == 24 * 8
    finish(resumed)
    assert equal(digest(straight.state), digest(resumed.state))
    assert losses(tmp_path / "straight") == losses(tmp_path / "killed")


def test_stopping_anywhere_saves_that_step(tmp_path: Path) -> None:
    recipe = small(total_images=10 * 8)
    straight = runs.open_run(recipe, tmp_path / "straight", "cpu")
    finish(straight)
    for _ in range(10):  # one step at a time
        for _ in justimage.train(recipe, tmp_path / "stopped", device="cpu"):
            break
    stopped = runs.open_run(recipe, tmp_path / "stopped", "cpu")
    assert stopped.state.images_seen == 80 and equal(digest(straight.state), digest(stopped.state))
    assert len(list((tmp_path / "stopped" / "checkpoints").iterdir())) == recipe.checkpoint.keep_checkpoints


def final(recipe: Recipe) -> tuple[list[torch.Tensor], float]:
    source = data.digits()
    recipe = recipe.resolve(source)
    state = training.init_state(recipe)
    loss = [step.loss for step in training.train(recipe, source, state)][-1]
    return digest(state), loss


def test_accumulation_draws_the_same_and_computes_the_same() -> None:
    whole, parts = (small(total_images=40, grad_accumulation=n) for n in (1, 4))
    whole, parts = (replace(r, model=replace(r.model, dropout=0.0)) for r in (whole, parts))
    (a, loss_a), (b, loss_b) = final(whole), final(parts)
    assert abs(loss_a / loss_b - 1) < 1e-5
    assert all(torch.allclose(p, q, rtol=1e-3, atol=1e-4) for p, q in zip(a, b, strict=True))


def test_the_first_weights_are_the_seeds_and_drawing_them_leaves_the_generator_alone() -> None:
    recipe = small().resolve(data.digits())
    torch.manual_seed(1)
    a = training.init_state(recipe)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    assert equal(list(a.denoiser.net.parameters()), list(training.init_state(recipe).denoiser.net.parameters()))
    other = replace(recipe, training=replace(recipe.training, seed=1))
    assert not equal(list(a.denoiser.net.parameters()), list(training.init_state(other).denoiser.net.parameters()))


def test_the_rate_warms_up_and_then_stays_or_falls() -> None:
    constant = Training(total_images=1000, batch=10, warmup=100, learning_rate=1.0)
    assert [learning_rate(constant, n) for n in (0, 40, 90, 500, 990)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    cosine = replace(constant, lr_schedule="cosine")
    assert learning_rate(cosine, 40) == 0.5
    assert abs(learning_rate(cosine, 540) - 0.5) < 1e-12 and learning_rate(cosine, 990) < 1e-12


@pytest.mark.parametrize("prediction", ["x", "eps", "v", "edm", "linear"])
@pytest.mark.parametrize("loss", ["x", "eps", "v"])
def test_every_formulation_learns(prediction, loss) -> None:
    source = data.digits()
    recipe = small(total_images=40 * 8, learning_rate=3e-3, lr_schedule="cosine")
    process = replace(recipe.diffusion, prediction=prediction, loss_space=loss)
    recipe = replace(recipe, diffusion=process).resolve(source)
    state = training.init_state(recipe)
    x, y = from_uint8(source.images[:256]), source.labels[:256]
    t, eps = process.sample_t(randomness.normal(9, "t", range(256))).float(), randomness.noise(9, 0, 256, x.shape[1:])

    def validation() -> float:
        state.denoiser.net.eval()
        with torch.no_grad():
            value = process.loss(state.denoiser.net, Batch(x, y, t, eps, torch.zeros(256, dtype=torch.bool))).mean().item()
        state.denoiser.net.train()
        return value

    before = validation()
    for _ in training.train(recipe, source, state):
        pass
    assert validation() < 0.98 * before


def test_a_classifier_and_no_classes_train_too() -> None:
    recipe = small(total_images=24)
    with_head = replace(
        recipe, model=replace(recipe.model, aux_classifier=True), diffusion=replace(recipe.diffusion, class_loss_weight=100.0)
    )
    unconditional = replace(recipe, model=replace(recipe.model, classes=0))
    for r in with_head, unconditional:
        values, loss = final(r)
        assert loss > 0 and all(t.isfinite().all() for t in values)


def test_a_loss_that_is_not_finite_stops_the_run_and_spoils_no_checkpoint(tmp_path: Path) -> None:
    recipe = small(total_images=80)
    run = runs.open_run(recipe, tmp_path / "run", "cpu")
    with pytest.raises(ValueError, match="the loss became nan"):
        for step in runs.steps(run):
            if step.images_seen == 16:
                with torch.no_grad():
                    run.state.denoiser.net.head.linear.weight.fill_(float("nan"))  # pyright: ignore
    assert checkpoint.newest(tmp_path / "run") is None


def test_a_run_refuses_what_contradicts_it(tmp_path: Path) -> None:
    recipe = small(total_images=16)
    for _ in justimage.train(recipe, tmp_path / "run", device="cpu"):
        pass

    def contents() -> list[tuple[Path, int]]:
        files = (p for p in (tmp_path / "run").rglob("*") if "tensorboard" not in p.parts)  # it writes from a thread
        return sorted((p, p.stat().st_mtime_ns) for p in files)

    before = contents()
    with pytest.raises(ValueError, match=r"batch is 4, was 8"):
        next(justimage.train(replace(recipe, training=replace(recipe.training, batch=4)), tmp_path / "run", device="cpu"))
    assert before == contents()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ValueError, match="holds no run"):
        next(justimage.train(recipe, tmp_path / "other", device="cpu"))


def test_other_data_under_the_same_name_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small(total_images=16)
    for _ in justimage.train(recipe, tmp_path / "run", device="cpu"):
        pass
    real = data.digits()
    fewer = ArraySource(real.images[:-1], real.labels[:-1], real.class_names, "another")
    monkeypatch.setattr(data, "open_source", lambda *_: fewer)
    with pytest.raises(ValueError, match="is not the data"):
        next(
            justimage.train(replace(recipe, training=replace(recipe.training, total_images=32)), tmp_path / "run", device="cpu")
        )


def test_a_bad_image_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    class Spoiling:
        class_names = data.digits().class_names
        good = data.digits()

        def __len__(self) -> int:
            return len(self.good)

        def __getitem__(self, index: int):
            if len(list((tmp_path / "run").glob("metrics.jsonl"))) and index % 7 == 0:
                raise ValueError(f"image {index} cannot be read")
            return self.good[index]

    recipe, seen = small(total_images=800), 0
    with pytest.raises(ValueError, match="cannot be read"):
        for step in justimage.train(recipe, tmp_path / "run", data=Spoiling(), device="cpu"):
            seen = step.images_seen
    saved = checkpoint.newest(tmp_path / "run")
    assert saved is not None and int(saved.name) == seen >= 48


def test_a_kill_after_the_last_checkpoint_loses_no_line_of_metrics(tmp_path: Path) -> None:
    """The last step's checkpoint is there, what follows it is not: the same lines as of the uninterrupted training."""
    recipe = small(total_images=40, save_every=40)
    for step in justimage.train(recipe, tmp_path / "run", device="cpu"):
        if step.images_seen == 40:
            while not (tmp_path / "run" / "checkpoints" / "000000040").exists():
                time.sleep(0.01)  # it is written meanwhile
            shutil.copytree(tmp_path / "run", tmp_path / "killed")
    finish(runs.open_run(recipe, tmp_path / "killed", "cpu"))
    assert losses(tmp_path / "killed") == losses(tmp_path / "run") and len(losses(tmp_path / "run")) == 1


def test_previews_repeat_their_seeds_and_do_not_disturb(tmp_path: Path) -> None:
    recipe = small(total_images=48)
    with_previews = with_values(recipe, preview_every=8, preview_count=4)
    a = runs.open_run(recipe, tmp_path / "a", "cpu")
    b = runs.open_run(with_previews, tmp_path / "b", "cpu")
    finish(a, b)
    assert equal(digest(a.state), digest(b.state))
    assert (
        len(list((tmp_path / "b" / "samples").glob("*-grid.png")))
        == 6
        == len(list((tmp_path / "b" / "samples").glob("*-denoised.png")))
    )
    again, *_ = preview_of(b.recipe, b.source, b.state)
    assert again.tobytes() == preview_of(b.recipe, b.source, b.state)[0].tobytes()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_resumes_exactly(precision: str, tmp_path: Path) -> None:
    """With 260 tokens, so that attention's backward pass works in several blocks, whose order only `deterministic` fixes."""
    recipe = small(total_images=160, precision=precision, deterministic=True)
    recipe = replace(recipe, model=replace(recipe.model, patch_size=2))
    for _ in justimage.train(recipe, tmp_path / "stopped", device="cuda"):
        break
    resumed = runs.open_run(recipe, tmp_path / "stopped", "cuda")
    whole = runs.open_run(recipe, tmp_path / "whole", "cuda")
    finish(resumed, whole)
    assert equal(digest(resumed.state), digest(whole.state))


@pytest.mark.gpu
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_compiled_blocks_compute_the_same_on_a_gpu(dropout: float) -> None:
    recipe = small(total_images=80, precision="fp32", dropout=dropout).resolve(data.digits())
    ends = []
    for compiled in False, True:
        r = replace(recipe, parallelism=replace(recipe.parallelism, compile=compiled))
        state = training.init_state(r, distributed.init("cuda"))
        ends.append([step.loss for step in training.train(r, data.digits(), state)][-1])
    assert abs(ends[0] / ends[1] - 1) < 1e-3


def test_a_step_makes_no_batch_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros stand in for a batch only where it cannot be read."""
    source, made, zeros = data.digits(), [], torch.zeros

    def noted(*shape, **options):
        made.append(shape)
        return zeros(*shape, **options)

    recipe = small(total_images=24, grad_accumulation=2).resolve(source)
    state = training.init_state(recipe)
    monkeypatch.setattr(torch, "zeros", noted)
    for _ in training.train(recipe, source, state):
        pass
    assert (4, 1, 32, 32) not in made
    monkeypatch.setattr(data, "batches", lambda *a, **k: iter(lambda: (_ for _ in ()).throw(ValueError("damaged")), None))
    with pytest.raises(ValueError, match="damaged"):
        next(training.train(replace(recipe, training=replace(recipe.training, total_images=48)), source, state))
    assert made.count((4, 1, 32, 32)) == 1 and state.images_seen == 24


def test_the_watchdog_is_armed_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now, armed = [100.0], []
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(stopping.faulthandler, "dump_traceback_later", lambda seconds, **_: armed.append((now[0], seconds)))
    watchdog = stopping.Watchdog(60)
    for _ in range(1000):
        watchdog.heartbeat()
        now[0] += 0.01
    assert watchdog.beaten == pytest.approx(109.99) and 9 <= len(armed) <= 10 and armed[0] == (100, 90)


def test_the_watchdog_lets_the_caller_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []
    monkeypatch.setattr(stopping.os, "_exit", ended.append)
    with stopping.Watchdog(0.1).run() as watchdog:
        with watchdog.paused():
            time.sleep(0.4)
        assert not ended and watchdog.beaten == pytest.approx(time.monotonic(), abs=0.1)
        time.sleep(0.4)
        assert ended


def test_fresh_leaves_a_run_alone_that_goes_on(tmp_path: Path) -> None:
    """In another process, as the lock is the process's."""
    finish(runs.open_run(small(total_images=8), tmp_path / "run", "cpu"))
    hold = "import sys; from justimage import disk; from pathlib import Path; lock = disk.file_lock(Path(sys.argv[1])); "
    words = [sys.executable, "-c", hold + "print(flush=True); input()", str(tmp_path / "run" / ".lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline()
        with pytest.raises(OSError, match="in use by another process"):
            runs.open_run(small(total_images=8), tmp_path / "run", "cpu", fresh=True)
        other.communicate(b"\n")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    runs.open_run(small(total_images=8), tmp_path / "run", "cpu", fresh=True).close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run.old-1"]


def kept_by(recipe: Recipe) -> tuple[list[torch.Tensor], int]:
    """The end of a training, and the bytes that its forward passes kept for the backward ones."""
    kept = 0

    def keep(t: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += t.numel() * t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        return final(recipe)[0], kept


def test_activation_checkpointing_keeps_less_and_computes_the_same_bits() -> None:
    plain, again = (kept_by(small(total_images=24, activation_checkpointing=a)) for a in (False, True))
    assert equal(plain[0], again[0]) and again[1] < plain[1] / 4


@pytest.mark.full
@pytest.mark.parametrize("recomputed", [False, True])
def test_compiled_blocks_compute_the_same(recomputed: bool) -> None:
    plain = kept_by(small(total_images=24))
    torch.compiler.reset()
    compiled = kept_by(small(total_images=24, compile=True, activation_checkpointing=recomputed))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2  # blocks with dropout, and without
    assert compiled[1] < plain[1]
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(plain[0], compiled[0], strict=True))


def test_accumulation_and_workers_change_nothing_that_is_dropped() -> None:
    whole, parts = (final(small(total_images=40, grad_accumulation=n)) for n in (1, 4))
    assert abs(whole[1] / parts[1] - 1) < 1e-5


def test_each_epoch_shows_every_image_once_however_it_is_divided_and_resumed() -> None:
    """2,000 random cases of set, batch, processes, parts and points of resuming with other processes and parts."""
    draw = random.Random(0)
    for _ in range(2000):
        count, batch = draw.randint(1, 40), draw.choice([8, 12, 24])
        images = torch.arange(count).view(-1, 1, 1, 1)
        stream = data.Stream(
            ArraySource(images, torch.zeros(count, dtype=torch.int64), [], ""), draw.randint(0, 99), flip=False
        )
        seen: list[int] = []
        steps = draw.randint(1, 6)
        size, accumulate = draw.choice([(1, 1), (2, 1), (1, 4), (2, 2), (4, 1)])
        for step in range(steps):
            if draw.random() < 0.3:  # resumed
                size, accumulate = draw.choice([(1, 1), (2, 1), (1, 4), (2, 2), (4, 1)])
            share = batch // size // accumulate
            parts = {
                start: stream.batch(start, share)[0].flatten().tolist()
                for rank in range(size)
                for start in training.microbatch_starts(step * batch, batch, accumulate, rank, size)
            }
            assert len(parts) == size * accumulate
            seen += [i for start in sorted(parts) for i in parts[start]]
        for epoch in range(0, len(seen) - count + 1, count):
            assert sorted(seen[epoch : epoch + count]) == list(range(count))
        rest = seen[len(seen) // count * count :]
        assert len(set(rest)) == len(rest) and len(seen) == steps * batch


def test_a_checkpoint_written_in_the_background_is_of_its_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training goes on while a slow disk takes it; what is published is what was to be saved."""
    recipe = small(total_images=8 * 12)
    recipe = with_values(recipe, save_every=32, keep_checkpoints=9)
    quick = runs.open_run(recipe, tmp_path / "quick", "cpu")
    for _ in runs.steps(quick):
        quick.checkpoints.poll(wait=True)
    monkeypatch.setattr(disk, "observe", lambda *_: time.sleep(0.01))
    slow = runs.open_run(recipe, tmp_path / "slow", "cpu")
    during = sum(
        slow.checkpoints.saver.pending is not None and not slow.checkpoints.saver.pending.done() for _ in runs.steps(slow)
    )
    assert during >= 4
    for a, b in zip(*(checkpoint.list_checkpoints(tmp_path / name) for name in ("quick", "slow")), strict=True):
        assert checkpoint.verify(a)["files"] == checkpoint.verify(b)["files"]
    saves = [e for e in log.records(tmp_path / "slow" / "events.jsonl") if e["event"] == "saved"]
    assert [e["images_seen"] for e in saves] == [32, 64, 96]


def test_a_run_whose_disk_is_full_for_long_ends_and_its_checkpoint_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small(total_images=8 * 100)
    recipe = with_values(recipe, save_every=16)
    run = runs.open_run(recipe, tmp_path / "run", "cpu")

    def full(operation: str, path: Path, content: bytes = b"") -> None:
        if run.state.images_seen > 40 and "checkpoints" in path.parts and operation == "write":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(disk, "observe", full)
    with pytest.raises(checkpoint.SaveFailed, match=r"No space left on device.*the last checkpoint is at 32 images"):
        for _ in runs.steps(run):
            run.checkpoints.poll(wait=True)
    assert 80 < run.state.images_seen < 200
    newest = checkpoint.newest(tmp_path / "run")
    assert newest is not None and newest.name == "000000032"
    monkeypatch.undo()
    assert runs.open_run(recipe, tmp_path / "run", "cpu").state.images_seen == 32


def test_metrics_tell_speed_waiting_memory_and_utilisation(tmp_path: Path) -> None:
    recipe = small(total_images=48, peak_tflops=0.001)
    run = runs.open_run(recipe, tmp_path / "run", "cpu")
    finish(run)
    (line,) = log.records(tmp_path / "run" / "metrics.jsonl")
    assert line.keys() == {
        "images_seen", "loss", "gradient_norm", "learning_rate", "images_per_second", "data_wait", "memory_gb", "mfu",
    }  # fmt: skip
    flops = 6 * cost.cost(run.recipe.model).multiply_adds
    assert abs(line["mfu"] / (line["images_per_second"] * flops / 1e9) - 1) < 0.01
    assert 0 <= line["data_wait"] < 1 and 0.05 < line["memory_gb"] < 50


def test_an_early_stop_keeps_the_best_and_is_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The monitored number falls, then rises: the run ends `patience` images after its best, whose checkpoint is kept."""
    recipe = small(total_images=8 * 200)
    recipe = with_values(recipe, log_every=1, save_every=16, keep_checkpoints=1, monitor="loss", patience=48)
    measured = iter([5.0, 4.0, 3.0, 2.0, *[3.0] * 100])
    run = runs.open_run(recipe, tmp_path / "run", "cpu")
    true_steps = training.train
    monkeypatch.setattr(
        training, "train", lambda *a, **k: (step._replace(loss=next(measured)) for step in true_steps(*a, **k))
    )  # fmt: skip
    finish(run)
    assert run.ended_early and run.state.images_seen == 32 + 48 + 8  # a step later: all processes agree first
    assert [int(f.name) for f in checkpoint.list_checkpoints(tmp_path / "run")] == [32, 88]
    again = runs.open_run(recipe, tmp_path / "run", "cpu")
    assert again.ended_early
    finish(again)
    assert again.state.images_seen == 88
    patient = runs.open_run(with_values(recipe, patience=None), tmp_path / "run", "cpu")
    assert not patient.ended_early
    with pytest.raises(ValueError, match="patience is 48; it needs a number to monitor"):
        with_values(recipe, monitor="")
    assert log.monitored_values(tmp_path / "run", "loss", "max")[0] == (8, -5.0)


@pytest.mark.full
def test_two_processes_do_not_train_in_one_directory(tmp_path: Path) -> None:
    run = runs.open_run(small(total_images=16), tmp_path / "run", "cpu")
    code = (
        "from pathlib import Path; from tests.test_training import small; from justimage import run\n"
        f"try: run.open_run(small(total_images=16), {str(tmp_path / 'run')!r}, 'cpu')\n"
        "except BlockingIOError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert "is in use by another process" in done.stdout, done.stderr
    finish(run)
