"""Projections: linear layers of one input become one, as the query, key and value of attention."""

from __future__ import annotations

import itertools
import operator
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode

from torchtrt_bridge.lower import why_not
from torchtrt_bridge.normalize.graph import constant_of, fake_mode_of, finish, insert_call, insert_constant
from torchtrt_bridge.options import Options
from torchtrt_bridge.schema import returns_view

aten = torch.ops.aten
LINEAR = aten.linear.default

# Tensor cores and wide loads want sizes and offsets that are multiples of this many elements.
ALIGNMENT = 8

# The fake values of a layer's result and of the views of it, by node, when the result is a part of a larger tensor.
Views = dict[fx.Node, Any]
Group = dict[fx.Node, Views]


def merge_projections(module: fx.GraphModule, options: Options) -> fx.GraphModule:
    """Replace linear layers that read the same tensor by one, with their weights side by side, and a split behind it.

    Only neighbours are merged, with no other linear layer between them: what they give is wanted together. Weights
    that something else reads too, as a tied embedding, stay as they are. The merged weights are copies; one group is
    merged at a time, and lets the old ones go, so the graph needs little more memory than it had. Weights that the
    user's model holds are not freed by that.
    """
    mode = fake_mode_of(module)
    readers = _readers(module.graph)
    merged = False
    for groups in _groups_by_weights(module.graph, options, mode).values():
        if _are_theirs_alone(groups, readers):
            with torch.no_grad():
                _merge(groups, mode)
            merged = True
    return finish(module, changed=merged)


def _groups_by_weights(graph: fx.Graph, options: Options, mode: FakeTensorMode) -> dict[Any, list[Group]]:
    """Groups of layers to merge; those with the same weights, as of a layer that is run several times, together."""
    groups: dict[Any, list[Group]] = defaultdict(list)
    layers = graph.find_nodes(op="call_function", target=LINEAR)
    for _, run in itertools.groupby(layers, key=lambda layer: layer.args[0]):
        group = _as_parts([layer for layer in run if _can_join(layer, options)], mode)
        if group:
            groups[tuple(read for layer in group for read in _reads(layer))].append(group)
    return groups


def _can_join(layer: fx.Node, options: Options) -> bool:
    """Whether TensorRT will run a layer, whose weights are constants that stay aligned beside others."""
    weight, bias = _reads(layer)
    value = constant_of(weight)
    if layer.kwargs or value is None or value.dim() != 2 or value.shape[0] % ALIGNMENT:
        return False
    if bias is not None and constant_of(bias) is None:
        return False
    return str(LINEAR) not in options.torch_ops and why_not(layer) is None


def _reads(layer: fx.Node) -> tuple[Any, Any]:
    """Weight and bias of a linear layer."""
    return layer.args[1], layer.args[2] if len(layer.args) > 2 else None


def _readers(graph: fx.Graph) -> dict[int, set[fx.Node]]:
    """The calls that read each constant's memory; tied weights are one memory under several names."""
    readers: dict[int, set[fx.Node]] = defaultdict(set)
    for node in graph.find_nodes(op="get_attr"):
        readers[_memory(node)].update(node.users)
    return readers


def _memory(read: fx.Node) -> int:
    value = constant_of(read)
    assert value is not None
    return value.untyped_storage().data_ptr()


def _are_theirs_alone(groups: Sequence[Group], readers: dict[int, set[fx.Node]]) -> bool:
    """Whether nothing but these groups, which have the same weights, reads their weights, and each of them once."""
    members = {layer for group in groups for layer in group}
    weights = [_reads(layer)[0] for layer in groups[0]]
    return len(set(weights)) == len(weights) and all(readers[_memory(weight)] <= members for weight in weights)


# Parts of a tensor are not contiguous ----------------------------------------------------------------------------


def _as_parts(layers: Sequence[fx.Node], mode: FakeTensorMode) -> Group:
    """The group of these layers; none where there is nothing to merge, or a result must have memory of its own."""
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
    """The fake values of all views of a layer's result, when that is `part`.

    None if one of them needs the result in memory of its own: PyTorch runs this graph too.
    """
    values: Views = {layer: part}
    waiting = [user for user in layer.users if _is_view(user)]
    while waiting:
        view = waiting.pop()
        if view.target is aten.as_strided.default:
            return None
        args, kwargs = fx.map_arg((view.args, view.kwargs), lambda n: values.get(n, n.meta["val"]))
        try:
            with mode, enable_python_dispatcher():
                values[view] = view.target(*args, **kwargs)  # type: ignore[operator]
        except (RuntimeError, ValueError):
            return None
        waiting += [user for user in view.users if _is_view(user)]
    return values


def _is_view(node: fx.Node) -> bool:
    return node.target is operator.getitem or returns_view(node)


# The merge -------------------------------------------------------------------------------------------------------


def _merge(groups: Sequence[Group], mode: FakeTensorMode) -> None:
    """Give groups that have the same weights one layer each, with one copy of the weights side by side."""
    first = next(iter(groups[0]))
    reads = [_reads(layer) for layer in groups[0]]
    weights = [_constant(weight) for weight, _ in reads]
    biases = [None if bias is None else _constant(bias) for _, bias in reads]
    weight = insert_constant(first, torch.cat(weights), f"{first.name}_weight", mode)
    bias = None
    if any(value is not None for value in biases):
        filled = [w.new_zeros(w.shape[0]) if b is None else b for w, b in zip(weights, biases, strict=True)]
        bias = insert_constant(first, torch.cat(filled), f"{first.name}_bias", mode)
    for group in groups:
        _replace(group, weight, bias, mode)
    _let_go(read for pair in reads for read in pair)


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
    """What the graph returns is no part of a larger tensor: that would live as long, and have other strides."""
    for output in [user for user in node.users if user.op == "output"]:
        output.replace_input_with(node, insert_call(output, mode, aten.clone.default, node))


def _let_go(reads: Iterable[fx.Node | None]) -> None:
    """Free constants that no call reads any more, before the next group is copied."""
    for read in dict.fromkeys(reads):
        if read is None or read.users:
            continue
        graph, name = read.graph, str(read.target)
        graph.erase_node(read)
        if all(other.target != name for other in graph.find_nodes(op="get_attr")):
            delattr(graph.owning_module, name)
