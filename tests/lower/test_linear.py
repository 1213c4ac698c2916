"""Large linear layers get as many outputs as tensor cores work by, and are summed in parts where they have few rows."""

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


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "dtype", "parts"),
    [
        (2, 512, 768, torch.float16, 4),
        (16, 512, 768, torch.bfloat16, 4),
        (17, 512, 768, torch.float16, 1),
        (1, 512, 768, torch.float16, 4),
        (1, 1536, 768, torch.float16, 4),
        (1, 1536, 768, torch.bfloat16, 4),
        (1, 1504, 768, torch.bfloat16, 1),
        (2, 512, 768, torch.float32, 1),
        (2, 520, 768, torch.float16, 1),
        (2, 256, 768, torch.float16, 1),
        (2, 512, 32768, torch.float16, 1),
    ],
)
@pytest.mark.parametrize("form", ["linear", "addmm"])
def test_parts_of_a_product_of_few_rows(
    rows: int, inputs: int, outputs: int, dtype: torch.dtype, parts: int, form: str
) -> None:
    weight = nn.Parameter(torch.zeros(outputs, inputs, dtype=dtype))
    bias = nn.Parameter(torch.zeros(outputs, dtype=dtype))

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = weight if form == "linear" else nn.Parameter(weight.t().contiguous()), bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if form == "linear":
                return nn.functional.linear(x, self.weight, self.bias)
            return torch.addmm(self.bias, x, self.weight)

    x = torch.zeros(rows, inputs, dtype=dtype)
    captured = graph_from_program(export_program(Product().eval(), (x,)))
    network = network_from_graph(captured.module, libraries.choose("reference"))
    sizes = [tuple(value.shape) for value in network.constants.values() if value.numel() == outputs * inputs]
    (found,) = ([size for size in shape if size != 1] for shape in sizes)
    whole = sorted([inputs // parts, outputs])
    assert sorted(found) == sorted([parts, *whole] if parts > 1 else whole)


@pytest.mark.parametrize(("fp16_accumulation", "rows"), [(False, 2), (True, 1)])
def test_one_row_stands_twice_where_its_products_are_summed_in_fp32(fp16_accumulation: bool, rows: int) -> None:
    model, x = nn.Linear(1536, 768).half().eval(), torch.zeros(1, 1536).half()
    module = graph_from_program(export_program(model, (x,))).module
    network = network_from_graph(module, libraries.choose("reference"), fp16_accumulation=fp16_accumulation).definition
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    (product,) = (layer for layer in layers if "matrix_multiply" in layer.name)
    assert tuple(product.get_input(0).shape) == (4, rows, 384)
