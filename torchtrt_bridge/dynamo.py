"""What Dynamo hands to a backend: which placeholders are weights, which sizes are dynamic, what shares memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._guards import tracing

from torchtrt_bridge.capture import CapturedGraph, export_program, graph_from_program
from torchtrt_bridge.errors import CaptureError

aten = torch.ops.aten
WEIGHT_PREFIX = "weight_"


def capture(
    module: fx.GraphModule, args: Sequence[Any], weights: Sequence[int], numbers: Sequence[int]
) -> tuple[CapturedGraph, list[int]]:
    """The functional graph with weights and numbers bound, and the indices of the arguments that remain its inputs."""
    skipped = {*weights, *numbers}
    inputs = [i for i, value in enumerate(args) if i not in skipped and isinstance(value, torch.Tensor)]
    bound = bind_weights(module, args, weights, numbers)
    shapes = named_shapes(bound, dynamic_shapes(module, [*skipped]))
    with tracing(None):  # else torch.export would trace into Dynamo's own trace, and add to its guards
        program = export_program(bound, tuple(args[i] for i in inputs), dynamic_shapes=shapes)
    return graph_from_program(program), inputs


def weight_positions(module: fx.GraphModule, inputs: Sequence[Any]) -> list[int]:
    """Indices of the placeholders that are parameters and buffers of modules."""
    return [
        index
        for index, (node, value) in enumerate(zip(placeholders(module), inputs, strict=True))
        if isinstance(value, torch.Tensor) and "_dynamo_static_input_type" in (node.meta.get("tensor_dict") or {})
    ]


def number_positions(module: fx.GraphModule, inputs: Sequence[Any]) -> list[int]:
    """Indices of the placeholders that are Python floats, which `dynamic=True` passes as tensors of one element."""
    return [
        index
        for index, (node, value) in enumerate(zip(placeholders(module), inputs, strict=True))
        if isinstance(value, torch.Tensor) and value.dim() == 0 and node.users and all(map(_is_item, node.users))
    ]


def _is_item(node: fx.Node) -> bool:
    return node.op == "call_method" and node.target == "item"


def placeholders(module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in module.graph.nodes if node.op == "placeholder"]


def bind_weights(
    module: fx.GraphModule, args: Sequence[Any], weights: Sequence[int], numbers: Sequence[int]
) -> fx.GraphModule:
    """A copy of `module` that holds its weights as buffers `weight_<index>`, its numbers, and takes tensors only.

    Raises CaptureError for a symbolic number that is no tensor's size.
    """
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(module.graph, mapping)
    graph.output(output)
    bound = fx.GraphModule(module, graph)
    nodes = [mapping[node] for node in placeholders(module)]
    for index in weights:
        bound.register_buffer(f"{WEIGHT_PREFIX}{index}", args[index].detach())
        with graph.inserting_before(nodes[index]):
            read = graph.get_attr(f"{WEIGHT_PREFIX}{index}")
        _replace(nodes[index], read)
    for index in numbers:
        for item in list(nodes[index].users):
            _replace(item, args[index].item())
        graph.erase_node(nodes[index])
    for index, node in enumerate(nodes):
        if not isinstance(args[index], torch.Tensor):
            _replace(node, _size_node(node, nodes, args[index]))
    bound.recompile()
    return bound


def weight_index(name: str) -> int:
    """The index of the placeholder that the buffer `name` was bound from."""
    return int(name.removeprefix(WEIGHT_PREFIX))


def _replace(node: fx.Node, other: Any) -> None:
    if isinstance(other, fx.Node):
        node.replace_all_uses_with(other)
    for user in list(node.users):
        user.args, user.kwargs = fx.map_arg((user.args, user.kwargs), lambda n: other if n is node else n)
    node.graph.erase_node(node)


def _size_node(node: fx.Node, nodes: Sequence[fx.Node], value: Any) -> Any:
    """The size of a tensor that equals the number `node`; the number itself if it is not symbolic."""
    wanted = node.meta.get("example_value", value)
    if not isinstance(wanted, torch.SymInt):
        return value
    for source in nodes:
        fake = source.meta.get("example_value")
        if not isinstance(fake, torch.Tensor) or source.op != "placeholder":
            continue
        for dim, size in enumerate(fake.shape):
            if isinstance(size, torch.SymInt) and size.node.expr == wanted.node.expr:
                last = [n for n in node.graph.nodes if n.op == "placeholder"][-1]
                with node.graph.inserting_after(last):
                    return node.graph.call_function(aten.sym_size.int, (source, dim))
    raise CaptureError(
        f"The graph takes the number {node.name} ({wanted}), which is not a size of any tensor. "
        "Pass it as a constant, or call torch.compile with dynamic=False."
    )


def dynamic_shapes(module: fx.GraphModule, bound: Sequence[int]) -> tuple[dict[int, Any], ...]:
    """For each tensor input that is not bound, its symbolic dimensions with the ranges that Dynamo knows."""
    skipped = set(bound)
    shapes = []
    for index, node in enumerate(placeholders(module)):
        fake = node.meta.get("example_value")
        if index not in skipped and isinstance(fake, torch.Tensor):
            shapes.append({dim: _dim(size) for dim, size in enumerate(fake.shape) if _is_free(size)})
    return tuple(shapes)


def named_shapes(bound: fx.GraphModule, shapes: Sequence[dict[int, Any]]) -> dict[str, Any]:
    """Dynamic shapes by the argument names of `bound`, as `torch.export.export` takes them."""
    return dict(zip([str(node.target) for node in placeholders(bound)], shapes, strict=True))


def _is_free(size: Any) -> bool:
    return isinstance(size, torch.SymInt) and not size.node.expr.is_Integer


def _dim(size: Any) -> Any:
    """`Dim.AUTO` with Dynamo's range of the size."""
    known = size.node.shape_env.bound_sympy(size.node.expr)
    limits = {"min": int(known.lower)}
    if getattr(known.upper, "is_Integer", False):
        limits["max"] = int(known.upper)
    return torch.export.Dim.AUTO(**limits)


def output_sharing(module: fx.GraphModule, inputs: Sequence[int]) -> int | None:
    """Index of an output that is a view of one of these inputs; None if there is none."""
    nodes = placeholders(module)
    memory = {_memory(nodes[index].meta.get("example_value")) for index in inputs} - {None}
    output = next(node for node in module.graph.nodes if node.op == "output")
    for index, value in enumerate(output.args[0]):
        is_view = isinstance(value, fx.Node) and _memory(value.meta.get("example_value")) in memory
        if is_view and value.op != "placeholder":
            return index
    return None


def _memory(value: Any) -> int | None:
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return None
    return int(value.untyped_storage()._cdata)
