"""Check of an export in half precision on its example inputs, without any engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.models import ConvNet, image, trained


class Large(nn.Module):
    """Compute values beyond the range of fp16, of weights that are within it, and a result of usual size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)
        with torch.no_grad():
            self.first.weight.mul_(5e4)
            self.last.weight.mul_(1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x * 100)).tanh()


X = torch.randn(4, 16)


def exported(model: nn.Module, x: torch.Tensor = X, **options: object) -> trtb.Program:
    return trtb.export(model.eval(), x, engine="reference", **options)  # type: ignore[arg-type]


def test_numbers_beyond_fp16(tmp_path: Path) -> None:
    model = Large()
    program = exported(model, precision="fp16")
    trtb.save(program, tmp_path / "model.pt2")
    with torch.no_grad():
        for run in (program, trtb.load(tmp_path / "model.pt2")):
            torch.testing.assert_close(run(X), model(X))
    (note,) = program.report.notes
    assert "the program computes in fp32, as in fp16 the results" in note
    assert "precision='bf16'" in note
    assert program.report.options.precision == "fp32"


def test_without_fallback_it_raises() -> None:
    with pytest.raises(trtb.CaptureError, match="in fp16 the results for the example inputs are not the model's own"):
        exported(Large(), precision="fp16", fallback="error")


def test_without_a_trial_nothing_is_checked() -> None:
    assert exported(Large(), precision="fp16", trial="off").report.options.precision == "fp16"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_half_precision_holds_is_in_it(precision: str) -> None:
    program = exported(trained(ConvNet()), image(), precision=precision)
    assert program.report.options.precision == precision
    assert program.report.notes == []


def test_quantized_and_changed_values() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: torch.Tensor, times: int, y: torch.Tensor | None = None) -> torch.Tensor:
            self.calls.add_(1)
            return self.layer(x) * times + self.calls

    model = Counting().eval()
    program = trtb.export(model, (X, 3), engine="reference", precision="fp16")
    assert float(model.calls) == 0
    torch.testing.assert_close(program(X, 3), model.layer(X).detach() * 3 + 1, rtol=5e-3, atol=5e-3)
    quantized = trtb.quantize(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)).eval(), [X])
    assert exported(quantized, precision="fp16").report.options.precision == "fp16"
