"""Quantized linear layers of one input are one in the network, each with its own scales."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchtrt_bridge as trtb
from tests.huggingface.models import tiny
from tests.lower.networks import assert_computes, lowered, network_of, widths
from tests.passes.case import passed
from tests.quantize.by_hand import linear, own
from tests.quantize.nets import Apply, quantized
from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.options import Options
from torchtrt_bridge.passes import normalize, without_quantization
from torchtrt_bridge.runtime.runners import ReferenceRunner
from torchtrt_bridge.trt import library as libraries


class Quantized(nn.Module):
    """Query, key and value of one quantized input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear(32, 16) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers[0].input(x)
        parts = [F.linear(x, own.dequantize(m.weight, m.scale, 0, torch.float32), m.bias) for m in self.layers]
        return F.scaled_dot_product_attention(*(part[:, None] for part in parts))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_quantized_projections_become_one(precision: str) -> None:
    model, x = Quantized().eval(), torch.randn(2, 5, 32)
    network = network_of(model, x, precision=precision)
    assert widths(network) == [48]
    (values,) = (value for value in network.constants.values() if value.dtype == torch.int8)
    assert torch.equal(values.reshape(48, 32), torch.cat([m.weight for m in model.layers]))
    scales = torch.cat([m.scale for m in model.layers])
    assert any(torch.equal(value, scales) for value in network.constants.values() if value.shape == (48,))
    if precision == "fp32":
        assert_computes(network, model, x)


class Apart(nn.Module):
    """Two layers, each of which quantizes the input itself, as those of a quantized decoder do."""

    def __init__(self, *scales: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear(32, 16) for _ in scales)
        for index, scale in enumerate(scales):
            self.register_buffer(f"scale_{index}", torch.tensor([scale]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        results = []
        for scale, m in zip((self.scale_0, self.scale_1), self.layers, strict=True):
            y = own.dequantize(own.quantize(x, scale, None, torch.int8), scale, None, torch.float32)
            results.append(F.linear(y, own.dequantize(m.weight, m.scale, 0, torch.float32), m.bias))
        return results[0] * results[1]


@pytest.mark.parametrize(("scales", "expected"), [((0.02, 0.02), [32]), ((0.02, 0.03), [16, 16])], ids=str)
def test_inputs_that_are_quantized_apart_are_one_if_their_scales_are_equal(
    scales: tuple[float, float], expected: list[int]
) -> None:
    model, x = Apart(*scales).eval(), torch.randn(2, 5, 32)
    network = network_of(model, x)
    kinds = [network.definition.get_layer(index).type.name for index in range(network.layers)]
    assert widths(network) == expected
    assert kinds.count("QUANTIZE") == len(expected)
    assert_computes(network, model, x)


def in_8_bits(model: nn.Module, **options: Any) -> trtb.QuantizedModel:
    return quantized(model, [torch.randn(2, 5, 16) for _ in range(2)], **options)


SEPARATE: dict[str, nn.Module] = {
    "one of them in floats": Apply(
        lambda m, x: m.one(x) + m.kept(x), one=nn.Linear(16, 8), kept=nn.Linear(16, 8)
    ),
    "of two inputs": Apply(lambda m, x: m.one(x) + m.kept(x.relu()), one=nn.Linear(16, 8), kept=nn.Linear(16, 8)),
}  # fmt: skip


@pytest.mark.parametrize("why", SEPARATE)
def test_other_quantized_layers_stay_apart(why: str) -> None:
    model = in_8_bits(SEPARATE[why], skip=("kept",) if "floats" in why else ())
    network = network_of(model, x := torch.randn(2, 5, 16))
    assert widths(network) == [8, 8]
    assert_computes(network, model, x)


BIASES = {"with biases": (True, True), "without": (False, False), "one of two": (True, False)}


@pytest.mark.parametrize("biases", BIASES)
@pytest.mark.parametrize("dtype", ["int8", "fp8", "int4"])
def test_what_quantize_makes_is_merged(biases: str, dtype: str) -> None:
    one, two = (nn.Linear(16, 8, bias=bias) for bias in BIASES[biases])
    block = {"block_size": 16} if dtype == "int4" else {}
    model = in_8_bits(Apply(lambda m, x: m.one(x) * m.two(x), one=one, two=two), dtype=dtype, **block)
    network = network_of(model, x := torch.randn(2, 5, 16))
    layers = [network.definition.get_layer(index).type.name for index in range(network.layers)]
    assert widths(network) == [16]
    assert layers.count("DEQUANTIZE") == (1 if dtype == "int4" else 2)
    assert_computes(network, model, x)


def test_one_quantized_weight_that_serves_twice_is_not_doubled() -> None:
    model = in_8_bits(Apply(lambda m, x: m.one(x) * m.one(x), one=nn.Linear(16, 8)))
    network = network_of(model, x := torch.randn(2, 5, 16))
    assert widths(network) == [8, 8]
    assert_computes(network, model, x)


def test_projections_are_merged_once_they_are_floats() -> None:
    model, x = Quantized().eval(), torch.randn(2, 5, 32)
    floats = without_quantization(passed(model, x, normalize), Options())
    network = lowered(floats)
    assert widths(network) == [48]
    (result,) = ReferenceRunner(network, libraries.choose("reference"))([x])
    assert float((result - model(x)).norm() / model(x).norm()) < 0.1


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("name", "dtype", "layers"), [("llama", "int8", 9), ("llama", "int4", 9), ("llama", "fp8", 9), ("bert", "int4", 9)]
)
def test_attention_of_a_transformer_has_one_layer_for_its_projections(name: str, dtype: str, layers: int) -> None:
    """Two layers of: query, key and value, output, feed-forward, of which Llama's gate is one with another; a head."""
    model = tiny(name).build(intermediate_size=64)
    inputs = tiny(name).inputs(2, 11)
    block = {"block_size": 16} if dtype == "int4" else {}
    found = quantized(model, [inputs] * 2, dtype=dtype, max_error=None, **block)
    captured = graph_from_program(export_program(found, (), inputs))
    assert len(widths(lowered(normalize(captured.module, Options())))) == layers
