"""Rescaling: scales of channels that move between layers, and means that move into biases, before rounding.

Equalizing is that of Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019),
with two changes: the range of a channel is the observed one, not that of the weights before it; and where the next
layer has a scale for each channel anyway, as a depthwise convolution, the channels get equal ranges altogether.
Smoothing is that of Xiao et al., "SmoothQuant" (2022): channel j of a linear layer's input is divided by
max|x_j|^alpha / max|w_j|^(1 - alpha), and its weight takes the factor up.
Bias correction is that of section 4.2 of the first paper, with observed means. It ignores the padding of convolutions.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx

from torchtrt_bridge.graph.edit import constant_of
from torchtrt_bridge.quantize.graph_rewrite import GraphRewrite, next_place
from torchtrt_bridge.quantize.layers import QuantizableLayer
from torchtrt_bridge.quantize.statistics import Statistics

aten = torch.ops.aten

# Functions f with f(s x) = s f(x) for s > 0, which leave the channels where they are; pools do so where these are not
# in the last two dimensions.
POOLS = (aten.max_pool2d.default, aten.avg_pool2d.default)
HOMOGENEOUS = (aten.relu.default, aten.leaky_relu.default, aten.clone.default, *POOLS)
CONVOLUTION = aten.convolution.default
LINEAR = aten.linear.default
NORM = aten.layer_norm.default

# The most by which equalizing scales a channel.
LARGEST_FACTOR = 1e3

# The alphas of SmoothQuant that a search tries, beginning with 0.9 and 0.6: of the sentence encoder MiniLM 0.5 loses
# more than no smoothing does, and 0.9 is near its best.
ALPHAS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
FIRST_ALPHAS = (0.9, 0.6)

# Channels are outlying above this quantile of all channels' peaks.
OUTLYING = 0.75


# Equalizing -----------------------------------------------------------------------------------------------------------


def equalize(rewrite: GraphRewrite) -> None:
    """Scale the channels of all activations that are equalizable."""
    for name, readers in equalizable(rewrite).items():
        node = rewrite.nodes[name]
        peaks = rewrite.observed[name].channel_max
        producer, limit = _producer(rewrite, node)
        assert producer is not None
        assert peaks is not None
        factors = _equalizing_factors(rewrite, peaks.to(rewrite.weight(readers[0]).device), readers)
        _scale_outputs(rewrite, producer, factors)
        if limit is not None:
            _limit_channels(rewrite, limit, _channels(producer), factors)
        for layer in readers:
            _scale_inputs(rewrite, layer, factors)
        rewrite.factors[name] = factors


def equalizable(rewrite: GraphRewrite) -> dict[str, list[QuantizableLayer]]:
    """Return the activations between layers that can take up a scale for each channel, with their readers."""
    found = {}
    for name, readers in rewrite.readers().items():
        node = rewrite.nodes[name]
        producer, _ = _producer(rewrite, node)
        if producer is None or not _read_only_by(rewrite, node, readers):
            continue
        if all(_takes_factors(rewrite, layer, _channels(producer)) for layer in readers):
            found[name] = readers
    return found


def _takes_factors(rewrite: GraphRewrite, layer: QuantizableLayer, channels: int) -> bool:
    """Check if a layer's weight can take up factors along the dimension `channels` of its input."""
    node, source = rewrite.nodes[layer.node], rewrite.source(layer.reads[0])
    return (
        (layer.op == "convolution" or node.target is LINEAR)
        and _known_channels(rewrite.observed[source.name], layer, source) == channels
        and not rewrite.shares_weight(layer)
    )


def _producer(rewrite: GraphRewrite, node: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """Return the layer whose scaled outputs scale `node`, and the limit between the two (ReLU6), if there is one."""
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
    """Return the dimension of the channels in a layer's output."""
    return 1 if producer.target is CONVOLUTION else _rank(producer) - 1


def _rank(node: fx.Node) -> int:
    return cast(int, node.meta["val"].dim())


def _is_relu6(node: fx.Node) -> bool:
    return node.target is aten.hardtanh.default and tuple(node.args[1:]) == (0.0, 6.0)


def _equalizing_factors(rewrite: GraphRewrite, peaks: Tensor, readers: list[QuantizableLayer]) -> Tensor:
    """Return the divisors of the channels; 1.0 for a channel that is always zero."""
    if all(_is_depthwise(rewrite, layer) for layer in readers):
        factors = peaks.clone()
    else:
        weights = torch.stack([_input_peaks(rewrite, layer) for layer in readers]).amax(0)
        factors = (peaks / weights.clamp(min=1e-12)).sqrt()
    is_used = peaks > 0
    if not bool(is_used.any()):
        return torch.ones_like(peaks)
    factors = torch.where(is_used, factors, 1.0)
    factors = factors / factors[is_used].log().mean().exp()
    return torch.where(is_used, factors.clamp(1 / LARGEST_FACTOR, LARGEST_FACTOR), 1.0)


def _is_depthwise(rewrite: GraphRewrite, layer: QuantizableLayer) -> bool:
    is_single = rewrite.weight(layer).shape[1] == 1
    return layer.op == "convolution" and is_single and _groups(rewrite, layer) > 1


def _scale_outputs(rewrite: GraphRewrite, producer: fx.Node, factors: Tensor) -> None:
    weight = constant_of(producer.args[1])
    bias = constant_of(producer.args[2]) if len(producer.args) > 2 else None
    assert weight is not None
    scaled = weight.float() / factors.view(-1, *[1] * (weight.dim() - 1))
    rewrite.put_constant(producer, 1, scaled.to(weight.dtype), f"{producer.name}_w")
    if bias is not None:
        rewrite.put_constant(producer, 2, (bias.float() / factors).to(bias.dtype), f"{producer.name}_b")


def _limit_channels(rewrite: GraphRewrite, relu6: fx.Node, channels: int, factors: Tensor) -> None:
    """Replace a ReLU6 by a ReLU and a limit of its own for each channel; `channels` is their dimension."""
    value = relu6.meta["val"]
    shape = [-1 if dim == channels else 1 for dim in range(_rank(relu6))]
    positive = rewrite.call(relu6, aten.relu.default, relu6.args[0])
    limits = rewrite.constant(relu6, (6.0 / factors).to(value.dtype).view(shape), f"{relu6.name}_limit")
    limited = rewrite.call(relu6, aten.minimum.default, positive, limits)
    relu6.replace_all_uses_with(limited)
    limited.name, relu6.name = relu6.name, f"{relu6.name}_replaced"
    rewrite.nodes[limited.name] = limited
    limited.meta["val"] = value


# Smoothing ------------------------------------------------------------------------------------------------------------


def smooth(rewrite: GraphRewrite, alpha: float) -> None:
    """Smooth the inputs of all linear layers; those of one input together."""
    for name, readers in smoothable(rewrite).items():
        peaks = rewrite.observed[name].channel_max
        assert peaks is not None
        peaks = peaks.to(rewrite.weight(readers[0]).device)
        weights = torch.stack([_input_peaks(rewrite, layer) for layer in readers]).amax(0)
        factors = _smoothing_factors(peaks, weights, alpha)
        for layer in readers:
            _scale_inputs(rewrite, layer, factors)
        _divide(rewrite, rewrite.nodes[name], readers, factors)
        rewrite.factors[name] = factors


def smoothable(rewrite: GraphRewrite) -> dict[str, list[QuantizableLayer]]:
    """Return the inputs of linear layers that are not equalized already, with their readers.

    No other node reads the weights of these layers.
    """
    return {
        name: readers
        for name, readers in rewrite.readers().items()
        if name not in rewrite.factors
        and all(layer.weight is not None and layer.channels == -1 for layer in readers)
        and all(_known_channels(rewrite.observed[name], layer, rewrite.nodes[name]) is not None for layer in readers)
        and not any(rewrite.shares_weight(layer) for layer in readers)
    }


def _smoothing_factors(peaks: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """Return the divisors of the channels; small peaks count as larger ones, with room for larger values than observed.

    Divided by its own peak, each channel would fill the range, and what exceeds its peak in other data is clipped.
    """
    peaks = peaks.clamp(min=float(peaks.float().quantile(OUTLYING)))
    factors = peaks.clamp(min=1e-5) ** alpha / weights.clamp(min=1e-5) ** (1 - alpha)
    return torch.where(peaks > 0, factors.clamp(min=1e-5), 1.0)


def _divide(rewrite: GraphRewrite, node: fx.Node, readers: list[QuantizableLayer], factors: Tensor) -> None:
    """Divide the input of layers: in the weights of a layer norm that only they read, or else by a product."""
    if _read_only_by(rewrite, node, readers) and _is_scalable(node):
        for index, hint in ((2, "weight"), (3, "bias")):
            value = constant_of(node.args[index])
            assert value is not None
            rewrite.put_constant(node, index, (value.float() / factors).to(value.dtype), f"{node.name}_{hint}")
        return
    place = next_place(node)
    inverse = rewrite.constant(place, (1 / factors).to(node.meta["val"].dtype), f"{node.name}_smooth")
    product = rewrite.call(place, aten.mul.Tensor, node, inverse, on_behalf=node)
    product.meta["val"] = node.meta["val"]
    for layer in readers:
        rewrite.nodes[layer.node].update_arg(layer.reads[0][1], product)  # its bias may be the same activation
    rewrite.origins[product.name] = node.name


def _is_scalable(node: fx.Node) -> bool:
    """Check if a node is a layer norm with a weight and a bias of its own."""
    if node.target is not NORM:
        return False
    constants = [constant_of(arg) for arg in node.args[2:4]]
    own = [arg for arg in node.args[2:4] if isinstance(arg, fx.Node) and len(arg.users) == 1]
    return len(constants) == 2 and all(c is not None and c.dim() == 1 for c in constants) and len(own) == 2


# Bias correction ------------------------------------------------------------------------------------------------------


def can_correct(rewrite: GraphRewrite, layer: QuantizableLayer) -> bool:
    """Check if a layer has a bias for each output channel, or can get one, and its inputs' means are known."""
    statistics = rewrite.observed[rewrite.origin(layer.reads[0])]
    if layer.weight is None or layer.bias is None or layer.op == "transposed convolution":
        return False
    if _known_channels(statistics, layer, rewrite.source(layer.reads[0])) is None:
        return False
    args = rewrite.nodes[layer.node].args
    if layer.bias >= len(args) or args[layer.bias] is None:
        return layer.bias == 2
    bias = rewrite.argument(layer, layer.bias)
    return bias is not None and bias.dim() == 1


def corrected_bias(rewrite: GraphRewrite, layer: QuantizableLayer, rounded: Tensor) -> Tensor:
    """Return the bias of a layer whose weight became `rounded`, for inputs with the observed means."""
    origin = rewrite.origin(layer.reads[0])
    mean = rewrite.observed[origin].channel_mean
    assert mean is not None
    weight = rewrite.weight(layer)
    mean = mean.to(weight.device)
    if origin in rewrite.factors:
        mean = mean / rewrite.factors[origin]
    error = rounded.double() - weight.double()
    shift = _mean_product(rewrite, layer, error, mean)
    bias = rewrite.argument(layer, layer.bias)
    old = torch.zeros_like(shift) if bias is None else bias.double()
    return (old - shift).to(weight.dtype if bias is None else bias.dtype)


def _mean_product(rewrite: GraphRewrite, layer: QuantizableLayer, weight: Tensor, mean: Tensor) -> Tensor:
    """Return the mean output of each channel for inputs of these means."""
    if layer.op == "convolution":
        groups = int(rewrite.nodes[layer.node].args[8])  # type: ignore[arg-type]
        per_group = weight.flatten(2).sum(2).unflatten(0, (groups, -1))
        return torch.einsum("goi,gi->go", per_group, mean.view(groups, -1)).flatten()
    return weight @ mean if layer.axis == 0 else mean @ weight


# Channels of a layer's input ------------------------------------------------------------------------------------------


def _known_channels(statistics: Statistics, layer: QuantizableLayer, source: fx.Node) -> int | None:
    """Return the dimension of the channels of `source`, a layer's own input; None where these are not known apart.

    A convolution and a linear layer may read one activation; then its statistics are of the first one's channels.
    """
    if statistics.channel_max is None or statistics.channel_dim is None or layer.channels is None:
        return None
    rank = cast(int, source.meta["val"].dim())
    return layer.channels % rank if statistics.channel_dim % rank == layer.channels % rank else None


def _input_peaks(rewrite: GraphRewrite, layer: QuantizableLayer) -> Tensor:
    """Return the largest absolute weight of each input channel."""
    weight = rewrite.weight(layer).float()
    if layer.op == "convolution":
        groups = _groups(rewrite, layer)
        peaks: Tensor = weight.abs().flatten(2).amax(2).unflatten(0, (groups, -1)).amax(1).flatten()
        return peaks
    assert layer.axis is not None
    return weight.abs().amax(layer.axis)


def _along_inputs(rewrite: GraphRewrite, layer: QuantizableLayer, values: Tensor) -> Tensor:
    """Return `values` of each input channel in a shape that broadcasts with the layer's weight."""
    weight = rewrite.weight(layer)
    if layer.op == "convolution":
        groups = _groups(rewrite, layer)
        each = values.view(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1)
        return each.reshape(weight.shape[0], weight.shape[1], *[1] * (weight.dim() - 2))
    return values.view(1, -1) if layer.axis == 0 else values.view(-1, 1)


def _groups(rewrite: GraphRewrite, layer: QuantizableLayer) -> int:
    return cast(int, rewrite.nodes[layer.node].args[8])


def _read_only_by(rewrite: GraphRewrite, node: fx.Node, readers: list[QuantizableLayer]) -> bool:
    """Check if only these layers read an activation, and each of them only as its own input."""
    is_read_once = all(rewrite.nodes[layer.node].args.count(node) == 1 for layer in readers)
    return is_read_once and {user.name for user in node.users} == {layer.node for layer in readers}


def _scale_inputs(rewrite: GraphRewrite, layer: QuantizableLayer, factors: Tensor) -> None:
    """Scale the weight of a layer for inputs that are divided by `factors`."""
    weight = rewrite.weight(layer)
    scaled = (weight.float() * _along_inputs(rewrite, layer, factors)).to(weight.dtype)
    assert layer.weight is not None
    rewrite.put_constant(rewrite.nodes[layer.node], layer.weight, scaled, f"{layer.node}_w")
