"""Bags of one size are rows of a table and a reduction over them; other bags compare each offset with each index."""

from __future__ import annotations

import itertools
import math
import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from torchtrt_bridge.graph.edit import constant_of, fake_mode_of, finish, insert_call, is_call
from torchtrt_bridge.graph.nodes import arguments_of
from torchtrt_bridge.graph.torch_internals import statically_known_true
from torchtrt_bridge.options import Options

if TYPE_CHECKING:
    from torchtrt_bridge.graph.torch_internals import FakeTensorMode

aten = torch.ops.aten
BAGS = (aten._embedding_bag.default, aten._embedding_bag_forward_only.default)
SUM, MEAN, MAX = range(3)
HALF_FLOATS = (torch.float16, torch.bfloat16)


def reduce_equal_bags(module: fx.GraphModule, options: Options) -> fx.GraphModule:
    """Replace embedding bags of one size, as `nn.EmbeddingBag` has of two dimensions, by rows and their reduction."""
    mode = fake_mode_of(module)
    replaced = 0
    for op in BAGS:
        for node in module.graph.find_nodes(op="call_function", target=op):
            replaced += _replace(node, mode)
    return finish(module, changed=replaced > 0)


def _replace(node: fx.Node, mode: FakeTensorMode) -> bool:
    arguments = arguments_of(node)
    size = _size_of_bags(**{name: arguments[name] for name in ("indices", "offsets", "include_last_offset")})
    others = any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users)
    if size is None or others or (arguments["mode"] == MAX and _may_be_nan(arguments["weight"])):
        return False
    result = _Bags(node, mode, size).reduced(**arguments)
    for user in list(node.users):
        user.replace_all_uses_with(result)
    return True


def _size_of_bags(indices: fx.Node, offsets: fx.Node, include_last_offset: bool) -> int | None:
    """Return the number of indices of every bag; None if bags differ, or may do so."""
    count, bags = indices.meta["val"].shape[0], offsets.meta["val"].shape[0]
    if is_call(offsets, aten.arange.start_step):
        start, _, size = (*offsets.args, 1)[:3]
        if start != 0 or not isinstance(size, int) or include_last_offset:
            return None
        return size if statically_known_true(bags * size == count) else None
    numbers = constant_of(offsets)
    if numbers is None or not isinstance(count, int):
        return None
    starts = numbers[:-1].tolist() if include_last_offset else numbers.tolist()
    sizes = {end - start for start, end in itertools.pairwise([*starts, count])}
    return sizes.pop() if len(sizes) == 1 and min(sizes) > 0 else None


def _may_be_nan(weight: fx.Node) -> bool:
    """Return whether a table may hold NaN, of which PyTorch's maximum depends on the order of rows."""
    value = constant_of(weight)
    return value is None or bool(value.isnan().any())


class _Bags:
    """Calls that replace one embedding bag, whose bags have one size."""

    def __init__(self, node: fx.Node, mode: FakeTensorMode, size: int) -> None:
        self.node, self.mode, self.size = node, mode, size

    def call(self, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return insert_call(self.node, self.mode, op, *args, **kwargs)

    def by_bag(self, values: fx.Node) -> fx.Node:
        return self.call(aten.reshape.default, values, [-1, self.size])

    def reduced(
        self,
        weight: fx.Node,
        indices: fx.Node,
        mode: int,
        per_sample_weights: fx.Node | None,
        padding_idx: int,
        **rest: Any,
    ) -> fx.Node:
        """Insert the rows of all bags, of shape (bags, size, features), and their reduction."""
        numbers = self.by_bag(indices)
        rows = self.call(aten.embedding.default, weight, numbers)
        if per_sample_weights is not None:
            factors = self.call(aten.unsqueeze.default, self.by_bag(per_sample_weights), 2)
            rows = self.call(aten.mul.Tensor, rows, factors)
        if padding_idx < 0:
            return self.over_all(rows, mode)
        padding = self.call(aten.eq.Scalar, self.call(aten.unsqueeze.default, numbers, 2), padding_idx)
        hidden = self.call(aten.masked_fill.Scalar, rows, padding, -math.inf if mode == MAX else 0.0)
        return self.over_others(hidden, padding, mode)

    def over_all(self, rows: fx.Node, mode: int) -> fx.Node:
        op = {SUM: aten.sum.dim_IntList, MEAN: aten.mean.dim, MAX: aten.amax.default}[mode]
        return self.call(op, rows, [1])

    def over_others(self, rows: fx.Node, padding: fx.Node, mode: int) -> fx.Node:
        """Insert the reduction of the rows that are no padding; bags of padding alone give zeros."""
        if mode == SUM:
            return self.over_all(rows, mode)
        if mode == MAX:
            is_empty = self.call(aten.all.dim, padding, 1)
            return self.call(aten.masked_fill.Scalar, self.over_all(rows, mode), is_empty, 0.0)
        others = self.call(aten.sum.dim_IntList, self.call(aten.logical_not.default, padding), [1])
        dtype = rows.meta["val"].dtype
        wide = torch.float32 if dtype in HALF_FLOATS else dtype  # the sum may be beyond half precision
        total = self.call(aten.sum.dim_IntList, rows, [1], dtype=wide)
        mean = self.call(aten.div.Tensor, total, self.call(aten.clamp_min.default, others, 1))
        return mean if dtype == wide else self.call(aten._to_copy.default, mean, dtype=dtype)
