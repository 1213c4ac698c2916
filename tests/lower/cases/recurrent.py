"""Recurrent layers. Their sums run over all steps, so the tests have few of them, and others have hundreds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.lower.case import Case, Rejected
from torchtrt_bridge.graph.recurrent import own
from torchtrt_bridge.lower.converters.recurrent import LEAST_UNITS_OF_ONE_SEQUENCE

FEATURES, SIZE, BATCH, LENGTH = 5, 6, 3, 7


def layer(kind: type[nn.RNNBase], **options: Any) -> nn.RNNBase:
    torch.manual_seed(0)
    return kind(FEATURES, SIZE, **options)


def batches(n: int) -> tuple[torch.Tensor]:
    """Sequences of one length, n of them, with the length first."""
    return (torch.randn(LENGTH, n, FEATURES),)


def batch_first(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, LENGTH, FEATURES),)


def sequences(n: int) -> tuple[torch.Tensor]:
    """Sequences of length n."""
    return (torch.randn(n, BATCH, FEATURES),)


def one_sequence(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(LENGTH, FEATURES),)


def with_state(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(LENGTH, n, FEATURES), torch.randn(4, n, SIZE)


def with_two_states(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(LENGTH, n, FEATURES), torch.randn(4, n, 2), torch.randn(4, n, SIZE)


class WithStates(nn.Module):
    """A layer with its states as arguments of their own."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor, *states: torch.Tensor) -> Any:
        return self.layer(x, states[0] if len(states) == 1 else states)


class WithWeights(nn.Module):
    """A layer whose weights are computed in each call."""

    def forward(self, x: torch.Tensor, *weights: torch.Tensor) -> Any:
        state = x.new_zeros(2, x.shape[1], SIZE)
        return torch.gru(x, state, weights, True, 1, 0.0, False, True, False)


def with_weights(n: int) -> tuple[torch.Tensor, ...]:
    rows = 3 * SIZE
    of_direction = [(rows, FEATURES), (rows, SIZE), (rows,), (rows,)]
    return (torch.randn(LENGTH, n, FEATURES), *(torch.randn(shape) / 2 for shape in 2 * of_direction))


def cases_of(op: Any, kind: type[nn.RNNBase], **options: Any) -> list[Case]:
    """Return what all kinds of layers have in common."""
    both = {"bidirectional": True, "num_layers": 2, **options}
    return [
        Case(op, layer(kind, **options), batches),
        Case(op, layer(kind, **both, batch_first=True), batch_first, name="both-directions"),
        Case(op, layer(kind, **options, bias=False), batches, name="no-bias"),
        Case(op, layer(kind, **options, num_layers=3, dropout=0.5), batches, name="layers"),
        Case(op, kind(FEATURES, LEAST_UNITS_OF_ONE_SEQUENCE, **options), one_sequence, name="unbatched"),
    ]


CASES: list[Case] = [
    *cases_of(own.lstm.default, nn.LSTM),
    *cases_of(own.gru.default, nn.GRU),
    *cases_of(own.rnn_tanh.default, nn.RNN),
    *cases_of(own.rnn_relu.default, nn.RNN, nonlinearity="relu"),
    Case(own.lstm.default, layer(nn.LSTM, proj_size=2), batches, name="projection"),
    Case(
        own.lstm.default,
        WithStates(layer(nn.LSTM, proj_size=2, bias=False, num_layers=2, bidirectional=True)),
        with_two_states,
        name="states-projection",
    ),
    Case(own.gru.default, WithStates(layer(nn.GRU, num_layers=2, bidirectional=True)), with_state, name="states"),
    Case(own.rnn_tanh.default, WithStates(layer(nn.RNN, num_layers=4)), with_state, name="states"),
    Case(own.gru.default, WithWeights(), with_weights, name="weights"),
]


def training(kind: type[nn.RNNBase], **options: Any) -> Any:
    """Return a call of a layer in training mode, whatever the mode of the model around it."""
    trained = layer(kind, num_layers=2, dropout=0.25, **options).train()
    return lambda x: trained.train()(x)


OF_ANY_LENGTH = "the length of its sequences is known only at run time"
REASON = "in training mode, where it drops values between its layers (dropout=0.25)"

REJECTED: list[Rejected] = [
    Rejected(own.lstm.default, training(nn.LSTM), sequences, REASON),
    Rejected(own.gru.default, training(nn.GRU), sequences, REASON),
    Rejected(own.rnn_tanh.default, training(nn.RNN), sequences, REASON),
    Rejected(own.rnn_relu.default, training(nn.RNN, nonlinearity="relu"), sequences, REASON),
    Rejected(own.lstm.default, layer(nn.LSTM), sequences, OF_ANY_LENGTH, name="length", dynamic=True),
    Rejected(own.gru.default, layer(nn.GRU, batch_first=True), batches, OF_ANY_LENGTH, name="length", dynamic=True),
    Rejected(own.gru.default, layer(nn.GRU), one_sequence, "6 units for one sequence", name="units"),
]
