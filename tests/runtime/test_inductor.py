"""What inductor is given to compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import _inductor, nn

from torchtrt_bridge.capture.export import graph_from_program
from torchtrt_bridge.runtime import inductor as home
from torchtrt_bridge.runtime.inductor import Inductor, compiled_by_inductor


class Sine(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sin()


@pytest.mark.full
def test_weights_of_convolutions_are_laid_out_for_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user's are who compares it in channels-last; the module that PyTorch runs keeps its own."""
    taken: list[Any] = []
    monkeypatch.setattr(_inductor, "compile", lambda module, inputs, options: taken.append(module) or module)
    program = torch.export.export(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)).eval(), (torch.randn(1, 3, 8, 8),)
    )
    module = graph_from_program(program.run_decompositions()).module
    x = torch.randn(1, 3, 8, 8)
    compiled_by_inductor(module, [x])
    torch.testing.assert_close(taken[0](x)[0], module(x)[0])
    weights = [v for v in taken[0].buffers() if v.dim() == 4]
    assert len(weights) == 2
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in weights)
    assert not any(
        v.is_contiguous(memory_format=torch.channels_last) for v in module.buffers() if v.shape[1:] == (3, 3, 3)
    )


@pytest.mark.parametrize(
    ("dtype", "factor", "is_used"),
    [
        (torch.float32, 1.0, True),
        (torch.float32, 1.001, False),
        (torch.float16, 1.001, True),
        (torch.float16, 1.1, False),
    ],
)
def test_what_is_prepared_is_right_and_has_run(
    dtype: torch.dtype, factor: float, is_used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first call loads kernels, for seconds, which are not to be taken for the time of a call."""
    calls: list[int] = []

    def compiled(x: torch.Tensor) -> tuple[torch.Tensor]:
        calls.append(1)
        return (x.sin() * factor,)

    monkeypatch.setattr(home, "compiled_by_inductor", lambda *_: compiled)
    x = torch.randn(3, 4).to(dtype)
    program = torch.export.export(Sine(), (x,))
    inductor = Inductor("trt_0", graph_from_program(program).module, is_checked=True)
    assert inductor.prepare([x]) is is_used
    assert calls == [1]
    torch.testing.assert_close(inductor([x])[0], x.sin(), rtol=1e-2, atol=1e-2)
    assert len(calls) == 1 + is_used


@pytest.mark.full
@pytest.mark.parametrize("first_is_negated", [False, True])
def test_what_is_negated_when_it_is_read(first_is_negated: bool) -> None:
    """Inductor's code would read the memory, which has the other signs."""
    x = torch.randn(3, 4)
    run = Inductor("part", graph_from_program(torch.export.export(Sine(), (x,))).module)
    inputs = [x, torch._neg_view(x)]
    for value in reversed(inputs) if first_is_negated else inputs:
        torch.testing.assert_close(run([value])[0], value.sin())
