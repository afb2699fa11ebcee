"""Graphs of ONNX: of a network, and of a sampler.

PyTorch's exporter takes a minute for a network in eight steps and grows with them. So a sampler is exported with the network as
one unknown operator, in seconds, and each use of that is replaced by the network's own graph; its weights are stored once.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from justimage.conditions import Condition
from justimage.convert.unrolled import BareNetwork, UnrolledSampler, batch_sizes
from justimage.sampling import Denoiser, Sampling

OPSET = 20
"""Of ONNX. Attention and RMSNormalization, of 23, are hardly faster on a CPU, and fewer programs know them."""
ONNX_BYTES = 2**31 - 2**24
"""Of the weights that fit into a file beside their graph."""
DOMAIN, NETWORK = "justimage", "network"
"""The operator that stands for the network."""
Graph = Any
"""onnx_ir.Model, of a package that is imported only when it is used"""


class NetworkOperator(nn.Module):
    """A network that is one operator, unknown to ONNX."""

    def forward(self, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        told = list(condition.values()) if isinstance(condition, dict) else [] if condition is None else [condition]
        return torch.onnx.ops.symbolic(f"{DOMAIN}::{NETWORK}", [z, t, *told], dtype=z.dtype, shape=z.shape, version=1)


def network_graph(net: nn.Module, example: tuple[Any, ...], names: list[str]) -> Graph:
    """The graph of a network: z, t and the tensors of a condition to its output."""
    return trace(BareNetwork(net), example, names, "output")


def sampler_graph(network: Graph, model: Denoiser, sampling: Sampling, example: tuple[Any, ...], names: list[str]) -> Graph:
    """The graph of a sampler, with the network's, which it takes over, in place of each evaluation."""
    import onnx_ir as ir
    from onnx_ir.passes.common import InlinePass

    stand_in = Denoiser(NetworkOperator(), model.diffusion, model.normalization, sampling, model.shape, model.classes)
    sampler = trace(UnrolledSampler(stand_in, sampling), example, names, "images")
    weights = list(network.graph.initializers.values())
    network.graph.initializers.clear()
    network.graph.inputs.extend(weights)  # a function has no weights of its own: they become inputs
    for node in network.graph:
        for output in node.outputs:
            output.shape = None  # with guidance its batch is twice the sampler's
    shared = [ir.Value(name=f"net.{w.name}", const_value=w.const_value, shape=w.shape, type=w.type) for w in weights]
    for weight, own in zip(weights, shared, strict=True):
        weight.const_value = None
        sampler.graph.register_initializer(own)
    for node in sampler.graph:
        if node.domain == DOMAIN:
            given = len(node.inputs)
            node.resize_inputs(given + len(shared))
            for i, own in enumerate(shared):
                node.replace_input_with(given + i, own)
    function = ir.Function(DOMAIN, NETWORK, graph=network.graph, attributes=[])
    sampler.functions[function.identifier()] = function
    InlinePass()(sampler)
    sampler.opset_imports.pop(DOMAIN)
    return without_traces(sampler)


def trace(module: nn.Module, example: tuple[Any, ...], names: list[str], output: str) -> Graph:
    sizes = batch_sizes(example)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision, which nothing here needs
    program = torch.onnx.export(
        torch.export.export(module.eval(), example, dynamic_shapes=sizes), dynamo=True, input_names=names,
        output_names=[output], dynamic_shapes=sizes, opset_version=OPSET, external_data=False, verbose=False,
    )  # fmt: skip
    assert program
    return without_traces(program.model)


def without_traces(model: Graph) -> Graph:
    """The model without what the exporter notes at each node: lines of our source, and paths of this machine."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    return model
