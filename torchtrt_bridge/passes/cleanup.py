"""Cleanup: drops the checks that tracing leaves, and unifies the quantizing nodes of all libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from torchtrt_bridge.graph.edit import fake_mode_of, finish, insert_call, insert_constant
from torchtrt_bridge.graph.ops import NAMESPACE, own
from torchtrt_bridge.lower.quantizers import Quantizer, is_quantizer, quantizer_of
from torchtrt_bridge.options import Options
from torchtrt_bridge.passes.constant_folding import fold

if TYPE_CHECKING:
    from torchtrt_bridge.graph.torch_internals import FakeTensorMode


METADATA = torch.ops.aten._assert_tensor_metadata.default


def drop_metadata_checks(module: fx.GraphModule, options: Options) -> fx.GraphModule:
    """Erase the assertions on dtype and device that each cast brings along: they held when the graph was traced."""
    checks = module.graph.find_nodes(op="call_function", target=METADATA)
    for node in checks:
        module.graph.erase_node(node)
    return finish(module, changed=True)


def unify_quantizers(module: fx.GraphModule, options: Options) -> fx.GraphModule:
    """Replace quantizing nodes of other libraries, if TensorRT can run them, by those that later passes know."""
    if not _foreign(module):
        return module
    mode, changed = fake_mode_of(module), False
    fold(module, skip=is_quantizer)  # so that scales are constants, and weights still quantized
    for node in _foreign(module):
        found = quantizer_of(node)
        if found is not None:
            node.replace_all_uses_with(_rewritten(node, found, mode))
            changed = True
    return finish(module, changed)


def _foreign(module: fx.GraphModule) -> list[fx.Node]:
    return [n for n in module.graph.nodes if is_quantizer(n) and n.target.namespace != NAMESPACE]


def _rewritten(node: fx.Node, found: Quantizer, mode: FakeTensorMode) -> fx.Node:
    value = node.args[0]
    assert isinstance(value, fx.Node)
    scale = insert_constant(node, found.scale, f"{node.name}_scale", mode)
    axis = None if found.axis is None else found.axis % value.meta["val"].dim()
    if found.quantizes:
        value = insert_call(node, mode, own.quantize.default, value, scale, axis, found.quantized)
    if found.dequantizes:
        value = insert_call(node, mode, own.dequantize.default, value, scale, axis, found.real)
    return value
