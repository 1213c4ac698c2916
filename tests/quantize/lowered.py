"""The networks of quantized models, and the inputs of their layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.lower.network import Network, network_from_graph
from torchtrt_bridge.options import Options
from torchtrt_bridge.partition import extract_subgraphs, propose
from torchtrt_bridge.passes import normalize
from torchtrt_bridge.trt import library as libraries

PRODUCTS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")

# Layers through which TensorRT sees what is quantized before them.
MOVES = ("UNSQUEEZE", "SQUEEZE", "SHUFFLE")


def normalized(model: nn.Module, x: torch.Tensor, **options: Any) -> torch.fx.GraphModule:
    return normalize(graph_from_program(export_program(model, (x,))).module, Options(**options))


def network_of(model: nn.Module, x: torch.Tensor, **options: Any) -> Network:
    """Return the one network of `model`."""
    graph = normalized(model, x, **options)
    proposal = propose(graph, Options(**options))
    assert [r.reason for r in proposal.rejections] == []
    subgraph = extract_subgraphs(graph, proposal.subgraphs)["trt_0"]
    return network_from_graph(subgraph, libraries.load("tensorrt_rtx"))


def products(network: Network) -> dict[str, list[str]]:
    """Return the origins of each product's two inputs, by layer name: ``"INPUT"``, or kinds of layers upwards."""
    layers = [network.definition.get_layer(index) for index in range(network.definition.num_layers)]
    makers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    found = {}
    for layer in layers:
        if layer.type.name in PRODUCTS:
            found[layer.name] = [_origin(layer.get_input(index), makers) for index in range(2)]
    return found


def operations(network: Network) -> list[str]:
    """Return the kinds of all elementwise layers."""
    layers = [network.definition.get_layer(index) for index in range(network.definition.num_layers)]
    found = [layer for layer in layers if layer.type.name == "ELEMENTWISE"]
    for layer in found:
        layer.__class__ = libraries.load("tensorrt_rtx").trt.IElementWiseLayer
    return [layer.op.name for layer in found]


def _origin(tensor: Any, makers: dict[str, Any]) -> str:
    """Return the kinds of the layers that a tensor comes through, up to the second quantizing one."""
    kinds: list[str] = []
    while tensor is not None and tensor.name in makers and len(kinds) < 2:
        layer = makers[tensor.name]
        if layer.type.name not in MOVES:
            kinds.append(layer.type.name if layer.type.name != "CONSTANT" else f"CONSTANT {tensor.dtype.name}")
        tensor = layer.get_input(0) if layer.num_inputs else None
    return " < ".join(kinds)
