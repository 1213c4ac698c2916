"""The operators of recurrent layers compute PyTorch's layers, and say how their results lie in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn

from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.graph import recurrent
from torchtrt_bridge.graph.nodes import is_random
from torchtrt_bridge.graph.torch_internals import new_export_mode
from torchtrt_bridge.options import Options
from torchtrt_bridge.passes.constant_folding import fold_constants

KINDS = {
    "lstm": nn.LSTM(5, 6, num_layers=2, bidirectional=True),
    "projection": nn.LSTM(5, 6, proj_size=2),
    "gru": nn.GRU(5, 6),
    "rnn_tanh": nn.RNN(5, 6, bidirectional=True),
    "rnn_relu": nn.RNN(5, 6, nonlinearity="relu"),
}


def arguments(layer: nn.RNNBase, batch_first: bool, **changed: Any) -> tuple[Any, ...]:
    """Return the arguments of a layer's operator, for three sequences of seven steps."""
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    states = [torch.randn(count, 3, layer.proj_size or layer.hidden_size), torch.randn(count, 3, layer.hidden_size)]
    options = {"num_layers": layer.num_layers, "dropout": 0.0, "train": False, **changed}
    return (
        torch.randn(3, 7, 5) if batch_first else torch.randn(7, 3, 5),
        states if isinstance(layer, nn.LSTM) else states[1],
        [weight.detach() for weight in layer._flat_weights],
        True,
        *options.values(),
        layer.bidirectional,
        batch_first,
    )


def operator_of(name: str) -> Any:
    return getattr(recurrent.own, name.replace("projection", "lstm")).default


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_an_operator_computes_pytorchs_layer(name: str, batch_first: bool) -> None:
    values = arguments(KINDS[name], batch_first)
    expected = getattr(torch, name.replace("projection", "lstm"))(*values)
    results = operator_of(name)(*values)
    torch.testing.assert_close(results, expected)
    assert [result.stride() for result in results] == [value.stride() for value in expected]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_fake_results_lie_in_memory_as_the_real_ones(name: str, batch_first: bool) -> None:
    values = arguments(KINDS[name], batch_first)
    mode = new_export_mode()
    with mode:
        fakes = operator_of(name)(*torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, values))
    results = operator_of(name)(*values)
    assert [(fake.shape, fake.stride(), fake.dtype) for fake in fakes] == [
        (result.shape, result.stride(), result.dtype) for result in results
    ]


@pytest.mark.parametrize(
    ("num_layers", "dropout", "train", "expected"),
    [(2, 0.5, True, True), (1, 0.5, True, False), (2, 0.0, True, False), (2, 0.5, False, False)],
)
def test_only_dropout_between_layers_in_training_is_random(
    num_layers: int, dropout: float, train: bool, expected: bool
) -> None:
    layer = nn.GRU(5, 6, num_layers=num_layers)
    values = arguments(layer, False, dropout=dropout, train=train)
    assert is_random(fx.Graph().call_function(recurrent.own.gru.default, values)) == expected


class OfConstants(nn.Module):
    def __init__(self, train: bool) -> None:
        super().__init__()
        self.layer = nn.LSTM(5, 6, num_layers=2, dropout=0.5).train(train)
        self.register_buffer("sequences", torch.randn(7, 3, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(self.sequences)[0]
        return x + y


@pytest.mark.parametrize("train", [False, True])
def test_a_layer_of_constants_is_computed_once_unless_it_is_random(train: bool) -> None:
    module = graph_from_program(export_program(OfConstants(train), (torch.randn(7, 3, 6),))).module
    folded = fold_constants(module, Options())
    left = folded.graph.find_nodes(op="call_function", target=recurrent.own.lstm.default)
    assert len(left) == train


def test_a_graph_for_others_has_pytorchs_operators() -> None:
    module = graph_from_program(export_program(nn.LSTM(5, 6).eval(), (torch.randn(7, 3, 5),))).module
    x = torch.randn(7, 3, 5)
    expected = module(x)
    recurrent.use_pytorchs(module.graph)
    module.recompile()
    assert module.graph.find_nodes(op="call_function", target=torch.ops.aten.lstm.input)
    torch.testing.assert_close(module(x), expected)
    recurrent.use_own(module.graph)
    assert module.graph.find_nodes(op="call_function", target=recurrent.own.lstm.default)
