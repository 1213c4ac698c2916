"""Bounds of the elements of a tensor, found by interval arithmetic before the tensor is computed."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from torchtrt_bridge.graph.nodes import operator_name
from torchtrt_bridge.graph.shapes import UNBOUNDED
from torchtrt_bridge.graph.torch_internals import schema_of
from torchtrt_bridge.lower.registry import movement_of

# Smallest and largest element. False counts as 0 and True as 1; NaN lies within any bounds.
Bounds = tuple[float, float]

ANY: Bounds = (-math.inf, math.inf)
ALL_TRUE: Bounds = (1.0, 1.0)
ALL_ZERO: Bounds = (0.0, 0.0)

# Bounds are float64, which represents every integer up to this one.
LARGEST_EXACT = 2.0**53


def bounds_of(node: Any, known: dict[fx.Node, Bounds] | None = None) -> Bounds:
    """Return the bounds of a node's tensor, or of a number.

    known: the bounds found so far, for calls that ask for several nodes of one graph; this call adds to it.
    """
    if not isinstance(node, fx.Node):
        return (float(node), float(node)) if isinstance(node, (bool, int, float)) else ANY
    known = {} if known is None else known
    if node not in known:
        known[node] = _within_dtype(node, _bounds(node, known))
    return known[node]


def _bounds(node: fx.Node, known: dict[fx.Node, Bounds]) -> Bounds:
    if node.op == "get_attr":
        return _of_constant(getattr(node.graph.owning_module, str(node.target), None))
    schema = schema_of(node.target)
    if (
        node.op != "call_function" or schema is None or schema.overload_name == "dtype"
    ):  # it reads the bits as another dtype
        return ANY
    name = operator_name(node.target)
    if movement_of(node) is not None:
        return bounds_of(node.args[0], known)
    if name == "arange":
        return _of_arange(node)
    rule = _RULES.get(name)
    arguments = node.args[1:] if name in ("full", "full_like") else node.args
    if rule is None or len(arguments) != len(inspect.signature(rule).parameters) or node.kwargs.get("alpha", 1) != 1:
        return ANY
    parts = [bounds_of(argument, known) for argument in arguments]
    if name in _COMPARISONS and not all(map(_is_exact, arguments, parts)):
        return ANY
    if name in _LOGIC and not all(map(_is_bool, arguments)):
        return ANY
    result = rule(*parts)
    return ANY if any(math.isnan(end) for end in result) else result


def _is_exact(argument: Any, bounds: Bounds) -> bool:
    """Return whether these are integers within what float64 represents exactly, so that no rounding moves a bound."""
    value = argument.meta.get("val") if isinstance(argument, fx.Node) else argument
    is_whole = isinstance(value, int) or (isinstance(value, torch.Tensor) and not value.dtype.is_floating_point)
    return is_whole and all(abs(end) <= LARGEST_EXACT for end in bounds)


def _is_bool(argument: Any) -> bool:
    value = argument.meta.get("val") if isinstance(argument, fx.Node) else argument
    return isinstance(value, bool) or (isinstance(value, torch.Tensor) and value.dtype == torch.bool)


def _of_constant(value: Any) -> Bounds:
    if not isinstance(value, torch.Tensor) or value.numel() == 0 or value.is_complex():
        return ANY
    low, high = (value.all(), value.any()) if value.dtype == torch.bool else torch.aminmax(value)
    return ANY if math.isnan(float(low)) else (float(low), float(high))


def _of_arange(node: fx.Node) -> Bounds:
    """Return the bounds of arange.start_step(start, end, step) that goes up by whole steps from a known start."""
    start, end, step = (*node.args, 1)[:3]
    if len(node.args) < 2 or not isinstance(start, int) or not isinstance(step, int) or step < 1:
        return ANY
    return float(start), float(end if isinstance(end, int) else start + step * UNBOUNDED)


def _within_dtype(node: fx.Node, bounds: Bounds) -> Bounds:
    """Return the bounds in the node's dtype: infinite if floats overflow, the dtype's whole range if integers do."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.is_complex():
        return ANY
    low, high = bounds
    if value.dtype == torch.bool:
        return float(low > 0 or high < 0), float(not low == high == 0)
    if value.is_floating_point():
        return -_rounded(-low, value.dtype), _rounded(high, value.dtype)
    info = torch.iinfo(value.dtype)
    if low < info.min or high > info.max:
        return float(info.min), float(info.max)
    return math.floor(low), math.ceil(high)


def _rounded(end: float, dtype: torch.dtype) -> float:
    """Return an upper bound in a float dtype; a number that rounds to the largest one does not overflow."""
    info = torch.finfo(dtype)
    if end <= info.max:
        return end
    return info.max if end <= info.max * (1 + info.eps / 8) else math.inf


def _hull(*parts: Bounds) -> Bounds:
    return min(low for low, _ in parts), max(high for _, high in parts)


def _product(left: Bounds, right: Bounds) -> Bounds:
    ends = [a * b for a, b in itertools.product(left, right)]
    return (math.nan, math.nan) if any(math.isnan(end) for end in ends) else (min(ends), max(ends))


def _where(condition: Bounds, then: Bounds, otherwise: Bounds) -> Bounds:
    if condition == ALL_TRUE:
        return then
    return otherwise if condition == ALL_ZERO else _hull(then, otherwise)


def _truth(always: bool, never: bool) -> Bounds:
    return float(always), float(not never)


_COMPARISONS: dict[str, Callable[..., Bounds]] = {
    "ge": lambda a, b: _truth(a[0] >= b[1], a[1] < b[0]),
    "gt": lambda a, b: _truth(a[0] > b[1], a[1] <= b[0]),
    "le": lambda a, b: _truth(a[1] <= b[0], a[0] > b[1]),
    "lt": lambda a, b: _truth(a[1] < b[0], a[0] >= b[1]),
}

# Rules for tensors of bools.
_LOGIC: dict[str, Callable[..., Bounds]] = {
    "bitwise_and": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "bitwise_not": lambda a: (1 - a[1], 1 - a[0]),
    "bitwise_or": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "logical_and": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "logical_not": lambda a: (1 - a[1], 1 - a[0]),
    "logical_or": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
}

_RULES: dict[str, Callable[..., Bounds]] = {
    **_COMPARISONS,
    **_LOGIC,
    "abs": lambda a: (max(0.0, a[0], -a[1]), max(-a[0], a[1])),
    "add": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "clamp": lambda a, low, high: (min(max(a[0], low[0]), high[0]), min(max(a[1], low[1]), high[1])),
    "full": lambda value: value,
    "full_like": lambda value: value,
    "masked_fill": lambda a, mask, value: _where(mask, value, a),
    "maximum": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "minimum": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "mul": _product,
    "neg": lambda a: (-a[1], -a[0]),
    "rsub": lambda a, b: (b[0] - a[1], b[1] - a[0]),
    "scalar_tensor": lambda value: value,
    "sub": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "where": _where,
}
