"""Place: write the quantize and dequantize nodes of one choice into a copy of the float graph."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, fx

from torchtrt_bridge.graph import ops
from torchtrt_bridge.graph.edit import constant_of, is_call
from torchtrt_bridge.quantize.calibrate import Calibrated
from torchtrt_bridge.quantize.correct import can_correct, corrected_bias
from torchtrt_bridge.quantize.draft import Draft, after
from torchtrt_bridge.quantize.equalize import equalize
from torchtrt_bridge.quantize.layers import Layer
from torchtrt_bridge.quantize.settings import Observer, Settings
from torchtrt_bridge.quantize.smooth import smooth
from torchtrt_bridge.quantize.statistics import Statistics
from torchtrt_bridge.quantize.thresholds import threshold
from torchtrt_bridge.quantize.weights import DTYPES, quantized_blocks, quantized_weight, rounded_weight, scale_of

aten = torch.ops.aten
QUANTIZE = torch.ops.torchtrt_bridge.quantize.default
DEQUANTIZE = torch.ops.torchtrt_bridge.dequantize.default
ROUND = aten.fake_quantize_per_tensor_affine.default
DEQUANTIZE_INT4 = torch.ops.torchtrt_bridge.dequantize_int4.default

assert ops

# Concatenated activations share a scale where the largest limit is at most this many times the smallest: two of the
# eight bits are lost there. Farther apart each keeps its own, which costs TensorRT the fusion of the concatenation.
FARTHEST_SHARED = 4.0


@dataclasses.dataclass(frozen=True)
class Choice:
    """How a model is quantized.

    alpha: that of SmoothQuant; None for none.
    kept: names of the layers that stay in floating point although they could be quantized.
    """

    method: Observer
    alpha: float | None = None
    equalize: bool = False
    correct_bias: bool = False
    kept: frozenset[str] = frozenset()

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
class Placed:
    """A quantized graph, and the scale of each quantized layer's own input (None for weights only)."""

    module: fx.GraphModule
    scales: dict[str, float | None]


def place(calibrated: Calibrated, choice: Choice, settings: Settings, rehearse: bool = False) -> Placed:
    """The graph with the nodes of `choice`; the float graph stays as it is.

    rehearse: compute the same with rounded weights and PyTorch's own rounding of activations, which is faster.
    """
    draft = Draft(calibrated.graph.module, calibrated.layers, choice.kept, calibrated.observed)
    if settings.dtype == "int4":
        _place_int4(draft, settings.block_size, choice)
        return Placed(draft.finished(), dict.fromkeys((layer.name for layer in draft.layers), None))
    if choice.equalize:
        equalize(draft)
    if choice.alpha is not None:
        smooth(draft, choice.alpha)
    dtype = DTYPES[settings.dtype]
    limits = _limits(draft, choice, settings, dtype)
    inputs = [(layer.name, draft.source(layer.reads[0]).name) for layer in draft.layers]  # the nodes change now
    _Placement(draft, dtype, limits, rehearse).run(choice.correct_bias)
    scales: dict[str, float | None] = {layer: limits[name] / ops.LARGEST[dtype] for layer, name in inputs}
    return Placed(draft.finished(), scales)


# The scales of activations --------------------------------------------------------------------------------------


def _limits(draft: Draft, choice: Choice, settings: Settings, dtype: torch.dtype) -> dict[str, float]:
    """The threshold of each activation as it is read; what is concatenated shares one, unless they are far apart.

    A smoothed activation has two where a layer reads it divided and another one as it is.
    """
    names = {draft.source(read).name: None for layer in draft.layers for read in layer.reads}
    limits = {name: _limit(draft, name, choice.method, settings, dtype) for name in names}
    for group in _concatenated(draft, limits):
        shared = max(limits[name] for name in group)
        limits.update(dict.fromkeys(group, shared))
    return limits


def _limit(draft: Draft, name: str, method: Observer, settings: Settings, dtype: torch.dtype) -> float:
    origin = draft.origins.get(name, name)
    is_whole = name in draft.origins.values()  # what divides it is a product, which others read
    seen, factors = draft.seen[origin], None if is_whole else draft.factors.get(origin)
    if factors is None:
        return _known_threshold(seen, method, dtype, settings.percentile)
    assert seen.channel_max is not None
    peak = float((seen.channel_max.to(factors.device) / factors).max())  # its histogram is not known
    return peak if peak > 0 else 1.0


def _known_threshold(seen: Statistics, method: Observer, dtype: torch.dtype, percentile: float) -> float:
    key = (method, dtype, percentile)
    if key not in seen.thresholds:
        seen.thresholds[key] = threshold(seen, method, dtype, percentile)
    return seen.thresholds[key]


def _concatenated(draft: Draft, limits: dict[str, float]) -> list[set[str]]:
    """Groups of read activations that a concatenation, itself read, puts side by side: TensorRT copies them as they
    are where their scales agree."""
    groups = {name: {name} for name in limits}
    for name in limits:
        node = draft.nodes.get(name)  # None for a product, which is no part of what it is made of
        if node is None or not is_call(node, aten.cat.default):
            continue
        for part in node.all_input_nodes:
            joined = groups[name] | groups.get(part.name, set())
            shared = [limits[each] for each in joined]
            if max(shared) <= FARTHEST_SHARED * min(shared):
                groups.update(dict.fromkeys(joined, joined))
    return list(groups.values())


# The nodes ------------------------------------------------------------------------------------------------------


class _Placement:
    """Each activation is quantized once, and dequantized for each layer that reads it; so is each weight."""

    def __init__(self, draft: Draft, dtype: torch.dtype, limits: dict[str, float], rehearse: bool) -> None:
        self.draft, self.dtype, self.limits, self.rehearse = draft, dtype, limits, rehearse
        self.quantized: dict[str, tuple[fx.Node, fx.Node]] = {}
        self.rounded: dict[str, fx.Node] = {}
        self.weights: dict[Any, tuple[str, str]] = {}

    def run(self, correct_bias: bool) -> None:
        reads = [read for layer in self.draft.layers for read in layer.reads]
        layers = [layer for layer in self.draft.layers if layer.weight is not None]
        for layer in layers:
            weight = self._rounded_weight(layer, correct_bias) if self.rehearse else self._weight(layer, correct_bias)
            self.draft.nodes[layer.node].update_arg(layer.weight, weight)  # type: ignore[arg-type]
        for read, source in [(read, self.draft.source(read)) for read in reads]:
            user = self.draft.nodes[read[0]]
            limit = self.limits[source.name]
            if self.rehearse and self.dtype == torch.int8 and source.meta["val"].dtype == torch.float32:
                user.update_arg(read[1], self._rounded(source, limit))
                continue
            q, scale = self._activation(source, limit)
            user.update_arg(read[1], self.draft.call(user, DEQUANTIZE, q, scale, None, source.meta["val"].dtype))

    def _rounded(self, source: fx.Node, limit: float) -> fx.Node:
        if source.name not in self.rounded:
            scale = limit / ops.LARGEST[self.dtype]
            self.rounded[source.name] = self.draft.call(
                after(source), ROUND, source, scale, 0, -128, 127, on_behalf=source
            )
        return self.rounded[source.name]

    def _rounded_weight(self, layer: Layer, correct_bias: bool) -> fx.Node:
        assert layer.axis is not None
        rounded = rounded_weight(self.draft.weight(layer), layer.axis, self.dtype)
        if correct_bias and can_correct(self.draft, layer):
            _correct(self.draft, layer, rounded)
        return self.draft.constant(self.draft.nodes[layer.node], rounded, f"{layer.node}_weight_rounded")

    def _activation(self, source: fx.Node, limit: float) -> tuple[fx.Node, fx.Node]:
        if source.name not in self.quantized:
            place, draft = after(source), self.draft
            device = source.meta["val"].device
            scale = draft.constant(place, scale_of(limit, self.dtype, device), f"{source.name}_scale")
            q = draft.call(place, QUANTIZE, source, scale, None, self.dtype, on_behalf=source)
            self.quantized[source.name] = q, scale
        return self.quantized[source.name]

    def _weight(self, layer: Layer, correct_bias: bool) -> fx.Node:
        """The dequantized weight of a layer, in front of it."""
        draft, user = self.draft, self.draft.nodes[layer.node]
        weight = draft.weight(layer)
        key = (weight.untyped_storage().data_ptr(), weight.storage_offset(), weight.shape, weight.stride(), layer.axis)
        assert layer.axis is not None
        if key not in self.weights:
            values, scales = quantized_weight(weight, layer.axis, self.dtype)
            hint = f"{layer.node}_weight"
            self.weights[key] = (
                str(draft.constant(user, values, f"{hint}_{_short(self.dtype)}").target),
                str(draft.constant(user, scales, f"{hint}_scale").target),
            )
        with draft.module.graph.inserting_before(user):
            q, scale = (draft.module.graph.get_attr(name) for name in self.weights[key])
        result = draft.call(user, DEQUANTIZE, q, scale, layer.axis, weight.dtype)
        if correct_bias and can_correct(draft, layer):
            _correct(draft, layer, _dequantized(q, scale, layer.axis, weight.dtype))
        return result


def _dequantized(q: fx.Node, scale: fx.Node, axis: int, dtype: torch.dtype) -> Tensor:
    values, scales = constant_of(q), constant_of(scale)
    assert values is not None
    assert scales is not None
    result: Tensor = ops.dequantize(values, scales, axis, dtype)
    return result


def _correct(draft: Draft, layer: Layer, rounded: Tensor) -> None:
    assert layer.bias is not None
    bias = corrected_bias(draft, layer, rounded)
    draft.put_constant(draft.nodes[layer.node], layer.bias, bias, f"{layer.node}_bias")


def _place_int4(draft: Draft, block_size: int, choice: Choice) -> None:
    """4-bit weights for linear layers; an addmm becomes a linear, whose weight has the inputs last."""
    for layer in draft.layers:
        node, weight = draft.nodes[layer.node], draft.weight(layer)
        packed, scales = quantized_blocks(weight if layer.axis == 0 else weight.t(), block_size)
        q = draft.constant(node, packed, f"{layer.node}_weight_int4")
        scale = draft.constant(node, scales, f"{layer.node}_weight_scale")
        dequantized = draft.call(node, DEQUANTIZE_INT4, q, scale, block_size, weight.dtype)
        if choice.correct_bias and can_correct(draft, layer):
            rounded = ops.dequantize_int4(packed, scales, block_size, weight.dtype)
            _correct(draft, layer, rounded if layer.axis == 0 else rounded.t())
        if node.target is aten.addmm.default:
            node.target = aten.linear.default
            node.args = (node.args[1], dequantized, node.args[0])
            node.kwargs = {}
        else:
            node.update_arg(1, dequantized)


def _short(dtype: torch.dtype) -> str:
    return "int8" if dtype == torch.int8 else "fp8"
