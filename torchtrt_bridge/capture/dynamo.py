"""Graphs as Dynamo gives them to a backend: their weights, their dynamic sizes, their outputs that share memory."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from torchtrt_bridge.capture.constant_guard import number_from
from torchtrt_bridge.capture.export import CapturedGraph, export_program, graph_from_program
from torchtrt_bridge.capture.regions import rewrite_regions
from torchtrt_bridge.graph.shapes import is_symbolic
from torchtrt_bridge.graph.torch_internals import is_module_state, source_name, storage_id, tracing_disabled

aten = torch.ops.aten
WEIGHT_PREFIX = "weight_"

# An argument as Dynamo names it: of the user's function, or of one around it that hands on *args and **kwargs.
_LOCAL = re.compile(r"L\['(?:args'\]\[(?P<index>\d+)|kwargs'\]\['(?P<keyword>\w+)'|(?P<name>[^\W_]\w*)')\]")


def capture(
    module: fx.GraphModule, args: Sequence[Any], weights: Sequence[int], numbers: Sequence[int]
) -> tuple[CapturedGraph, list[int]]:
    """Return the functional graph with weights and numbers bound, and the indices of the arguments it still takes."""
    inputs = input_positions(module, args, [*weights, *numbers])
    bound = bind(module, args, weights, numbers)
    shapes = dynamic_shapes(bound)
    with tracing_disabled():  # otherwise torch.export would add to the guards of Dynamo's own trace
        program = export_program(bound, tuple(args[i] for i in inputs), dynamic_shapes=shapes)
    return graph_from_program(program), inputs


def is_same(module: fx.GraphModule, other: fx.GraphModule) -> bool:
    """Return whether two graphs have the same nodes in the same order, on arguments of the same sizes and layouts."""
    order = {node: index for index, node in enumerate(module.graph.nodes)}
    order_of_other = {node: index for index, node in enumerate(other.graph.nodes)}
    return len(order) == len(order_of_other) and all(
        _form(node, order) == _form(twin, order_of_other) for node, twin in zip(order, order_of_other, strict=True)
    )


def _form(node: fx.Node, order: Mapping[fx.Node, int]) -> Any:
    """Return what tells a node from another; an attribute, which may be a graph itself, is like no other."""
    if node.op == "get_attr":
        return object()
    arguments = fx.map_arg((node.args, node.kwargs), lambda n: f"node {order[n]}")
    layout = _layout(node.meta.get("example_value")) if node.op == "placeholder" else None
    return node.op, node.target, repr(arguments), layout


def _layout(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return str(value)
    sizes = [str(size) for size in (*value.shape, *value.stride(), value.storage_offset())]
    return sizes, value.dtype, value.device, value.requires_grad


def weight_positions(module: fx.GraphModule, inputs: Sequence[Any]) -> list[int]:
    """Return the indices of the placeholders that are parameters and buffers of modules, of known sizes."""
    return [
        index
        for index, (node, value) in enumerate(zip(placeholders(module), inputs, strict=True))
        if isinstance(value, torch.Tensor) and is_module_state(node) and not free_dims(node)
    ]


def number_positions(module: fx.GraphModule, inputs: Sequence[Any]) -> list[int]:
    """Return the indices of the placeholders that are Python numbers and not sizes; `dynamic=True` makes such inputs.

    A float is a tensor of one element, an int is a symbol. An int that only counts, as a cache counts its calls, is
    none of them: no tensor depends on it.
    """
    nodes = placeholders(module)
    return [
        index for index, (node, value) in enumerate(zip(nodes, inputs, strict=True)) if _is_number(node, value, nodes)
    ]


def _is_number(node: fx.Node, value: Any, nodes: Sequence[fx.Node]) -> bool:
    if isinstance(value, torch.Tensor):
        return bool(node.users) and _is_float(node, value)
    return _is_no_size(node, nodes) and not all(map(_is_counted, node.users))


def _is_counted(node: fx.Node) -> bool:
    """Return whether a node is an int, from which only ints that are returned are computed, or returns them."""
    is_int = isinstance(node.meta.get("example_value"), torch.SymInt)
    return node.op == "output" or (is_int and all(map(_is_counted, node.users)))


def input_positions(module: fx.GraphModule, inputs: Sequence[Any], bound: Sequence[int]) -> list[int]:
    """Return the indices of the tensors outside `bound` of which the graph reads the values or a size."""
    return [
        index
        for index, (node, value) in enumerate(zip(placeholders(module), inputs, strict=True))
        if isinstance(value, torch.Tensor) and index not in bound and (node.users or free_dims(node))
    ]


def argument_name(module: fx.GraphModule, index: int) -> str:
    """Return the name of the argument at `index` in the user's code, as ``L['logits_to_keep']``."""
    return source_name(placeholders(module)[index])


def input_names(
    module: fx.GraphModule, captured: fx.GraphModule, inputs: Sequence[int], parameters: Sequence[str] = ()
) -> dict[str, str]:
    """Return the user's names of a captured graph's inputs, as ``batch['mask']``, by those in the graph.

    inputs: for each input of the captured graph, the index of the argument of `module`.
    parameters: the names of the positional arguments of the user's function, which Dynamo may only know as ``args``.
    """
    pairs = zip(placeholders(captured), inputs, strict=False)  # behind them is the state
    names = {node.name: _user_name(argument_name(module, index), parameters) for node, index in pairs}
    return {name: found for name, found in names.items() if found is not None}


def _user_name(source: str, parameters: Sequence[str]) -> str | None:
    """Return ``images`` for ``L['images']``; None for what has no name in the user's code."""
    found = _LOCAL.match(source)
    if found is None:
        return None
    if found["index"] is not None:
        index = int(found["index"])
        return (parameters[index] if index < len(parameters) else f"args[{index}]") + source[found.end() :]
    return (found["keyword"] or found["name"]) + source[found.end() :]


def placeholders(module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in module.graph.nodes if node.op == "placeholder"]


def _is_float(node: fx.Node, value: torch.Tensor) -> bool:
    return value.dim() == 0 and all(user.op == "call_method" and user.target == "item" for user in node.users)


def _is_no_size(node: fx.Node, nodes: Sequence[fx.Node]) -> bool:
    return isinstance(node.meta.get("example_value"), torch.SymInt) and _size_source(node, nodes) is None


def _size_source(number: fx.Node, nodes: Sequence[fx.Node]) -> tuple[fx.Node, int] | None:
    """Return the tensor among the placeholders `nodes`, and its dimension, that has a symbolic int as its size."""
    wanted = number.meta["example_value"].node.expr
    for node in nodes:
        for dim, size in free_dims(node).items():
            if size.node.expr == wanted:
                return node, dim
    return None


def free_dims(node: fx.Node) -> dict[int, Any]:
    """Return the symbolic sizes of a placeholder's tensor, by dimension."""
    fake = node.meta.get("example_value")
    if not isinstance(fake, torch.Tensor):
        return {}
    return {dim: size for dim, size in enumerate(fake.shape) if is_symbolic(size)}


def bind(module: fx.GraphModule, args: Sequence[Any], weights: Sequence[int], numbers: Sequence[int]) -> fx.GraphModule:
    """Return a copy of `module` that holds its weights, as buffers `weight_<index>`, and its numbers.

    It takes the tensors of `input_positions`, from which it also reads the sizes.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(module.graph, copies)
    graph.output(output)
    rewrite_regions(graph)
    bound = fx.GraphModule(module, graph)
    nodes = [copies[node] for node in placeholders(module)]
    inputs = {nodes[index] for index in input_positions(module, args, [*weights, *numbers])}
    for index in numbers:
        _bind_number(nodes[index], number_from(args[index]))
    for node, value in zip(nodes, args, strict=True):
        if node.users and not isinstance(value, torch.Tensor):
            _replace(node, _size(node, nodes, value))
    for index in weights:
        bound.register_buffer(f"{WEIGHT_PREFIX}{index}", args[index].detach())
        with graph.inserting_before(nodes[index]):
            nodes[index].replace_all_uses_with(graph.get_attr(f"{WEIGHT_PREFIX}{index}"))
    for node in nodes:
        if node not in inputs:
            graph.erase_node(node)
    bound.recompile()
    return bound


def weight_index(name: str) -> int:
    """Return the index of the placeholder that became the buffer `name`."""
    return int(name.removeprefix(WEIGHT_PREFIX))


def _bind_number(node: fx.Node, value: float) -> None:
    if isinstance(node.meta.get("example_value"), torch.Tensor):
        for item in list(node.users):
            _replace(item, value)
            node.graph.erase_node(item)
    else:
        _replace(node, value)


def _replace(node: fx.Node, other: Any) -> None:
    """Let the users of `node` read `other`, a node or a number."""
    for user in list(node.users):
        user.args, user.kwargs = fx.map_arg((user.args, user.kwargs), lambda n: other if n is node else n)


def _size(node: fx.Node, nodes: Sequence[fx.Node], value: Any) -> Any:
    """Return a node that reads the number `node` as the size of a tensor; the number itself if it is none."""
    if not is_symbolic(node.meta.get("example_value")):
        return value
    source = _size_source(node, nodes)
    if source is None:
        return number_from(value)
    with node.graph.inserting_after(nodes[-1]):
        return node.graph.call_function(aten.sym_size.int, source)


def dynamic_shapes(bound: fx.GraphModule) -> dict[str, Any]:
    """Return the symbolic dimensions of each input with Dynamo's ranges, as `torch.export.export` takes them."""
    return {
        str(node.target): {dim: _dim(size) for dim, size in free_dims(node).items()} for node in placeholders(bound)
    }


def _dim(size: Any) -> Any:
    """Return `Dim.AUTO` with Dynamo's range of the size."""
    low, high = range_of(size)
    return torch.export.Dim.AUTO(min=low) if high is None else torch.export.Dim.AUTO(min=low, max=high)


def range_of(size: Any) -> tuple[int, int | None]:
    """Return the smallest and the largest value of a symbolic size that Dynamo knows of; None if it has no end."""
    known = size.node.shape_env.bound_sympy(size.node.expr)
    return int(known.lower), int(known.upper) if getattr(known.upper, "is_Integer", False) else None


def output_sharing(module: fx.GraphModule, inputs: Sequence[int]) -> int | None:
    """Return the index of an output that is a view of one of these inputs; None if there is none."""
    nodes = placeholders(module)
    memory = {_memory(nodes[index].meta.get("example_value")) for index in inputs} - {None}
    output = next(node for node in module.graph.nodes if node.op == "output")
    for index, value in enumerate(output.args[0]):
        is_view = isinstance(value, fx.Node) and _memory(value.meta.get("example_value")) in memory
        if is_view and value.op != "placeholder":
            return index
    return None


def returned_from_arguments(module: fx.GraphModule) -> dict[int, Callable[[Sequence[Any]], Any]]:
    """Return the outputs that need no engine, each with what makes it from the arguments.

    They are arguments, of which a caller expects its own, and ints that are computed from ints. What `to` gives for a
    tensor that is there already is the tensor itself.
    """
    nodes = placeholders(module)
    output = next(node for node in module.graph.nodes if node.op == "output")
    found: dict[int, Callable[[Sequence[Any]], Any]] = {}
    for index, value in enumerate(output.args[0]):
        same = [position for position, node in enumerate(nodes) if _are_one(node, value)]
        if same:
            found[index] = operator.itemgetter(same[0])
        elif isinstance(value, fx.Node) and (sources := _ints_of(value, nodes)):
            found[index] = _from_ints(value, [nodes.index(node) for node in sources], sources)
    return found


def _are_one(node: fx.Node, other: Any) -> bool:
    """Return whether two nodes are one, or give the same tensor."""
    if node is other or not isinstance(other, fx.Node):
        return node is other
    value = node.meta.get("example_value")
    return isinstance(value, torch.Tensor) and value is other.meta.get("example_value")


def _ints_of(node: fx.Node, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the placeholders of ints that an int is computed from; none if anything else is needed."""
    if not isinstance(node.meta.get("example_value"), torch.SymInt):
        return []
    if node in nodes:
        return [node]
    parts = [_ints_of(source, nodes) for source in node.all_input_nodes]
    return list(dict.fromkeys(n for part in parts for n in part)) if all(parts) else []


def _from_ints(node: fx.Node, positions: Sequence[int], sources: Sequence[fx.Node]) -> Callable[[Sequence[Any]], Any]:
    """Return what computes an int from the arguments at `positions`."""
    graph = fx.Graph()
    copies = {source: graph.placeholder(source.name) for source in sources}

    def copied(each: fx.Node) -> fx.Node:
        if each not in copies:
            for source in each.all_input_nodes:
                copied(source)
            copies[each] = graph.node_copy(each, copies.__getitem__)
        return copies[each]

    graph.output(copied(node))
    compute = fx.GraphModule(torch.nn.Module(), graph).forward
    return lambda args: compute(*[args[position] for position in positions])


def _memory(value: Any) -> int | None:
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return None
    return storage_id(value)
