"""Values in order, medians, and other values at a place in the order. The harness negates inputs."""

from collections.abc import Callable
from typing import Any

import torch

from tests.lower.case import Case, Rejected
from tests.lower.cases.topk import beside_infinity, bools, distinct, equal, integers, line, over, with_nan

aten = torch.ops.aten


def small_integers(n: int) -> tuple[torch.Tensor]:
    return (torch.randint(-3, 4, (n, 5)),)


def within(most: int, dim: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return `call` for tensors whose size along `dim` is at most `most`, which the graph knows."""

    def bounded(x: torch.Tensor) -> Any:
        torch._check(x.shape[dim] <= most)
        return call(x)

    return bounded


def short(call: Callable[..., Any]) -> Callable[..., Any]:
    return within(16, 0, call)


def flat(x: torch.Tensor) -> torch.Tensor:
    """Return all elements, of which the graph knows that they are few."""
    torch._check(x.shape[0] <= 16)
    return x.flatten()


def with_nan_rows(n: int) -> tuple[torch.Tensor]:
    """Rows with no NaN, with some, and of nothing else, and an odd and an even number of numbers."""
    rows = torch.randperm(n * 7).reshape(n, 7) / 4
    rows[0, 3], rows[1, [1, 3]], rows[2] = torch.nan, torch.nan, torch.nan
    rows[3, 0], rows[3, 4] = torch.inf, -torch.inf
    return (rows,)


def one_nan_each(n: int) -> tuple[torch.Tensor]:
    """Rows with at most one NaN, so that its position is the only one."""
    rows = torch.randperm(n * 6).reshape(n, 6) / 4
    rows[0, 2], rows[2, 5], rows[3, 0] = torch.nan, torch.nan, torch.inf
    return (rows,)


def signed_zeros(n: int) -> tuple[torch.Tensor]:
    return (torch.tensor([[0.0, -0.0, 1.0, -0.0, 0.0]]).repeat(n, 1),)


def signs(x: torch.Tensor) -> torch.Tensor:
    """Return infinities of the signs of zeros, which compare as equal."""
    return 1 / x


def sort(x: torch.Tensor, dim: int = 1, descending: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.sort(x, dim=dim, descending=descending, stable=True)


def nucleus(logits: torch.Tensor) -> torch.Tensor:
    """Top-p sampling: the probabilities of the likeliest tokens that add up to 0.9."""
    probabilities, order = torch.sort(logits.softmax(-1), descending=True)
    kept = probabilities.masked_fill(probabilities.cumsum(-1) - probabilities > 0.9, 0)
    return torch.zeros_like(kept).scatter(-1, order, kept)


SORTS = [
    Case(aten.sort.default, lambda x: torch.sort(x), distinct),
    Case(aten.sort.default, lambda x: torch.sort(x, 1, descending=True), distinct, name="descending"),
    Case(aten.sort.default, lambda x: torch.sort(x[0, 0]), distinct, name="1d"),
    Case(aten.sort.default, lambda x: torch.sort(x[0]), line, name="0d"),
    Case(aten.sort.default, lambda x: torch.sort(x), integers, name="int64", half=False),
    Case(aten.sort.default, lambda x: torch.sort(x)[0], bools, name="bool", half=False),
    Case(aten.sort.default, lambda x: torch.argsort(x, -1, descending=True), distinct, name="argsort"),
    Case(aten.sort.default, lambda x: torch.msort(x.mT.mT[0]), distinct, name="msort"),
    Case(aten.sort.default, lambda x: torch.sort(x)[0], with_nan, name="nan"),
    Case(aten.sort.default, lambda x: torch.sort(x, descending=True)[0], with_nan, name="nan-descending"),
    Case(aten.sort.default, short(lambda x: torch.sort(x, 0)), distinct, name="dynamic"),
    Case(aten.sort.default, short(lambda x: torch.argsort(x, 0, descending=True)), line, name="dynamic-1d"),
    Case(aten.sort.default, short(lambda x: torch.sort(x, 0)[0]), with_nan, name="dynamic-nan"),
    Case(aten.sort.default, lambda x: torch.sort(x), beside_infinity, name="beside-infinity", half=False),
    Case(
        aten.sort.default,
        lambda x: torch.sort(x, descending=True),
        beside_infinity,
        name="beside-infinity-descending",
        half=False,
    ),
    Case(aten.sort.default, nucleus, distinct, name="nucleus"),
]

STABLE_SORTS = [
    *[
        Case(aten.sort.stable, over(sort, descending=d), make, name=f"{name}-{d}", half=half)
        for name, make, half in (("ties", equal, True), ("nan", with_nan, True), ("int64", small_integers, False))
        for d in (False, True)
    ],
    Case(aten.sort.stable, lambda x: torch.argsort(x, dim=1, stable=True), bools, name="bool", half=False),
    Case(aten.sort.stable, lambda x: torch.sort(x[0], stable=True), line, name="0d"),
    Case(aten.sort.stable, short(over(sort, 0)), equal, name="dynamic"),
    Case(aten.sort.stable, short(over(sort, 0, True)), with_nan, name="dynamic-descending"),
    Case(aten.sort.stable, short(over(sort, 0)), lambda n: (torch.randint(0, 3, (n,)),), name="dynamic-1d", half=False),
]


def median(op: Any, call: Callable[..., Any], with_one_nan: Callable[..., Any]) -> list[Case]:
    """Medians along a dimension, of an odd and an even number of values."""
    return [
        Case(op, over(call, 1), distinct),
        Case(op, over(call, -1, keepdim=True), distinct, name="keepdim"),
        Case(op, lambda x: call(x[..., :5], -1), distinct, name="odd"),
        Case(op, lambda x: call(x, -1)[0], equal, name="ties"),
        Case(op, over(call, 1), with_one_nan, name="one-nan"),
        Case(op, lambda x: call(x, 1)[0], with_nan_rows, name="nan"),
        Case(op, over(call, 1), integers, name="int64", half=False),
        Case(op, lambda x: call(x[0], 0), line, name="0d"),
        Case(op, over(call, 0), lambda n: (torch.randperm(6)[None].repeat(n, 1).mT[:, :1] / 2,), name="column"),
        Case(op, short(over(call, 0)), distinct, name="dynamic"),
        Case(op, short(over(call, 0, True)), line, name="dynamic-1d"),
    ]


def median_of_all(op: Any, call: Callable[..., Any]) -> list[Case]:
    return [
        Case(op, lambda x: call(x[0]), distinct),
        Case(op, lambda x: call(x[0, 0, :5]), distinct, name="odd"),
        Case(op, lambda x: call(x[2]), with_nan_rows, name="nothing-but-nan"),
        Case(op, lambda x: call(x[1]), with_nan_rows, name="nan"),
        Case(op, lambda x: call(x[0]), integers, name="int64", half=False),
        Case(op, lambda x: call(x[0]), line, name="0d"),
        Case(op, lambda x: call(flat(x)), distinct, name="dynamic"),
        Case(op, short(call), distinct, name="dynamic-3d"),
    ]


MEDIANS = [
    *median(aten.median.dim, torch.median, one_nan_each),
    *median(aten.nanmedian.dim, torch.nanmedian, one_nan_each),
    *median_of_all(aten.median.default, torch.median),
    *median_of_all(aten.nanmedian.default, torch.nanmedian),
]

KTH = [
    Case(aten.kthvalue.default, over(torch.kthvalue, 2), distinct),
    Case(aten.kthvalue.default, over(torch.kthvalue, 4, 1, keepdim=True), distinct, name="keepdim"),
    Case(aten.kthvalue.default, over(torch.kthvalue, 1, 0), distinct, name="dynamic"),
    Case(aten.kthvalue.default, lambda x: torch.kthvalue(x, 3)[0], equal, name="ties"),
    Case(aten.kthvalue.default, over(torch.kthvalue, 6), one_nan_each, name="nan-last"),
    Case(aten.kthvalue.default, lambda x: torch.kthvalue(x, 5)[0], with_nan_rows, name="nan"),
    Case(aten.kthvalue.default, over(torch.kthvalue, 3, 1), integers, name="int64", half=False),
    Case(aten.kthvalue.default, lambda x: torch.kthvalue(x[0], 1), line, name="0d"),
    Case(aten.kthvalue.default, over(torch.kthvalue, 3), line, name="1d"),
    Case(aten.kthvalue.default, short(lambda x: torch.kthvalue(x, x.shape[0] - 1, 0)), distinct, name="size"),
]

MODES = [
    Case(aten.mode.default, over(torch.mode, 1), small_integers, name="int64", half=False),
    Case(aten.mode.default, over(torch.mode), equal),
    Case(aten.mode.default, over(torch.mode, 1, True), equal, name="keepdim"),
    Case(aten.mode.default, over(torch.mode), bools, name="bool", half=False),
    Case(aten.mode.default, over(torch.mode, 1), distinct, name="all-different"),
    Case(aten.mode.default, lambda x: signs(torch.mode(x, 1)[0]), signed_zeros, name="signed-zeros"),
    Case(aten.mode.default, lambda x: torch.mode(x, 1)[0], with_nan_rows, name="nan"),
    Case(aten.mode.default, lambda x: torch.mode(x[0], 0), line, name="0d"),
    Case(aten.mode.default, short(over(torch.mode, 0)), equal, name="dynamic"),
]


CASES: list[Case] = [*SORTS, *STABLE_SORTS, *MEDIANS, *KTH, *MODES]


def many(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 4000),)


def columns(call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: call(x.mT, 1)


def three(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3),)


NO_END = "its range needs an upper end"

REJECTED: list[Rejected] = [
    Rejected(aten.sort.default, torch.sort, many, "sorting 4000 values; at most 3840"),
    Rejected(aten.sort.default, columns(torch.sort), three, NO_END, dynamic=True),
    Rejected(aten.sort.default, within(4000, 0, over(torch.sort, 0)), three, NO_END, "too-wide", dynamic=True),
    Rejected(aten.sort.stable, sort, many, "at most 1024"),
    Rejected(aten.sort.stable, columns(sort), three, NO_END, dynamic=True),
    Rejected(aten.sort.stable, lambda x: sort(x.reshape(1, 1, 1, 1, 1, 1, -1, 3), -1), three, "in 8 dimensions"),
    Rejected(aten.median.dim, over(torch.median, 1), many, "at most 3840"),
    Rejected(aten.nanmedian.dim, columns(torch.nanmedian), three, NO_END, dynamic=True),
    Rejected(aten.median.default, torch.median, many, "sorting 16000 values"),
    Rejected(aten.nanmedian.default, torch.nanmedian, three, NO_END, dynamic=True),
    Rejected(aten.kthvalue.default, over(torch.kthvalue, 3900), many, "at most 3840"),
    Rejected(aten.kthvalue.default, lambda x: torch.kthvalue(x, x.shape[0], 0), three, NO_END, "size", dynamic=True),
    Rejected(aten.mode.default, over(torch.mode, 1), many, "at most 1024"),
    Rejected(aten.mode.default, lambda x: torch.mode(x.reshape(1, 1, 1, 1, 1, 1, -1, 3)), three, "in 8 dimensions"),
]
