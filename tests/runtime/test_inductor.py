"""What inductor is given to compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import _inductor, nn

from torchtrt_bridge.capture import graph_from_program
from torchtrt_bridge.runtime.inductor import compiled_by_inductor


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
