"""Large linear layers get as many outputs as tensor cores work by; others do not change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.lower.network import network_from_graph
from torchtrt_bridge.trt import library as libraries


def rows_of_weight(layer: nn.Linear) -> int:
    """Return the number of outputs of the layer in the network that is built."""
    x = torch.zeros(2, layer.in_features, dtype=layer.weight.dtype)
    captured = graph_from_program(export_program(layer.eval(), (x,)))
    network = network_from_graph(captured.module, libraries.choose("reference"))
    (weight,) = (value for value in network.constants.values() if value.shape[-1] == layer.in_features)
    (result,) = (network.definition.get_output(i) for i in range(network.definition.num_outputs))
    assert tuple(result.shape) == (2, layer.out_features)
    return int(weight.shape[-2])


@pytest.mark.parametrize(
    ("outputs", "dtype", "rows"),
    [
        (1025, torch.float16, 1032),
        (1025, torch.bfloat16, 1032),
        (1032, torch.float16, 1032),
        (1025, torch.float32, 1025),
        (1001, torch.float16, 1001),
    ],
    ids=["fp16", "bf16", "a multiple", "fp32", "few"],
)
def test_outputs_of_a_linear_layer(outputs: int, dtype: torch.dtype, rows: int) -> None:
    assert rows_of_weight(nn.Linear(16, outputs, dtype=dtype)) == rows
