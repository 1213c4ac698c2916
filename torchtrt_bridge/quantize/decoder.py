"""Quantized models that keep their class: a copy of the user's model with other layers, so that `generate` stays.

A graph stands for one call, and `generate` makes calls of many kinds: prompts and single tokens, with caches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from torchtrt_bridge.errors import CalibrationError
from torchtrt_bridge.graph import ops
from torchtrt_bridge.graph.edit import constant_of, is_call
from torchtrt_bridge.quantize.calibration import CalibrationResult
from torchtrt_bridge.quantize.layers import nodes_by_name
from torchtrt_bridge.quantize.qdq import DEQUANTIZE, DEQUANTIZE_INT4, QdqGraph

aten = torch.ops.aten


class QuantizedLinear(nn.Module):
    """A linear layer whose weight is of 8 or 4 bits, and whose input may be rounded to 8.

    values: the weight as integers or float8 numbers [outputs, inputs], or packed pairs of 4 bits [outputs, inputs / 2].
    scales: float32 [outputs], or [outputs, inputs / block_size] for 4 bits.
    bias: [outputs], or None.
    block_size: the number of weights with one scale; None for a scale for each output.
    input_scale: float32 [1]; None leaves the input in floating point.
    divisors: by which the channels of the input are divided first [inputs] (SmoothQuant), or None.
    """

    def __init__(
        self,
        values: Tensor,
        scales: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        block_size: int | None = None,
        input_scale: Tensor | None = None,
        divisors: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.dtype, self.block_size = dtype, block_size
        factors = None if divisors is None else (1 / divisors).to(dtype)
        given = {"values": values, "scales": scales, "bias": bias, "input_scale": input_scale, "factors": factors}
        for name, value in given.items():
            self.register_buffer(name, None if value is None else value.detach().clone().contiguous())
        self.values: Tensor
        self.scales: Tensor
        self.bias: Tensor | None
        self.input_scale: Tensor | None
        self.factors: Tensor | None

    @property
    def weight(self) -> Tensor:
        """The weight in floating point [outputs, inputs], as models look at its dtype."""
        if self.block_size is not None:
            result: Tensor = ops.own.dequantize_int4.default(self.values, self.scales, self.block_size, self.dtype)
        else:
            result = ops.own.dequantize.default(self.values, self.scales, 0, self.dtype)
        return result

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output for an input [..., inputs]."""
        if self.factors is not None:
            input = input * self.factors
        if self.input_scale is not None:
            quantized = ops.own.quantize.default(input, self.input_scale, None, self.values.dtype)
            input = ops.own.dequantize.default(quantized, self.input_scale, None, self.dtype)
        return functional.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.values.dtype}, outputs={self.values.shape[0]}, block_size={self.block_size}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Move the layer; CalibrationError for another dtype than the one that its model was quantized in."""
        check_dtype(fn, self.dtype)
        return cast(QuantizedLinear, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]


def check_dtype(fn: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    """Raise CalibrationError where `fn`, of `nn.Module._apply`, would give a quantized model another dtype."""
    if fn(torch.empty(0, dtype=dtype)).dtype != dtype:
        raise CalibrationError(
            f"A quantized model stays in {dtype}. Quantize the model in the dtype that you want, or compile "
            "this one with precision='fp16' or 'bf16'."
        )


def decoder_from(source: nn.Module, calibrated: CalibrationResult, quantized: QdqGraph, report: Any) -> nn.Module:
    """Return a copy of `source`, the user's model, with quantized layers; its `quantization` is the report."""
    nodes = nodes_by_name(quantized.module)
    layers = [layer for layer in calibrated.layers if layer.name in quantized.scales]
    memo: dict[int, Any] = {
        id(source.get_submodule(layer.name)): _module_of(nodes[layer.node], quantized.divisors.get(layer.name))
        for layer in layers
    }
    model = copy.deepcopy(source, memo)
    model.quantization = report
    return model.eval()


def _module_of(node: fx.Node, divisors: Tensor | None) -> QuantizedLinear:
    """Return the module that computes a quantized layer of the graph; `node` is its product."""
    if node.target is aten.addmm.default:
        bias, read, weight = node.args[:3]
    else:
        read, weight, bias = (*node.args, None)[:3]
    assert isinstance(weight, fx.Node)
    constants = [constant_of(argument) for argument in weight.args[:2]]
    values, scales = cast(tuple[Tensor, Tensor], tuple(constants))
    axis_or_block, dtype = cast(tuple[int, torch.dtype], weight.args[2:4])
    own_bias = constant_of(bias)
    if is_call(weight, DEQUANTIZE_INT4):
        return QuantizedLinear(values, scales, own_bias, dtype, block_size=axis_or_block)
    assert is_call(weight, DEQUANTIZE)
    values = values if axis_or_block == 0 else values.t()
    input_scale = constant_of(read.args[1]) if isinstance(read, fx.Node) else None
    return QuantizedLinear(values, scales, own_bias, dtype, input_scale=input_scale, divisors=divisors)
