"""Smooth: scale the outlying channels of a linear layer's input into its weight.

Xiao et al., "SmoothQuant" (2022): channel j of the input is divided by max|x_j|^alpha / max|w_j|^(1 - alpha).
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from torchtrt_bridge.graph.edit import constant_of
from torchtrt_bridge.quantize.draft import Draft, after
from torchtrt_bridge.quantize.equalize import along_inputs, input_peaks, is_theirs_alone
from torchtrt_bridge.quantize.layers import Layer
from torchtrt_bridge.quantize.observe import known_channels

aten = torch.ops.aten
NORM = aten.layer_norm.default

# What is tried, beginning with 0.9 and 0.6: of the sentence encoder MiniLM 0.5 loses more than no smoothing does, and
# 0.9 is near its best.
ALPHAS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
FIRST_ALPHAS = (0.9, 0.6)

# Channels are outlying above this part of all channels' peaks.
OUTLYING = 0.75


def smooth(draft: Draft, alpha: float) -> None:
    """Smooth the inputs of all linear layers; those of one input together."""
    for name, readers in smoothable(draft).items():
        peaks = draft.seen[name].channel_max
        assert peaks is not None
        peaks = peaks.to(draft.weight(readers[0]).device)
        factors = _factors(peaks, torch.stack([input_peaks(draft, layer) for layer in readers]).amax(0), alpha)
        for layer in readers:
            weight = draft.weight(layer)
            scaled = (weight.float() * along_inputs(draft, layer, factors)).to(weight.dtype)
            assert layer.weight is not None
            draft.put_constant(draft.nodes[layer.node], layer.weight, scaled, f"{layer.node}_w")
        _divide(draft, draft.nodes[name], readers, factors)
        draft.factors[name] = factors


def smoothable(draft: Draft) -> dict[str, list[Layer]]:
    """The inputs of linear layers that share their weights with nothing, and that are not equalized already."""
    return {
        name: readers
        for name, readers in draft.readers().items()
        if name not in draft.factors
        and all(layer.weight is not None and layer.channels == -1 for layer in readers)
        and all(known_channels(draft.seen[name], layer, draft.nodes[name]) is not None for layer in readers)
        and not any(draft.shares_weight(layer) for layer in readers)
    }


def _factors(peaks: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """The divisors of the channels; those with small peaks get room for larger values than the data had.

    Divided by its own peak, each channel would fill the range, and what exceeds its peak in other data is clipped.
    """
    peaks = peaks.clamp(min=float(peaks.float().quantile(OUTLYING)))
    factors = peaks.clamp(min=1e-5) ** alpha / weights.clamp(min=1e-5) ** (1 - alpha)
    return torch.where(peaks > 0, factors.clamp(min=1e-5), 1.0)


def _divide(draft: Draft, node: fx.Node, readers: list[Layer], factors: Tensor) -> None:
    """Divide what the layers read: in the weights of a layer norm that only they read, or else by a product."""
    if is_theirs_alone(draft, node, readers) and _is_scalable(node):
        for index, hint in ((2, "weight"), (3, "bias")):
            value = constant_of(node.args[index])
            assert value is not None
            draft.put_constant(node, index, (value.float() / factors).to(value.dtype), f"{node.name}_{hint}")
        return
    place = after(node)
    inverse = draft.constant(place, (1 / factors).to(node.meta["val"].dtype), f"{node.name}_smooth")
    product = draft.call(place, aten.mul.Tensor, node, inverse, on_behalf=node)
    product.meta["val"] = node.meta["val"]
    for layer in readers:
        draft.nodes[layer.node].update_arg(layer.reads[0][1], product)  # its bias may be the same activation
    draft.origins[product.name] = node.name


def _is_scalable(node: fx.Node) -> bool:
    """Whether it is a layer norm with a weight and a bias of its own."""
    if node.target is not NORM:
        return False
    constants = [constant_of(arg) for arg in node.args[2:4]]
    own = [arg for arg in node.args[2:4] if isinstance(arg, fx.Node) and len(arg.users) == 1]
    return len(constants) == 2 and all(c is not None and c.dim() == 1 for c in constants) and len(own) == 2
