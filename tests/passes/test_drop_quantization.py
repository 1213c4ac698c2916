"""Passes on quantized graphs: quantized values keep their bits, and floats beside them get the precision asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from tests.passes.case import assert_computes, call, calls, constants, passed
from tests.quantize.by_hand import INT8, NETS, Quantized, linear, net, own, quantized_weight
from torchtrt_bridge.graph.ops import pack_int4
from torchtrt_bridge.options import Options
from torchtrt_bridge.passes import drop_quantization, normalize, quantizes, without_quantization, without_rounding

aten = torch.ops.aten
QUANTIZE, DEQUANTIZE, DEQUANTIZE_INT4 = own.quantize.default, own.dequantize.default, own.dequantize_int4.default
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Weight(nn.Module):
    """A linear layer with a weight of 8 or 4 bits alone; `scale` is the largest."""

    def __init__(self, bits: int = 8, scale: float = 0.01) -> None:
        super().__init__()
        self.bits = bits
        values = torch.randint(-8, 8, (4, 32), dtype=INT8)
        self.register_buffer("weight", values if bits == 8 else pack_int4(values))
        self.register_buffer("scale", torch.full((4,) if bits == 8 else (4, 2), scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.bits == 8:
            return F.linear(x, own.dequantize(self.weight, self.scale, 0, torch.float32))
        return F.linear(x, own.dequantize_int4(self.weight, self.scale, 16, torch.float32))


def x_of() -> torch.Tensor:
    return torch.randn(4, 32)


# Fold --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "op"), [(8, DEQUANTIZE), (4, DEQUANTIZE_INT4)])
def test_a_quantized_weight_is_not_folded_to_floats(bits: int, op: Any) -> None:
    model, x = Weight(bits).eval(), x_of()
    module = passed(model, x, normalize)
    assert calls(module) == [op, aten.linear.default]
    assert {value.dtype for value in constants(module)} == {model.weight.dtype, torch.float32}
    assert_computes(module, model, x)


def test_a_float_weight_is_quantized_ahead_of_time() -> None:
    layer = nn.Linear(32, 4, bias=False)
    scale = quantized_weight(layer.weight, 0)[1]

    def model(x: torch.Tensor) -> torch.Tensor:
        integers = own.quantize(layer.weight.detach() * 1, scale, 0, INT8)
        return F.linear(x, own.dequantize(integers, scale, 0, torch.float32))

    x = x_of()
    module = passed(model, x, normalize)
    assert calls(module) == [DEQUANTIZE, aten.linear.default]
    assert INT8 in {value.dtype for value in constants(module)}
    assert_computes(module, model, x)


# Precision ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("name", ["convolutions", "linear layers"])
def test_products_take_dequantized_values_in_half_precision(name: str, precision: str) -> None:
    model, x = net(name)
    module = passed(model, x, normalize, precision=precision)
    products = [n for n in module.graph.nodes if n.target in (aten.convolution.default, aten.linear.default)]
    assert {source.target for node in products for source in node.args[:2]} == {DEQUANTIZE}
    assert {source.meta["val"].dtype for node in products for source in node.args[:2]} == {HALVES[precision]}
    assert_computes(module, model, x, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("precision", HALVES)
def test_scales_stay_fp32(precision: str) -> None:
    module = passed(*net("convolutions"), normalize, precision=precision)
    quantizing = [n for n in module.graph.nodes if n.target in (QUANTIZE, DEQUANTIZE)]
    assert {node.args[1].op for node in quantizing} == {"get_attr"}
    assert {node.args[1].meta["val"].dtype for node in quantizing} == {torch.float32}


def test_4_bits_in_half_precision() -> None:
    model, x = Weight(4).eval(), x_of()
    module = passed(model, x, normalize, precision="fp16")
    assert call(module, DEQUANTIZE_INT4).meta["val"].dtype == torch.float16
    assert_computes(module, model, x, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("bits", "scale"), [(8, 1e3), (4, 1e4)])
def test_a_scale_beyond_fp16_stays_fp32_until_it_is_limited(bits: int, scale: float) -> None:
    model, x = Weight(bits, scale).eval(), x_of() * 1e-3
    module = passed(model, x, normalize, precision="fp16")
    op = DEQUANTIZE if bits == 8 else DEQUANTIZE_INT4
    assert call(module, op).meta["val"].dtype == torch.float32
    assert bool(module(x)[0].isfinite().all())


def test_what_nobody_takes_in_half_precision_stays_fp32() -> None:
    quantized = Quantized(4.0)
    module = passed(lambda x: quantized(x).softmax(1), x_of(), normalize, precision="fp16")
    assert call(module, DEQUANTIZE).meta["val"].dtype == torch.float32
    assert aten._to_copy.default not in calls(module)


def test_the_users_own_half_precision_is_kept() -> None:
    layer = linear(32, 4)

    def model(x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.half(), own.dequantize(layer.weight, layer.scale, 0, torch.float16))

    module = passed(model, x_of(), normalize, precision="bf16")
    assert call(module, DEQUANTIZE).meta["val"].dtype == torch.float16


# Copies in floating point ------------------------------------------------------------------------------------------


def weights_of(module: fx.GraphModule) -> set[torch.dtype]:
    return {value.dtype for name, value in module.named_buffers() if value.dim() > 1}


@pytest.mark.parametrize("name", NETS)
def test_a_copy_without_quantization(name: str) -> None:
    module = passed(*net(name), normalize)
    before = calls(module)
    floats = without_quantization(module, Options())
    assert {QUANTIZE, DEQUANTIZE} & set(calls(floats)) == set()
    assert weights_of(floats) == {torch.float32}
    assert calls(module) == before


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("precision", ["fp32", *HALVES])
def test_a_copy_without_rounding_computes_the_same_with_8_bit_weights(name: str, precision: str) -> None:
    model, x = net(name)
    module = passed(model, x, normalize, precision=precision)
    exact, floats = without_rounding(module), without_quantization(module, Options())
    assert quantizes(module)
    assert not quantizes(exact)
    assert torch.int8 in weights_of(exact)
    with torch.no_grad():
        (result,), (expected,), (rounded,) = exact(x), floats(x), module(x)
    torch.testing.assert_close(result, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))
    if precision == "fp32":
        assert 0 < float((rounded - expected).norm() / expected.norm()) < 0.3


# Drop --------------------------------------------------------------------------------------------------------------


def without(*capabilities: str) -> Any:
    return lambda capability: "planted" if capability in capabilities else None


def dropped(model: Any, x: torch.Tensor, *capabilities: str, **options: Any) -> tuple[fx.GraphModule, dict[str, str]]:
    """Return the normalized graph without quantization that cannot be built, and the reasons by operator."""
    module = passed(model, x, normalize, **options)
    reasons = drop_quantization(module, without(*capabilities))
    module.graph.lint()
    return module, {str(node.target): reason for node, reason in reasons.items()}


def test_nothing_is_dropped_where_all_is_built() -> None:
    model, x = net("convolutions")
    module = passed(model, x, normalize)
    before = calls(module)
    assert drop_quantization(module, without()) == {}
    assert calls(module) == before


@pytest.mark.parametrize("precision", ["fp32", *HALVES])
def test_a_layer_is_handed_floats(precision: str) -> None:
    model, x = net("linear layers")
    module, reasons = dropped(model, x, "int8_linear", precision=precision)
    assert reasons == {"aten.linear.default": "planted"}
    assert {QUANTIZE, DEQUANTIZE} & set(calls(module)) == set()
    assert INT8 not in {value.dtype for value in constants(module)}
    assert_computes(module, model, x, rtol=5e-2, atol=5e-2)  # what quantization cost


def test_a_shared_value_stays_quantized_for_others() -> None:
    quantized, layer = Quantized(4.0), linear(32, 32)

    def model(x: torch.Tensor) -> torch.Tensor:
        x = quantized(x)
        return F.linear(x, own.dequantize(layer.weight, layer.scale, 0, torch.float32)) + x

    module, reasons = dropped(model, x_of(), "int8_linear")
    assert reasons == {"aten.linear.default": "planted"}
    total = call(module, aten.add.Tensor)
    assert total.args[1].target is DEQUANTIZE
    assert call(module, aten.linear.default).args[0].op == "placeholder"


def test_views_are_looked_through() -> None:
    quantized, layer = Quantized(4.0), linear(32, 4)

    def model(x: torch.Tensor) -> torch.Tensor:
        weight = own.dequantize(layer.weight, layer.scale, 0, torch.float32)
        return torch.mm(quantized(x).reshape(-1, 32), weight.t())

    x = torch.randn(2, 3, 32)
    module, reasons = dropped(model, x, "int8_linear")
    assert reasons == {"aten.mm.default": "planted"}
    assert DEQUANTIZE not in calls(module)
    assert_computes(module, model, x, rtol=5e-2, atol=5e-2)


def test_4_bits_become_a_float_weight() -> None:
    model, x = Weight(4).eval(), x_of()
    module, reasons = dropped(model, x, "int4_linear", precision="fp16")
    assert reasons == {"aten.linear.default": "planted"}
    assert DEQUANTIZE_INT4 not in calls(module)
    assert_computes(module, model, x, rtol=1e-2, atol=1e-2)


def test_integers_from_the_caller_cannot_be_dropped() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return own.dequantize(x, torch.ones(1) * 1, None, torch.float32).relu()

    module, reasons = dropped(model, torch.zeros(2, 3, dtype=INT8), "int8_values")
    assert reasons == {}
    assert DEQUANTIZE in calls(module)
