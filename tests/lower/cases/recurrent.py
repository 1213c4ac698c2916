"""Recurrent layers. Their sums run over all steps, so the tests have few of them, and others have hundreds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.lower.case import Case, Rejected
from torchtrt_bridge.graph.packed import own
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


class OfLengths(nn.Module):
    """A layer over padded sequences with their lengths, which the op table negates."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor, lengths: torch.Tensor, *states: torch.Tensor) -> Any:
        layer = self.layer
        directions = 2 if layer.bidirectional else 1
        sizes = [layer.proj_size or layer.hidden_size, layer.hidden_size][: 2 if isinstance(layer, nn.LSTM) else 1]
        first = states or [x.new_zeros(layer.num_layers * directions, x.shape[1], size) for size in sizes]
        op = getattr(own, f"padded_{layer.mode.lower()}")
        hx = list(first) if isinstance(layer, nn.LSTM) else first[0]
        options = (layer.bias, layer.num_layers, 0.0, False, layer.bidirectional)
        return op(x, -lengths, hx, list(layer.parameters()), *options)


def lengths_of(n: int) -> torch.Tensor:
    """The lengths of n sequences, unsorted: of all steps, of one, and others."""
    return torch.tensor([LENGTH, 1, 4, 6, 2, 3])[:n]


def of_lengths(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(LENGTH, n, FEATURES), lengths_of(n)


def all_of_one_step(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(LENGTH, n, FEATURES), torch.ones(n, dtype=torch.int64)


def of_lengths_with_state(n: int) -> tuple[torch.Tensor, ...]:
    return *of_lengths(n), torch.randn(4, n, SIZE)


def of_lengths_with_two_states(n: int) -> tuple[torch.Tensor, ...]:
    return *of_lengths(n), torch.randn(4, n, 2), torch.randn(4, n, SIZE)


def with_rows_that_mean_nothing(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences with values beyond their ends that the layers cannot take."""
    x, lengths = of_lengths(n)
    beyond = torch.arange(LENGTH)[:, None] >= lengths
    return x.masked_fill(beyond[..., None], float("nan")), lengths


def cases_of_lengths(op: Any, kind: type[nn.RNNBase], **options: Any) -> list[Case]:
    """Return what all kinds of layers over padded sequences have in common."""
    both = {"bidirectional": True, "num_layers": 2, **options}
    return [
        Case(op, OfLengths(layer(kind, **options)), of_lengths),
        Case(op, OfLengths(layer(kind, **both)), of_lengths, name="both-directions"),
        Case(op, OfLengths(layer(kind, **both, bias=False)), all_of_one_step, name="one-step"),
        Case(op, OfLengths(layer(kind, **options, num_layers=3)), with_rows_that_mean_nothing, name="nan-beyond"),
    ]


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
    *cases_of_lengths(own.padded_lstm.default, nn.LSTM),
    *cases_of_lengths(own.padded_gru.default, nn.GRU),
    *cases_of_lengths(own.padded_rnn_tanh.default, nn.RNN),
    *cases_of_lengths(own.padded_rnn_relu.default, nn.RNN, nonlinearity="relu"),
    Case(
        own.padded_lstm.default,
        OfLengths(layer(nn.LSTM, proj_size=2, num_layers=2, bidirectional=True)),
        of_lengths_with_two_states,
        name="states-projection",
    ),
    Case(
        own.padded_gru.default,
        OfLengths(layer(nn.GRU, num_layers=2, bidirectional=True)),
        of_lengths_with_state,
        name="states",
    ),
]


def training(kind: type[nn.RNNBase], **options: Any) -> Any:
    """Return a call of a layer in training mode, whatever the mode of the model around it."""
    trained = layer(kind, num_layers=2, dropout=0.25, **options).train()
    return lambda x: trained.train()(x)


def any_length(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, BATCH, FEATURES), torch.tensor([n, 1, 2])


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
    *(
        Rejected(
            getattr(own, f"padded_{each.mode.lower()}").default,
            OfLengths(each),
            any_length,
            OF_ANY_LENGTH,
            name="length",
            dynamic=True,
        )
        for each in (layer(nn.LSTM), layer(nn.GRU), layer(nn.RNN), layer(nn.RNN, nonlinearity="relu"))
    ),
]
