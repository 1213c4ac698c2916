"""Caches of keys and values: writes at consecutive positions become one operator, which TensorRT does in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from torchtrt_bridge.graph.edit import constant_of, fake_mode_of, insert_call, is_call
from torchtrt_bridge.graph.kv_cache import LENGTH, own
from torchtrt_bridge.graph.ops import FLOATS
from torchtrt_bridge.graph.shapes import expression_of
from torchtrt_bridge.graph.torch_internals import is_contiguous_or_false

if TYPE_CHECKING:
    from torchtrt_bridge.graph.torch_internals import FakeTensorMode

aten = torch.ops.aten

# Calls that look at a tensor's kind and sizes only.
_READ_NO_ELEMENTS = ("_assert_tensor_metadata", "sym_size", "sym_stride", "sym_numel")


def mark_kv_caches(module: fx.GraphModule, outputs: int | None, mutations: Sequence[int]) -> None:
    """Let each cache among the inputs that a graph updates be written by `kv_cache_update`.

    A cache is an input of shape (batch, heads, capacity, head size). The graph writes new keys or values to it at
    consecutive positions, and reads it only with these.
    outputs, mutations: as in `CapturedGraph`.
    """
    if outputs is None or not mutations:
        return
    (output,) = module.graph.find_nodes(op="output")
    placeholders = module.graph.find_nodes(op="placeholder")
    written: list[Any] = list(output.args[0])[outputs:]
    caches = {result: placeholders[position] for result, position in zip(written, mutations, strict=True)}
    mode = fake_mode_of(module)
    found = [node for node, cache in caches.items() if written.count(node) == 1 and _replace(node, cache, mode)]
    if found:
        module.graph.eliminate_dead_code()
        module.recompile()


def _replace(node: Any, cache: fx.Node, mode: FakeTensorMode) -> bool:
    """Let `kv_cache_update` write to `cache` in place of `node`; return False if it does not do what `node` does."""
    if not isinstance(node, fx.Node) or node.op != "call_function" or not node.args or node.args[0] is not cache:
        return False
    if not _is_cache(cache.meta["val"]) or any(user is not node and _reads_elements(user) for user in cache.users):
        return False
    update, index = _written_by(node)
    if update is None or not _fits(update.meta["val"], cache.meta["val"]):
        return False
    first = _first_of(index, expression_of(update.meta["val"].shape[LENGTH]))
    if first is None:
        return False
    start = insert_call(node, mode, aten.reshape.default, first, [])
    node.replace_all_uses_with(insert_call(node, mode, own.kv_cache_update.default, cache, update, start))
    return True


def _is_cache(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.dim() == 4
        and value.dtype in FLOATS
        and all(isinstance(size, int) for size in value.shape[1:])
        and is_contiguous_or_false(value)
    )


def _reads_elements(user: fx.Node) -> bool:
    return not any(name in str(user.target) for name in _READ_NO_ELEMENTS)


def _written_by(node: fx.Node) -> tuple[Any, Any]:
    """Return the new values and their positions along the length; None twice for another kind of write."""
    args: Any = node.args
    if node.target is aten.index_copy.default and args[1] % 4 == LENGTH:
        return args[3], args[2]
    if node.target is aten.index_put.default and not any(args[3:]) and not node.kwargs:
        indices = list(args[1])
        if len(indices) == LENGTH + 1 and indices[:LENGTH] == [None] * LENGTH:
            return args[2], indices[LENGTH]
    return None, None


def _fits(update: torch.Tensor, cache: torch.Tensor) -> bool:
    """Return whether new values have the dtype and the sizes of the cache, but for the length."""
    if update.dim() != 4 or update.dtype != cache.dtype:
        return False
    pairs = [pair for dim, pair in enumerate(zip(update.shape, cache.shape, strict=True)) if dim != LENGTH]
    return all(expression_of(a) == expression_of(b) for a, b in pairs)


def _first_of(index: Any, length: Any) -> fx.Node | None:
    """Return the node of one element that holds the first of `length` positions; None if they may not be consecutive.

    They are if one is all there is, or if a number is added to 0, 1, 2, ...
    """
    if not isinstance(index, fx.Node) or list(map(expression_of, index.meta["val"].shape)) != [length]:
        return None
    if length == 1:
        return index
    if is_call(index, aten.add.Tensor) and not index.kwargs:
        left, right = index.args
        for steps, first in ((left, right), (right, left)):
            if _counts_up(steps, length) and isinstance(first, fx.Node) and _is_one_number(first):
                return first
    return None


def _counts_up(node: Any, length: Any) -> bool:
    """Return whether a node is 0, 1, 2, ..."""
    if is_call(node, aten.arange.start_step):
        start, end, *step = node.args
        return start == 0 and step in ([], [1]) and _size(end) == length
    constant = constant_of(node) if isinstance(node, fx.Node) else None
    return constant is not None and torch.equal(constant.cpu(), torch.arange(len(constant)))


def _size(argument: Any) -> Any:
    return expression_of(argument.meta["val"] if isinstance(argument, fx.Node) else argument)


def _is_one_number(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and all(size == 1 for size in map(expression_of, value.shape))
