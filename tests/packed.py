"""Models that pack sequences of several lengths, and batches of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import rnn

BATCH, LENGTH, TOKENS = 3, 7, 20

# Lengths of the sequences of a batch: unsorted, all of them full, all of one step.
LENGTHS = [torch.tensor(lengths) for lengths in ([4, 7, 1], [7, 7, 7], [1, 1, 1], [2, 3, 5])]


class Classifier(nn.Module):
    """A classifier of the tokens of a text, of the usual form.

    total: whether results have the length of the batch, and not that of its longest text.
    """

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, total: bool = False, **options: Any) -> None:
        super().__init__()
        self.total = total
        self.embedding = nn.Embedding(TOKENS, 5)
        self.layer = kind(5, 8, batch_first=True, bidirectional=True, **options)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens: torch.Tensor, lengths: Any) -> tuple[torch.Tensor, torch.Tensor]:
        embedded = self.embedding(tokens)
        packed = rnn.pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        output, _ = self.layer(packed)
        total = tokens.shape[1] if self.total else None
        padded, own_lengths = rnn.pad_packed_sequence(output, batch_first=True, total_length=total)
        return self.head(padded), own_lengths


class TextClassifier(Classifier):
    """A classifier of texts by the last states of a layer."""

    def forward(self, tokens: torch.Tensor, lengths: Any) -> Any:
        embedded = self.embedding(tokens)
        packed = rnn.pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        _, last = self.layer(packed)
        states = last[0] if isinstance(last, tuple) else last
        return self.head(torch.cat([states[-2], states[-1]], dim=1))


class OfPacked(nn.Module):
    """A function of a module with layers, of padded sequences and of their lengths."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.layer = nn.LSTM(4, 8, batch_first=True, bidirectional=True)
        self.second = nn.GRU(16, 8)
        self.stacked = nn.LSTM(4, 8, num_layers=2, dropout=0.3, proj_size=3, batch_first=True)
        self.linear, self.norm, self.embedding = nn.Linear(16, 3), nn.LayerNorm(16), nn.Embedding(TOKENS, 4)

    def forward(self, x: torch.Tensor, lengths: Any) -> Any:
        return self.function(self, x, lengths)


def tokens(batch: int = BATCH, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(TOKENS, (batch, length))


def sequences(lengths: torch.Tensor | None = None, beyond: float = 1e4) -> torch.Tensor:
    """Return padded sequences with a number beyond their ends."""
    x = torch.randn(BATCH, LENGTH, 4)
    if lengths is None:
        return x
    return x.masked_fill((torch.arange(LENGTH) >= lengths[:, None])[..., None], beyond)


def pack(x: torch.Tensor, lengths: Any) -> rnn.PackedSequence:
    return rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)


def pad(sequence: rnn.PackedSequence, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return rnn.pad_packed_sequence(sequence, batch_first=True, **{"total_length": LENGTH, **options})


# Functions for `OfPacked` whose layers an engine computes ------------------------------------------------------------


def padded(m: OfPacked, x: torch.Tensor, lengths: Any) -> Any:
    output, states = m.layer(pack(x, lengths))
    return *pad(output, padding_value=-2.5), states


def longest(m: OfPacked, x: torch.Tensor, lengths: Any) -> Any:
    output, _ = m.layer(pack(x, lengths))
    return pad(output, total_length=None)[0].exp()


def longer(m: OfPacked, x: torch.Tensor, lengths: Any) -> Any:
    return pad(m.layer(pack(x, lengths))[0], total_length=LENGTH + 2, padding_value=1.0)


def length_first(m: OfPacked, x: torch.Tensor, lengths: Any) -> Any:
    packed = rnn.pack_padded_sequence(x.transpose(0, 1), lengths, enforce_sorted=False)
    output, _ = m.layer(packed)
    return rnn.pad_packed_sequence(output)


def in_order(m: OfPacked, x: torch.Tensor, lengths: torch.Tensor) -> Any:
    packed = rnn.pack_padded_sequence(x, lengths.sort(descending=True).values, batch_first=True)
    output, states = m.layer(packed)
    return *pad(output), states


def layers_with_calls_between(m: OfPacked, x: torch.Tensor, lengths: Any) -> Any:
    output, _ = m.layer(pack(x, lengths))
    between = nn.functional.dropout(m.norm(output.data).relu() * 2 + 1, 0.5, training=False)
    output, state = m.second(rnn.PackedSequence(between, *output[1:]))
    return pad(output)[0], state


def layer_by_layer(m: OfPacked, x: torch.Tensor, lengths: Any) -> Any:
    output, state = m.second(m.layer(pack(x, lengths))[0])
    return pad(output)[0], state


def states_from_outside(m: OfPacked, x: torch.Tensor, lengths: Any) -> Any:
    first = x[:, 0, :1].expand(-1, 8).repeat(2, 1, 1)
    output, states = m.layer(pack(x, lengths), (first, first + 1))
    return pad(output)[0], states


def twice(m: OfPacked, x: torch.Tensor, lengths: Any) -> Any:
    packed = pack(x, lengths)
    (one, _), (other, states) = m.layer(packed), m.stacked(packed)
    return pad(one)[0], pad(other)[0], states


def embedded_when_packed(m: OfPacked, x: torch.Tensor, lengths: torch.Tensor) -> Any:
    """Numbers beyond the ends are none of the table."""
    beyond = torch.arange(LENGTH) >= lengths[:, None]
    numbers = torch.where(beyond, -1, (x[..., 0].abs() * 3).long().clamp(0, TOKENS - 1))
    packed = pack(numbers, lengths)
    return pad(m.layer(packed._replace(data=m.embedding(packed.data)))[0])[0]


def head_when_packed(m: OfPacked, x: torch.Tensor, lengths: Any) -> Any:
    output, _ = m.layer(pack(x, lengths))
    return pad(output._replace(data=m.linear(output.data).sigmoid()), padding_value=-float("inf"))[0]


def sizes_of_steps(m: OfPacked, x: torch.Tensor, lengths: Any) -> Any:
    output, _ = m.layer(pack(x, lengths))
    return pad(output)[0], output.batch_sizes, output.sorted_indices, output.unsorted_indices


IN_ENGINES = [
    padded,
    longest,
    longer,
    length_first,
    in_order,
    layers_with_calls_between,
    layer_by_layer,
    states_from_outside,
    twice,
    embedded_when_packed,
    head_when_packed,
    sizes_of_steps,
]


# Functions whose layers stay in PyTorch ------------------------------------------------------------------------------


def elements_returned(m: OfPacked, x: torch.Tensor, lengths: Any) -> Any:
    return m.layer(pack(x, lengths))


def elements_added_up(m: OfPacked, x: torch.Tensor, lengths: Any) -> Any:
    output, _ = m.layer(pack(x, lengths))
    return output.data.sum(0), pad(output)[0]


def numbers_of_a_layer(m: OfPacked, x: torch.Tensor, lengths: Any) -> Any:
    output, _ = m.layer(pack(x, lengths))
    numbers = m.linear(output.data).abs().long().clamp(0, TOKENS - 1)
    return pad(rnn.PackedSequence(m.embedding(numbers), *output[1:]))[0]


def elements_of_another_pack(m: OfPacked, x: torch.Tensor, lengths: Any) -> Any:
    one, other = pack(x, lengths), pack(x * 2, lengths)
    return pad(m.layer(rnn.PackedSequence(other.data, *one[1:]))[0])[0]


# The function, and what reads the packed elements.
IN_PYTORCH = [
    (elements_returned, "the caller"),
    (elements_added_up, "aten.sum.dim_IntList"),
    (numbers_of_a_layer, "aten._to_copy.default"),
    (elements_of_another_pack, "torchtrt_bridge.packed_lstm.default"),
]
