"""A network, or the whole sampler around it, as one file that runs without this package: ONNX, or torch.export's .pt2.

A network is `net(z, t, condition) -> output`, a sampler `(noise, condition) -> images`: all steps of its solver, with
guidance's double batch, in one graph. Both take any number of images. A file gets its name only after its results were compared
with PyTorch's.
"""

import copy
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import justimage
from justimage import checkpoint, disk, recipe as recipes
from justimage.conditions import NULL_CLASS, Condition
from justimage.convert.int8 import with_int8_weights
from justimage.convert.onnx_graph import ONNX_BYTES, network_graph, sampler_graph
from justimage.convert.unrolled import BareNetwork, UnrolledSampler, batch_sizes
from justimage.sample_arguments import check_condition
from justimage.sampling import Denoiser, Sampling

TOLERANCE = 1e-4
"""The largest relative error of a file that is kept, fp32."""
BATCHES = 1, 3
"""Images with which a file is compared; it is traced with 2."""
ABOUT = "justimage"
"""The entry of a file that says, as JSON, how it was made: a property of ONNX's metadata, an extra file of .pt2."""
BEFORE = "z", "t", "noise"
"""Inputs that stand before the condition."""
Named = dict[str, Tensor]
"""Inputs by name: z and t, or noise; then what the network is told."""


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how well it agrees with PyTorch."""

    path: Path
    usage: str
    """three lines of Python that run it"""
    error: float
    """the largest relative error (`relative_error`), of BATCHES random images"""
    int8_error: float
    """of the network's output with int8 weights beside that with fp32 weights, |difference| / |output|; 0 for fp32"""


def export_file(
    source: str | Path, target: Path, sampling: Sampling | None = None, int8: bool = False, ema: float | None = None
) -> Exported:
    """Export a run, a converted folder or a file of weights (`export`), with its recipe and the hash of its weights inside."""
    check_target(target)
    place = checkpoint.resolve(source)
    recipe = checkpoint.read_recipe(place)
    model = checkpoint.load(place, ema, "cpu")
    usual = checkpoint.ema_of(place) if place.is_file() else recipe.training.sample_ema
    used = usual if ema is None else ema
    about = {
        "version": justimage.__version__, "weights": checkpoint.fingerprint(place, used), "ema": used,
        "recipe": recipes.to_json(recipe.shared((used,))),
    }  # fmt: skip
    return export(model, target, sampling, int8, about)


def export(
    model: Denoiser,
    target: Path,
    sampling: Sampling | None = None,
    int8: bool = False,
    about: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a model's network, or with `sampling` its sampler, to a new .onnx or .pt2 file.

    Inputs are z (b, *shape) and t (b,), or noise (b, *shape) of deviation 1; then classes (b,), and image, vector and text
    where the network is told these. int8: weights of linear maps as 8-bit integers with a scale for each output, a quarter of
    the file; they are computed with in fp32. about: what else the file says of itself. The model must be on the CPU, in fp32.
    Raises ValueError or OSError, in one line, and leaves nothing, where it cannot be exported, or where the results differ
    from PyTorch's by more than TOLERANCE.
    """
    check_target(target)
    if sampling and sampling.solver == "sde":
        raise ValueError("solver sde draws noise at each step, which a file cannot; choose another: --passes 13")
    check_condition(told_of(model, 2), 2, model.classes, sampling.guidance if sampling else 1.0)
    plain = copy.deepcopy(model.net).eval().requires_grad_(False)  # the caller's may be in training
    model = replace(model, net=with_int8_weights(plain) if int8 else plain)
    if (size := bytes_of(model.net)) > ONNX_BYTES and target.suffix == ".onnx":
        raise ValueError(
            f"the weights are {size / 1e9:.1f} GB, and an ONNX file holds 2: --to pt2{'' if int8 else ', or --int8'}"
        )
    module = UnrolledSampler(model, sampling) if sampling else BareNetwork(model.net)
    written = {"kind": "sampler" if sampling else "network", "int8": int8, "sampling": sampling and asdict(sampling)}
    content = json.dumps(dict(about or {}) | written)
    with disk.replacing(target) as aside, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own exporter
        wanted = [module(*arguments(random_inputs(model, n, bool(sampling)))) for n in BATCHES]
        try:
            if target.suffix == ".onnx":
                save_onnx(model, sampling, content, aside)
            else:
                save_pt2(module, arguments(random_inputs(model, 2, bool(sampling))), content, aside)
            run = open_onnx(aside) if target.suffix == ".onnx" else open_pt2(aside)
            found = [run(random_inputs(model, n, bool(sampling))) for n in BATCHES]
        except OSError:
            raise
        except Exception as error:  # of two exporters and a runtime, which raise whatever they like
            reason = disk.printable(" ".join(str(error).split())[:200])
            raise ValueError(f"this network does not export to {target.suffix}: {reason or type(error).__name__}") from error
        errors = [relative_error(*pair) for pair in zip(found, wanted, strict=True)]
        if not all(error <= TOLERANCE for error in errors):  # nan is not
            worst = max(errors, key=lambda error: error if error == error else torch.inf)
            raise ValueError(f"{target} would differ from PyTorch by {worst:.1e}, more than {TOLERANCE:g}; nothing was written")
        inputs = arguments(random_inputs(model, BATCHES[-1], False))
        lost = relative_norm(BareNetwork(model.net)(*inputs), BareNetwork(plain)(*inputs)) if int8 else 0.0
    return Exported(target, usage(target, random_inputs(model, 2, bool(sampling))), max(errors), lost)


def check_target(target: Path) -> None:
    """ValueError or OSError for a file that cannot be written, before any work."""
    needed = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".pt2": ()}
    if target.suffix not in needed:
        raise ValueError(f"{target} must end in {' or '.join(needed)}")
    if target.exists():
        raise FileExistsError(f"{target} exists; give a new file")
    disk.check_writable(target)
    if any(not find_spec(package) for package in needed[target.suffix]):
        raise ValueError("to write and check ONNX files more is needed: pip install 'justimage[export]'")


def bytes_of(net: nn.Module) -> int:
    return sum(q.numel() * q.element_size() for q in (*net.parameters(), *net.buffers()))


# inputs -----------------------------------------------------------------------------------------------------------------


def random_inputs(model: Denoiser, n: int, sampler: bool) -> Named:
    """Inputs of n images, the same at each call."""
    generator = torch.Generator().manual_seed(n)
    z = torch.randn(n, *model.shape, generator=generator)
    first = {"noise": z} if sampler else {"z": z, "t": torch.rand(n, generator=generator)}
    return first | named(told_of(model, n, generator))


def told_of(model: Denoiser, n: int, generator: torch.Generator | None = None) -> Condition:
    """A random condition of n images with everything that the network can be told."""
    a, told = getattr(model.net, "architecture", None), {}
    if model.classes:
        told["classes"] = torch.randint(NULL_CLASS, model.classes, (n,), generator=generator)
    if a and a.image_channels:
        told["image"] = torch.randn(n, a.image_channels, *a.size, generator=generator)
    if a and a.vector:
        told["vector"] = torch.randn(n, a.vector, generator=generator)
    if a and a.text_length and a.text_features:
        told["text"] = torch.randn(n, a.text_length, a.text_features, generator=generator)
    elif a and a.text_length:
        told["text"] = torch.randint(NULL_CLASS, 256, (n, a.text_length), generator=generator)
    return told["classes"] if set(told) == {"classes"} else told or None


def named(condition: Condition) -> Named:
    """A condition's tensors by name."""
    return condition if isinstance(condition, dict) else {} if condition is None else {"classes": condition}


def arguments(inputs: Named) -> tuple[Any, ...]:
    """Inputs as a module takes them: z and t, or noise, and the condition: classes alone, or a dict."""
    first = [tensor for name, tensor in inputs.items() if name in BEFORE]
    told = {name: tensor for name, tensor in inputs.items() if name not in BEFORE}
    return (*first, told["classes"] if set(told) == {"classes"} else told or None)


# files ------------------------------------------------------------------------------------------------------------------


def save_onnx(model: Denoiser, sampling: Sampling | None, about: str, path: Path) -> None:
    import onnx_ir

    inputs = random_inputs(model, 2, False)
    graph = network_graph(model.net, arguments(inputs), list(inputs))
    if sampling:
        inputs = random_inputs(model, 2, True)
        graph = sampler_graph(graph, model, sampling, arguments(inputs), list(inputs))
    graph.metadata_props[ABOUT] = about
    onnx_ir.save(graph, path)


def save_pt2(module: nn.Module, example: tuple[Any, ...], about: str, path: Path) -> None:
    program = torch.export.export(module, example, dynamic_shapes=batch_sizes(example))
    for graph in program.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, torch.fx.GraphModule) else []:
            node.meta.pop("stack_trace", None)  # lines of our source, and paths of this machine
    torch.export.save(program, path, extra_files={ABOUT: about})


def open_onnx(path: Path) -> Callable[[Named], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run(None, {name: q.numpy() for name, q in inputs.items()})[0])


def open_pt2(path: Path) -> Callable[[Named], Tensor]:
    module = torch.export.load(path).module()
    return lambda inputs: module(*arguments(inputs))


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """The largest difference beside the largest value; nan where either is. Of uint8 images, whose roundings hide it, the mean
    difference beside the range, or what is more than one level in a pixel."""
    if found.dtype != wanted.dtype or found.shape != wanted.shape:
        return torch.inf
    difference = (found.double() - wanted.double()).abs()
    if wanted.dtype == torch.uint8:
        return max(difference.mean().item(), difference.max().item() - 1) / 255
    return (difference.max() / wanted.abs().max().clamp(min=1e-30)).item()


def relative_norm(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted|."""
    return ((found - wanted).norm() / wanted.norm().clamp(min=1e-30)).item()


def usage(target: Path, inputs: Named) -> str:
    """Three lines of Python that run a file without this package, on random numbers and class 0."""
    onnx = target.suffix == ".onnx"

    def made(name: str, tensor: Tensor) -> str:
        sizes = ", ".join(map(str, (4, *tensor.shape[1:])))
        if not tensor.is_floating_point():
            return f"np.zeros([{sizes}], int)" if onnx else f"torch.zeros({sizes}, dtype=torch.long)"
        random = "rand" if name == "t" else "randn"
        return f'np.random.{random}({sizes}).astype("f")' if onnx else f"torch.{random}({sizes})"

    def as_dict(names: Iterable[str]) -> str:
        return "{" + ", ".join(f'"{name}": {made(name, inputs[name])}' for name in names) + "}"

    output = "images" if "noise" in inputs else "output"
    if onnx:
        session = f'session = onnxruntime.InferenceSession("{target}")'
        return f"import numpy as np, onnxruntime\n{session}\n{output} = session.run(None, {as_dict(inputs)})[0]"
    first, told = [name for name in inputs if name in BEFORE], [name for name in inputs if name not in BEFORE]
    condition = made("classes", inputs["classes"]) if told == ["classes"] else as_dict(told) if told else "None"
    words = ", ".join([*(made(name, inputs[name]) for name in first), condition])
    return f'import torch\nmodule = torch.export.load("{target}").module()\n{output} = module({words})'
