"""Writing by index. The harness negates inputs, so indices that must not be negative are made negative."""

from typing import Any

import torch

from tests.lower.case import Case, Rejected

aten = torch.ops.aten


def rows(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 6, 8),)


def masked(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 6, 8), torch.randn(n, 6) > 0


def assigned(x: torch.Tensor, where: Any, value: Any) -> torch.Tensor:
    """`x[where] = value` as models write it, on a copy."""
    x = x.clone()
    x[where] = value
    return x


CASES: list[Case] = [
    Case(
        aten.index_put.default,
        lambda x, i, v: x.index_put((i,), v),
        lambda n: (torch.randn(n, 6), torch.tensor([1, -2]), torch.randn(2, 6)),
    ),
    Case(
        aten.index_put.default,
        lambda x, i, v: aten.index_put(x, [None, i], v),
        lambda n: (torch.randn(n, 6, 8), torch.tensor([1, -3, 0]), torch.randn(n, 3, 8)),
        name="second",
    ),
    Case(
        aten.index_put.default,
        lambda x, i, v: aten.index_put(x, [None, i], v),
        lambda n: (torch.randn(n, 6, 8), torch.tensor([1, -3, 0]), torch.randn(8)),
        name="broadcast",
    ),
    Case(
        aten.index_put.default,
        lambda x, i, j, v: aten.index_put(x, [i, j], v),
        lambda n: (torch.randn(n, 6, 8), torch.tensor([1, -2]), torch.tensor([0, -2]), torch.randn(2, 8)),
        name="two",
    ),
    Case(
        aten.index_put.default,
        lambda x, i, j, v: aten.index_put(x, [i, None, j], v),
        lambda n: (
            torch.randn(n, 6, 8),
            torch.tensor([1, -2]),
            torch.tensor([[0], [-2]]),
            torch.randn(2, 2, 6),
        ),
        name="apart",
    ),
    Case(
        aten.index_put.default,
        lambda x, i, v: x.index_copy(1, i, v),
        lambda n: (torch.randn(n, 6, 8), -torch.tensor([3, 1]), torch.randn(n, 2, 8)),
        name="index_copy",
    ),
    Case(
        aten.index_put.default,
        lambda x, i: x.index_fill(1, i, 2.5),
        lambda n: (torch.randn(n, 6, 8), -torch.tensor([3, 1])),
        name="index_fill",
    ),
    Case(
        aten.index_put.default,
        lambda x, m, v: x.index_put((m,), v),
        lambda n: (*masked(n), torch.randn(())),
        name="mask-0d",
    ),
    Case(
        aten.index_put.default,
        lambda x, m, v: x.index_put((m,), v),
        lambda n: (*masked(n), torch.randn(8)),
        name="mask-row",
    ),
    Case(
        aten.index_put.default,
        lambda x, m, v: aten.index_put(x, [None, m], v),
        lambda n: (torch.randn(n, 6, 8), torch.randn(6) > 0, torch.randn(1, 1, 8)),
        name="mask-second",
    ),
    Case(
        aten.index_put.default,
        lambda x, i, v: x.index_put((i,), v),
        lambda n: (torch.randint(-9, 9, (n, 6)), torch.tensor([1, -2]), torch.randint(-9, 9, (2, 6))),
        half=False,
        name="int64",
    ),
    Case(
        aten.scatter.src,
        lambda x, i, v: x.scatter(1, i, v),
        lambda n: (torch.randn(n, 6), -torch.tensor([[4, 0, 1]]).repeat(n, 1), torch.randn(n, 3)),
    ),
    Case(
        aten.scatter.src,
        lambda x, i, v: x.scatter(-1, i, v),
        lambda n: (torch.randn(n + 1, 6), -torch.tensor([[4, 0, 1]]).repeat(n, 1), torch.randn(n + 2, 4)),
        name="smaller-index",
    ),
    Case(
        aten.scatter.value,
        lambda x, i: x.scatter(1, i, 1.5),
        lambda n: (torch.randn(n, 6), -torch.tensor([[4, 0, 1]]).repeat(n, 1)),
    ),
    Case(
        aten.scatter.value,
        lambda x, i: x.scatter(1, i, True),
        lambda n: (torch.randn(n, 6) > 0, -torch.tensor([[4, 0, 1]]).repeat(n, 1)),
        half=False,
        name="bool",
    ),
    Case(
        aten.index_put.default,
        lambda x, i, v: assigned(x, (slice(None), i), v),
        lambda n: (torch.randn(n, 6, 8), -torch.tensor([3, 1]), torch.randn(n, 2, 8)),
        name="assigned-index",
    ),
    Case(
        aten.masked_scatter.default,
        lambda x, m, v: x.masked_scatter(m, v),
        lambda n: (torch.randn(n, 6), torch.randn(n, 6) > 0, torch.randn(n, 6)),
    ),
    Case(
        aten.masked_scatter.default,
        lambda x, m, v: x.masked_scatter(m.unsqueeze(-1), v),
        lambda n: (torch.randn(n, 6, 8), torch.arange(6).expand(n, 6) % 3 != 1, torch.randn(2 * n, 8)),
        name="rows",  # as the features of images take the places of their tokens
    ),
    Case(
        aten.masked_scatter.default,
        lambda x, m, v: x.masked_scatter(m, v),
        lambda n: (torch.randint(-9, 9, (n, 6)), torch.arange(6) % 3 != 1, torch.randint(-9, 9, (2 * n + 1,))),
        half=False,
        name="int64",
    ),
]

REJECTED: list[Rejected] = [
    Rejected(
        aten.masked_scatter.default,
        lambda x, m, v: x.masked_scatter(m, v),
        lambda n: (torch.randn(6), torch.randn(n, 6) > 0, torch.randn(n, 6)),
        "larger than the tensor",
    ),
    Rejected(
        aten.index_put.default,
        lambda x, m, v: x.index_put((m,), v),
        lambda n: (torch.randn(6), torch.arange(6) < 2, torch.randn(4)),
        "a value for each True",
        name="mask",
    ),
    Rejected(
        aten.index_put.default,
        lambda x, m, i, v: aten.index_put(x, [m, i], v),
        lambda n: (torch.randn(6, 8), torch.arange(6) != 2, torch.tensor([3]), torch.randn(())),
        "among other indices",
        name="mask-and-index",
    ),
]
