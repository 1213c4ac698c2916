"""Scatters that reduce. The harness negates inputs, so indices that must not be negative are made negative."""

import math
from collections.abc import Callable

import torch

from tests.lower.case import Case, Rejected

aten = torch.ops.aten
Inputs = tuple[torch.Tensor, ...]


def places(high: int, *shape: int) -> torch.Tensor:
    """Indices that are 0 to high - 1 after negation, many of them equal."""
    return -torch.randint(0, high, shape)


def either_sign(high: int, *shape: int) -> torch.Tensor:
    """Indices from -high to high - 1, after negation too, of which two are equal."""
    index = -torch.randint(-high, high, shape)
    index.view(-1)[-1] = index.view(-1)[0]
    return index


def meeting(n: int) -> Inputs:
    """Nine values for each row's six places."""
    return torch.randn(n, 6), places(6, n, 9), torch.randn(n, 9)


def in_part(n: int) -> Inputs:
    """An index that leaves a part of the tensor and of the values alone."""
    return torch.randn(n + 2, 6, 4), places(6, n, 5, 3), torch.randn(n + 3, 7, 4)


def integers(n: int) -> Inputs:
    return torch.randint(-9, 9, (n, 6)), places(6, n, 9), torch.randint(-9, 9, (n, 9))


def near_one(n: int) -> Inputs:
    return -torch.rand(n, 6) - 0.5, places(6, n, 9), -torch.rand(n, 9) - 0.5


def rows(n: int) -> Inputs:
    return torch.randn(n, 6, 4), either_sign(6, 9), torch.randn(n, 9, 4)


def reduced(reduce: str, include_self: bool = True) -> Callable[..., torch.Tensor]:
    return lambda x, i, v: x.scatter_reduce(1, i, v, reduce, include_self=include_self)


def every_way(reduce: str, inputs: Callable[[int], Inputs] = meeting) -> list[Case]:
    return [
        Case(aten.scatter_reduce.two, reduced(reduce), inputs, name=reduce),
        Case(aten.scatter_reduce.two, reduced(reduce, include_self=False), inputs, name=f"{reduce}-without-self"),
        Case(aten.scatter_reduce.two, reduced(reduce, include_self=False), in_part, name=f"{reduce}-smaller-index"),
    ]


SCATTERS = [
    Case(aten.scatter_add.default, lambda x, i, v: x.scatter_add(-1, i, v), meeting),
    Case(aten.scatter_add.default, lambda x, i, v: x.scatter_add(1, i, v), in_part, name="smaller-index"),
    Case(aten.scatter_add.default, lambda x, i, v: x.scatter_add(1, i, v), integers, half=False, name="int64"),
    Case(
        aten.scatter_add.default,
        lambda x, i, v: x.scatter_add(0, i, v),
        lambda n: (torch.randn(6, n), places(6, 9, n), torch.randn(9, n)),
        name="first",
    ),
    *every_way("sum"),
    *every_way("mean"),
    *every_way("amax"),
    *every_way("amin"),
    *every_way("prod", near_one),
    Case(aten.scatter_reduce.two, reduced("mean"), in_part, name="mean-with-self-smaller-index"),
    Case(aten.scatter_reduce.two, reduced("amax", include_self=False), integers, half=False, name="amax-int64"),
    Case(aten.scatter_reduce.two, reduced("prod"), integers, half=False, name="prod-int64"),
    Case(aten.scatter_reduce.two, reduced("mean"), integers, half=False, name="mean-int64"),
    Case(
        aten.scatter_reduce.two,
        reduced("mean", include_self=False),
        integers,
        half=False,
        name="mean-without-self-int64",
    ),
]

ADDED = [
    Case(aten.index_put.default, lambda x, i, v: aten.index_put(x, [None, i], v, True), rows, name="added"),
    Case(
        aten.index_put.default,
        lambda x, i, v: aten.index_put(x, [None, i], v, True),
        lambda n: (torch.randn(n, 6, 4), either_sign(6, 9), torch.randn(4)),
        name="added-row",
    ),
    Case(
        aten.index_put.default,
        lambda x, i, j, v: aten.index_put(x, [None, i, j], v, True),
        lambda n: (torch.randn(n, 6, 4), either_sign(6, 3, 1), either_sign(4, 5), torch.randn(n, 3, 5)),
        name="added-two",
    ),
    Case(
        aten.index_put.default,
        lambda x, i, j, v: aten.index_put(x, [i, None, j], v, True),
        lambda n: (torch.randn(3, n, 4), either_sign(3, 7), either_sign(4, 7), torch.randn(7, n)),
        name="added-apart",
    ),
    Case(
        aten.index_put.default,
        lambda x, i, v: aten.index_put(x, [None, i], v, True),
        lambda n: (torch.randint(-9, 9, (n, 6)), either_sign(6, 9), torch.randint(-9, 9, (n, 9))),
        half=False,
        name="added-int64",
    ),
    Case(
        aten.index_put.default,
        lambda x, i, v: aten.index_put(x, [i], v, True),
        lambda n: (torch.randn(6, 4), either_sign(6, n), torch.randn(n, 4)),
        name="added-dynamic",
    ),
    Case(
        aten.index_put.default,
        lambda x, m, v: aten.index_put(x, [m], v, True),
        lambda n: (torch.randn(n, 6, 4), torch.randn(n, 6) > 0, torch.randn(4)),
        name="added-mask",
    ),
    Case(
        aten.index_put.default,
        lambda x, i, v: x.index_add(1, i, v),
        lambda n: (rows(n)[0], places(6, 9), rows(n)[2]),
        name="index_add",
    ),
    Case(
        aten.index_put.default,
        lambda x, i, v: x.index_add(1, i, v, alpha=-2),
        lambda n: (rows(n)[0], places(6, 9), rows(n)[2]),
        name="index_add-alpha",
    ),
]


def slices(n: int) -> Inputs:
    """Nine slices for six places of which one gets none."""
    return -torch.rand(n, 6, 4) - 0.5, torch.cat([places(5, 8), torch.tensor([-2])]), -torch.rand(n, 9, 4) - 0.5


def slices_of_integers(n: int) -> Inputs:
    index = slices(n)[1].int()
    return torch.randint(-99, 99, (n, 6, 4)), index, torch.randint(-99, 99, (n, 9, 4))


def strange(n: int) -> Inputs:
    """Slices with infinities, which must not reach other places."""
    x, index, source = slices(n)
    x[0, 0, 0], source[0, 1, 0], source[1, 2, :2] = math.inf, -math.inf, math.inf
    return x, index, source


def sliced(reduce: str, include_self: bool = True, dim: int = 1) -> Callable[..., torch.Tensor]:
    return lambda x, i, v: x.index_reduce(dim, i, v, reduce, include_self=include_self)


SLICES = [
    *[
        Case(aten.index_reduce.default, sliced(reduce, include_self), inputs, half=half, name=f"{reduce}{ending}{name}")
        for reduce in ("mean", "amax", "amin", "prod")
        for include_self, ending in ((True, ""), (False, "-without-self"))
        for inputs, half, name in (
            (slices, True, ""),
            (slices_of_integers, False, "-int64"),
            (strange, False, "-infinite"),
        )
    ],
    Case(
        aten.index_reduce.default,
        sliced("mean", dim=-2),
        lambda n: (torch.randn(6, 4), places(6, n), torch.randn(n, 4)),
        name="dynamic-index",
    ),
    Case(
        aten.index_reduce.default,
        sliced("amax", dim=0),
        lambda n: (torch.randn(6), places(6, n), torch.randn(n)),
        name="1d",
    ),
]

CASES: list[Case] = [*SCATTERS, *ADDED, *SLICES]


def large(n: int) -> Inputs:
    return torch.randn(2, 1 << 12), places(9, 2, 1 << 12), torch.randn(2, 1 << 12)


def deep(n: int) -> Inputs:
    return torch.randn([2] * 8), places(2, *[2] * 8), torch.randn([2] * 8)


REJECTED: list[Rejected] = [
    Rejected(aten.scatter_add.default, lambda x, i, v: x.scatter_add(1, i, v), large, "33554432 comparisons"),
    Rejected(aten.scatter_add.default, lambda x, i, v: x.scatter_add(1, i, v), deep, "8 dimensions", name="deep"),
    Rejected(
        aten.scatter_add.default,
        lambda x, i, v: x.scatter_add(0, i, v),
        lambda n: (torch.randn(n, 6), places(4, 9, 6), torch.randn(9, 6)),
        "known only at run time",
        name="of-unknown-size",
        dynamic=True,
    ),
    Rejected(aten.scatter_reduce.two, reduced("sum"), large, "33554432 comparisons"),
    Rejected(
        aten.scatter_reduce.two,
        lambda x, i, v: x.scatter_reduce(0, i, v, "sum"),
        lambda n: (torch.randn(()), places(1), torch.randn(())),
        "without dimensions",
        name="0d",
    ),
    Rejected(
        aten.index_reduce.default,
        sliced("amax", dim=0),
        lambda n: (torch.randn(1 << 12, 8), places(9, 1 << 12), torch.randn(1 << 12, 8)),
        "134217728 comparisons",
    ),
    Rejected(
        aten.index_reduce.default,
        sliced("amax", dim=0),
        lambda n: (torch.randn(n, 4), places(4, 9), torch.randn(9, 4)),
        "known only at run time",
        name="of-unknown-size",
        dynamic=True,
    ),
    Rejected(
        aten.index_reduce.default,
        sliced("amax", dim=0),
        lambda n: (torch.randn(()), places(1, 1), torch.randn(())),
        "without dimensions",
        name="0d",
    ),
    Rejected(
        aten.index_put.default,
        lambda x, i, v: aten.index_put(x, [i], v, True),
        lambda n: (torch.randn(n, 6), torch.tensor([1, 1]), torch.randn(2, 6)),
        "known only at run time",
        name="added-to-unknown-size",
        dynamic=True,
    ),
    Rejected(
        aten.index_put.default,
        lambda x, i, v: aten.index_put(x, [i], v, True),
        lambda n: (torch.randn(1 << 12, 8), places(9, 1 << 12), torch.randn(1 << 12, 8)),
        "134217728 comparisons",
        name="added-many",
    ),
    Rejected(
        aten.index_put.default,
        lambda x, i, v: aten.index_put(x, [i], v, True),
        lambda n: (torch.randn(6) > 0, torch.tensor([1, 1]), torch.randn(2) > 0),
        "sums of bools",
        name="added-bools",
    ),
]
