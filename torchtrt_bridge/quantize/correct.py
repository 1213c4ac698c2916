"""Correct: take the mean error that rounded weights make out of the bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section 4.2, with means
that were observed. The padding of convolutions is left out of account.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchtrt_bridge.quantize.draft import Draft
from torchtrt_bridge.quantize.layers import Layer
from torchtrt_bridge.quantize.observe import known_channels


def can_correct(draft: Draft, layer: Layer) -> bool:
    """Whether a layer has a bias per output channel, or can get one, and the means of its inputs are known."""
    seen = draft.seen[draft.origin(layer.reads[0])]
    if layer.weight is None or layer.bias is None or layer.op == "transposed convolution":
        return False
    if known_channels(seen, layer, draft.source(layer.reads[0])) is None:
        return False
    args = draft.nodes[layer.node].args
    if layer.bias >= len(args) or args[layer.bias] is None:
        return layer.bias == 2
    bias = draft.argument(layer, layer.bias)
    return bias is not None and bias.dim() == 1


def corrected_bias(draft: Draft, layer: Layer, rounded: Tensor) -> Tensor:
    """The bias of a layer whose weight became `rounded`, for inputs with the observed means."""
    origin = draft.origin(layer.reads[0])
    mean = draft.seen[origin].channel_mean
    assert mean is not None
    weight = draft.weight(layer)
    mean = mean.to(weight.device)
    if origin in draft.factors:
        mean = mean / draft.factors[origin]
    error = rounded.double() - weight.double()
    shift = _mean_product(draft, layer, error, mean)
    bias = draft.argument(layer, layer.bias)
    old = torch.zeros_like(shift) if bias is None else bias.double()
    return (old - shift).to(weight.dtype if bias is None else bias.dtype)


def _mean_product(draft: Draft, layer: Layer, weight: Tensor, mean: Tensor) -> Tensor:
    """The mean output of each channel for inputs of these means."""
    if layer.op == "convolution":
        groups = int(draft.nodes[layer.node].args[8])  # type: ignore[arg-type]
        per_group = weight.flatten(2).sum(2).unflatten(0, (groups, -1))
        return torch.einsum("goi,gi->go", per_group, mean.view(groups, -1)).flatten()
    return weight @ mean if layer.axis == 0 else mean @ weight
