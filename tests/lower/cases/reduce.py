"""Reductions over dimensions."""

import math

import torch

from tests.lower.case import Case, Rejected

aten = torch.ops.aten


def one(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3, 5),)


def near_one(n: int) -> tuple[torch.Tensor]:
    return (torch.rand(n, 3, 4) + 0.5,)


def one_integer(n: int) -> tuple[torch.Tensor]:
    return (torch.randint(-9, 9, (n, 3, 4)),)


def small_integer(n: int) -> tuple[torch.Tensor]:
    return (torch.randint(-3, 4, (n, 3)),)


def one_bool(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3, 4) > 0.5,)


def mostly_zero(n: int) -> tuple[torch.Tensor]:
    return (torch.randint(0, 9, (n, 3, 4)) // 8 * 0.5,)


def with_infinities(n: int) -> tuple[torch.Tensor]:
    rows = torch.randn(n, 4) * 200
    rows[0], rows[1, 2] = math.inf, -math.inf
    return (rows,)


def over(call, *args, **kwargs):
    return lambda x: call(x, *args, **kwargs)


def every_way(default, dims, call) -> list[Case]:
    """Full, and along one or several dimensions, kept or not, of which one is dynamic."""
    return [
        Case(default, call, one),
        Case(default, lambda x: call(x[0, 0, 0]), one, name="0d"),
        Case(dims, over(call, 1), one, name="one"),
        Case(dims, over(call, -1, keepdim=True), one, name="keepdim"),
        Case(dims, over(call, 0), one, name="dynamic"),
    ]


def along_several(op, call) -> list[Case]:
    return [
        Case(op, over(call, (0, -1)), one, name="several"),
        Case(op, over(call, (0, 1, 2), keepdim=True), one, name="all_keepdim"),
        Case(op, over(call, ()), one, name="empty"),
    ]


def of_all_dtypes(default, dim, call) -> list[Case]:
    return [
        Case(default, call, mostly_zero, name="float"),
        Case(default, call, one_bool, name="bool", half=False),
        Case(default, call, one_integer, name="int64", half=False),
        Case(dim, over(call, 1), mostly_zero, name="float"),
        Case(dim, over(call, -1, keepdim=True), one_bool, name="bool", half=False),
        Case(dim, over(call, 0), lambda n: (one_integer(n)[0] // 6,), name="int64", half=False),
    ]


CASES: list[Case] = [
    *every_way(aten.sum.default, aten.sum.dim_IntList, torch.sum),
    *along_several(aten.sum.dim_IntList, torch.sum),
    *every_way(aten.mean.default, aten.mean.dim, torch.mean),
    *along_several(aten.mean.dim, torch.mean),
    *every_way(
        aten.max.default,
        aten.amax.default,
        lambda x, *dim, **keep: torch.amax(x, *dim, **keep) if dim else torch.max(x),
    ),
    *along_several(aten.amax.default, torch.amax),
    *every_way(
        aten.min.default,
        aten.amin.default,
        lambda x, *dim, **keep: torch.amin(x, *dim, **keep) if dim else torch.min(x),
    ),
    *along_several(aten.amin.default, torch.amin),
    Case(aten.prod.default, torch.prod, near_one),
    Case(aten.prod.dim_int, over(torch.prod, 1), near_one),
    Case(aten.prod.dim_int, over(torch.prod, -1, keepdim=True), near_one, name="keepdim"),
    Case(aten.prod.default, torch.prod, small_integer, name="int64", half=False),
    Case(aten.prod.dim_int, over(torch.prod, 0), one_bool, name="bool", half=False),
    Case(aten.sum.default, torch.sum, one_bool, name="bool", half=False),
    Case(aten.sum.default, over(torch.sum, dtype=torch.float32), one_integer, name="dtype", half=False),
    Case(aten.sum.dim_IntList, over(torch.sum, 1), one_integer, name="int64", half=False),
    Case(aten.sum.dim_IntList, lambda x: x.int().sum(-1), one_integer, name="int32", half=False),
    Case(aten.sum.dim_IntList, over(torch.sum, 1, dtype=torch.float32), one, name="dtype"),
    Case(aten.sum.dim_IntList, over(torch.sum, -1), lambda n: (torch.full((n, 3000), 3.0),), name="long"),
    Case(aten.mean.dim, over(torch.mean, 1, dtype=torch.float32), one_integer, name="dtype", half=False),
    Case(aten.mean.dim, over(torch.mean, -1), lambda n: (torch.full((n, 3000), 100.0),), name="long"),
    Case(aten.max.default, torch.max, one_bool, name="bool", half=False),
    Case(aten.amin.default, over(torch.amin, -1), one_bool, name="bool", half=False),
    Case(aten.amax.default, over(torch.amax, 1), one_integer, name="int64", half=False),
    *of_all_dtypes(aten.any.default, aten.any.dim, torch.any),
    *of_all_dtypes(aten.all.default, aten.all.dim, torch.all),
    Case(aten.any.dims, over(torch.any, (0, 2)), one_bool, half=False),
    Case(aten.any.dims, over(torch.any, (0, 2), keepdim=True), mostly_zero, name="float"),
    Case(aten.all.dims, over(torch.all, (0, 2)), one_bool, half=False),
    Case(aten.all.dims, over(torch.all, (-1, -2), keepdim=True), mostly_zero, name="float"),
    Case(aten.logsumexp.default, over(torch.logsumexp, -1), one),
    Case(aten.logsumexp.default, over(torch.logsumexp, (0, 2)), one, name="several"),
    Case(aten.logsumexp.default, over(torch.logsumexp, 1, keepdim=True), one, name="keepdim"),
    Case(aten.logsumexp.default, over(torch.logsumexp, -1), with_infinities, name="infinities"),
    Case(aten.logsumexp.default, lambda x: torch.logsumexp(x[0, 0, 0], 0), one, name="0d"),
    # Functions that PyTorch itself takes apart.
    Case(aten.amax.default, lambda x: torch.aminmax(x, dim=1), one, name="aminmax"),
    Case(aten.sum.dim_IntList, over(torch.count_nonzero, 1), mostly_zero, name="count_nonzero"),
    Case(aten.sum.dim_IntList, over(torch.nansum, 1), one, name="nansum"),
]

REJECTED: list[Rejected] = []
