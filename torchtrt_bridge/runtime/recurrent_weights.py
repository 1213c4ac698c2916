"""Weights of recurrent layers that PyTorch computes: in one block of memory, from which cuDNN reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from torchtrt_bridge.graph.nodes import arguments_of, constant_of
from torchtrt_bridge.graph.packed import own
from torchtrt_bridge.graph.torch_internals import storage_id

# The layer of each operator, how many gates its weights have, and further options of the layer.
_KINDS: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "lstm": (nn.LSTM, 4, {}),
    "gru": (nn.GRU, 3, {}),
    "rnn_tanh": (nn.RNN, 1, {}),
    "rnn_relu": (nn.RNN, 1, {"nonlinearity": "relu"}),
}
_LAYERS = {
    getattr(own, prefix + name).default: kind for name, kind in _KINDS.items() for prefix in ("", "packed_", "padded_")
}


def join_recurrent_weights(root: nn.Module) -> None:
    """Join the weights on a GPU of each recurrent layer in the graphs of `root`.

    cuDNN copies others together in each call, and PyTorch warns of it. A layer's own weights lie so; those that were
    cast to half precision, or copied, have memory of their own.
    """
    for module in root.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                if node.target in _LAYERS:
                    _join(module, node)


def _join(module: fx.GraphModule, node: fx.Node) -> None:
    reads: Any = arguments_of(node)["params"]
    weights = [value for value in map(constant_of, reads) if value is not None and value.is_cuda]
    if len(weights) < len(reads) or len(set(map(storage_id, weights))) == 1:
        return
    layer = layer_of(node, [value.clone() for value in weights])
    layer.flatten_parameters()
    for read, value in zip(reads, layer.parameters(), strict=True):
        setattr(module, str(read.target), value.detach())


def layer_of(node: fx.Node, weights: Sequence[Tensor]) -> nn.RNNBase:
    """Return the layer that a call computes, with these weights in the order of the call's."""
    kind, gates, options = _LAYERS[node.target]
    arguments = arguments_of(node)
    hidden = weights[1].shape[0] // gates
    named: dict[str, Any] = {**options, "bias": arguments["has_biases"], "device": "meta"}
    for name in ("num_layers", "bidirectional", "batch_first"):
        if name in arguments:
            named[name] = arguments[name]
    if weights[1].shape[1] != hidden:
        named["proj_size"] = weights[1].shape[1]
    with torch.inference_mode(False):
        layer: nn.RNNBase = kind(weights[0].shape[1], hidden, **named)
        layer.requires_grad_(False)
        names = [name for name, _ in layer.named_parameters()]
        layer.load_state_dict(dict(zip(names, weights, strict=True)), assign=True)
    return layer.eval()
