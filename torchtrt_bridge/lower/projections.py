"""Projections: linear layers that read one tensor, as query, key and value of attention do, become one layer.

One product of a wide matrix takes less time than several of its parts. The merged weights are copies, for a network or
for inductor; the graph that PyTorch runs keeps the weights of the user's model.
"""

from __future__ import annotations

import itertools
import operator
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from torchtrt_bridge.graph.edit import constant_of, fake_mode_of, finish, insert_call, insert_constant, is_call
from torchtrt_bridge.graph.memory import memory_of, place_of
from torchtrt_bridge.graph.ops import own
from torchtrt_bridge.graph.torch_internals import tracing_disabled, tracing_lock

if TYPE_CHECKING:
    from torchtrt_bridge.graph.torch_internals import FakeTensorMode

aten = torch.ops.aten
LINEAR = aten.linear.default
QUANTIZE, DEQUANTIZE, DEQUANTIZE_INT4 = own.quantize.default, own.dequantize.default, own.dequantize_int4.default

# Tensor cores and wide loads want sizes and offsets that are multiples of this many elements.
ALIGNMENT = 8

# Key, in the `meta` of a node that computes for several merged layers, of their names: layers of a network have them.
MERGED = "merged_layers"

Group = Sequence[fx.Node]


def merge_projections(module: fx.GraphModule, device: str | None = None) -> list[fx.Node]:
    """Replace linear layers that read the same tensor by one, with their weights side by side, and a split behind it.

    Merges only neighbours, with no other linear layer between them, whose results are wanted together. Weights that
    another call reads too, such as a tied embedding, stay as they are: an engine would hold them twice. Quantized
    weights stay quantized, each with its own scales.
    Changes `module`, and returns the parts of the split. Their fake values are those of the layers, but in PyTorch they
    are views with gaps.
    device: where the merged weights lie; None for where the layers' weights do.
    """
    readers = _readers(module.graph)
    merged = [groups for groups in _groups_by_weights(module.graph) if _have_no_other_readers(groups, readers)]
    if not merged:
        return []
    with tracing_lock(), tracing_disabled(), torch.no_grad():  # fake tensors are of one thread at a time
        parts = [part for groups in merged for part in _merge(groups, fake_mode_of(module), device)]
    finish(module, changed=True)
    return parts


def _groups_by_weights(graph: fx.Graph) -> Iterable[list[Group]]:
    """Return the groups of layers to merge, those of the same weights together: a layer that runs several times."""
    groups: dict[Any, list[Group]] = defaultdict(list)
    layers = [layer for layer in graph.find_nodes(op="call_function", target=LINEAR) if "val" in layer.meta]
    for _, run in itertools.groupby(layers, key=_kind):
        group = [layer for layer in run if _can_join(layer)]
        if len(group) > 1:
            groups[tuple(_identity(read) for layer in group for read in _reads(layer))].append(group)
    return groups.values()


def _kind(layer: fx.Node) -> Any:
    """Return a key that is equal for layers that may be merged: their input and the form of their weights."""
    weight: Any = layer.args[1]
    form = (weight.target, *weight.args[2:]) if _is_quantized(weight) else None
    return _source(layer.args[0]), form, _reads(layer)[0].meta["val"].dtype, layer.meta["val"].dtype


def _source(node: Any) -> Any:
    """Return a key of a layer's input, equal for one value that was quantized several times by equal scales."""
    if is_call(node, DEQUANTIZE) or is_call(node, QUANTIZE):
        return node.target, *map(_source, node.args)
    value = constant_of(node)
    return _identity(node) if value is None or value.numel() > 1 else float(value)


def _can_join(layer: fx.Node) -> bool:
    """Return whether the weights of a layer are constants that stay aligned beside others, with scales by output."""
    weight, scale, bias = _reads(layer)
    value = constant_of(weight)
    if is_call(layer.args[1], DEQUANTIZE) and layer.args[1].args[2] != 0:  # type: ignore[union-attr]
        return False
    if any(read is not None and constant_of(read) is None for read in (scale, bias)):
        return False
    return not layer.kwargs and value is not None and value.dim() == 2 and not value.shape[0] % ALIGNMENT


def _is_quantized(weight: Any) -> bool:
    return is_call(weight, DEQUANTIZE) or is_call(weight, DEQUANTIZE_INT4)


def _reads(layer: fx.Node) -> tuple[Any, Any, Any]:
    """Return the weight of a linear layer, its scales if it is quantized, and its bias."""
    weight: Any = layer.args[1]
    bias = layer.args[2] if len(layer.args) > 2 else None
    return (*weight.args[:2], bias) if _is_quantized(weight) else (weight, None, bias)


def _identity(read: Any) -> Any:
    """Return a key that is equal for reads of one constant; for what is none, itself."""
    value = constant_of(read)
    return read if value is None else (value.dtype, value.shape, *place_of(value))


def _readers(graph: fx.Graph) -> dict[int, set[fx.Node]]:
    """Return the calls that read each constant's memory; tied weights are one memory under several names."""
    readers: dict[int, set[fx.Node]] = defaultdict(set)
    for node in graph.find_nodes(op="get_attr"):
        if (value := constant_of(node)) is not None:
            for user in node.users:
                readers[memory_of(value)].update(user.users if _is_quantized(user) else [user])
    return readers


def _have_no_other_readers(groups: Sequence[Group], readers: dict[int, set[fx.Node]]) -> bool:
    """Return whether only these groups, which have the same weights, read their weights, and each weight once."""
    members = {layer for group in groups for layer in group}
    weights = [_reads(layer)[0] for layer in groups[0]]
    is_each_once = len({_identity(weight) for weight in weights}) == len(weights)
    return is_each_once and all(readers[memory_of(_constant(weight))] <= members for weight in weights)


# The merge -------------------------------------------------------------------------------------------------------


def _merge(groups: Sequence[Group], mode: FakeTensorMode, device: str | None) -> list[fx.Node]:
    """Give groups that have the same weights one layer each, with one copy of the weights; return its parts."""
    group = groups[0]
    weights, scales, biases = zip(*map(_reads, group), strict=True)
    weight = _side_by_side(group, weights, "weight", mode, device)
    if scales[0] is not None:
        dequantize: Any = group[0].args[1]
        scale = _side_by_side(group, scales, "scale", mode, device)
        weight = insert_call(group[0], mode, dequantize.target, weight, scale, *dequantize.args[2:])
        weight.meta[MERGED] = [layer.name for layer in group]
    has_bias = any(read is not None for read in biases)
    bias = _side_by_side(group, biases, "bias", mode, device) if has_bias else None
    return [part for each in groups for part in _replace(each, weight, bias, mode)]


def _side_by_side(
    group: Group, reads: Sequence[fx.Node | None], what: str, mode: FakeTensorMode, device: str | None
) -> fx.Node:
    """Insert one constant, in front of a group, of all that its layers read; zeros for a layer that reads none."""
    values = [None if read is None else _constant(read) for read in reads]
    like = next(value for value in values if value is not None)
    filled = [
        like.new_zeros(width) if value is None else value for value, width in zip(values, _widths(group), strict=True)
    ]
    whole = torch.cat([value.to(device or value.device) for value in filled])
    node = insert_constant(group[0], whole, f"{group[0].name}_{what}", mode)
    node.meta["val"] = node.meta["val"].to(like.device)  # a fake tensor, of the device that PyTorch computes on
    return node


def _widths(group: Group) -> list[int]:
    return [layer.meta["val"].shape[-1] for layer in group]


def _constant(read: fx.Node) -> torch.Tensor:
    value = constant_of(read)
    assert value is not None
    return value


def _replace(group: Group, weight: fx.Node, bias: fx.Node | None, mode: FakeTensorMode) -> list[fx.Node]:
    """Put one layer and a split in the place of a group's first layer, and the parts in the places of all.

    A part has the name of its layer.
    """
    first = group[0]
    whole = insert_call(first, mode, LINEAR, first.args[0], weight, bias)
    split = insert_call(first, mode, aten.split_with_sizes.default, whole, _widths(group), -1)
    whole.meta[MERGED] = split.meta[MERGED] = [layer.name for layer in group]
    parts = []
    for index, layer in enumerate(group):
        part = insert_call(layer, mode, operator.getitem, split, index)
        part.meta["val"] = layer.meta["val"]
        layer.replace_all_uses_with(part)
        layer.graph.erase_node(layer)
        part.name = layer.name
        parts.append(part)
    return parts
