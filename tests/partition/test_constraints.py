"""Memory that PyTorch reads by offsets lies where PyTorch would have put it; numbers among the arguments may vary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import torchtrt_bridge as trtb

WINDOW = ((2, 2), (1, 2))
LAID_OUT = "reads memory that an engine would lay out otherwise"


def transposed(x: torch.Tensor) -> Any:
    return (x.t() * 2).relu().as_strided(*WINDOW)


def copied(x: torch.Tensor) -> Any:
    return torch.as_strided_copy((x.t() * 2).relu(), *WINDOW)


def scattered(x: torch.Tensor) -> Any:
    return torch.as_strided_scatter((x.t() * 2).relu(), x.new_ones(2, 2), *WINDOW)


def behind_a_view(x: torch.Tensor) -> Any:
    return x.relu().t().as_strided(*WINDOW)


def behind_a_view_that_is_returned(x: torch.Tensor) -> Any:
    y = (x.t() * 2).relu()
    return y, y.t().as_strided(*WINDOW)


def outside_of_a_slice(x: torch.Tensor) -> Any:
    return x.relu()[1:].as_strided(*WINDOW, 0)


def behind_another_operator_of_pytorch(x: torch.Tensor) -> Any:
    return torch.erfinv(x.t().tanh().mul(0.5)).as_strided(*WINDOW)


def contiguous(x: torch.Tensor) -> Any:
    return x.relu().as_strided(*WINDOW)


def made_contiguous(x: torch.Tensor) -> Any:
    return x.t().sigmoid().contiguous().as_strided(*WINDOW) * 2


def bytes_of(x: torch.Tensor) -> Any:
    return x.t().relu().view(torch.int32)


OTHERWISE = (
    transposed,
    copied,
    scattered,
    behind_a_view,
    behind_a_view_that_is_returned,
    outside_of_a_slice,
    behind_another_operator_of_pytorch,
)
ALIKE = (contiguous, made_contiguous, bytes_of)


@pytest.mark.first(10)
@pytest.mark.parametrize("model", [*OTHERWISE, *ALIKE], ids=lambda model: model.__name__)
@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
def test_memory_that_is_read_by_offsets(model: Callable[..., Any], is_dynamic: bool) -> None:
    x = torch.randn(4, 3)
    shapes = ({0: Dim("rows", min=3, max=8)},) if is_dynamic else None
    program = trtb.export(model, x, dynamic_shapes=shapes, engine="reference")
    other = torch.randn(6, 3) if is_dynamic else x
    torch.testing.assert_close(program(other), model(other))
    reasons = {entry.reason for entry in program.report.in_torch}
    assert any(LAID_OUT in reason for reason in reasons) is (model in OTHERWISE)
    assert bool(program.report.engines) is (model in ALIKE)


# Arguments that are numbers and vary -------------------------------------------------------------------------------


class Repeated(nn.Module):
    """Uses of a number as a count and as a factor, and calls that do not read it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor, n: int) -> torch.Tensor:
        y = self.linear(x).relu()
        return y.repeat(n * 2, 1) * n + y.sum()


MODEL = Repeated().eval()


@pytest.fixture
def program() -> trtb.Program:
    return trtb.export(MODEL, (torch.randn(2, 3), 3), dynamic_shapes=(None, Dim.DYNAMIC), engine="reference")


@pytest.mark.parametrize("n", [2, 3, 7])
def test_they_vary_where_the_export_says_so(n: int, program: trtb.Program, tmp_path: Path) -> None:
    trtb.save(program, tmp_path / "model.pt2")
    x = torch.randn(2, 3)
    for each in (program, trtb.load(tmp_path / "model.pt2", device="cpu")):
        torch.testing.assert_close(each(x, n), MODEL(x, n))


def test_what_reads_them_stays_in_pytorch(program: trtb.Program) -> None:
    reasons = {entry.op: entry.reason for entry in program.report.in_torch}
    assert reasons["aten.repeat.default"] == "it reads n, an argument that is a number and not fixed"
    assert "aten.linear.default" not in reasons
    assert program.report.trt_nodes > 0
