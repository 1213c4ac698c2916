"""Slices: parts of a tensor at regular positions, windows over it, and its elements in another order."""

from typing import Any

import torch

from tests.lower.case import Case, Rejected

aten = torch.ops.aten


def rows(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 6, 8),)


def square(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 6, n + 3),)


def long(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(2, 3 * n, 3),)


def integers(n: int) -> tuple[torch.Tensor]:
    return (torch.randint(-9, 9, (n, 6)),)


def mask(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 6) > 0,)


def assigned(x: torch.Tensor, where: Any, value: Any) -> torch.Tensor:
    """`x[where] = value` as models write it, on a copy."""
    x = x.clone()
    x[where] = value
    return x


MADE = {
    "bool": lambda n: torch.arange(n * 6).reshape(n, 6) % 3 == 1,
    "int": lambda n: torch.arange(n * 6).reshape(n, 6) % 4 - 1,
    "float": lambda n: (torch.arange(n * 6).reshape(n, 6) % 5 - 2) / 4,
}

SLICES = [
    Case(aten.slice.Tensor, lambda x: x[:, 1:3], rows),
    Case(aten.slice.Tensor, lambda x: x[:, 1:-1:2], rows, name="step"),
    Case(aten.slice.Tensor, lambda x: x[:, -4:, :100], rows, name="beyond"),
    Case(aten.slice.Tensor, lambda x: x[1:], rows, name="dynamic"),
    Case(aten.slice.Tensor, lambda x: x[-2:], rows, name="dynamic-last"),
    Case(aten.slice.Tensor, lambda x: x[1:-1], rows, name="dynamic-inner"),
    Case(aten.slice.Tensor, lambda x: x[::2], rows, name="dynamic-step"),
    Case(aten.slice.Tensor, lambda x: x[1::3], long, name="step-beyond"),
    Case(aten.slice.Tensor, lambda x: x[:, 2::3], long, name="dynamic-step-3"),
    Case(aten.slice.Tensor, lambda x: x[:3], rows, name="dynamic-first"),
    Case(aten.slice.Tensor, lambda x: x[:, :, x.shape[0] - 2 :], square, name="start-size"),
    Case(aten.slice.Tensor, lambda x: x[:, :, : x.shape[0] // 2], square, name="end-size"),
    Case(aten.slice.Tensor, lambda x: x[:, :, -x.shape[0] :], square, name="start-negative-size"),
    Case(aten.slice.Tensor, lambda x: x[: x.shape[0] - 1, 1:, 2:], square, name="three-dims"),
    Case(aten.slice.Tensor, lambda x: x.narrow(1, 1, 3), rows, name="narrow"),
    Case(aten.slice.Tensor, lambda x: x[1:, ::2], integers, half=False, name="int64"),
    Case(aten.slice.Tensor, lambda x: x[1:, ::2], mask, half=False, name="bool"),
    Case(aten.select.int, lambda x: x[:, 2], rows),
    Case(aten.select.int, lambda x: x[:, -1], rows, name="last"),
    Case(aten.select.int, lambda x: x[-1], rows, name="dynamic-last"),
    Case(aten.select.int, lambda x: x[0, 0, 0], rows, name="to-0d"),
    Case(aten.select.int, lambda x: x[:, :, x.shape[0] - 1], square, name="index-size"),
    Case(aten.select.int, lambda x: x[:, :, -x.shape[0]], square, name="index-negative-size"),
    Case(aten.select.int, lambda x: x[1], mask, half=False, name="bool"),
    Case(
        aten.slice_scatter.default,
        lambda x, y: x.slice_scatter(y, 1, 1, 3),
        lambda n: (torch.randn(n, 6, 8), torch.randn(n, 2, 8)),
    ),
    Case(
        aten.slice_scatter.default,
        lambda x, y: x.slice_scatter(y, 1, 0, 5, 2),
        lambda n: (torch.randn(n, 6, 8), torch.randn(n, 3, 8)),
        name="step",
    ),
    Case(
        aten.slice_scatter.default,
        lambda x, y: x.slice_scatter(y, 0, -2),
        lambda n: (torch.randn(n, 6, 8), torch.randn(2, 6, 8)),
        name="dynamic",
    ),
    Case(
        aten.slice_scatter.default,
        lambda x, y: x.slice_scatter(y, 1, y.shape[1] - 2, 2 * y.shape[1] - 2),
        lambda n: (torch.randn(2, 12, 8), torch.randn(2, n, 8)),
        name="start-size",
    ),
    Case(
        aten.slice_scatter.default,
        lambda x, y: x.slice_scatter(y, 1, 3),
        lambda n: (torch.randn(n, 5) > 0, torch.randn(n, 2) > 0),
        half=False,
        name="bool",
    ),
    Case(
        aten.slice_scatter.default,
        lambda x, y: x.slice_scatter(y, 1),
        lambda n: (torch.randn(n, 5), torch.randn(n, 5)),
        name="whole",
    ),
    Case(
        aten.slice_scatter.default,
        lambda x, y: assigned(x, (slice(None), slice(1, 3)), y),
        lambda n: (torch.randn(n, 6, 8), torch.randn(n, 2, 8)),
        name="assigned",
    ),
    *[
        Case(
            op,
            call,
            lambda n, own=own, other=other: (MADE[own](n), MADE[other](n)),
            name=f"{name}-{own}-{other}",
            half="float" in (own, other),
        )
        for own, other in (("bool", "int"), ("int", "bool"), ("float", "int"), ("int", "float"), ("bool", "float"))
        for op, name, call in (
            (aten.slice_scatter.default, "dtypes", lambda x, y: torch.slice_scatter(x, y[:, :2], 1, 2, 4)),
            (aten.slice_scatter.default, "dtypes-step", lambda x, y: torch.slice_scatter(x, y[:, :3], 1, 1, None, 2)),
            (aten.slice_scatter.default, "dtypes-all", lambda x, y: torch.slice_scatter(x, y)),
            (aten.select_scatter.default, "dtypes", lambda x, y: torch.select_scatter(x, y[:, 1], 1, -2)),
        )
    ],
    Case(aten.select_scatter.default, lambda x, y: x.select_scatter(y, 1, 2), lambda n: (*rows(n), torch.randn(n, 8))),
    Case(
        aten.select_scatter.default,
        lambda x, y: x.select_scatter(y, 0, x.shape[0] - 2),
        lambda n: (*rows(n), torch.randn(6, 8)),
        name="dynamic",
    ),
    Case(
        aten.slice_scatter.default,
        lambda x: assigned(x, (slice(1, None), slice(None, -2)), 2.5),
        rows,
        name="assigned-number",
    ),
]

ORDER = [
    Case(aten.flip.default, lambda x: x.flip(1), rows),
    Case(aten.flip.default, lambda x: x.flip(0, -1), rows, name="dynamic"),
    Case(aten.flip.default, lambda x: x.flip(1), mask, half=False, name="bool"),
    Case(aten.flip.default, lambda x: torch.rot90(x, 1, (1, 2)), rows, name="rot90"),
    Case(aten.roll.default, lambda x: x.roll((2, -3), (1, 2)), rows),
    Case(aten.roll.default, lambda x: x.roll(1, 0), rows, name="dynamic"),
    Case(aten.roll.default, lambda x: x.roll(-2, 2), square, name="dynamic-negative"),
    Case(aten.roll.default, lambda x: x.roll(14, 1), rows, name="around"),
    Case(aten.roll.default, lambda x: x.roll(3), rows, name="flat"),
    Case(aten.roll.default, lambda x: x.roll((1, 2), (1, 1)), rows, name="twice"),
    Case(aten.roll.default, lambda x: x.roll(1, 1), integers, half=False, name="int64"),
    Case(aten.diagonal.default, lambda x: x.diagonal(0, 1, 2), rows),
    Case(aten.diagonal.default, lambda x: x.diagonal(2, 1, 2), rows, name="above"),
    Case(aten.diagonal.default, lambda x: x.diagonal(-3, -1, -2), rows, name="below"),
    Case(aten.diagonal.default, lambda x: x.diagonal(), square, name="dynamic"),
    Case(aten.diagonal.default, lambda x: x.diagonal(1, 0, 2), square, name="dynamic-both"),
    Case(aten.unfold.default, lambda x: x.unfold(2, 3, 2), rows),
    Case(aten.unfold.default, lambda x: x.unfold(1, 2, 2), rows, name="patches"),
    Case(aten.unfold.default, lambda x: x.unfold(-2, 4, 4), rows, name="patches-and-rest"),
    Case(aten.unfold.default, lambda x: x.unfold(1, 3, 1), long, name="dynamic"),
    Case(aten.unfold.default, lambda x: x.unfold(1, 3, 3), long, name="dynamic-patches"),
]

CASES: list[Case] = [*SLICES, *ORDER]
REJECTED: list[Rejected] = []
