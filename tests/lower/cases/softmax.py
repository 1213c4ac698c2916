"""Softmax and its logarithm."""

import torch
import torch.nn.functional as F

from tests.lower.case import Case, Rejected

aten = torch.ops.aten


def scores(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3, 5) * 5,)


def line(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n),)


def far(n: int) -> tuple[torch.Tensor]:
    """Scores so far apart that the softmax of some is zero."""
    return (torch.randn(n, 8) * 500,)


CASES: list[Case] = [
    *[
        case
        for op, call in ((aten._softmax.default, F.softmax), (aten._log_softmax.default, F.log_softmax))
        for case in (
            Case(op, lambda x, call=call: call(x, dim=-1), scores, name="last"),
            Case(op, lambda x, call=call: call(x, dim=1), scores, name="middle"),
            Case(op, lambda x, call=call: call(x, dim=0), scores, name="dynamic"),
            Case(op, lambda x, call=call: call(x, dim=0), line, name="1d"),
            Case(op, lambda x, call=call: call(x[0], dim=0), line, name="0d"),
            Case(op, lambda x, call=call: call(x, dim=-1), far, name="far"),
            Case(op, lambda x, call=call: call(x, dim=-1, dtype=torch.float32), scores, name="dtype"),
        )
    ],
    Case(aten._softmax.default, lambda x: F.softmin(x, dim=-1), scores, name="softmin"),
]

REJECTED: list[Rejected] = []
