"""Selects: take the part before moving it, as three of a packed q, k, v that would otherwise move as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from torchtrt_bridge.normalize.graph import fake_mode_of, finish, insert_call, is_call
from torchtrt_bridge.options import Options

aten = torch.ops.aten

# The select one step earlier (None if it is gone), and what has its result.
Moved = tuple[fx.Node | None, fx.Node]


def select_first(module: fx.GraphModule, options: Options) -> fx.GraphModule:
    """Move each `select` in front of the permutations, copies and dimensions of size one that it follows.

    `nn.MultiheadAttention` and vision transformers permute the packed projection, and select q, k and v from that.
    """
    mode = fake_mode_of(module)
    moved = 0
    for node in module.graph.find_nodes(op="call_function", target=aten.select.int):
        while (earlier := _moved_up(node, mode)) is not None:
            select, result = earlier
            node.replace_all_uses_with(result)
            moved += 1
            if select is None:
                break
            node = select
    return finish(module, changed=moved > 0)


def _moved_up(select: fx.Node, mode: FakeTensorMode) -> Moved | None:
    """The select moved in front of what it follows; None where it cannot move."""
    source, dim, index = select.args
    if not isinstance(source, fx.Node) or not isinstance(dim, int):
        return None
    for op, step in _STEPS.items():
        if is_call(source, op):
            dim %= source.meta["val"].dim()
            return step(select, source, dim, index, mode)
    return None


def _before_copy(select: fx.Node, source: fx.Node, dim: int, index: Any, mode: FakeTensorMode) -> Moved:
    earlier = insert_call(select, mode, aten.select.int, source.args[0], dim, index)
    return earlier, insert_call(select, mode, aten.clone.default, earlier)  # a result must not become a view


def _before_permute(select: fx.Node, source: fx.Node, dim: int, index: Any, mode: FakeTensorMode) -> Moved:
    inner, dims = _arguments(source)
    order = [d % len(dims) for d in dims]
    taken = order.pop(dim)
    earlier = insert_call(select, mode, aten.select.int, inner, taken, index)
    return earlier, insert_call(select, mode, aten.permute.default, earlier, [d - (d > taken) for d in order])


def _before_squeeze(select: fx.Node, source: fx.Node, dim: int, index: Any, mode: FakeTensorMode) -> Moved:
    inner, dims = _arguments(source)
    rank = inner.meta["val"].dim()
    squeezed = [d % rank for d in dims]
    taken = [d for d in range(rank) if d not in squeezed][dim]
    earlier = insert_call(select, mode, aten.select.int, inner, taken, index)
    return earlier, insert_call(select, mode, aten.squeeze.dims, earlier, [d - (d > taken) for d in squeezed])


def _before_unsqueeze(select: fx.Node, source: fx.Node, dim: int, index: Any, mode: FakeTensorMode) -> Moved:
    inner, added = _arguments(source)
    added %= source.meta["val"].dim()
    if dim == added:
        return None, inner
    earlier = insert_call(select, mode, aten.select.int, inner, dim - (dim > added), index)
    return earlier, insert_call(select, mode, aten.unsqueeze.default, earlier, added - (added > dim))


def _arguments(node: fx.Node) -> tuple[Any, Any]:
    """The tensor that `node` moves, and how."""
    inner, how = node.args
    return inner, how


_STEPS: dict[Any, Callable[[fx.Node, fx.Node, int, Any, FakeTensorMode], Moved]] = {
    aten.clone.default: _before_copy,
    aten.permute.default: _before_permute,
    aten.squeeze.dims: _before_squeeze,
    aten.unsqueeze.default: _before_unsqueeze,
}
