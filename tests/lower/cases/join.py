"""Join and split: tensors side by side, and parts of one."""

import torch

from tests.lower.case import Case, Rejected

aten = torch.ops.aten


def rows(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 6, 8),)


def pair(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 2, 8), torch.randn(n, 3, 8)


def twins(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 3), torch.randn(n, 3)


def mixed(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 3), torch.randint(-5, 5, (n, 3))


def mixed_int32(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 3), torch.randint(-5, 5, (n, 3), dtype=torch.int32)


def masks(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 3) > 0, torch.randn(n, 3) > 0


CASES: list[Case] = [
    Case(aten.cat.default, lambda x, y: torch.cat([x, y, x], 1), pair),
    Case(aten.cat.default, lambda x, y: torch.cat([x, y], -2), pair, name="negative"),
    Case(aten.cat.default, lambda x, y: torch.cat([x, y]), twins, name="dynamic"),
    Case(aten.cat.default, lambda x: torch.cat([x]), rows, name="one"),
    Case(aten.cat.default, lambda x, y: torch.cat([x, y], 1), mixed, name="mixed"),
    Case(aten.cat.default, lambda x, y: torch.cat([x, y]), mixed_int32, name="mixed-int32"),
    Case(aten.cat.default, lambda x, y: torch.cat([x, y]), masks, half=False, name="bool"),
    Case(
        aten.cat.default,
        lambda x: torch.cat([x, torch.ones(2, 8, dtype=x.dtype)]),
        lambda n: (torch.randn(n, 8),),
        name="constant",
    ),
    Case(aten.cat.default, lambda x, y: torch.stack([x, y], -1), twins, name="stack"),
    Case(aten.cat.default, lambda x, y: torch.stack([x, y]), twins, name="stack-first"),
    Case(aten.cat.default, lambda x, y: torch.hstack([x, y]), twins, name="hstack"),
    Case(aten.cat.default, lambda x, y: torch.vstack([x, y]), twins, name="vstack"),
    Case(aten.cat.default, lambda x, y: torch.dstack([x, y]), twins, name="dstack"),
    Case(aten.cat.default, lambda x, y: torch.column_stack([x, y]), twins, name="column_stack"),
    Case(aten.split_with_sizes.default, lambda x: x.split([1, 2, 3], 1), rows),
    Case(aten.split_with_sizes.default, lambda x: x.split([1, 2, 3], 1)[1], rows, name="one-of-three"),
    Case(aten.split_with_sizes.default, lambda x: x.split(4, -2), rows, name="uneven"),
    Case(aten.split_with_sizes.default, lambda x: x.chunk(3, 1), rows, name="chunk"),
    Case(
        aten.split_with_sizes.default,
        lambda x: x.chunk(2),
        lambda n: (torch.randn(2 * n, 3),),
        name="dynamic",
    ),
    Case(aten.split_with_sizes.default, lambda x: x.split([2, x.shape[0] - 2]), rows, name="dynamic-rest"),
    Case(aten.split_with_sizes.default, lambda x, y: x.split([1, 2], 1), masks, half=False, name="bool"),
    Case(aten.slice.Tensor, lambda x: x.tensor_split(4, 1), rows, name="tensor_split"),
    Case(aten.slice.Tensor, lambda x: x.tensor_split((1, 3), 1), rows, name="tensor_split-at"),
    Case(aten.slice.Tensor, lambda x: x.unbind(1), rows, name="unbind"),
]

REJECTED: list[Rejected] = []
