"""Projections: linear layers that read one tensor, as query, key and value of attention do, become one layer."""

from __future__ import annotations

import itertools
import operator
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from torchtrt_bridge.graph.edit import constant_of, fake_mode_of, finish, insert_call, insert_constant, is_call
from torchtrt_bridge.graph.memory import memory_of
from torchtrt_bridge.graph.nodes import reads_memory, returns_view
from torchtrt_bridge.graph.ops import own
from torchtrt_bridge.graph.torch_internals import symbolic_dispatch
from torchtrt_bridge.lower import why_not
from torchtrt_bridge.options import Options

if TYPE_CHECKING:
    from torchtrt_bridge.graph.torch_internals import FakeTensorMode

aten = torch.ops.aten
LINEAR = aten.linear.default
DEQUANTIZE = own.dequantize.default

# Tensor cores and wide loads want sizes and offsets that are multiples of this many elements.
ALIGNMENT = 8

# The fake values of a layer's result and of the views of it, by node, when the result is a part of a larger tensor.
Views = dict[fx.Node, Any]
Group = dict[fx.Node, Views]


def merge_projections(module: fx.GraphModule, options: Options) -> fx.GraphModule:
    """Replace linear layers that read the same tensor by one, with their weights side by side, and a split behind it.

    Merges only neighbours, with no other linear layer between them, whose results are wanted together. Weights that
    another call reads too, such as a tied embedding, stay as they are. The merged weights are copies. One group is
    merged at a time, and its old weights are dropped, so the graph needs little more memory than before; weights that
    the user's model holds are not freed by that. Quantized weights stay quantized, each with its own scales.
    """
    mode = fake_mode_of(module)
    readers = _readers(module.graph)
    merged = False
    for groups in _groups_by_weights(module.graph, options, mode).values():
        if _have_no_other_readers(groups, readers):
            with torch.no_grad():
                _merge(groups, mode)
            merged = True
    return finish(module, changed=merged)


def _groups_by_weights(graph: fx.Graph, options: Options, mode: FakeTensorMode) -> dict[Any, list[Group]]:
    """Return the groups of layers to merge, by their weights: a layer that runs several times is in several groups."""
    groups: dict[Any, list[Group]] = defaultdict(list)
    layers = graph.find_nodes(op="call_function", target=LINEAR)
    for _, run in itertools.groupby(layers, key=_kind):
        group = _as_parts([layer for layer in run if _can_join(layer, options)], mode)
        if group:
            groups[tuple(read for layer in group for read in _reads(layer))].append(group)
    return groups


def _kind(layer: fx.Node) -> Any:
    """Return a key that is equal for layers that may be merged: their input and the form of their weights.

    Two dequantizations of one value count as one input.
    """
    source, values = layer.args[0], _reads(layer)[0].meta["val"]
    read = source.args if is_call(source, DEQUANTIZE) else source  # type: ignore[union-attr]
    return read, is_call(layer.args[1], DEQUANTIZE), values.dtype, layer.meta["val"].dtype


def _can_join(layer: fx.Node, options: Options) -> bool:
    """Return whether TensorRT runs a layer, and its weights are constants that stay aligned beside others."""
    weight, scale, bias = _reads(layer)
    value = constant_of(weight)
    if scale is not None and (constant_of(scale) is None or layer.args[1].args[2] != 0):  # type: ignore[union-attr]
        return False
    if layer.kwargs or value is None or value.dim() != 2 or value.shape[0] % ALIGNMENT:
        return False
    if bias is not None and constant_of(bias) is None:
        return False
    return str(LINEAR) not in options.torch_ops and why_not(layer) is None


def _reads(layer: fx.Node) -> tuple[Any, Any, Any]:
    """Return the weight of a linear layer, its scales if it is quantized, and its bias."""
    weight: Any = layer.args[1]
    bias = layer.args[2] if len(layer.args) > 2 else None
    return (*weight.args[:2], bias) if is_call(weight, DEQUANTIZE) else (weight, None, bias)


def _readers(graph: fx.Graph) -> dict[int, set[fx.Node]]:
    """Return the calls that read each constant's memory; tied weights are one memory under several names."""
    readers: dict[int, set[fx.Node]] = defaultdict(set)
    for node in graph.find_nodes(op="get_attr"):
        for user in node.users if constant_of(node) is not None else ():
            readers[_memory(node)].update(user.users if is_call(user, DEQUANTIZE) else [user])
    return readers


def _memory(read: fx.Node) -> int:
    value = constant_of(read)
    assert value is not None
    return memory_of(value)


def _have_no_other_readers(groups: Sequence[Group], readers: dict[int, set[fx.Node]]) -> bool:
    """Return whether only these groups, which have the same weights, read their weights, and each weight once."""
    members = {layer for group in groups for layer in group}
    weights = [_reads(layer)[0] for layer in groups[0]]
    return len(set(weights)) == len(weights) and all(readers[_memory(weight)] <= members for weight in weights)


# Parts of a tensor, which are not contiguous ---------------------------------------------------------------------


def _as_parts(layers: Sequence[fx.Node], mode: FakeTensorMode) -> Group:
    """Return the group of these layers; an empty one if one layer is alone, or a result needs memory of its own."""
    if len(layers) < 2:
        return {}
    value, widths = layers[0].meta["val"], _widths(layers)
    with mode:
        parts = value.new_empty((*value.shape[:-1], sum(widths))).split(widths, -1)
    group = {}
    for layer, part in zip(layers, parts, strict=True):
        views = _views(layer, part, mode)
        if views is None:
            return {}
        group[layer] = views
    return group


def _widths(layers: Iterable[fx.Node]) -> list[int]:
    return [layer.meta["val"].shape[-1] for layer in layers]


def _views(layer: fx.Node, part: torch.Tensor, mode: FakeTensorMode) -> Views | None:
    """Return the fake values of all views of a layer's result if that result is `part`.

    Returns None if a view needs the result in memory of its own: PyTorch runs this graph too.
    """
    values: Views = {layer: part}
    waiting = [user for user in layer.users if _depends_on_memory(user)]
    while waiting:
        view = waiting.pop()
        if reads_memory(view):
            return None
        args, kwargs = fx.map_arg((view.args, view.kwargs), lambda n: values.get(n, n.meta["val"]))
        try:
            with symbolic_dispatch(mode):
                values[view] = view.target(*args, **kwargs)  # type: ignore[operator]
        except (RuntimeError, ValueError):
            return None
        waiting += [user for user in view.users if _depends_on_memory(user)]
    return values


def _depends_on_memory(node: fx.Node) -> bool:
    return node.target is operator.getitem or returns_view(node) or reads_memory(node)


# The merge -------------------------------------------------------------------------------------------------------


def _merge(groups: Sequence[Group], mode: FakeTensorMode) -> None:
    """Give groups that have the same weights one layer each, with one copy of the weights side by side."""
    first = next(iter(groups[0]))
    reads = [_reads(layer) for layer in groups[0]]
    weights, scales, biases = zip(*reads, strict=True)
    weight = _side_by_side(groups[0], weights, "weight", mode)
    if scales[0] is not None:
        scale = _side_by_side(groups[0], scales, "scale", mode)
        weight = insert_call(first, mode, DEQUANTIZE, weight, scale, 0, first.args[1].meta["val"].dtype)  # type: ignore[union-attr]
    has_bias = any(read is not None for read in biases)
    bias = _side_by_side(groups[0], biases, "bias", mode) if has_bias else None
    for group in groups:
        _replace(group, weight, bias, mode)
    _let_go(read for each in reads for read in each)


def _side_by_side(group: Group, reads: Sequence[fx.Node | None], what: str, mode: FakeTensorMode) -> fx.Node:
    """Insert one constant, in front of a group, of all that its layers read; zeros for a layer that reads none."""
    first = next(iter(group))
    values = [None if read is None else _constant(read) for read in reads]
    like = next(value for value in values if value is not None)
    filled = [
        like.new_zeros(width) if value is None else value for value, width in zip(values, _widths(group), strict=True)
    ]
    return insert_constant(first, torch.cat(filled), f"{first.name}_{what}", mode)


def _constant(read: fx.Node) -> torch.Tensor:
    value = constant_of(read)
    assert value is not None
    return value


def _replace(group: Group, weight: fx.Node, bias: fx.Node | None, mode: FakeTensorMode) -> None:
    """Put one layer and a split in the place of a group's first layer, and the parts in the places of all."""
    first = next(iter(group))
    whole = insert_call(first, mode, LINEAR, first.args[0], weight, bias)
    parts = insert_call(first, mode, aten.split_with_sizes.default, whole, _widths(group), -1)
    for index, (layer, values) in enumerate(group.items()):
        part = insert_call(layer, mode, operator.getitem, parts, index)
        for node, value in values.items():
            node.meta["val"] = value
            _copy_for_the_caller(node, mode)
        layer.replace_all_uses_with(part)
        layer.graph.erase_node(layer)


def _copy_for_the_caller(node: fx.Node, mode: FakeTensorMode) -> None:
    """Copy a result of the graph: a part of a larger tensor would keep that alive, and have other strides."""
    for output in [user for user in node.users if user.op == "output"]:
        output.replace_input_with(node, insert_call(output, mode, aten.clone.default, node))


def _let_go(reads: Iterable[fx.Node | None]) -> None:
    """Free constants that no call reads any more, before the next group is copied."""
    for read in dict.fromkeys(reads):
        for user in [] if read is None else list(read.users):
            if is_call(user, DEQUANTIZE) and not user.users:
                user.graph.erase_node(user)
        if read is None or read.users:
            continue
        graph, name = read.graph, str(read.target)
        graph.erase_node(read)
        if all(other.target != name for other in graph.find_nodes(op="get_attr")):
            delattr(graph.owning_module, name)
