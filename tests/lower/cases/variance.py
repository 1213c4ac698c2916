"""Variances and norms."""

import math

import torch
import torch.nn.functional as F

from tests.lower.case import Case, Rejected

aten = torch.ops.aten


def one(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3, 5) + 2,)


def large(n: int) -> tuple[torch.Tensor]:
    """Squares of these overflow in fp16."""
    return (torch.randn(n, 8) * 900,)


def sparse(n: int) -> tuple[torch.Tensor]:
    return (torch.randint(-1, 2, (n, 3, 5)) * 1.5,)


def over(call, *args, **kwargs):
    return lambda x: call(x, *args, **kwargs)


def every_way(op, call) -> list[Case]:
    return [
        Case(op, call, one),
        Case(op, over(call, -1), one, name="last"),
        Case(op, over(call, 0), one, name="dynamic"),
        Case(op, over(call, (0, 2), keepdim=True), one, name="several"),
        Case(op, over(call, 1, correction=0), one, name="biased"),
        Case(op, over(call, (0, 1), correction=2), one, name="correction"),
        Case(op, over(call, -1), large, name="large"),
    ]


def norm(order, dim=-1, keepdim=False):
    return lambda x: torch.linalg.vector_norm(x, order, dim, keepdim)


CASES: list[Case] = [
    *every_way(aten.var.correction, torch.var),
    *every_way(aten.std.correction, torch.std),
    *every_way(aten.var_mean.correction, torch.var_mean),
    *every_way(aten.std_mean.correction, torch.std_mean),
    Case(aten.var.correction, lambda x: x.var(unbiased=False), one, name="unbiased"),
    Case(aten.var.correction, lambda x: x[:, :, :1].var(-1), one, name="of_one"),
    *[
        Case(aten.linalg_vector_norm.default, norm(order), one, name=str(order))
        for order in (1, 2, 3, 0.5, math.inf, -math.inf)
    ],
    Case(aten.linalg_vector_norm.default, norm(0), sparse, name="0"),
    Case(aten.linalg_vector_norm.default, norm(2, None), one, name="all"),
    Case(aten.linalg_vector_norm.default, norm(2, (0, 2), True), one, name="several"),
    Case(aten.linalg_vector_norm.default, norm(2), large, name="large"),
    Case(
        aten.linalg_vector_norm.default,
        lambda x: torch.linalg.vector_norm(x, dim=1, dtype=torch.float32),
        one,
        name="dtype",
    ),
    # Functions that PyTorch itself takes apart.
    Case(aten.linalg_vector_norm.default, over(torch.norm, dim=-1), one, name="norm"),
    Case(aten.linalg_vector_norm.default, over(F.normalize, dim=1), one, name="normalize"),
    Case(aten.sum.dim_IntList, lambda x: F.cosine_similarity(x, x.flip(-1), -1), one, name="cosine_similarity"),
]

REJECTED: list[Rejected] = []
