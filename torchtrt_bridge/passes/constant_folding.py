"""Constant folding: PyTorch computes, once, what depends on constants only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from torchtrt_bridge.graph.edit import constant_of, fake_mode_of, finish, insert_constant
from torchtrt_bridge.graph.nodes import is_random
from torchtrt_bridge.graph.ops import own
from torchtrt_bridge.graph.torch_internals import is_operator, schema_of
from torchtrt_bridge.options import Options

# Their weights stay integers, for the engine.
DEQUANTIZE = (own.dequantize.default, own.dequantize_int4.default)

# A constant that grows is computed in the engine instead, unless it stays below this many bytes.
SMALL_BYTES = 16 * 2**20


def fold_constants(module: fx.GraphModule, options: Options) -> fx.GraphModule:
    """Replace calls whose inputs are all constants by their value; quantized weights stay quantized."""
    return fold(module, skip=lambda node: node.target in DEQUANTIZE)


def fold(module: fx.GraphModule, skip: Callable[[fx.Node], bool]) -> fx.GraphModule:
    """Replace calls whose inputs are all constants by their value, without the nodes of which `skip` is true."""
    mode = fake_mode_of(module)
    constant = _constant_calls(module.graph, skip)
    values: dict[fx.Node, Any] = {}
    for node in list(module.graph.nodes):
        wanted = node in constant and isinstance(node.meta["val"], torch.Tensor)
        if wanted and any(user not in constant for user in node.users):
            value = _evaluate(node, values)
            read = insert_constant(node, value, f"{node.name}_folded", mode)
            for key in ("stack_trace", "nn_module_stack"):
                if key in node.meta:
                    read.meta[key] = node.meta[key]
            node.replace_all_uses_with(read)
            values[read] = value
    return finish(module, changed=bool(values))


def _constant_calls(graph: fx.Graph, skip: Callable[[fx.Node], bool]) -> set[fx.Node]:
    constant: set[fx.Node] = set()
    for node in graph.nodes:
        if (
            node.op == "call_function"
            and not skip(node)
            and _is_pure(node)
            and all(constant_of(n) is not None or n in constant for n in node.all_input_nodes)
            and not _is_large(node)
        ):
            constant.add(node)
    return constant


def _is_pure(node: fx.Node) -> bool:
    if is_operator(node.target):
        tags = node.target.tags
        if torch.Tag.nondeterministic_seeded in tags or is_random(node) or schema_of(node.target).is_mutable:
            return False
    return isinstance(node.meta.get("val"), (torch.Tensor, tuple, list))


def _is_large(node: fx.Node) -> bool:
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        return False
    if not all(isinstance(size, int) for size in value.shape):
        return True
    inputs = sum(_bytes(n.meta["val"]) for n in node.all_input_nodes if isinstance(n.meta["val"], torch.Tensor))
    return _bytes(value) > max(SMALL_BYTES, inputs)


def _bytes(value: torch.Tensor) -> int:
    return value.numel() * value.element_size()


def _evaluate(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    if node not in values:
        value = constant_of(node)
        if value is None:
            inputs = {n: _evaluate(n, values) for n in node.all_input_nodes}
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: inputs[n])
            with torch.no_grad():
                value = node.target(*args, **kwargs)  # type: ignore[operator]
        values[node] = value
    return values[node]
