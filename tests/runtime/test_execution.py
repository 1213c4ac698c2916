"""A compiled graph at work, as far as it shows without a GPU: what it holds, and how it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import torchtrt_bridge as trtb
from tests.models import ConvNet, image, trained
from torchtrt_bridge.runtime import Execution
from torchtrt_bridge.runtime import execution as home
from torchtrt_bridge.runtime.execution import CudaGraphCache


@pytest.fixture
def program() -> trtb.Program:
    program = trtb.export(trained(ConvNet()), image(), engine="reference")
    program(image())
    return program


def let_an_engine_go(run: Execution) -> None:
    def fail(inputs: Any) -> Any:
        raise RuntimeError("planted")

    run.engines[0].runner = run.engines[0]._serve = fail  # type: ignore[assignment]
    run.engines[0](image())


def give_up_graphs(run: Execution) -> None:
    run.give_up_graphs("planted")


@pytest.mark.parametrize("end", [let_an_engine_go, give_up_graphs])
@pytest.mark.parametrize("is_capturing", [False, True])
def test_recordings_end_with_what_they_recorded(
    end: Callable[[Execution], None], is_capturing: bool, program: trtb.Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They hold its memory. While the caller captures a CUDA graph, nothing may be freed."""
    run, x = program._run, image()
    run.lane._shapes[None] = CudaGraphCache(run)
    program(x)
    assert len(run.lane._shapes) == 1
    end(run)
    monkeypatch.setattr(home, "is_capturing", lambda inputs: is_capturing)
    program(x)
    assert len(run.lane._shapes) == is_capturing


def test_in_pytorch_asks_no_engine(program: trtb.Program, monkeypatch: pytest.MonkeyPatch) -> None:
    run, x = program._run, image()
    expected = program(x)
    monkeypatch.setattr(run.engines[0], "forward", None)
    torch.testing.assert_close(run.in_pytorch([x])[0], expected, rtol=1e-5, atol=1e-5)
