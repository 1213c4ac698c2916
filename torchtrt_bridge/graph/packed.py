"""The operators of sequences of several lengths: packed ones, as PyTorch has them, and padded ones with their lengths.

Importing this module registers in ``torch.ops.torchtrt_bridge``: ``pack_padded_sequence`` and ``pad_packed_sequence``;
``packed_lstm``, ``packed_gru``, ``packed_rnn_tanh`` and ``packed_rnn_relu``, which compute what PyTorch's operators of
packed sequences do; ``padded_lstm`` and so on, which compute the same for padded sequences; and ``batch_sizes``.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from torchtrt_bridge.graph.export_internals import size_from_data
from torchtrt_bridge.graph.ops import NAMESPACE
from torchtrt_bridge.graph.ops import own as own

aten = torch.ops.aten

_SIZES_OF_DATA = (torch.Tag.dynamic_output_shape,)
_OPTIONS = "Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, bool bidirectional"


# Packing and padding -----------------------------------------------------------------------------------------------


@torch.library.custom_op(
    f"{NAMESPACE}::pack_padded_sequence",
    mutates_args=(),
    schema="(Tensor input, Tensor lengths, bool batch_first) -> (Tensor, Tensor)",
    tags=_SIZES_OF_DATA,
)
def pack_padded_sequence(input: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """Return the elements of sequences step by step, and how many sequences have each step.

    lengths: int64, in decreasing order; on the CPU, but in a program that was moved to another device.
    """
    data, batch_sizes = aten._pack_padded_sequence.default(input, lengths.cpu(), batch_first)
    return data, batch_sizes


@pack_padded_sequence.register_fake
def _(input: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    steps = input.shape[1 if batch_first else 0]
    batch_sizes = lengths.new_empty((size_from_data(steps),))
    return input.new_empty((size_from_data(), *input.shape[2:])), batch_sizes


@torch.library.custom_op(
    f"{NAMESPACE}::pad_packed_sequence",
    mutates_args=(),
    schema="(Tensor data, Tensor batch_sizes, SymInt batch, bool batch_first, Scalar padding_value, "
    "SymInt total_length) -> (Tensor, Tensor)",
)
def pad_packed_sequence(
    data: Tensor, batch_sizes: Tensor, batch: int, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    """Return padded sequences, and their lengths. `batch` is how many there are."""
    padded, lengths = aten._pad_packed_sequence.default(data, batch_sizes, batch_first, padding_value, total_length)
    return padded, lengths


@pad_packed_sequence.register_fake
def _(
    data: Tensor, batch_sizes: Tensor, batch: int, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    padded = data.new_empty((total_length, batch, *data.shape[1:]))
    return padded.transpose(0, 1) if batch_first else padded, batch_sizes.new_empty((batch,))


@torch.library.custom_op(
    f"{NAMESPACE}::batch_sizes",
    mutates_args=(),
    schema="(Tensor lengths, SymInt steps, bool is_sorted, *, Device device) -> (Tensor, Tensor)",
    tags=_SIZES_OF_DATA,
)
def batch_sizes(lengths: Tensor, steps: int, is_sorted: bool, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a copy of the lengths on a device, and how many sequences have each step, on the CPU.

    steps: the size of the padded sequences. is_sorted: whether the lengths are to be in decreasing order.
    Raises what PyTorch does for lengths that no sequences can have.
    """
    lengths = lengths.cpu()  # they are elsewhere in a program that was moved
    ordered = lengths if is_sorted else lengths.sort(descending=True).values
    _, sizes = aten._pack_padded_sequence.default(torch.empty(steps, len(lengths), 1), ordered, False)
    if len(sizes) > steps:
        raise RuntimeError(f"Expected lengths of at most {steps}, which padded sequences have, but got {len(sizes)}.")
    return lengths.to(device, copy=True), sizes


@batch_sizes.register_fake
def _(lengths: Tensor, steps: int, is_sorted: bool, *, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.empty_like(lengths, device=device), lengths.new_empty((size_from_data(steps),))


# Recurrent layers --------------------------------------------------------------------------------------------------


def _register(name: str, hx: str, states: str) -> None:
    """Register the operators of one kind of layer.

    hx: the type of the first states. states: the types of the last ones.
    """
    compute = getattr(aten, name).data
    result = f"(Tensor, {states})"

    @torch.library.custom_op(
        f"{NAMESPACE}::packed_{name}",
        mutates_args=(),
        schema=f"(Tensor data, Tensor batch_sizes, {hx} hx, {_OPTIONS}) -> {result}",
    )
    def packed(data: Tensor, batch_sizes: Tensor, hx: Any, params: Sequence[Tensor], *options: Any) -> Any:
        return tuple(value.contiguous() for value in compute(data, batch_sizes, hx, params, *options))

    @packed.register_fake
    def _(data: Tensor, batch_sizes: Tensor, hx: Any, params: Sequence[Tensor], *options: Any) -> Any:
        return _empty(data, hx, bidirectional=options[-1])

    @torch.library.custom_op(
        f"{NAMESPACE}::padded_{name}",
        mutates_args=(),
        schema=f"(Tensor input, Tensor lengths, {hx} hx, {_OPTIONS}) -> {result}",
    )
    def padded(input: Tensor, lengths: Tensor, hx: Any, params: Sequence[Tensor], *options: Any) -> Any:
        ordered, order = lengths.cpu().sort(descending=True)
        order = order.to(input.device)
        data, batch_sizes = aten._pack_padded_sequence.default(input.index_select(1, order), ordered, False)
        states = pytree.tree_map(lambda state: state.index_select(1, order), hx)
        output, *last = compute(data, batch_sizes, states, params, *options)
        full, _ = aten._pad_packed_sequence.default(output, batch_sizes, False, 0.0, input.shape[0])
        back = order.argsort()
        return tuple(value.index_select(1, back) for value in (full, *last))

    @padded.register_fake
    def _(input: Tensor, lengths: Tensor, hx: Any, params: Sequence[Tensor], *options: Any) -> Any:
        return _empty(input, hx, bidirectional=options[-1])


def _empty(data: Tensor, hx: Any, bidirectional: bool) -> tuple[Tensor, ...]:
    states = pytree.tree_leaves(hx)
    output = data.new_empty((*data.shape[:-1], states[0].shape[2] * (2 if bidirectional else 1)))
    return output, *(data.new_empty(state.shape) for state in states)


_NAMES = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_register("lstm", "Tensor[]", "Tensor, Tensor")
for _name in _NAMES[1:]:
    _register(_name, "Tensor", "Tensor")


# What stands in a captured graph for a layer over packed sequences, and what computes it for padded ones.
PADDED_OF_PACKED: dict[Any, Any] = {
    getattr(own, f"packed_{name}").default: getattr(own, f"padded_{name}").default for name in _NAMES
}
PACKED_LAYERS: dict[str, Any] = dict(zip(_NAMES, PADDED_OF_PACKED, strict=True))
LAYERS = frozenset((*PADDED_OF_PACKED, *PADDED_OF_PACKED.values()))

# The operators that take or give packed sequences.
OF_PACKED = (own.pack_padded_sequence.default, own.pad_packed_sequence.default, *PADDED_OF_PACKED)

# The place of the lengths among the arguments of the operators that take them, and operators that hand lengths on.
_PLACE_OF_LENGTHS = {own.pack_padded_sequence.default: 1, own.batch_sizes.default: 0}
_OF_LENGTHS = (aten._to_copy.default, aten.sort.default, operator.getitem)


def are_lengths(node: fx.Node) -> bool:
    """Return whether all that reads a tensor takes it for lengths, which may be on any device."""
    return bool(node.users) and all(
        user.args[_PLACE_OF_LENGTHS[user.target]] is node
        if user.target in _PLACE_OF_LENGTHS
        else user.target in _OF_LENGTHS and are_lengths(user)
        for user in node.users
    )


# The key of a node's `meta` for the reason why packed sequences stay in PyTorch.
WHY_PACKED = "torchtrt_bridge_why_packed"


def why_packed(node: fx.Node) -> str | None:
    """Return why a call on packed sequences stays in PyTorch; None if nothing is known of it."""
    reason: str | None = node.meta.get(WHY_PACKED)
    return reason
