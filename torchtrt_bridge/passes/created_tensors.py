"""Tensors on the CPU that the GPU computes with: those that the graph creates are created there, numbers are copied.

Sizes are read of inputs on the GPU.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from torchtrt_bridge.graph.edit import behind, constant_of, fake_mode_of, finish, infer, insert_call, insert_constant
from torchtrt_bridge.graph.nodes import operator_name, tensors_of_node
from torchtrt_bridge.graph.shapes import expression_of
from torchtrt_bridge.graph.torch_internals import is_operator, schema_of
from torchtrt_bridge.options import Options

if TYPE_CHECKING:
    from torchtrt_bridge.graph.torch_internals import FakeTensorMode

aten = torch.ops.aten

# Tags of operators whose results are others on another device, or go to the CPU in any case.
_OF_THE_CPU = (torch.Tag.nondeterministic_seeded, torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)

_SIZES = ("sym_size", "sym_stride", "sym_numel", "sym_storage_offset")


def create_on_gpu(module: fx.GraphModule, options: Options) -> fx.GraphModule:
    """Let calls compute on the GPU if they need no input on the CPU and their results are wanted on the GPU only.

    Relative positions of dynamic sizes are an example: `torch.arange(n)`, some arithmetic, `.to(x.device)`. Those of
    static sizes are constants, folded before. A tensor of no dimensions that the GPU computes with is copied to it.
    """
    devices = {value.device for node in module.graph.nodes for value in tensors_of_node(node)} - {torch.device("cpu")}
    if len(devices) != 1:
        return module
    found = _movable(module.graph)
    (device,), mode = devices, fake_mode_of(module)
    for node in found:
        _move(node, device, mode)
    numbers = {node: users for node in module.graph.nodes if (users := _users_of_number(node))}
    for node, users in numbers.items():
        _copy_number(node, users, device, mode)
    _read_sizes_of_inputs(module.graph)
    return finish(module, changed=True)


def _movable(graph: fx.Graph) -> list[fx.Node]:
    """Return the calls on the CPU, in order, whose inputs and users are such calls, or constants and on the GPU."""
    found = {node: None for node in graph.nodes if _may_move(node)}
    while True:
        stay = [node for node in found if not (_inputs_move(node, found) and _users_allow(node, found))]
        if not stay:
            return list(found)
        for node in stay:
            del found[node]


def _may_move(node: fx.Node) -> bool:
    if node.op != "call_function" or not _is_on_cpu(node):
        return False
    if node.target is operator.getitem:
        return True
    if not is_operator(node.target) or schema_of(node.target).is_mutable:
        return False
    return not any(tag in node.target.tags for tag in _OF_THE_CPU)


def _inputs_move(node: fx.Node, found: dict[fx.Node, None]) -> bool:
    return all(n in found or n.op == "get_attr" or not tensors_of_node(n) for n in node.all_input_nodes)


def _users_allow(node: fx.Node, found: dict[fx.Node, None]) -> bool:
    return all(user in found or _takes_any_device(user) for user in node.users)


def _takes_any_device(user: fx.Node) -> bool:
    """Return whether a call gives a tensor on the GPU, or reads only sizes."""
    if user.op != "call_function":
        return False
    return operator_name(user.target) in _SIZES or (bool(tensors_of_node(user)) and not _is_on_cpu(user))


def _move(node: fx.Node, device: torch.device, mode: FakeTensorMode) -> None:
    for source in node.all_input_nodes:
        value = constant_of(source)
        if value is not None and value.dim() and value.device != device:
            node.replace_input_with(source, insert_constant(node, value.to(device), f"{source.name}_on_gpu", mode))
    if node.target is not operator.getitem:
        schema = schema_of(node.target)
        creates = not any(tensors_of_node(n) for n in node.all_input_nodes)
        if node.kwargs.get("device") is not None or (creates and any(a.name == "device" for a in schema.arguments)):
            kwargs = {name: value for name, value in node.kwargs.items() if name != "pin_memory"}
            node.kwargs = {**kwargs, "device": device}
    infer(node, mode)


def _users_of_number(node: fx.Node) -> list[fx.Node]:
    """Return the calls on the GPU that compute with a tensor of no dimensions on the CPU, which PyTorch takes there."""
    value = node.meta.get("val")
    if node.op == "get_attr" or not _is_on_cpu(node) or not isinstance(value, torch.Tensor) or value.dim():
        return []
    return [user for user in node.users if _computes_by_element(user) and not _is_on_cpu(user)]


def _computes_by_element(user: fx.Node) -> bool:
    """Return whether a copy on the GPU is the same to a call; beside half precision PyTorch keeps a CPU's in fp32."""
    if user.op != "call_function" or torch.Tag.pointwise not in getattr(user.target, "tags", ()):
        return False
    dtypes = {value.dtype for n in (user, *user.all_input_nodes) for value in tensors_of_node(n)}
    return not dtypes & {torch.float16, torch.bfloat16}


def _copy_number(node: fx.Node, users: list[fx.Node], device: torch.device, mode: FakeTensorMode) -> None:
    copied = insert_call(behind(node), mode, aten._to_copy.default, node, device=device)
    for user in users:
        user.replace_input_with(node, copied)
        infer(user, mode)


def _read_sizes_of_inputs(graph: fx.Graph) -> None:
    """Let sizes of tensors on the CPU be read of inputs on the GPU that have them too, as a batch with its lengths."""
    sizes = graph.find_nodes(op="call_function", target=aten.sym_size.int)
    wanted = [node for node in sizes if _is_on_cpu(node.all_input_nodes[0])]
    places: dict[Any, tuple[fx.Node, int]] = {}
    for node in graph.find_nodes(op="placeholder") if wanted else ():
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.device.type != "cpu":
            for dim, size in enumerate(value.shape):
                places.setdefault(expression_of(size), (node, dim))
    for node in wanted:
        node.args = places.get(expression_of(node.meta["val"]), node.args)


def _is_on_cpu(node: fx.Node) -> bool:
    tensors = tensors_of_node(node)
    return bool(tensors) and all(value.device.type == "cpu" for value in tensors)
