"""The operators of sequences of several lengths compute what PyTorch does, and refuse the lengths that it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn.utils import rnn

from torchtrt_bridge.graph import packed
from torchtrt_bridge.graph.nodes import is_random
from torchtrt_bridge.graph.packed import own
from torchtrt_bridge.graph.torch_internals import new_export_mode

LENGTH, FEATURES = 7, 5
LENGTHS = torch.tensor([4, LENGTH, 1])

KINDS = {
    "lstm": nn.LSTM(FEATURES, 6, num_layers=2, bidirectional=True),
    "projection": nn.LSTM(FEATURES, 6, proj_size=2),
    "gru": nn.GRU(FEATURES, 6, bidirectional=True),
    "rnn_tanh": nn.RNN(FEATURES, 6),
    "rnn_relu": nn.RNN(FEATURES, 6, nonlinearity="relu", bias=False),
}


def options_of(layer: nn.RNNBase) -> tuple[Any, ...]:
    return list(layer.parameters()), layer.bias, layer.num_layers, 0.0, False, layer.bidirectional


def states_of(layer: nn.RNNBase) -> Any:
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    states = [torch.randn(count, 3, layer.proj_size or layer.hidden_size), torch.randn(count, 3, layer.hidden_size)]
    return states if isinstance(layer, nn.LSTM) else states[1]


def operator_of(prefix: str, layer: nn.RNNBase) -> Any:
    return getattr(own, f"{prefix}_{layer.mode.lower()}").default


def packed_by_pytorch(layer: nn.RNNBase, x: torch.Tensor, states: Any) -> tuple[rnn.PackedSequence, list[torch.Tensor]]:
    sequence = rnn.pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    output, last = layer(sequence, tuple(states) if isinstance(states, list) else states)
    return output, list(last) if isinstance(last, tuple) else [last]


@pytest.mark.parametrize("name", KINDS)
def test_a_layer_over_padded_sequences_is_pytorchs_over_packed_ones(name: str) -> None:
    layer, x = KINDS[name], torch.randn(LENGTH, 3, FEATURES)
    states = states_of(layer)
    with torch.no_grad():
        output, last = packed_by_pytorch(layer, x, states)
        found, *states_found = operator_of("padded", layer)(x, LENGTHS, states, *options_of(layer))
    torch.testing.assert_close(found, rnn.pad_packed_sequence(output)[0])
    torch.testing.assert_close(states_found, last)


@pytest.mark.parametrize("name", KINDS)
def test_fake_results_lie_in_memory_as_the_real_ones(name: str) -> None:
    layer, x = KINDS[name], torch.randn(LENGTH, 3, FEATURES)
    arguments = (x, LENGTHS, states_of(layer), *options_of(layer))
    mode = new_export_mode()
    with mode, torch.no_grad():
        fakes = operator_of("padded", layer)(
            *torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, arguments)
        )
    with torch.no_grad():
        results = operator_of("padded", layer)(*arguments)
    assert [(fake.shape, fake.stride()) for fake in fakes] == [(value.shape, value.stride()) for value in results]


@pytest.mark.parametrize("name", KINDS)
def test_an_operator_on_packed_sequences_is_pytorchs(name: str) -> None:
    layer, x, states = KINDS[name], torch.randn(LENGTH, 3, FEATURES), states_of(KINDS[name])
    ordered, order = LENGTHS.sort(descending=True)
    by_order = torch.utils._pytree.tree_map(lambda state: state[:, order], states)
    with torch.no_grad():
        data, sizes = own.pack_padded_sequence(x[:, order], ordered, False)
        results = operator_of("packed", layer)(data, sizes, by_order, *options_of(layer))
        output, last = packed_by_pytorch(layer, x, states)
    torch.testing.assert_close(list(results), [output.data, *(state[:, order] for state in last)])


@pytest.mark.parametrize("batch_first", [False, True])
def test_packing_and_padding_are_pytorchs(batch_first: bool) -> None:
    x, ordered = torch.randn(LENGTH, 3, FEATURES), torch.tensor([6, 4, 1])
    x = x.transpose(0, 1).contiguous() if batch_first else x
    expected = rnn.pack_padded_sequence(x, ordered, batch_first)
    data, sizes = own.pack_padded_sequence(x, ordered, batch_first)
    torch.testing.assert_close((data, sizes), tuple(expected[:2]))
    padded, lengths = own.pad_packed_sequence(data, sizes, 3, batch_first, -1.5, LENGTH)
    wanted = rnn.pad_packed_sequence(expected, batch_first, -1.5, LENGTH)
    torch.testing.assert_close((padded, lengths), wanted)
    assert padded.stride() == wanted[0].stride()


def test_the_check_of_lengths_copies_them_and_counts_the_sequences_of_each_step() -> None:
    lengths, sizes = own.batch_sizes(LENGTHS, LENGTH, False, device=torch.device("cpu"))
    assert lengths.tolist() == LENGTHS.tolist()
    assert lengths.data_ptr() != LENGTHS.data_ptr()
    assert sizes.tolist() == [3, 2, 2, 2, 1, 1, 1]


@pytest.mark.parametrize(
    ("lengths", "is_sorted", "message"),
    [
        ([4, 0, 2], False, "Length of all samples has to be greater than 0"),
        ([4, -1, 2], False, "Length of all samples has to be greater than 0"),
        ([2, 4, 2], True, "`lengths` array must be sorted in decreasing order"),
        ([8, 4, 2], False, "Expected lengths of at most 7, which padded sequences have, but got 8"),
        ([9, 9, 9], True, "Expected lengths of at most 7, which padded sequences have, but got 9"),
    ],
)
def test_lengths_that_no_sequences_have_raise(lengths: list[int], is_sorted: bool, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        own.batch_sizes(torch.tensor(lengths), LENGTH, is_sorted, device=torch.device("cpu"))


@pytest.mark.parametrize("op", sorted(packed.LAYERS, key=str), ids=str)
def test_only_dropout_between_layers_in_training_is_random(op: Any) -> None:
    def call(num_layers: int, train: bool) -> fx.Node:
        return fx.Graph().call_function(op, (None, None, None, [], True, num_layers, 0.5, train, False))

    assert is_random(call(2, True))
    assert not is_random(call(1, True))
    assert not is_random(call(2, False))


def test_a_tensor_that_is_read_as_lengths_alone() -> None:
    graph = fx.Graph()
    lengths, both, unread = (graph.placeholder(name) for name in ("lengths", "both", "unread"))
    sort = graph.call_function(torch.ops.aten.sort.default, (lengths, 0, True))
    graph.call_function(own.batch_sizes.default, (graph.call_function(packed.operator.getitem, (sort, 0)), 7, True))
    graph.call_function(own.pack_padded_sequence.default, (both, both, False))
    graph.call_function(torch.ops.aten.neg.default, (both,))
    assert [packed.are_lengths(node) for node in (lengths, both, unread)] == [True, False, False]
