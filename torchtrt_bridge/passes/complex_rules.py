"""Rules of complex operators: how each call is computed with pairs of reals.

Each result is the one of PyTorch's own formula, NaN of infinities among them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from torchtrt_bridge.graph.torch_internals import schema_of
from torchtrt_bridge.passes.complex_parts import Pairs, complex_dtype

aten = torch.ops.aten

# Computes a call: gets the arguments of its operator by name, and returns a pair where the result is complex, or None
# for what is left to PyTorch.
Rule = Callable[..., "fx.Node | None"]

RULES: dict[Any, Rule] = {}

# The dtypes that have pairs, with that of the pair.
REALS = {torch.complex64: torch.float32, torch.complex128: torch.float64}


def _rule(*ops: Any) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return register


@_rule(aten.view_as_complex.default)
def _view_as_complex(pairs: Pairs, self: fx.Node) -> fx.Node:
    return self


@_rule(aten.view_as_real.default)
def _view_as_real(pairs: Pairs, self: fx.Node) -> fx.Node:
    return pairs.pair(self)


@_rule(aten.complex.default)
def _complex(pairs: Pairs, real: fx.Node, imag: fx.Node) -> fx.Node:
    return pairs.joined(real, imag)


@_rule(aten.polar.default)
def _polar(pairs: Pairs, abs: fx.Node, angle: fx.Node) -> fx.Node:
    parts = [pairs.call(op, angle) for op in (aten.cos.default, aten.sin.default)]
    return pairs.joined(*(pairs.call(aten.mul.Tensor, abs, part) for part in parts))


@_rule(aten.mul.Tensor, aten.mul.Scalar)
def _mul(pairs: Pairs, self: Any, other: Any) -> fx.Node:
    return pairs.joined(*pairs.product(pairs.parts(self), pairs.parts(other)))


@_rule(aten.add.Tensor, aten.add.Scalar)
def _add(pairs: Pairs, self: Any, other: Any, alpha: Any) -> fx.Node:
    return pairs.joined(*pairs.sum(pairs.parts(self), pairs.parts(other), alpha))


@_rule(aten.sub.Tensor, aten.sub.Scalar)
def _sub(pairs: Pairs, self: Any, other: Any, alpha: Any) -> fx.Node | None:
    return _add(pairs, self, other, -alpha)


@_rule(aten.rsub.Tensor, aten.rsub.Scalar)
def _rsub(pairs: Pairs, self: Any, other: Any, alpha: Any) -> fx.Node | None:
    return _sub(pairs, other, self, alpha)


@_rule(aten.neg.default)
def _neg(pairs: Pairs, self: fx.Node) -> fx.Node:
    return pairs.call(aten.neg.default, pairs.pair(self))


@_rule(aten._conj.default, aten._conj_physical.default, aten.conj_physical.default)
def _conj(pairs: Pairs, self: fx.Node) -> fx.Node:
    real, imaginary = pairs.parts(self)
    return pairs.joined(real, pairs.call(aten.neg.default, imaginary))


@_rule(aten.abs.default)
def _abs(pairs: Pairs, self: fx.Node) -> fx.Node:
    return pairs.call(aten.hypot.default, *pairs.parts(self))


@_rule(aten.angle.default)
def _angle(pairs: Pairs, self: fx.Node) -> fx.Node:
    real, imaginary = pairs.parts(self)
    return pairs.call(aten.atan2.default, imaginary, real)


@_rule(aten._to_copy.default)
def _to_copy(pairs: Pairs, self: fx.Node, memory_format: Any, **kwargs: Any) -> fx.Node | None:
    dtype = REALS.get(pairs.here.meta["val"].dtype)
    if dtype is None:
        return None
    source = pairs.pair(self) if complex_dtype(self) else self
    copied = pairs.call(aten._to_copy.default, source, **(kwargs | {"dtype": dtype}))
    return copied if complex_dtype(self) else pairs.joined(copied, 0.0)


@_rule(aten.where.self)
def _where(pairs: Pairs, condition: fx.Node, self: fx.Node, other: fx.Node) -> fx.Node | None:
    if None in map(complex_dtype, (self, other)):
        return None
    condition = pairs.call(aten.unsqueeze.default, condition, condition.meta["val"].dim())
    return pairs.call(aten.where.self, condition, pairs.pair(self), pairs.pair(other))


# Moves: all that is said of dimensions counts them from the front, as a pair has one more at the end ---------------


@_rule(aten.cat.default)
def _cat(pairs: Pairs, tensors: Sequence[fx.Node], dim: int) -> fx.Node | None:
    ranks = {tensor.meta["val"].dim() for tensor in tensors}
    if len(ranks) > 1 or None in map(complex_dtype, tensors):
        return None
    return pairs.call(aten.cat.default, list(map(pairs.pair, tensors)), dim % ranks.pop())


@_rule(aten.alias.default, aten.clone.default, aten.detach.default, aten.lift_fresh_copy.default)
def _same(pairs: Pairs, self: fx.Node, **rest: Any) -> fx.Node:
    return pairs.pair(self)


@_rule(aten.reshape.default)
def _reshape(pairs: Pairs, self: fx.Node, shape: Sequence[Any]) -> fx.Node:
    return pairs.call(aten.reshape.default, pairs.pair(self), [*shape, 2])


@_rule(aten.expand.default)
def _expand(pairs: Pairs, self: fx.Node, size: Sequence[Any], implicit: bool) -> fx.Node:
    return pairs.call(aten.expand.default, pairs.pair(self), [*size, 2])


@_rule(aten.repeat.default)
def _repeat(pairs: Pairs, self: fx.Node, repeats: Sequence[Any]) -> fx.Node:
    return pairs.call(aten.repeat.default, pairs.pair(self), [*repeats, 1])


@_rule(aten.permute.default)
def _permute(pairs: Pairs, self: fx.Node, dims: Sequence[int]) -> fx.Node:
    rank = len(dims)
    return pairs.call(aten.permute.default, pairs.pair(self), [*(dim % rank for dim in dims), rank])


@_rule(aten.unsqueeze.default)
def _unsqueeze(pairs: Pairs, self: fx.Node, dim: int) -> fx.Node:
    return pairs.call(aten.unsqueeze.default, pairs.pair(self), dim % (self.meta["val"].dim() + 1))


@_rule(aten.index.Tensor)
def _index(pairs: Pairs, self: fx.Node, indices: Sequence[Any]) -> fx.Node:
    return pairs.call(aten.index.Tensor, pairs.pair(self), indices)


def _along(op: Any, name: str) -> None:
    """Register an operator with an argument of this name for its dimension or dimensions."""
    positional = [argument.name for argument in schema_of(op).arguments if not argument.kwarg_only]

    def move(pairs: Pairs, self: fx.Node, **arguments: Any) -> fx.Node | None:
        rank = self.meta["val"].dim()
        if not rank or arguments[name] == []:  # without dimensions, `roll` flattens
            return None
        arguments[name] = _from_front(arguments[name], rank)
        return pairs.call(op, pairs.pair(self), *(arguments[name] for name in positional[1:]))

    RULES[op] = move


def _from_front(dims: Any, rank: int) -> Any:
    return dims % rank if isinstance(dims, int) else [dim % rank for dim in dims]


_along(aten.squeeze.dims, "dim")
_along(aten.slice.Tensor, "dim")
_along(aten.select.int, "dim")
_along(aten.index_select.default, "dim")
_along(aten.flip.default, "dims")
_along(aten.split_with_sizes.default, "dim")
_along(aten.roll.default, "dims")


@_rule(operator.getitem)
def _getitem(pairs: Pairs, source: fx.Node, index: int) -> fx.Node | None:
    return pairs.call(operator.getitem, pairs.pair(source), index) if pairs.has_pair(source) else None
