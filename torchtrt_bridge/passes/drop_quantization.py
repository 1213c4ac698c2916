"""Removal of quantization from layers whose quantized form TensorRT does not build."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from torchtrt_bridge.graph.edit import (
    constant_of,
    copy_graph,
    fake_mode_of,
    finish,
    insert_call,
    insert_constant,
    is_call,
)
from torchtrt_bridge.graph.nodes import arguments_of, operator_name, returns_view
from torchtrt_bridge.graph.ops import own
from torchtrt_bridge.lower import only_moves_data, precision_of
from torchtrt_bridge.options import Options
from torchtrt_bridge.passes.constant_folding import DEQUANTIZE, fold_constants

if TYPE_CHECKING:
    from torchtrt_bridge.graph.torch_internals import FakeTensorMode

aten = torch.ops.aten

# From the name of a capability, as `int8_convolution`, to the reason for which it is missing; None if it is there.
WhyNot = Callable[[str], "str | None"]

_NARROW = {torch.int8: "int8", torch.float8_e4m3fn: "fp8", torch.uint8: "int4"}


def drop_quantization(module: fx.GraphModule, why_not: WhyNot) -> dict[fx.Node, str]:
    """Give floats to each layer that cannot be built with quantized inputs; return these layers, with the reasons.

    Changes `module`. A value that several layers read stays quantized for those that can be built.
    """
    mode = fake_mode_of(module)
    reasons: dict[fx.Node, str] = {}
    changed = False
    for node in [n for n in module.graph.nodes if n.target in DEQUANTIZE]:
        narrow = _NARROW[node.args[0].meta["val"].dtype]
        refused = {user: found for user in node.users if (found := _refused(user, narrow, why_not))}
        floats = _floats(node, mode) if refused else None
        if floats is None:
            continue
        for user, found in refused.items():
            user.replace_input_with(node, floats)
            reasons.update(found)
        changed = True
    finish(module, changed)
    return {node: reason for node, reason in reasons.items() if node.op == "call_function" and not _is_quantizing(node)}


def without_quantization(module: fx.GraphModule, options: Options) -> fx.GraphModule:
    """Return a copy of `module` that computes in floating point all that is quantized."""
    floats = fx.GraphModule(module, copy_graph(module.graph))
    drop_quantization(floats, lambda capability: f"no {capability} is wanted")
    return fold_constants(floats, options)


def without_rounding(module: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of `module` without the quantization of activations; weights stay in 8 bits."""
    floats = fx.GraphModule(module, copy_graph(module.graph))
    mode = fake_mode_of(floats)
    for node in floats.graph.find_nodes(op="call_function", target=own.dequantize.default):
        if is_call(node.args[0], own.quantize.default):
            node.replace_all_uses_with(_floats(node, mode))
    return finish(floats, True)


def quantizes(module: fx.GraphModule) -> bool:
    """Return whether activations are quantized in `module`."""
    return bool(module.graph.find_nodes(op="call_function", target=own.quantize.default))


def _refused(user: fx.Node, narrow: str, why_not: WhyNot) -> dict[fx.Node, str]:
    """Return the layers, `user` or those it only moves data to, that cannot be built with quantized inputs."""
    if returns_view(user) or only_moves_data(user):
        found = [_refused(reader, narrow, why_not) for reader in user.users]
        return {node: reason for refused in found for node, reason in refused.items()}
    reason = why_not(_capability(user, narrow))
    return {} if reason is None else {user: reason}


def _capability(node: fx.Node, narrow: str) -> str:
    name = operator_name(node.target)
    if narrow == "int4":
        return "int4_linear"
    if name == "convolution":
        return f"{narrow}_transposed_convolution" if arguments_of(node)["transposed"] else f"{narrow}_convolution"
    if name == "scaled_dot_product_attention":
        return f"{narrow}_attention"
    return f"{narrow}_linear" if precision_of(node) == "half" else f"{narrow}_values"


def _floats(node: fx.Node, mode: FakeTensorMode) -> fx.Node | None:
    """Return the floats that `node` dequantizes, as they were before they were quantized; None if unknown."""
    arguments: Any = arguments_of(node)
    source = node.args[0]
    if is_call(source, own.quantize.default):
        values = source.args[0]  # type: ignore[union-attr]
        if values.meta["val"].dtype == arguments["dtype"]:  # type: ignore[union-attr]
            return values  # type: ignore[return-value]
        return insert_call(node, mode, aten._to_copy.default, values, dtype=arguments["dtype"])
    constants = {name: constant_of(value) if isinstance(value, fx.Node) else value for name, value in arguments.items()}
    if any(constants[name] is None for name, value in arguments.items() if isinstance(value, fx.Node)):
        return None
    with torch.no_grad():
        value = node.target(**constants)  # type: ignore[operator]
    return insert_constant(node, value, f"{node.name}_floats", mode)


def _is_quantizing(node: fx.Node) -> bool:
    return node.target in (own.quantize.default, *DEQUANTIZE)
