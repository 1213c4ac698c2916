"""Reading memory by strides: windows, diagonals, repeated elements and other regular positions."""

import torch

from tests.lower.case import Case, Rejected

aten = torch.ops.aten


def rows(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 6, 8),)


def line(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n + 8),)


def wide(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 16),)


def windows(x: torch.Tensor) -> torch.Tensor:
    """Three neighbours at a time, of all that a line has."""
    return x.as_strided((x.shape[0] - 2, 3), (1, 1))


CASES: list[Case] = [
    Case(aten.as_strided.default, lambda x: x.as_strided((x.shape[0], 48), (48, 1)), rows),
    Case(
        aten.as_strided.default,
        lambda x: x.as_strided((x.shape[0], 48, 1), (48, 1, 7)),
        rows,
        name="stride-of-one-element",
    ),
    Case(aten.as_strided.default, lambda x: x.as_strided((2, 3), (1, 2)), rows, name="corner"),
    Case(aten.as_strided.default, lambda x: x.as_strided((2, 6), (6, 1), 1), rows, name="offset"),
    Case(aten.as_strided.default, lambda x: x.as_strided((), (), 5), rows, name="0d"),
    Case(aten.as_strided.default, windows, line, name="windows"),
    Case(aten.as_strided.default, lambda x: x.as_strided((4, 3), (2, 1), 1), wide, name="windows-apart"),
    Case(
        aten.as_strided.default,
        lambda x: x.as_strided((x.shape[0], 4, 3, 8), (48, 8, 8, 1)),
        rows,
        name="windows-of-vectors",
    ),
    Case(
        aten.as_strided.default,
        lambda x: x.as_strided((x.shape[0], 2, 2, 3, 4), (48, 24, 4, 8, 1)),
        rows,
        name="patches",
    ),
    Case(aten.as_strided.default, lambda x: x.as_strided((x.shape[0], 2, 8), (48, 8, 1), 16), rows, name="slice"),
    Case(aten.as_strided.default, lambda x: x.as_strided((2, 3, 8), (24, 8, 1)), rows, name="part"),
    Case(aten.as_strided.default, lambda x: x.as_strided((8, x.shape[0], 6), (1, 48, 8)), rows, name="transposed"),
    Case(aten.as_strided.default, lambda x: x.as_strided((x.shape[0], 5, 8), (48, 0, 1), 8), rows, name="repeated"),
    Case(aten.as_strided.default, lambda x: x.as_strided((3, x.shape[0]), (0, 48)), rows, name="repeated-dynamic"),
    Case(aten.as_strided.default, lambda x: x.as_strided((7,), (8,)), lambda n: (torch.randn(7, 7),), name="diagonal"),
    Case(
        aten.as_strided.default,
        lambda x: x.as_strided((5, x.shape[1]), (x.shape[1], 1), x.shape[1]),
        lambda n: (torch.randn(6, n),),
        name="dynamic-stride",
    ),
    Case(
        aten.as_strided.default,
        lambda x: x.as_strided((x.shape[0], 1, 4), (48, 5, 1)),
        rows,
        name="one-between",
    ),
    Case(
        aten.as_strided.default,
        lambda x: x.as_strided((3, 2), (2, 4), 1),
        lambda n: (torch.randint(-9, 9, (n, 16)),),
        half=False,
        name="int64",
    ),
    Case(
        aten.as_strided.default,
        lambda x: x.as_strided((3, 2), (2, 4), 1),
        lambda n: (torch.randn(n, 16) > 0,),
        half=False,
        name="bool",
    ),
    Case(aten.as_strided_copy.default, lambda x: aten.as_strided_copy(x, (4, 2), (2, 3), 1), rows),
]

REJECTED: list[Rejected] = [
    Rejected(aten.as_strided.default, lambda x: x.transpose(0, 1).as_strided((2, 3), (1, 2)), rows, "another order"),
    Rejected(aten.as_strided.default, lambda x: x[1:].as_strided((2, 3), (1, 2)), rows, "others before", "view"),
    Rejected(
        aten.as_strided.default, lambda x: x[:1].as_strided((2, 3), (48, 2)), rows, "reach beyond the tensor", "beyond"
    ),
    Rejected(
        aten.as_strided.default,
        lambda x: x.as_strided((4, 3), (48, 2)),
        rows,
        "may reach beyond the tensor",
        name="beyond-some-size",
        dynamic=True,
    ),
    Rejected(
        aten.as_strided_copy.default,
        lambda x: aten.as_strided_copy(x.transpose(0, 1), (2, 3), (1, 2)),
        rows,
        "another order",
    ),
]
