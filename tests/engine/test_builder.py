"""Builder: engines built at the same time, the effect of a failed one, and progress bars."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from torchtrt_bridge.engine import builder
from torchtrt_bridge.errors import BuildError
from torchtrt_bridge.report.progress import BuildProgress

OPTIONS: dict[str, Any] = {"targets": ("sm_89",), "torch_ops": ("aten.cos.default",), "cache_dir": ""}


class Parts(nn.Module):
    """Subgraphs with an operator between them that is left to PyTorch."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x).relu().cos()
        return x


def export(count: int, **options: Any) -> Any:
    return trtb.export(Parts(count).eval(), torch.randn(2, 4), **{**OPTIONS, **options})


@pytest.mark.skipif(builder.AT_ONCE < 2, reason="one core builds one engine at a time")
def test_engines_are_built_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2)  # which no thread passes alone
    build = builder.engine_from_network

    def meeting(*args: Any) -> bytes:
        together.wait(60)
        return build(*args)

    monkeypatch.setattr(builder, "engine_from_network", meeting)
    program = export(2)
    assert list(program.plans) == ["trt_0", "trt_1"]
    assert [entry.state for entry in program.report.engines] == ["ready", "ready"]


def test_their_number_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, lock = 0, 0, threading.Lock()
    build = builder.engine_from_network

    def counting(*args: Any) -> bytes:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        plan = build(*args)
        with lock:
            running -= 1
        return plan

    monkeypatch.setattr(builder, "engine_from_network", counting)
    assert len(export(7).plans) == 7
    assert most <= builder.AT_ONCE


def fail_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first build fail."""
    build = builder.engine_from_network
    is_first = threading.Lock()

    def failing(*args: Any) -> bytes:
        if is_first.acquire(blocking=False):
            raise BuildError("planted")
        return build(*args)

    monkeypatch.setattr(builder, "engine_from_network", failing)


def test_a_failed_build_affects_its_own_subgraph_only(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_one(monkeypatch)
    program = export(3)
    assert sorted(entry.state for entry in program.report.engines) == ["planted", "ready", "ready"]
    assert len(program.plans) == 2


def test_a_failed_build_is_raised_with_fallback_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_one(monkeypatch)
    with pytest.raises(BuildError, match="planted"):
        export(1, fallback="error", torch_ops=())


def test_a_bar_is_shown_while_an_engine_is_built(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich draws no bars into a file
    progress = BuildProgress(wanted=True)
    first = progress.begin("trt_0", 2)
    second = progress.begin("trt_1", 2)
    assert first is not None
    assert second is not None
    assert first(0.5)
    progress.end("trt_0")
    assert second(1.0)
    progress.end("trt_1")
    shown = capsys.readouterr().err
    assert "building trt_0 (1 of 2)" in shown
    assert "building trt_1 (2 of 2)" in shown


def test_no_bar_is_shown_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    progress = BuildProgress(wanted=None)
    assert progress.begin("trt_0", 2) is None
    progress.end("trt_0")
    assert capsys.readouterr().err == ""
