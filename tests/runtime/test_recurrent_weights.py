"""The layer of a call, by which PyTorch joins its weights for cuDNN; on a GPU, that they are joined."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import rnn

from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.graph.nodes import arguments_of, constant_of
from torchtrt_bridge.graph.packed import LAYERS, PADDED_OF_PACKED
from torchtrt_bridge.graph.recurrent import OPERATORS
from torchtrt_bridge.graph.torch_internals import storage_id
from torchtrt_bridge.options import Options
from torchtrt_bridge.passes.packed_sequences import pad_sequences
from torchtrt_bridge.runtime.recurrent_weights import join_recurrent_weights, layer_of

KINDS: list[Any] = [
    pytest.param(nn.LSTM, {"num_layers": 2, "bidirectional": True}, id="lstm"),
    pytest.param(nn.LSTM, {"proj_size": 2, "bias": False}, id="projection"),
    pytest.param(nn.GRU, {"batch_first": True, "num_layers": 2}, id="gru"),
    pytest.param(nn.RNN, {}, id="tanh"),
    pytest.param(nn.RNN, {"nonlinearity": "relu", "bias": False}, id="relu"),
]


def graph_of(kind: type[nn.RNNBase], options: dict[str, Any], device: str = "cpu") -> tuple[torch.fx.GraphModule, Any]:
    """Return the graph of a layer whose weights were copied apart, and the call in it."""
    model = kind(5, 6, **options).to(device).eval()
    module = graph_from_program(export_program(model, (torch.randn(7, 3, 5, device=device),))).module
    for name, value in list(module.named_buffers()):
        setattr(module, name, value.clone())
    (node,) = (node for node in module.graph.nodes if node.target in OPERATORS)
    return module, node


class OfPacked(nn.Module):
    """A layer over packed sequences, whose packed elements are added up where it is to stay as it is."""

    def __init__(self, layer: nn.RNNBase, is_padded: bool) -> None:
        super().__init__()
        self.layer, self.is_padded = layer, is_padded

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=self.layer.batch_first, enforce_sorted=False)
        output, _ = self.layer(packed)
        return rnn.pad_packed_sequence(output, total_length=7)[0] if self.is_padded else output.data.sum(0)


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_the_layer_of_a_call_on_sequences_of_several_lengths(
    kind: type[nn.RNNBase], options: dict[str, Any], is_padded: bool
) -> None:
    model = OfPacked(kind(5, 6, **options), is_padded).eval()
    x = torch.randn(3, 7, 5) if model.layer.batch_first else torch.randn(7, 3, 5)
    module = graph_from_program(export_program(model, (x, torch.tensor([7, 2, 4])))).module
    pad_sequences(module, Options())
    (node,) = (node for node in module.graph.nodes if node.target in LAYERS)
    assert (node.target in PADDED_OF_PACKED.values()) == is_padded
    found = layer_of(node, weights_of(node))
    x = torch.randn(7, 3, 5)  # the operators have the length first
    with torch.no_grad():
        expected = model.layer(x.transpose(0, 1))[0].transpose(0, 1) if model.layer.batch_first else model.layer(x)[0]
        torch.testing.assert_close(found(x)[0], expected)


def weights_of(node: torch.fx.Node) -> list[torch.Tensor]:
    values = [constant_of(read) for read in arguments_of(node)["params"]]
    return [value for value in values if value is not None]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_the_layer_of_a_call_computes_what_the_call_does(kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
    module, node = graph_of(kind, options)
    x = torch.randn(7, 3, 5)
    with torch.no_grad():
        torch.testing.assert_close(layer_of(node, weights_of(node))(x)[0], module(x)[0])


def test_weights_on_the_cpu_stay_as_they_are() -> None:
    module, node = graph_of(nn.LSTM, {})
    before = weights_of(node)
    join_recurrent_weights(module)
    assert all(value is other for value, other in zip(weights_of(node), before, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_weights_on_a_gpu_are_joined(kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
    module, node = graph_of(kind, options, "cuda")
    x = torch.randn(7, 3, 5, device="cuda")
    expected, before = module(x), [value.clone() for value in weights_of(node)]
    assert len(set(map(storage_id, weights_of(node)))) == len(before)
    join_recurrent_weights(module)
    assert len(set(map(storage_id, weights_of(node)))) == 1
    torch.testing.assert_close(weights_of(node), before)
    torch.testing.assert_close(module(x), expected)
