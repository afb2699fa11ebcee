"""Checkpoints: complete or absent, verified, and loaded by anyone who has one file."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import justimage
from justimage import checkpoint, disk, log, recipe as recipes, run as runs
from justimage.checkpoint import CorruptCheckpoint, NoUsableCheckpoint, saver
from justimage.recipe import Recipe
from justimage.sampling import Sampling
from justimage.transformer import JiT
from tests.test_training import digest, equal, small


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    recipe = small(total_images=32)
    for step in justimage.train(recipe, run, device="cpu"):
        if step.images_seen == 16:
            break
    for _ in justimage.train(recipe, run, device="cpu"):
        pass
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_the_directory_is_laid_out_as_documented(run: Path) -> None:
    assert {p.name for p in run.iterdir()} >= {"recipe.json", "metrics.jsonl", "events.jsonl", "checkpoints"}
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["000000016", "000000032"]
    names = {p.name for p in (run / "checkpoints" / "000000032").iterdir()}
    groups = ["model", "optimizer", "ema-100", "ema-200", "ema-400"]
    assert names == {"MANIFEST.json", "state.json", *(f"{g}-00001-of-00001.safetensors" for g in groups)}


@pytest.mark.parametrize(
    "file", ["model-00001-of-00001.safetensors", "optimizer-00001-of-00001.safetensors", "state.json", "MANIFEST.json"]
)
@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
def test_damage_is_noticed_and_the_older_checkpoint_used(file: str, how: str, run: Path) -> None:
    path = run / "checkpoints" / "000000032" / file
    content = bytearray(path.read_bytes())
    match how:
        case "flip":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        case "truncate":
            path.write_bytes(content[: len(content) // 2])
        case "remove":
            path.unlink()
    with pytest.raises(CorruptCheckpoint) as caught:
        checkpoint.verify(run / "checkpoints" / "000000032")
    assert file in str(caught.value) and "\n" not in str(caught.value)
    assert checkpoint.newest(run) == run / "checkpoints" / "000000016"
    assert (run / "checkpoints" / "000000032").is_dir()  # reading changes nothing
    opened = runs.open_run(small(total_images=32), run, "cpu")
    assert opened.state.images_seen == 16 and file in opened.warnings[0]
    assert (run / "checkpoints" / ".bad-000000032").is_dir()
    assert '"damaged"' in (run / "events.jsonl").read_text()


def test_where_all_are_damaged_nothing_starts_afresh(run: Path) -> None:
    for folder in (run / "checkpoints").iterdir():
        (folder / "MANIFEST.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(NoUsableCheckpoint, match="no intact checkpoint"):
            next(justimage.train(small(total_images=64), run, device="cpu"))


def test_a_run_whose_checkpoints_are_gone_does_not_begin_again(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    metrics = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="had a checkpoint at 32 images, and has none now"):
        next(justimage.train(small(total_images=64), run, device="cpu"))
    assert (run / "metrics.jsonl").read_bytes() == metrics


def test_logs_that_a_crash_tore_do_not_stop_a_run(run: Path) -> None:
    for name in "events.jsonl", "metrics.jsonl":
        with open(run / name, "a") as file:
            file.write('{"event": "sa')
    opened = runs.open_run(small(total_images=32), run, "cpu")
    assert opened.state.images_seen == 32 and log.last_saved(run) == 32
    assert [e["event"] for e in log.records(run / "events.jsonl")][-1] == "resumed"


def test_a_run_has_worked_for_the_times_between_its_starts_and_its_last_events(tmp_path: Path) -> None:
    """Killed twice: neither what follows the last event before a kill counts, nor the night until it is resumed."""
    times = {100.0: "begun", 110.0: "saved", 5000.0: "resumed", 7000.0: "resumed", 7020.5: "saved", 7021.0: "finished"}
    lines = [json.dumps({"event": event, "time": time}) for time, event in times.items()]
    (tmp_path / "events.jsonl").write_text("\n".join([*lines, '{"event": "sa']))
    assert log.seconds_of_run(tmp_path) == 31.0
    assert log.seconds_of_run(tmp_path / "nowhere") == 0.0


def test_the_newest_is_the_one_with_most_images(run: Path) -> None:
    """Also where the number outgrows its padding: 800 epochs of ImageNet are more than 10^9 images."""
    (run / "checkpoints" / "000000016").rename(run / "checkpoints" / "999999999")
    (run / "checkpoints" / "000000032").rename(run / "checkpoints" / "1000000000")
    assert checkpoint.newest(run) == run / "checkpoints" / "1000000000"
    checkpoint.prune(run, 1)
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["1000000000"]


def test_a_first_write_cut_short_does_not_block_the_directory(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".tmp-recipe.json").write_text("{")
    next(justimage.train(small(total_images=16), tmp_path / "run", device="cpu"))


def test_a_half_written_checkpoint_is_never_read(run: Path) -> None:
    (run / "checkpoints" / "000000032").rename(run / "checkpoints" / ".tmp-000000048")
    assert checkpoint.newest(run) == run / "checkpoints" / "000000016"


def test_a_run_a_folder_and_a_file_load_alike(run: Path, tmp_path: Path) -> None:
    folder = run / "checkpoints" / "000000032"
    file = shutil.copy(folder / "ema-200-00001-of-00001.safetensors", tmp_path / "alone.safetensors")
    models = [justimage.load(run, ema=200), justimage.load(folder, ema=200), justimage.load(file)]
    images = [justimage.sample(m, [3, 7], [0, 1], Sampling(guidance=2.0, interval=(0.1, 1.0), steps=3)) for m in models]
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])
    assert not torch.equal(justimage.load(run, ema=0).net.head.linear.weight, models[0].net.head.linear.weight)
    assert torch.equal(justimage.load(run).net.head.linear.weight, justimage.load(run, ema=100).net.head.linear.weight)
    with pytest.raises(ValueError, match=r"no ema 0\.9999.*100, 200, 400"):
        justimage.load(run, ema=0.9999)


@pytest.mark.parametrize("fault", ["missing", "extra", "misshapen"])
def test_one_file_loads_strictly(fault: str, run: Path, tmp_path: Path) -> None:
    file = run / "checkpoints" / "000000032" / "model-00001-of-00001.safetensors"
    tensors, recipe = load_file(file), json.loads((run / "recipe.json").read_text())
    match fault:
        case "missing":
            del tensors["head.linear.bias"]
        case "extra":
            tensors["head.more"] = torch.zeros(2)
        case "misshapen":
            tensors["head.linear.bias"] = torch.zeros(2)
    save_file(tensors, tmp_path / "bad.safetensors", metadata={"justimage": json.dumps({"group": "model", "recipe": recipe})})
    with pytest.raises(ValueError, match=f"{fault} tensors: head"):
        justimage.load(tmp_path / "bad.safetensors")


def test_what_is_no_model_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.pth").touch()
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 10)
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    for name, words in [("missing", "does not exist"), ("empty", "holds no checkpoint"), ("weights.pth", "justimage convert"),
                        ("junk.safetensors", "not a readable"), ("foreign.safetensors", "carries no recipe")]:  # fmt: skip
        with pytest.raises((ValueError, OSError), match=words) as caught:
            justimage.load(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    disk.write(tmp_path / "a" / "file", b"one")
    disk.write(tmp_path / "a" / "file", b"two")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["file"] and (tmp_path / "a" / "file").read_bytes() == b"two"


def test_the_copy_on_the_host_lies_in_few_pieces_that_rounding_up_hardly_enlarges() -> None:
    """PyTorch rounds pinned memory up to powers of two. Weights and moments of H/16; and any tensors come back."""
    with torch.device("meta"):
        net = JiT("H/16", classes=1000)
    sizes = {n: 4 * p.numel() for n, p in net.named_parameters()}
    for group in sizes, {f"{key}.{n}": size for n, size in sizes.items() for key in ("exp_avg", "exp_avg_sq")}:
        groups = saver.pack(group)
        assert [n for names in groups for n in names] == list(group) and len(groups) < 12
        rounded = sum(2 ** math.ceil(math.log2(sum(group[n] for n in names))) for names in groups)
        alone = sum(2 ** math.ceil(math.log2(size)) for size in group.values())
        assert rounded < 1.15 * sum(group.values()) and alone > 1.6 * sum(group.values())
    tensors = {"none": torch.empty(0, 3), "a": torch.randn(3, 5), "one": torch.tensor(7.0), "half": torch.randn(7).bfloat16()}
    places = saver.allocate_host(tensors)
    for n, t in tensors.items():
        places[n].copy_(t)
    assert all(torch.equal(places[n], t) and places[n].dtype == t.dtype for n, t in tensors.items())
    assert len({p.untyped_storage().data_ptr() for p in places.values()}) == 1


def test_the_next_save_uses_the_same_memory(run: Path) -> None:
    opened = runs.open_run(recipes.from_json(disk.read_json(run / "recipe.json")), run, "cpu")
    s, kept = opened.state, opened.checkpoints.saver
    groups = checkpoint.sharded_state_dict(s.denoiser.net, s.optimizer, s.ema, s.world)
    first = kept.copy("model", groups["model"])
    with torch.no_grad():
        next(s.denoiser.net.parameters()).add_(1)
    second = kept.copy("model", groups["model"])
    assert all(first[n].tensor.data_ptr() == second[n].tensor.data_ptr() for n in first)
    assert all(torch.equal(second[n].tensor, p) for n, p in s.denoiser.net.named_parameters())
    kept.close()


def test_a_window_of_losses_that_no_training_wrote_is_damage(run: Path) -> None:
    folder = checkpoint.list_checkpoints(run)[-1]
    state = json.loads((folder / "state.json").read_text())
    assert isinstance(state["window"], list)
    (folder / "state.json").write_text(json.dumps(state | {"window": [1.0, 0.5]}))
    assert checkpoint.read_state(folder)["window"] == [1.0, 0.5]
    for window in [True], "x", [None], [1e999], [1]:
        (folder / "state.json").write_text(json.dumps(state | {"window": window}))
        with pytest.raises(checkpoint.CorruptCheckpoint, match="losses"):
            checkpoint.read_state(folder)


class Hoarder(torch.optim.Optimizer):
    """Keeps all that an optimizer may keep - types, shapes, numbers, words, settings that change - and steps by all of it."""

    def __init__(self, parameters: list[torch.Tensor]) -> None:
        super().__init__(parameters, dict(lr=1e-3, betas=(0.9, 0.99), growth=math.inf, calls=0, schedule=lambda t: t, mode="a"))

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            group["calls"] += 1
            for p in group["params"]:
                if p.grad is None:
                    continue
                s = self.state[p]
                if not s:
                    s |= {f"mean_{str(t)[6:]}": torch.zeros_like(p, dtype=t) for t in (torch.bfloat16, torch.float64)}
                    s |= {"ups": torch.zeros_like(p, dtype=torch.int64), "up": torch.zeros_like(p, dtype=torch.bool)}
                    s |= {
                        "rows": torch.zeros(p.shape[0]),
                        "columns": torch.zeros(3, *p.shape[1:]),
                        "loss_scale": torch.ones(()),
                    }
                    s |= {"steps": 0, "rate": 1.0, "warm": False, "name": "p", "span": (0, 0.5), "nothing": None}
                s["up"] = p.grad > 0
                s["ups"] += s["up"]
                for mean in (value for key, value in s.items() if key.startswith("mean")):
                    mean.lerp_(p.grad.to(mean.dtype), 1 - group["betas"][0])
                s["rows"] += p.grad.flatten(1).sum(1) if p.ndim > 1 else p.grad
                s["columns"] = s["columns"].roll(1, 0) + p.grad.sum(0)
                s["loss_scale"] *= 1.25
                s["steps"], s["rate"], s["warm"] = s["steps"] + 1, s["rate"] * 0.7 + 0.1, s["steps"] > 2
                s["span"] = (s["steps"], s["rate"])
                if s["steps"] == 4:
                    s["late"] = torch.ones(2)
                whole = s["mean_float64"] + s["mean_bfloat16"] + s["ups"] + s["rows"].mean() + s["columns"].mean()
                p -= (group["lr"] * s["rate"] * s["loss_scale"] * whole).to(p.dtype) / group["calls"]


SGD, AdamW = torch.optim.SGD, torch.optim.AdamW
OPTIMIZERS = {
    "Hoarder": Hoarder,
    "SGD": lambda ps: SGD(ps, lr=0.1),
    "momentum": lambda ps: SGD(ps, lr=0.1, momentum=0.9),
    "two groups": lambda ps: AdamW([{"params": ps[::2], "weight_decay": 0.5}, {"params": ps[1::2]}], amsgrad=True),
    "Adafactor": torch.optim.Adafactor,
    "Adagrad": torch.optim.Adagrad,  # has its state from the beginning
    "NAdam": torch.optim.NAdam,
    "Rprop": torch.optim.Rprop,
}


def state_of(optimizer: torch.optim.Optimizer) -> list:
    return [optimizer.state.get(p, {}) for group in optimizer.param_groups for p in group["params"]]


def same(a: object, b: object) -> bool:
    """Of one type and equal to the bit, in whatever they are nested."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and (all(map(same, a, b)) if isinstance(a, list | tuple) else a == b)


def open_with(recipe: Recipe, directory: Path, make: Callable, **more: object) -> runs.Run:
    return runs.open_run(recipe, directory, "cpu", optimizer=make, **more)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_resumes_to_the_bit(name: str, tmp_path: Path) -> None:
    recipe, make, before = small(total_images=48), OPTIMIZERS[name], None
    straight = open_with(recipe, tmp_path / "straight", make)
    for _ in runs.steps(straight):
        pass
    for stop in 24, 40, 48:  # before and after the fourth step
        run = open_with(recipe, tmp_path / "stopped", make)
        if stop > 24:
            assert same(state_of(run.state.optimizer), before)
        for step in runs.steps(run):
            if step.images_seen == stop:
                break
        before = state_of(run.state.optimizer)
    assert same(before, state_of(straight.state.optimizer))
    assert equal(list(run.state.denoiser.net.parameters()), list(straight.state.denoiser.net.parameters()))
    settings = [[{k: v for k, v in g.items() if k not in ("params", "schedule")} for g in r.state.optimizer.param_groups]
                for r in (run, straight)]  # fmt: skip
    assert same(*settings)
    ends = [checkpoint.verify(tmp_path / name / "checkpoints" / "000000048")["files"] for name in ("straight", "stopped")]
    assert ends[0] == ends[1] or ends[0]["state.json"] != ends[1]["state.json"]


def frozen_net() -> JiT:
    """A network with frozen weights, and with a buffer that training changes."""
    net = JiT(small().model, classes=10)
    net.embed.requires_grad_(False)
    net.head.norm = Counting(net.head.norm)
    return net


class Counting(torch.nn.Module):
    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("passes", torch.tensor(0))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.passes += 1
        return self.inner(x)


def test_frozen_weights_have_no_state_and_buffers_are_saved(tmp_path: Path) -> None:
    recipe = small(total_images=48)
    for stop in 24, 48:
        run = runs.open_run(recipe, tmp_path / "run", "cpu", net=frozen_net)
        for step in runs.steps(run):
            if step.images_seen == stop:
                break
    (folder, _) = checkpoint.list_checkpoints(tmp_path / "run")
    names = checkpoint.verify(folder)["tensors"]
    assert not [n for n in names["optimizer"] if "embed." in n] and "exp_avg.head.linear.weight" in names["optimizer"]
    assert [n for n in names["model"] if "passes" in n] == ["head.norm.passes"] and not [
        n for n in names["model"] if "scratch" in n
    ]
    model = justimage.load(tmp_path / "run", ema=200, device="cpu", net=frozen_net)
    assert model.net.head.norm.passes == run.state.denoiser.net.head.norm.passes == 6
    straight = runs.open_run(recipe, tmp_path / "straight", "cpu", net=frozen_net)
    for _ in runs.steps(straight):
        pass
    assert equal(digest(straight.state), digest(run.state))


class Unsavable(torch.optim.SGD):
    def __init__(self, parameters: list[torch.Tensor], key: object, value: object) -> None:
        super().__init__(parameters, lr=0.1)
        self.key, self.value = key, value

    def step(self, closure=None) -> None:
        super().step()
        for group in self.param_groups:
            self.state[group["params"][0] if self.key != "global" else "all"][self.key] = self.value


@pytest.mark.parametrize(
    ("key", "value"),
    [("a.b", 1), (3, 1), ("global", 1), ("x", torch.zeros(2, dtype=torch.complex64)), ("x", object()), ("x", {"y": 1})],
)
def test_a_state_that_cannot_be_saved_is_refused_rather_than_left_out(key: object, value: object, tmp_path: Path) -> None:
    run = open_with(small(total_images=8), tmp_path / "run", lambda ps: Unsavable(ps, key, value))
    with pytest.raises(ValueError, match="cannot be saved; allowed: plain tensors, numbers and words") as caught:
        for _ in runs.steps(run):
            pass
    assert "\n" not in str(caught.value)


def test_a_setting_that_cannot_be_saved_is_refused_before_training(tmp_path: Path) -> None:
    def make(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": parameters, "scale": torch.ones(2)}], lr=0.1)

    with pytest.raises(ValueError, match="setting 'scale' cannot be saved"):
        open_with(small(total_images=8), tmp_path / "run", make)


def test_a_state_of_another_optimizer_is_refused_in_one_line(tmp_path: Path) -> None:
    def trained(name: str, make: Callable) -> None:
        for _ in runs.steps(open_with(small(total_images=8), tmp_path / name, make)):
            pass

    def optimizer(kind: Callable, **options: object) -> Callable:
        def make(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:  # of one name, whatever it makes
            return kind(parameters[options.pop("skip", 0) :], lr=0.1, **options)

        return make

    trained("sgd", optimizer(SGD, momentum=0.5))
    trained("half", optimizer(torch.optim.RMSprop))
    trained("groups", lambda ps: AdamW([{"params": ps[:3]}, {"params": ps[3:]}]))
    for name, make, message in [
        ("sgd", optimizer(AdamW), "has no optimizer state step.*saved by another optimizer"),
        ("half", optimizer(torch.optim.Adafactor), "has no optimizer state"),
        ("sgd", optimizer(SGD, skip=2), "which is not trained"),
        ("groups", lambda ps: AdamW(ps), "2 groups of parameters; this optimizer has 1"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            open_with(small(total_images=16, lr_schedule="constant"), tmp_path / name, make)
        assert "\n" not in str(caught.value)
