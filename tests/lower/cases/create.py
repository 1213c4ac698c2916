"""Tensors made from numbers and sizes."""

import dataclasses

import torch

from tests.lower.case import Case, Rejected

aten = torch.ops.aten


def rows(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 6),)


def both(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, n + 3),)


# Made from run-time sizes alone: with known sizes these are folded before anything is lowered.
FROM_SIZES: list[Case] = [
    Case(aten.sym_size.int, lambda x: x.view(1, x.shape[0], 6), rows),
    Case(aten.arange.start_step, lambda x: torch.arange(x.shape[0]), rows),
    Case(aten.arange.start_step, lambda x: torch.arange(2, x.shape[0] + 5), rows, name="start"),
    Case(aten.arange.start_step, lambda x: torch.arange(1, 4 * x.shape[0], 3), rows, name="step"),
    Case(aten.arange.start_step, lambda x: torch.arange(6, -x.shape[0], -2), rows, name="backwards"),
    Case(
        aten.arange.start_step,
        lambda x: torch.arange(1, x.shape[0], dtype=torch.int32),
        rows,
        name="int32",
    ),
    Case(aten.arange.start_step, lambda x: torch.arange(x.shape[0], dtype=x.dtype), rows, name="float"),
    Case(aten.arange.start_step, lambda x: torch.arange(0.5, x.shape[0]), rows, name="float-start"),
    Case(aten.arange.start_step, lambda x: torch.arange(0.0, x.shape[0], 2), rows, name="float-step"),
    Case(aten.full.default, lambda x: torch.full((x.shape[0], 3), 2.5), rows),
    Case(aten.full.default, lambda x: torch.zeros(2, *x.shape, dtype=x.dtype), both, name="zeros"),
    Case(aten.full.default, lambda x: x.new_ones(x.shape[1]), both, name="new_ones"),
    Case(aten.full.default, lambda x: x.new_full((x.shape[0],), 3, dtype=torch.int64), rows, name="int64"),
    Case(aten.full.default, lambda x: torch.ones(x.shape, dtype=torch.bool), both, name="bool"),
    Case(aten.full.default, lambda x: torch.full((x.shape[0],), x.shape[0]), rows, name="of-size"),
    Case(aten.empty.memory_format, lambda x: torch.empty(x.shape[0]).fill_(3), rows),
    Case(aten.empty_permuted.default, lambda x: torch.empty_like(x).fill_(3), rows),
    Case(aten.scalar_tensor.default, lambda x: torch.scalar_tensor(x.shape[0]), rows),
    Case(
        aten.scalar_tensor.default,
        lambda x: torch.scalar_tensor(x.shape[0], dtype=torch.int64),
        rows,
        name="int64",
    ),
    Case(
        aten.scalar_tensor.default,
        lambda x: torch.scalar_tensor(x.shape[0] / 4, dtype=torch.float32),
        rows,
        name="quotient",
    ),
    Case(aten.arange.start_step, lambda x: torch.eye(x.shape[0]), rows, name="eye"),
    Case(aten.arange.start_step, lambda x: x.tril(1), both, name="tril"),
    Case(aten.arange.start_step, lambda x: (x > 0).triu(-1), both, name="triu-bool"),
    Case(aten.arange.start_step, lambda x: x[:, 0].diag(), both, name="diag"),
    Case(
        aten.arange.start_step,
        lambda x: torch.full((x.shape[0], x.shape[0]), float("-inf")).triu(1),
        rows,
        name="causal-mask",
    ),
]

CASES: list[Case] = [
    *[dataclasses.replace(case, static=False) for case in FROM_SIZES],
    Case(aten.full_like.default, lambda x: torch.full_like(x, 2.5), rows),
    Case(aten.full_like.default, lambda x: torch.zeros_like(x), rows, name="zeros"),
    Case(aten.full_like.default, lambda x: torch.ones_like(x, dtype=torch.int64), rows, name="ones-int64"),
    Case(aten.full_like.default, lambda x: torch.ones_like(x, dtype=torch.bool), rows, name="ones-bool"),
    Case(aten.full_like.default, lambda x: torch.full_like(x[0, 0], -3), rows, name="0d"),
    Case(aten.full_like.default, lambda x: torch.full_like(x, float("-inf")), rows, name="infinity"),
    Case(aten.full_like.default, lambda x: torch.fill(x, 7), rows, name="fill"),
]

REJECTED: list[Rejected] = [
    Rejected(
        aten.arange.start_step,
        lambda x: (torch.arange(0, x.shape[0], 0.5), -x),
        rows,
        "steps that are not whole",
        dynamic=True,
    ),
]
