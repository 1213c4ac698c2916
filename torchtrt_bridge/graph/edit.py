"""Small edits of an FX graph that keep every node's fake value right."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from torchtrt_bridge.graph.nodes import constant_of as constant_of
from torchtrt_bridge.graph.torch_internals import fake_mode_of_values, symbolic_dispatch

if TYPE_CHECKING:
    from torchtrt_bridge.graph.torch_internals import FakeTensorMode


def fake_mode_of(module: fx.GraphModule) -> FakeTensorMode:
    """The mode in which the fake values of `module`'s nodes live."""
    values = [node.meta["val"] for node in module.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    return fake_mode_of_values(values)


def fake(argument: Any) -> Any:
    """A node's arguments with fake values in place of nodes."""
    return fx.map_arg(argument, lambda node: node.meta["val"])


def infer(node: fx.Node, mode: FakeTensorMode) -> Any:
    """Compute and keep the fake value of a call from those of its inputs."""
    assert callable(node.target)
    with symbolic_dispatch(mode), torch.no_grad():
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


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A copy with plain code generation: flat arguments in, a flat tuple out."""
    copied = fx.Graph()
    twins: dict[fx.Node, fx.Node] = {}
    result = copied.graph_copy(graph, twins, return_output_node=True)
    assert isinstance(result, tuple)
    copied.output(result[0]).meta = copy.copy(result[1].meta)
    for node, twin in twins.items():
        twin.name = node.name  # fx would rename what is called like a builtin, as an argument `input`
    return copied


def set_constant(module: torch.nn.Module, name: str, value: torch.Tensor) -> None:
    """Hold `value` as a buffer of `module`; a parameter would ask for gradients."""
    module.register_buffer(name, value, persistent=False)


def own_constants(modules: Iterable[torch.nn.Module], shared: Iterable[Any]) -> None:
    """Copy the constants of `modules` that lie in the memory of `shared`, the tensors of the user's, each once."""
    theirs = {_memory(value) for value in shared} - {None}
    copies: dict[Any, torch.Tensor] = {}
    for module in (part for root in modules for part in root.modules()):
        for name, value in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            if _memory(value) in theirs:
                view = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
                if view not in copies:
                    copies[view] = value.clone()
                setattr(module, name, copies[view])


def _memory(value: Any) -> int | None:
    return value.untyped_storage().data_ptr() if isinstance(value, torch.Tensor) else None
