"""Equalize: move the scale of single channels from one layer into the next, so that one range fits all of them.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), with two changes: the
range of a channel is the one that was observed, not that of the weights before it; and where the next layer has a
scale for each channel anyway, as a depthwise convolution, the channels get equal ranges altogether.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx

from torchtrt_bridge.graph.edit import constant_of
from torchtrt_bridge.quantize.draft import Draft
from torchtrt_bridge.quantize.layers import Layer
from torchtrt_bridge.quantize.observe import known_channels

aten = torch.ops.aten

# Functions f with f(s x) = s f(x) for s > 0, which leave the channels where they are; pools do so where these are not
# in the last two dimensions.
POOLS = (aten.max_pool2d.default, aten.avg_pool2d.default)
HOMOGENEOUS = (aten.relu.default, aten.leaky_relu.default, aten.clone.default, *POOLS)
CONVOLUTION = aten.convolution.default
LINEAR = aten.linear.default

# The most by which a channel is scaled.
LARGEST_FACTOR = 1e3


def equalize(draft: Draft) -> None:
    """Scale the channels of all activations that lie between two layers."""
    for name, readers in equalizable(draft).items():
        node = draft.nodes[name]
        peaks = draft.seen[name].channel_max
        producer, limit = _producer(draft, node)
        assert producer is not None
        assert peaks is not None
        factors = _factors(draft, peaks.to(draft.weight(readers[0]).device), readers)
        _scale_outputs(draft, producer, factors)
        if limit is not None:
            _limit_channels(draft, limit, _channels(producer), factors)
        for layer in readers:
            draft.put_constant(
                draft.nodes[layer.node], _weight_index(layer), _scaled_inputs(draft, layer, factors), f"{layer.node}_w"
            )
        draft.factors[name] = factors


def equalizable(draft: Draft) -> dict[str, list[Layer]]:
    """The activations between layers that can take up a scale for each channel, with those that read them."""
    found = {}
    for name, readers in draft.readers().items():
        node = draft.nodes[name]
        producer, _ = _producer(draft, node)
        if producer is None or not is_theirs_alone(draft, node, readers):
            continue
        if all(_takes_factors(draft, layer, _channels(producer)) for layer in readers):
            found[name] = readers
    return found


def is_theirs_alone(draft: Draft, node: fx.Node, readers: list[Layer]) -> bool:
    """Whether only these layers read an activation, and each of them only as its own input."""
    is_read_once = all(draft.nodes[layer.node].args.count(node) == 1 for layer in readers)
    return is_read_once and {user.name for user in node.users} == {layer.node for layer in readers}


def _takes_factors(draft: Draft, layer: Layer, channels: int) -> bool:
    """Whether a layer's weight can take up factors along the dimension `channels` of its input."""
    node, source = draft.nodes[layer.node], draft.source(layer.reads[0])
    return (
        (layer.op == "convolution" or node.target is LINEAR)
        and known_channels(draft.seen[source.name], layer, source) == channels
        and not draft.shares_weight(layer)
    )


def _producer(draft: Draft, node: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """The layer whose scaled outputs give a scaled `node`, and the limit on the way (ReLU6), if there is one."""
    limit: fx.Node | None = None
    is_pooled, last_users = False, 1
    while last_users == 1:
        if node.target in HOMOGENEOUS:
            is_pooled = is_pooled or node.target in POOLS
            node = node.args[0]  # type: ignore[assignment]
        elif _is_relu6(node) and limit is None:
            limit, node = node, node.args[0]  # type: ignore[assignment]
        else:
            break
        last_users = len(node.users)
    is_layer = (node.target is CONVOLUTION and not node.args[6]) or node.target is LINEAR
    weight = constant_of(node.args[1]) if is_layer else None
    if last_users != 1 or weight is None or weight.dim() < 2 or (is_pooled and _channels(node) >= _rank(node) - 2):
        return None, None
    if len(node.args) > 2 and node.args[2] is not None and constant_of(node.args[2]) is None:
        return None, None
    assert isinstance(node.args[1], fx.Node)
    return (node, limit) if len(node.args[1].users) == 1 else (None, None)


def _channels(producer: fx.Node) -> int:
    """The dimension of the channels in what a layer gives."""
    return 1 if producer.target is CONVOLUTION else _rank(producer) - 1


def _rank(node: fx.Node) -> int:
    return cast(int, node.meta["val"].dim())


def _is_relu6(node: fx.Node) -> bool:
    return node.target is aten.hardtanh.default and tuple(node.args[1:]) == (0.0, 6.0)


def _factors(draft: Draft, peaks: Tensor, readers: list[Layer]) -> Tensor:
    """What each channel is divided by; 1.0 for one that is always zero."""
    if all(_is_depthwise(draft, layer) for layer in readers):
        factors = peaks.clone()
    else:
        weights = torch.stack([input_peaks(draft, layer) for layer in readers]).amax(0)
        factors = (peaks / weights.clamp(min=1e-12)).sqrt()
    is_used = peaks > 0
    if not bool(is_used.any()):
        return torch.ones_like(peaks)
    factors = torch.where(is_used, factors, 1.0)
    factors = factors / factors[is_used].log().mean().exp()
    return torch.where(is_used, factors.clamp(1 / LARGEST_FACTOR, LARGEST_FACTOR), 1.0)


def _is_depthwise(draft: Draft, layer: Layer) -> bool:
    is_single = draft.weight(layer).shape[1] == 1
    return layer.op == "convolution" and is_single and _groups(draft, layer) > 1


def _groups(draft: Draft, layer: Layer) -> int:
    return cast(int, draft.nodes[layer.node].args[8])


def input_peaks(draft: Draft, layer: Layer) -> Tensor:
    """The largest absolute weight of each input channel."""
    weight = draft.weight(layer).float()
    if layer.op == "convolution":
        groups = _groups(draft, layer)
        peaks: Tensor = weight.abs().flatten(2).amax(2).unflatten(0, (groups, -1)).amax(1).flatten()
        return peaks
    assert layer.axis is not None
    return weight.abs().amax(layer.axis)


def _scaled_inputs(draft: Draft, layer: Layer, factors: Tensor) -> Tensor:
    """The weight of a layer for inputs that are divided by `factors`."""
    weight = draft.weight(layer)
    return (weight.float() * along_inputs(draft, layer, factors)).to(weight.dtype)


def along_inputs(draft: Draft, layer: Layer, values: Tensor) -> Tensor:
    """`values` of each input channel, in a shape that broadcasts with the layer's weight."""
    weight = draft.weight(layer)
    if layer.op == "convolution":
        groups = _groups(draft, layer)
        each = values.view(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1)
        return each.reshape(weight.shape[0], weight.shape[1], *[1] * (weight.dim() - 2))
    return values.view(1, -1) if layer.axis == 0 else values.view(-1, 1)


def _scale_outputs(draft: Draft, producer: fx.Node, factors: Tensor) -> None:
    weight = constant_of(producer.args[1])
    bias = constant_of(producer.args[2]) if len(producer.args) > 2 else None
    assert weight is not None
    scaled = weight.float() / factors.view(-1, *[1] * (weight.dim() - 1))
    draft.put_constant(producer, 1, scaled.to(weight.dtype), f"{producer.name}_w")
    if bias is not None:
        draft.put_constant(producer, 2, (bias.float() / factors).to(bias.dtype), f"{producer.name}_b")


def _limit_channels(draft: Draft, relu6: fx.Node, channels: int, factors: Tensor) -> None:
    """Replace a ReLU6 by a ReLU and a limit of its own for each channel; `channels` is their dimension."""
    value = relu6.meta["val"]
    shape = [-1 if dim == channels else 1 for dim in range(_rank(relu6))]
    positive = draft.call(relu6, aten.relu.default, relu6.args[0])
    limits = draft.constant(relu6, (6.0 / factors).to(value.dtype).view(shape), f"{relu6.name}_limit")
    limited = draft.call(relu6, aten.minimum.default, positive, limits)
    relu6.replace_all_uses_with(limited)
    limited.name, relu6.name = relu6.name, f"{relu6.name}_replaced"
    draft.nodes[limited.name] = limited
    limited.meta["val"] = value


def _weight_index(layer: Layer) -> int:
    assert layer.weight is not None
    return layer.weight
