"""Packed sequences as operators in captured graphs, where Dynamo would break the graph and `torch.export` fail.

While this package traces, functions here stand for PyTorch's. What they put into a graph of Dynamo are PyTorch's own
calls, so that PyTorch computes the graph as ever, with gradients; `torch.export` meets the operators of `graph.packed`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

from torchtrt_bridge.graph.dynamo_internals import functions_traced_as
from torchtrt_bridge.graph.export_internals import flat_weights, padding_functions_replaced, refusal
from torchtrt_bridge.graph.packed import PACKED_LAYERS, own
from torchtrt_bridge.graph.recurrent import under_autocast
from torchtrt_bridge.graph.torch_internals import for_this_thread

aten = torch.ops.aten

# The attribute of the batch sizes in a trace that holds how many sequences were packed, as these sizes cannot be read.
_COUNT = "torchtrt_bridge_count"

LAYERS = (nn.LSTM, nn.GRU, nn.RNN)


# Calls in graphs ---------------------------------------------------------------------------------------------------


def pack_in_graph(input: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """Compute PyTorch's operator; in a trace of `torch.export`, or of Dynamo's, call that of `graph.packed`."""
    if _has_values(input):
        data, batch_sizes = aten._pack_padded_sequence.default(input, lengths, batch_first)
        return data, batch_sizes
    count = input.shape[0 if batch_first else 1]
    is_right = lengths.dim() == 1 and lengths.device.type == "cpu" and lengths.shape[0] == count
    if not is_right or any(isinstance(size, int) and size == 0 for size in input.shape):
        refusal(aten._pack_padded_sequence.default)()  # PyTorch raises its own error
    data, batch_sizes = own.pack_padded_sequence(input, lengths, batch_first)
    setattr(batch_sizes, _COUNT, count)
    return data, batch_sizes


def of_one_count(input: Tensor, lengths: Tensor, dim: int) -> Tensor:
    """Return `input`, of which a trace of `torch.export` is to know that it has as many sequences as there are lengths.

    Dynamo knows it of the arguments of its graph; the dynamic sizes of another trace are sizes of their own at first.
    """
    if not _has_values(input):
        torch._check(input.shape[dim] == lengths.shape[0])
    return input


def pad_in_graph(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    """Compute PyTorch's operator, or call that of `graph.packed`, as `pack_in_graph` does."""
    if _has_values(data):
        op = aten._pad_packed_sequence.default
        padded, lengths = op(data, batch_sizes, batch_first, padding_value, total_length)
    else:
        count = _count(batch_sizes, aten._pad_packed_sequence.default)
        padded, lengths = own.pad_packed_sequence(data, batch_sizes, count, batch_first, padding_value, total_length)
    return padded, lengths


def layer_in_graph(
    name: str, data: Tensor, batch_sizes: Tensor, hx: Any, sizes: Sequence[int], params: Sequence[Tensor], *options: Any
) -> tuple[Tensor, ...]:
    """Compute PyTorch's operator `name`, or call that of `graph.packed`, as `pack_in_graph` does.

    hx: the first states; None for zeros. sizes: how many states there are for a sequence, and the size of each kind.
    """
    op = getattr(aten, name).data
    count = int(batch_sizes[0]) if _has_values(data) else _count(batch_sizes, op)
    layers, *features = sizes
    if hx is None:
        states = [data.new_zeros((layers, count, size)) for size in features]
    else:
        states = [hx] if isinstance(hx, Tensor) else list(hx)
    if not _has_values(data):
        wanted = [(layers, count, size) for size in features]
        fits = data.dim() == 2 and data.shape[1] == params[0].shape[1]
        is_cast = data.device.type == "cpu" and torch.is_autocast_enabled("cpu")  # of each layer in another way
        if is_cast or not fits or [tuple(state.shape) for state in states] != wanted:
            refusal(op)()
        op = under_autocast(PACKED_LAYERS[name])
    results: tuple[Tensor, ...] = op(data, batch_sizes, states if len(features) > 1 else states[0], params, *options)
    return results


def _has_values(value: Any) -> bool:
    return type(value) in (Tensor, nn.Parameter)


def _count(batch_sizes: Tensor, op: Any) -> Any:
    """Return how many sequences were packed; end the trace if that was not in it."""
    return getattr(batch_sizes, _COUNT) if hasattr(batch_sizes, _COUNT) else refusal(op)()


# Functions that are traced in place of PyTorch's -------------------------------------------------------------------


def _pack(input: Tensor, lengths: Tensor, batch_first: bool = False, enforce_sorted: bool = True) -> rnn.PackedSequence:
    """Do what `pack_padded_sequence` does with lengths in a tensor."""
    ordered, order = lengths.to(dtype=torch.int64), None
    if not enforce_sorted:
        dim = 0 if batch_first else 1
        if lengths.dim() == 1 and lengths.size(0) == input.size(dim):
            input = of_one_count(input, lengths, dim)
        ordered, order = torch.sort(ordered, descending=True)
        order = order.to(input.device)
        input = input.index_select(dim, order)
    data, batch_sizes = pack_in_graph(input, ordered, batch_first)
    return rnn.PackedSequence(data, batch_sizes, order, None)


def _pad(
    sequence: rnn.PackedSequence,
    batch_first: bool = False,
    padding_value: float = 0.0,
    total_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Do what `pad_packed_sequence` does."""
    length = sequence.batch_sizes.size(0)
    if total_length is not None:
        if total_length < length:
            raise ValueError(
                "Expected total_length to be at least the length of the longest sequence in input, but got "
                f"total_length={total_length} and max sequence length being {length}"
            )
        length = total_length
    padded, lengths = pad_in_graph(sequence.data, sequence.batch_sizes, batch_first, padding_value, length)
    back = sequence.unsorted_indices
    if back is None:
        return padded, lengths
    return padded.index_select(0 if batch_first else 1, back), lengths[back.cpu()]


def _forward(layer: nn.RNNBase, input: rnn.PackedSequence, hx: Any = None) -> tuple[rnn.PackedSequence, Any]:
    """Do what the `forward` of a recurrent layer does with packed sequences."""
    data, batch_sizes, order, back = input
    directions = 2 if layer.bidirectional else 1
    sizes = [layer.num_layers * directions, layer.proj_size or layer.hidden_size]
    if layer.mode == "LSTM":
        sizes.append(layer.hidden_size)
    if hx is not None:
        hx = layer.permute_hidden(hx, order)
    options = (layer.bias, layer.num_layers, layer.dropout, layer.training, layer.bidirectional)
    output, *last = layer_in_graph(layer.mode.lower(), data, batch_sizes, hx, sizes, flat_weights(layer), *options)
    states: Any = tuple(last) if layer.mode == "LSTM" else last[0]
    return rnn.PackedSequence(output, batch_sizes, order, back), layer.permute_hidden(states, back)


# The traces --------------------------------------------------------------------------------------------------------


def packed_sequences_traced() -> contextlib.AbstractContextManager[None]:
    """Return a context in which Dynamo of this thread traces packed sequences; the caller holds its lock.

    Lengths in a list are numbers to Dynamo, of which each would make another graph: it breaks the graph as ever.
    """
    others: dict[Callable[..., Any], tuple[Callable[..., Any], Callable[[Sequence[type]], bool]]] = {
        rnn.pack_padded_sequence: (_pack, lambda types: issubclass(types[1], Tensor)),
        rnn.pad_packed_sequence: (_pad, lambda types: types[0] is rnn.PackedSequence),
        **{kind.forward: (_forward, lambda types: types[1] is rnn.PackedSequence) for kind in LAYERS},
    }
    return functions_traced_as(others, (of_one_count, pack_in_graph, pad_in_graph, layer_in_graph), rnn.pack_sequence)


@contextlib.contextmanager
def packed_sequences_exported() -> Iterator[None]:
    """Let this thread export packed sequences as the operators of `graph.packed`."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(padding_functions_replaced(pack_in_graph, pad_in_graph))
        for kind in LAYERS:
            forward = for_this_thread(_for_export(kind.forward), kind.forward)
            stack.enter_context(mock.patch.object(kind, "forward", forward))
        yield


def _for_export(forward: Callable[..., Any]) -> Callable[..., Any]:
    def choose(layer: nn.RNNBase, input: Any, hx: Any = None) -> Any:
        if not isinstance(input, rnn.PackedSequence):
            return forward(layer, input, hx)
        layer.check_input(input.data, input.batch_sizes)
        return _forward(layer, input, hx)

    return choose
