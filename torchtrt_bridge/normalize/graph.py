"""Small edits of an FX graph that keep every node's fake value right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode

from torchtrt_bridge.schema import constant_of as constant_of


def fake_mode_of(module: fx.GraphModule) -> FakeTensorMode:
    """The mode in which the fake values of `module`'s nodes live."""
    values = [node.meta["val"] for node in module.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    return detect_fake_mode(values) or FakeTensorMode(allow_non_fake_inputs=True)


def fake(argument: Any) -> Any:
    """A node's arguments with fake values in place of nodes."""
    return fx.map_arg(argument, lambda node: node.meta["val"])


def infer(node: fx.Node, mode: FakeTensorMode) -> Any:
    """Compute and keep the fake value of a call from those of its inputs."""
    assert callable(node.target)
    with mode, enable_python_dispatcher(), torch.no_grad():  # torch 2.11's own aten.linear takes no symbolic sizes
        node.meta["val"] = node.target(*fake(node.args), **fake(node.kwargs))
    return node.meta["val"]


def is_call(node: Any, op: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is op


def insert_call(before: fx.Node, mode: FakeTensorMode, op: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
    """A call in front of `before`, on behalf of it: it carries its source line."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(op, args, kwargs)
    for key in ("stack_trace", "nn_module_stack"):
        if key in before.meta:
            node.meta[key] = before.meta[key]
    infer(node, mode)
    return node


def insert_constant(before: fx.Node, value: torch.Tensor, hint: str, mode: FakeTensorMode) -> fx.Node:
    """A new constant, readable in front of `before`."""
    module = before.graph.owning_module
    assert module is not None
    name = free_name(module, hint)
    module.register_buffer(name, value, persistent=False)
    with before.graph.inserting_before(before):
        node = before.graph.get_attr(name)
    node.meta["val"] = mode.from_tensor(value, static_shapes=True)
    return node


def free_name(module: torch.nn.Module, hint: str) -> str:
    """`hint`, with a number behind it where `module` has such an attribute already."""
    name, count = hint, 0
    while hasattr(module, name):
        count += 1
        name = f"{hint}_{count}"
    return name


def finish(module: fx.GraphModule, changed: bool) -> fx.GraphModule:
    """After a pass that changed the graph: drop what nothing uses any more, and generate the code anew."""
    if not changed:
        return module
    module.graph.eliminate_dead_code()
    for node in module.graph.find_nodes(op="get_attr"):
        if not node.users:
            module.graph.erase_node(node)
    read = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    for name in [name for name, _ in module.named_buffers(recurse=False) if name not in read]:
        delattr(module, name)
    module.recompile()
    return module
