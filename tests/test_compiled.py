"""Compilation: blocks are compiled whole, for the lengths that there are, and stay compiled; the network with its loss is one
graph. What a compiler makes of a graph is its own affair: here a graph is mostly run as it was traced."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from justimage import data, preview, training
from justimage.diffusion import Batch
from justimage.dropout import dropout_layers, set_dropout_keys
from justimage.recipe import Recipe, with_values
from tests.test_training import small

pytestmark = pytest.mark.full

BATCH = 4
IMAGES = torch.randint(0, 256, (32, 1, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
SOURCE = data.ArraySource(IMAGES, torch.arange(32) % 4, list("abcd"), "noise")


def recipe(**changes: Any) -> Recipe:
    """Four blocks: the first two read patches, the others the class tokens, too; the middle two drop."""
    usual = dict(depth=4, context_start=2, classes=4, batch=BATCH, total_images=8 * BATCH, compile=True, preview_count=3)
    return with_values(small(), **usual | changes)


@dataclass
class Graphs:
    """A compiler that runs each graph as it is, and writes down which."""

    dynamic: list[bool] = field(default_factory=list)
    """of each graph, whether it has a size that is not a number"""
    calls: list[int] = field(default_factory=list)
    """the numbers of the graphs that were run, in order"""

    def __call__(self, graph: Any, inputs: list[Any]) -> Any:
        number = len(self.dynamic)
        sizes = [size for q in inputs for size in (q.shape if isinstance(q, Tensor) else [q])]
        self.dynamic.append(any(isinstance(size, torch.SymInt) for size in sizes))

        def run(*args: Any) -> Any:
            self.calls.append(number)
            return graph(*args)

        return run


@contextmanager
def compiler(backend: Any) -> Iterator[None]:
    """Within the block torch.compile uses that backend, and raises where it would cut a graph in two."""
    with mock.patch.object(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True)):
        yield


def losses(recipe: Recipe, steps: int = 2) -> list[tuple[float, float]]:
    state = training.init_state(recipe)
    return [(s.loss, s.gradient_norm) for s in islice(training.train(recipe, SOURCE, state), steps)]


EACH = [0, 1, 2, 3]
"""The graph of each block, numbered as they are met: with dropout all blocks differ."""
BLOCKS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "no dropout": ({"dropout": 0.0}, [0, 0, 1, 1]),
    "no class tokens": ({"context_tokens": 0}, [0, 1, 1, 0]),
    "dropout": ({}, EACH),
    "bf16": ({"precision": "bf16"}, EACH),
    "classifier": ({"aux_classifier": True, "class_loss_weight": 100.0}, EACH),
    "accumulation": ({"grad_accumulation": 2}, EACH),
    "recomputation": ({"activation_checkpointing": True}, EACH),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_has_one_static_graph_for_each_length_and_dropout(name: str) -> None:
    """Forward, and where blocks are computed again, backward; a step later, with other keys, the same."""
    changes, blocks = BLOCKS[name]
    graphs = Graphs()
    with compiler(graphs):
        found = losses(recipe(**changes))
    step = (blocks + blocks[::-1] if name == "recomputation" else blocks) * (2 if name == "accumulation" else 1)
    assert graphs.calls == step * 2
    assert graphs.dynamic == [False] * (max(blocks) + 1)
    assert found == losses(recipe(**changes, compile=False))


def test_the_third_network_of_a_process_is_compiled_as_the_first() -> None:
    """All have their blocks' code in common, of which no more than 8 graphs are kept."""
    for batch, width in (4, 16), (8, 16), (4, 32):
        graphs = Graphs()
        with compiler(graphs):
            losses(recipe(batch=batch, width=width))
        assert graphs.calls == EACH * 2 and graphs.dynamic == [False] * 4, (batch, width)


def test_previews_compile_nothing_and_leave_compiled_what_was() -> None:
    graphs, r = Graphs(), recipe()
    with compiler(graphs):
        state = training.init_state(r)
        steps = training.train(r, SOURCE, state)
        next(steps)
        preview.preview(r, SOURCE, state)
        assert graphs.calls == EACH
        next(steps)
    assert graphs.calls == EACH * 2 and len(graphs.dynamic) == 4


WHOLE: dict[str, dict[str, Any]] = {
    "dropout": {},
    "classifier, recomputation": {"aux_classifier": True, "class_loss_weight": 100.0, "activation_checkpointing": True},
    "other layers, eps": {
        "context_tokens": 0,
        "norm": "layer",
        "mlp": "gelu",
        "qk_norm": False,
        "rope": False,
        "prediction": "eps",
    },
}


@pytest.mark.parametrize("name", WHOLE)
def test_the_network_and_its_loss_are_one_graph(name: str) -> None:
    """Forward and backward, for the images, times and keys of two steps."""
    state = training.init_state(recipe(compile=False, **WHOLE[name]))
    net, process, count = state.denoiser.net, state.denoiser.diffusion, len(dropout_layers(state.denoiser.net))
    torch.nn.init.normal_(net.head.linear.weight)  # pyright: ignore  # it begins with zeros, as gradients then do

    def objective(x: Tensor, y: Tensor, *drawn: Tensor) -> Tensor:
        return process.loss(net, Batch(x, y, *drawn)).mean()

    def gradients(function: Callable[..., Tensor], start: int) -> list[Tensor]:
        net.zero_grad()
        set_dropout_keys(net, torch.arange(start, start + count * BATCH).view(count, BATCH) * 12345)
        x, y = state.denoiser.normalization.normalize(IMAGES[start:][:BATCH]), SOURCE.labels[start:][:BATCH]
        loss = function(x, y, *training.draw(process, 0, start, x))
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]

    torch.compiler.reset()
    graphs = CompileCounterWithBackend("eager")
    compiled = torch.compile(objective, fullgraph=True, dynamic=False, backend=graphs)
    for start in 0, BATCH:
        for p, q in zip(gradients(compiled, start), gradients(objective, start), strict=True):
            assert torch.equal(p, q)
    assert graphs.frame_count == 1
