"""Q/DQ: insert the quantize and dequantize nodes of one choice into a copy of the float graph."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, fx

from torchtrt_bridge.graph import ops
from torchtrt_bridge.graph.edit import constant_of, is_call
from torchtrt_bridge.graph.memory import place_of
from torchtrt_bridge.quantize.calibration import CalibrationResult
from torchtrt_bridge.quantize.config import Settings
from torchtrt_bridge.quantize.graph_rewrite import GraphRewrite, next_place
from torchtrt_bridge.quantize.layers import QuantizableLayer
from torchtrt_bridge.quantize.ranges import (
    TORCH_DTYPES,
    RangeMethod,
    quantized_blocks,
    quantized_weight,
    rounded_weight,
    scale_of,
    threshold,
)
from torchtrt_bridge.quantize.rescaling import can_correct, corrected_bias, equalize, smooth
from torchtrt_bridge.quantize.statistics import Statistics

aten = torch.ops.aten
QUANTIZE = ops.own.quantize.default
DEQUANTIZE = ops.own.dequantize.default
DEQUANTIZE_INT4 = ops.own.dequantize_int4.default
ROUND = aten.fake_quantize_per_tensor_affine.default

# Concatenated activations share a scale where the largest limit is at most this many times the smallest: two of the
# eight bits are lost there. Farther apart each has its own, which costs TensorRT the fusion of the concatenation.
FARTHEST_SHARED = 4.0


@dataclasses.dataclass(frozen=True)
class Choice:
    """One way to quantize a model.

    alpha: SmoothQuant's; None leaves it out.
    float_layers: names of the layers that stay in floating point although they could be quantized.
    """

    method: RangeMethod
    alpha: float | None = None
    equalize: bool = False
    correct_bias: bool = False
    float_layers: frozenset[str] = frozenset()

    def __str__(self) -> str:
        parts: list[str] = [self.method]
        if self.alpha is not None:
            parts.append(f"SmoothQuant alpha {self.alpha:g}")
        if self.equalize:
            parts.append("equalized channels")
        if self.correct_bias:
            parts.append("corrected biases")
        return ", ".join(parts)


@dataclasses.dataclass
class QdqGraph:
    """A graph with Q/DQ nodes.

    scales: by quantized layer, the scale of its own input (None for weights only).
    divisors: by quantized layer, those of its input's channels, where it is smoothed or equalized.
    """

    module: fx.GraphModule
    scales: dict[str, float | None]
    divisors: dict[str, Tensor] = dataclasses.field(default_factory=dict)


def insert_qdq(calibrated: CalibrationResult, choice: Choice, settings: Settings, simulate: bool = False) -> QdqGraph:
    """Return the graph with the Q/DQ nodes of `choice`; the float graph stays as it is.

    simulate: compute the same with rounded weights and PyTorch's own rounding of activations, which is faster.
    """
    rewrite = GraphRewrite(calibrated.graph.module, calibrated.layers, choice.float_layers, calibrated.observed)
    if settings.dtype == "int4":
        _insert_int4(rewrite, settings.config.block_size, choice.correct_bias)
        return QdqGraph(rewrite.finish(), dict.fromkeys((layer.name for layer in rewrite.layers), None))
    if choice.equalize:
        equalize(rewrite)
    if choice.alpha is not None:
        smooth(rewrite, choice.alpha)
    dtype = TORCH_DTYPES[settings.dtype]
    limits = _limits(rewrite, choice.method, dtype, settings.config.percentile)
    # The nodes change now.
    inputs = [(layer.name, rewrite.source(layer.reads[0]).name) for layer in rewrite.layers]
    origins = {layer.name: rewrite.origin(layer.reads[0]) for layer in rewrite.layers}
    _QdqInsertion(rewrite, dtype, limits, simulate, choice.correct_bias).run()
    scales: dict[str, float | None] = {layer: limits[name] / ops.LARGEST[dtype] for layer, name in inputs}
    divisors = {layer: rewrite.factors[name] for layer, name in origins.items() if name in rewrite.factors}
    return QdqGraph(rewrite.finish(), scales, divisors)


# The scales of activations --------------------------------------------------------------------------------------


def _limits(rewrite: GraphRewrite, method: RangeMethod, dtype: torch.dtype, percentile: float) -> dict[str, float]:
    """Return the threshold of each activation as it is read; concatenated ones share it unless they are far apart.

    A smoothed activation has two where a layer reads it divided and another one as it is.
    """
    names = {rewrite.source(read).name: None for layer in rewrite.layers for read in layer.reads}
    limits = {name: _limit(rewrite, name, method, dtype, percentile) for name in names}
    for group in _concatenated(rewrite, limits):
        shared = max(limits[name] for name in group)
        limits.update(dict.fromkeys(group, shared))
    return limits


def _limit(rewrite: GraphRewrite, name: str, method: RangeMethod, dtype: torch.dtype, percentile: float) -> float:
    origin = rewrite.origins.get(name, name)
    is_whole = name in rewrite.origins.values()  # what divides it is a product, which others read
    statistics, factors = rewrite.observed[origin], None if is_whole else rewrite.factors.get(origin)
    if factors is None:
        return _cached_threshold(statistics, method, dtype, percentile)
    assert statistics.channel_max is not None
    peak = float((statistics.channel_max.to(factors.device) / factors).max())  # its histogram is not known
    return peak if peak > 0 else 1.0


def _cached_threshold(statistics: Statistics, method: RangeMethod, dtype: torch.dtype, percentile: float) -> float:
    key = (method, dtype, percentile)
    if key not in statistics.thresholds:
        statistics.thresholds[key] = threshold(statistics, method, dtype, percentile)
    return statistics.thresholds[key]


def _concatenated(rewrite: GraphRewrite, limits: dict[str, float]) -> list[set[str]]:
    """Group the read activations that a concatenation, itself read, joins.

    TensorRT copies them as they are where their scales agree.
    """
    groups = {name: {name} for name in limits}
    for name in limits:
        node = rewrite.nodes.get(name)  # None for a product, which is no part of what it is made of
        if node is None or not is_call(node, aten.cat.default):
            continue
        for part in node.all_input_nodes:
            joined = groups[name] | groups.get(part.name, set())
            shared = [limits[each] for each in joined]
            if max(shared) <= FARTHEST_SHARED * min(shared):
                groups.update(dict.fromkeys(joined, joined))
    return list(groups.values())


# The nodes ------------------------------------------------------------------------------------------------------


class _QdqInsertion:
    """The insertion into one graph: each activation and weight is quantized once, and dequantized for each reader."""

    def __init__(
        self, rewrite: GraphRewrite, dtype: torch.dtype, limits: dict[str, float], simulate: bool, correct_bias: bool
    ) -> None:
        self.rewrite, self.dtype, self.limits = rewrite, dtype, limits
        self.simulate, self.correct_bias = simulate, correct_bias
        self.quantized: dict[str, tuple[fx.Node, fx.Node]] = {}
        self.rounded: dict[str, fx.Node] = {}
        self.weights: dict[Any, tuple[str, str]] = {}

    def run(self) -> None:
        """Insert the nodes of all weights, then those of all activations."""
        reads = [read for layer in self.rewrite.layers for read in layer.reads]
        layers = [layer for layer in self.rewrite.layers if layer.weight is not None]
        for layer in layers:
            weight = self._rounded_weight(layer) if self.simulate else self._weight(layer)
            self.rewrite.nodes[layer.node].update_arg(layer.weight, weight)  # type: ignore[arg-type]
        for read, source in [(read, self.rewrite.source(read)) for read in reads]:
            user = self.rewrite.nodes[read[0]]
            limit = self.limits[source.name]
            if self.simulate and self.dtype == torch.int8 and source.meta["val"].dtype == torch.float32:
                user.update_arg(read[1], self._rounded(source, limit))
                continue
            q, scale = self._activation(source, limit)
            user.update_arg(read[1], self.rewrite.call(user, DEQUANTIZE, q, scale, None, source.meta["val"].dtype))

    def _rounded(self, source: fx.Node, limit: float) -> fx.Node:
        if source.name not in self.rounded:
            scale = limit / ops.LARGEST[self.dtype]
            self.rounded[source.name] = self.rewrite.call(
                next_place(source), ROUND, source, scale, 0, -128, 127, on_behalf=source
            )
        return self.rounded[source.name]

    def _rounded_weight(self, layer: QuantizableLayer) -> fx.Node:
        assert layer.axis is not None
        rounded = rounded_weight(self.rewrite.weight(layer), layer.axis, self.dtype)
        if self.correct_bias:
            _correct_bias(self.rewrite, layer, rounded)
        return self.rewrite.constant(self.rewrite.nodes[layer.node], rounded, f"{layer.node}_weight_rounded")

    def _activation(self, source: fx.Node, limit: float) -> tuple[fx.Node, fx.Node]:
        if source.name not in self.quantized:
            place, rewrite = next_place(source), self.rewrite
            device = source.meta["val"].device
            scale = rewrite.constant(place, scale_of(limit, self.dtype, device), f"{source.name}_scale")
            q = rewrite.call(place, QUANTIZE, source, scale, None, self.dtype, on_behalf=source)
            self.quantized[source.name] = q, scale
        return self.quantized[source.name]

    def _weight(self, layer: QuantizableLayer) -> fx.Node:
        """Insert the dequantized weight of a layer in front of it."""
        rewrite, user = self.rewrite, self.rewrite.nodes[layer.node]
        weight = rewrite.weight(layer)
        key = (place_of(weight), weight.shape, layer.axis)
        assert layer.axis is not None
        if key not in self.weights:
            values, scales = quantized_weight(weight, layer.axis, self.dtype)
            hint = f"{layer.node}_weight"
            self.weights[key] = (
                str(rewrite.constant(user, values, f"{hint}_{_short(self.dtype)}").target),
                str(rewrite.constant(user, scales, f"{hint}_scale").target),
            )
        with rewrite.module.graph.inserting_before(user):
            q, scale = (rewrite.module.graph.get_attr(name) for name in self.weights[key])
        result = rewrite.call(user, DEQUANTIZE, q, scale, layer.axis, weight.dtype)
        if self.correct_bias:
            _correct_bias(rewrite, layer, _dequantized(q, scale, layer.axis, weight.dtype))
        return result


def _dequantized(q: fx.Node, scale: fx.Node, axis: int, dtype: torch.dtype) -> Tensor:
    values, scales = constant_of(q), constant_of(scale)
    assert values is not None
    assert scales is not None
    result: Tensor = ops.dequantize(values, scales, axis, dtype)
    return result


def _correct_bias(rewrite: GraphRewrite, layer: QuantizableLayer, rounded: Tensor) -> None:
    """Correct the bias of a layer whose weight became `rounded`, where that is possible."""
    if not can_correct(rewrite, layer):
        return
    assert layer.bias is not None
    bias = corrected_bias(rewrite, layer, rounded)
    rewrite.put_constant(rewrite.nodes[layer.node], layer.bias, bias, f"{layer.node}_bias")


def _insert_int4(rewrite: GraphRewrite, block_size: int, correct_bias: bool) -> None:
    """Give linear layers 4-bit weights; an addmm becomes a linear, whose weight has the inputs last."""
    for layer in rewrite.layers:
        node, weight = rewrite.nodes[layer.node], rewrite.weight(layer)
        packed, scales = quantized_blocks(weight if layer.axis == 0 else weight.t(), block_size)
        q = rewrite.constant(node, packed, f"{layer.node}_weight_int4")
        scale = rewrite.constant(node, scales, f"{layer.node}_weight_scale")
        dequantized = rewrite.call(node, DEQUANTIZE_INT4, q, scale, block_size, weight.dtype)
        if correct_bias:
            rounded = ops.dequantize_int4(packed, scales, block_size, weight.dtype)
            _correct_bias(rewrite, layer, rounded if layer.axis == 0 else rounded.t())
        if node.target is aten.addmm.default:
            node.target = aten.linear.default
            node.args = (node.args[1], dequantized, node.args[0])
            node.kwargs = {}
        else:
            node.update_arg(1, dequantized)


def _short(dtype: torch.dtype) -> str:
    return "int8" if dtype == torch.int8 else "fp8"
