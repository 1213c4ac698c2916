"""The network of a whole model, its linear layers, and what the reference interpreter computes by it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from tests.passes.case import passed
from torchtrt_bridge.lower.network import Network, network_from_graph
from torchtrt_bridge.passes import normalize
from torchtrt_bridge.runtime.runners import ReferenceRunner
from torchtrt_bridge.trt import library as libraries


def lowered(module: fx.GraphModule) -> Network:
    network = network_from_graph(module, libraries.choose("reference"))
    assert_names_differ(network)
    return network


def assert_names_differ(network: Network) -> None:
    """Assert that each layer has a name of its own: TensorRT-RTX 1.6 takes no name twice, where 1.7 does."""
    names = [network.definition.get_layer(index).name for index in range(network.layers)]
    assert len(set(names)) == len(names), sorted(name for name in set(names) if names.count(name) > 1)


def network_of(model: Any, x: torch.Tensor, **options: Any) -> Network:
    return lowered(passed(model, x, normalize, **options))


def widths(network: Network) -> list[int]:
    """Return the number of outputs of each linear layer of a network, in order."""
    layers = [network.definition.get_layer(index) for index in range(network.layers)]
    products = [layer for layer in layers if layer.type.name == "MATRIX_MULTIPLY" and layer.name.startswith("linear")]
    return [layer.get_output(0).shape[-1] for layer in products]


def assert_computes(network: Network, model: nn.Module, x: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Assert that the reference interpreter computes by the network what the model computes."""
    with torch.no_grad():
        expected = model(x)
    expected = expected if isinstance(expected, (tuple, list)) else [expected]
    results = ReferenceRunner(network, libraries.choose("reference"))([x])
    torch.testing.assert_close(list(results), list(expected), rtol=tolerance, atol=tolerance)
