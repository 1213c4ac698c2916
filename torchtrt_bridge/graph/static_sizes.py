"""A graph for one size of each dimension, made of one for many sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from torchtrt_bridge.graph.edit import copy_graph, finish, infer
from torchtrt_bridge.graph.torch_internals import fake_mode_of_values

if TYPE_CHECKING:
    from torchtrt_bridge.graph.torch_internals import FakeTensorMode


def like(values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return fake tensors of the sizes, strides, dtypes and devices of `values`, which hold no memory."""
    mode = fake_mode_of_values([])
    return [mode.from_tensor(value, static_shapes=True) for value in values]


def with_static_sizes(module: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> fx.GraphModule:
    """Return a copy of `module` for inputs of these sizes alone, in which each size is a number.

    inputs: fake tensors, as `like` makes them. The copy shares its constants with `module`.
    Raises what an operator raises that takes no inputs of these sizes.
    """
    twin = fx.GraphModule(module, copy_graph(module.graph))
    mode = fake_mode_of_values(inputs)
    for node, value in zip(twin.graph.find_nodes(op="placeholder"), inputs, strict=True):
        node.meta["val"] = value
    for node in twin.graph.nodes:
        if node.op == "get_attr":
            node.meta["val"] = mode.from_tensor(twin.get_buffer(str(node.target)), static_shapes=True)
        elif node.op == "call_function":
            _infer_statically(node, mode)
    return finish(twin, changed=True)


def _infer_statically(node: fx.Node, mode: FakeTensorMode) -> None:
    """Compute the fake value of a call; a number takes the place of the call among the arguments of others."""
    value: Any = infer(node, mode)
    if isinstance(value, (bool, int, float)):
        node.replace_all_uses_with(value)  # type: ignore[arg-type]
