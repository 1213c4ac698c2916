"""Arguments that are numbers and vary."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim

import torchtrt_bridge as trtb


class Repeated(nn.Module):
    """A number as a count, and as a factor; and what has nothing to do with it."""

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
