"""Recurrent layers stay whole in captured graphs: Dynamo would break the graph at them, `torch.export` unroll them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from torch import nn

from torchtrt_bridge.capture.packed_sequences import packed_sequences_exported, packed_sequences_traced
from torchtrt_bridge.graph.dynamo_internals import enter_in_traces, function_of_backend, recurrent_layers_traced
from torchtrt_bridge.graph.export_internals import refusal, squeezes_read_sizes, traced_as
from torchtrt_bridge.graph.recurrent import PACKED, WHOLE, under_autocast
from torchtrt_bridge.graph.torch_internals import for_this_thread

_OTHERS = {op: under_autocast(own) for op, own in WHOLE.items()} | {op: refusal(op) for op in PACKED}


@contextlib.contextmanager
def recurrent_layers_whole() -> Iterator[None]:
    """Let this thread trace nn.LSTM, nn.GRU and nn.RNN as the operators of `graph.recurrent`.

    A trace ends at sequences that were packed outside of it: PyTorch takes their lengths for numbers, or fails in the
    middle of Dynamo's work. The caller holds the lock under which Dynamo compiles.
    """
    with recurrent_layers_traced(), traced_as(_OTHERS), squeezes_read_sizes():
        yield


@contextlib.contextmanager
def recurrent_layers_exported() -> Iterator[None]:
    """Let this thread export recurrent layers whole, of models too that call `flatten_parameters` before each call.

    That looks at addresses, and tensors of an export have none.
    """
    flatten = nn.RNNBase.flatten_parameters
    nothing = for_this_thread(lambda layer: None, flatten)
    with (
        recurrent_layers_whole(),
        packed_sequences_exported(),
        mock.patch.object(nn.RNNBase, "flatten_parameters", nothing),
    ):
        yield


def watch() -> None:
    """Keep recurrent layers whole from now on where Dynamo traces for a backend that has `on_graph_break`."""
    enter_in_traces(_context_for)


@contextlib.contextmanager
def _context_for(backend: Any) -> Iterator[None]:
    if not hasattr(function_of_backend(backend), "on_graph_break"):
        yield
        return
    with recurrent_layers_whole(), packed_sequences_traced():
        yield
