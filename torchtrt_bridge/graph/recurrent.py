"""The operators of recurrent layers, which stay whole where PyTorch would write out each step of a sequence.

Importing this module registers ``lstm``, ``gru``, ``rnn_tanh`` and ``rnn_relu`` in ``torch.ops.torchtrt_bridge``. Their
arguments and results are those of PyTorch's operators of the same names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from torchtrt_bridge.graph.ops import FLOATS, NAMESPACE
from torchtrt_bridge.graph.ops import own as own

aten = torch.ops.aten

_OPTIONS = (
    "Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, bool bidirectional, bool batch_first"
)
_OF_ONE_STATE = f"(Tensor input, Tensor hx, {_OPTIONS}) -> (Tensor, Tensor)"
_OF_TWO_STATES = f"(Tensor input, Tensor[] hx, {_OPTIONS}) -> (Tensor, Tensor, Tensor)"


def is_random(arguments: Mapping[str, Any]) -> bool:
    """Return whether a call of one of the operators draws random numbers: to drop values between layers in training."""
    return bool(arguments["train"]) and arguments["dropout"] > 0 and arguments["num_layers"] > 1


def _empty(input: Tensor, states: Sequence[Tensor], bidirectional: bool, batch_first: bool) -> tuple[Tensor, ...]:
    """Return tensors laid out as the results: the output lies in memory with the length first, as PyTorch's does."""
    batch, length = input.shape[:2] if batch_first else input.shape[:2][::-1]
    output = input.new_empty((length, batch, states[0].shape[2] * (2 if bidirectional else 1)))
    return output.transpose(0, 1) if batch_first else output, *(input.new_empty(state.shape) for state in states)


def _in_order_of_time(results: Sequence[Tensor], batch_first: bool) -> tuple[Tensor, ...]:
    """Lay the results out as `_empty` does, which copies nothing that lies so already."""
    output, *states = results
    output = output.transpose(0, 1).contiguous().transpose(0, 1) if batch_first else output.contiguous()
    return output, *(state.contiguous() for state in states)


def _register(name: str, schema: str) -> None:
    """Register an operator that computes what PyTorch's of this name does; `hx` is one state, or a list of them."""
    compute = getattr(torch, name)

    @torch.library.custom_op(f"{NAMESPACE}::{name}", mutates_args=(), schema=schema)
    def run(input: Tensor, hx: Any, params: Sequence[Tensor], *options: Any) -> tuple[Tensor, ...]:
        states = pytree.tree_map(Tensor.contiguous, hx)  # cuDNN takes no others
        return _in_order_of_time(compute(input, states, params, *options), batch_first=options[-1])

    @run.register_fake
    def _(input: Tensor, hx: Any, params: Sequence[Tensor], *options: Any) -> tuple[Tensor, ...]:
        *_, bidirectional, batch_first = options
        return _empty(input, pytree.tree_leaves(hx), bidirectional, batch_first)


_register("lstm", _OF_TWO_STATES)
for _name in ("gru", "rnn_tanh", "rnn_relu"):
    _register(_name, _OF_ONE_STATE)


# PyTorch's operators on sequences of the same length, and what stands for each in a captured graph.
WHOLE: dict[Any, Callable[..., Any]] = {
    aten.lstm.input: own.lstm.default,
    aten.gru.input: own.gru.default,
    aten.rnn_tanh.input: own.rnn_tanh.default,
    aten.rnn_relu.input: own.rnn_relu.default,
}

# Those on packed sequences, whose sizes depend on the values of lengths.
PACKED = (
    aten.lstm.data,
    aten.gru.data,
    aten.rnn_tanh.data,
    aten.rnn_relu.data,
    aten._pad_packed_sequence.default,
)


def under_autocast(op: Any) -> Callable[..., Any]:
    """Return a function that calls `op` in the dtype of autocast where that is on, as PyTorch computes its layers."""

    def call(input: Tensor, *args: Any, **kwargs: Any) -> Any:
        device = input.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            cast = functools.partial(_cast, dtype=dtype)
            input, args, kwargs = pytree.tree_map_only(Tensor, cast, (input, args, kwargs))
        return op(input, *args, **kwargs)

    return call


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.dtype in FLOATS else value


OPERATORS = frozenset(WHOLE.values())
_OF_PYTORCH = {own_op: op for op, own_op in WHOLE.items()}


def use_own(graph: fx.Graph) -> None:
    """Call these operators where a graph calls PyTorch's."""
    _replace(graph, WHOLE)


def use_pytorchs(graph: fx.Graph) -> None:
    """Call PyTorch's operators in a graph that is to be read without this package."""
    _replace(graph, _OF_PYTORCH)


def _replace(graph: fx.Graph, others: Mapping[Any, Any]) -> None:
    for node in graph.nodes:
        node.target = others.get(node.target, node.target)
