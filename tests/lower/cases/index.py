"""Reading by index. The harness negates inputs, so indices that must not be negative are made negative."""

import torch

from tests.lower.case import Case, Rejected

aten = torch.ops.aten


def picks(high: int, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Indices that are 0 to high - 1 after negation."""
    return -torch.randint(0, high, shape, dtype=dtype)


def either_sign(high: int, *shape: int) -> torch.Tensor:
    """Indices from -high to high - 1, after negation too."""
    return -torch.randint(-high, high, shape)


def rows(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 6, 8), either_sign(6, 5)


def along(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 6, 8), picks(6, n, 3, 8)


def two(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(n, 6, 8), either_sign(6, 3, 1), either_sign(8, 5)


def dynamic(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(n, 6, n + 3), either_sign(4, n), either_sign(7, n)


def integers(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(-9, 9, (n, 6)), either_sign(6, 4)


def masked(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 6, 8), torch.randn(n, 6) > 0


GATHERS = [
    Case(aten.gather.default, lambda x, i: x.gather(1, i), along),
    Case(aten.gather.default, lambda x, i: x.gather(-2, i), along, name="negative"),
    Case(
        aten.gather.default,
        lambda x, i: x.gather(1, i),
        lambda n: (torch.randn(n + 2, 6, 8), picks(6, n, 7, 4)),
        name="smaller-index",
    ),
    Case(
        aten.gather.default,
        lambda x, i: x.gather(0, i),
        lambda n: (torch.randn(n, 6), picks(4, n, 6, dtype=torch.int64)),
        name="dynamic",
    ),
    Case(aten.gather.default, lambda x, i: x.gather(0, i), lambda n: (torch.randn(()), picks(1, n)), name="0d"),
    Case(
        aten.gather.default,
        lambda x, i: x.gather(1, i),
        lambda n: (torch.randn(n, 6) > 0, picks(6, n, 2)),
        half=False,
        name="bool",
    ),
    Case(
        aten.gather.default,
        lambda x, i: x.take_along_dim(i, 1),
        lambda n: (torch.randn(3, 6, 8), picks(6, 3, n, 8)),
        name="take_along_dim",
    ),
    Case(
        aten.index_select.default,
        lambda x, i: x.index_select(1, i),
        lambda n: (torch.randn(n, 6, 8), picks(6, 4)),
    ),
    Case(
        aten.index_select.default,
        lambda x, i: x.index_select(-1, i),
        lambda n: (torch.randn(n, 6, 8), picks(8, n, dtype=torch.int32)),
        name="int32",
    ),
    Case(
        aten.index_select.default,
        lambda x, i: x.index_select(0, i),
        lambda n: (torch.randn(n, 6, 8), picks(4)),
        name="0d",
    ),
]

INDEX = [
    Case(aten.index.Tensor, lambda x, i: x[:, i], rows),
    Case(
        aten.index.Tensor,
        lambda x, i: x[i],
        lambda n: (torch.randn(n, 6), either_sign(4, 3, 2)),
        name="first",
    ),
    Case(aten.index.Tensor, lambda x, i: x[:, i, None], rows, name="new-dim"),
    Case(aten.index.Tensor, lambda x, i: x[:, i.int()], rows, name="int32"),
    Case(
        aten.index.Tensor,
        lambda x, i: aten.index(x, [i[0]]),
        lambda n: (torch.randn(n, 6), either_sign(4, 3)),
        name="0d",
    ),
    Case(aten.index.Tensor, lambda x: x[:, [2, 0, -1]], lambda n: (torch.randn(n, 6),), name="constant"),
    Case(aten.index.Tensor, lambda x: x[[0, -1]], lambda n: (torch.randn(n, 6),), name="constant-into-dynamic"),
    Case(
        aten.index.Tensor,
        lambda x: x[:, [2, 0, -1], [[1], [3]]],
        lambda n: (torch.randn(n, 6, 8),),
        name="constants",
    ),
    Case(aten.index.Tensor, lambda x, i, j: x[:, i, j], two, name="adjacent"),
    Case(
        aten.index.Tensor,
        lambda x, i, j: x[i, :, j],
        lambda n: (torch.randn(n, 6, 8), either_sign(4, 3, 1), either_sign(8, 5)),
        name="apart",
    ),
    Case(aten.index.Tensor, lambda x, i, j: x[i, :, j], dynamic, name="apart-dynamic"),
    Case(
        aten.index.Tensor,
        lambda x, i, j: x[i, j],
        lambda n: (torch.randn(n, n + 3, 6), either_sign(4, n), either_sign(7, n)),
        name="adjacent-dynamic",
    ),
    Case(
        aten.index.Tensor,
        lambda x, i: x[torch.arange(x.shape[0]), i],
        lambda n: (torch.randn(n, 6, 8), either_sign(6, n)),
        name="one-of-each-row",
    ),
    Case(aten.index.Tensor, lambda x, i: x[:, i], integers, half=False, name="int64"),
    Case(
        aten.index.Tensor,
        lambda x, i: x[:, i],
        lambda n: (torch.randn(n, 6) > 0, either_sign(6, 4)),
        half=False,
        name="bool",
    ),
    Case(
        aten.index.Tensor,
        lambda x, i: x.take(i),
        lambda n: (torch.randn(n, 6), either_sign(24, 2, 3)),
        name="take",
    ),
    Case(
        aten.one_hot.default,
        lambda i: torch.nn.functional.one_hot(i, 7),
        lambda n: (picks(7, n, 3),),
        half=False,
    ),
]

CASES: list[Case] = [*GATHERS, *INDEX]

REJECTED: list[Rejected] = [
    Rejected(aten.index.Tensor, lambda x, m: x[m], masked, "depends on the data"),
]
