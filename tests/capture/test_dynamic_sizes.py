"""The argument `dynamic` reaches Dynamo's traces, and changes no setting of the process meanwhile."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import nn

import torchtrt_bridge as trtb
from torchtrt_bridge.entry.compiled_graph import CompiledGraph


def settings() -> tuple[bool, bool]:
    config: Any = torch._dynamo.config
    return config.assume_static_by_default, config.automatic_dynamic_shapes


def compiled(dynamic: bool | None) -> Any:
    return trtb.compile(nn.Linear(4, 4).eval().requires_grad_(False), dynamic=dynamic, engine="reference")


@pytest.mark.parametrize(("dynamic", "graphs"), [(True, 1), (False, 3), (None, 2)])
def test_sizes_are_traced_as_the_argument_says(dynamic: bool | None, graphs: int) -> None:
    fast = compiled(dynamic)
    with torch.inference_mode():
        for batch in (2, 3, 5):
            assert fast(torch.ones(batch, 4)).shape == (batch, 4)
    assert trtb.report(fast).graphs == graphs


@pytest.mark.parametrize("dynamic", [True, False])
def test_settings_of_dynamo_are_as_ever_while_engines_compute(dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    before, within = settings(), []
    run = CompiledGraph.__call__

    def recording(graph: CompiledGraph, *args: Any) -> Any:
        within.append(settings())
        return run(graph, *args)

    monkeypatch.setattr(CompiledGraph, "__call__", recording)
    fast = compiled(dynamic)
    with torch.inference_mode():
        fast(torch.ones(2, 4))
        fast(torch.ones(2, 4))
    assert within == [before, before]
    assert settings() == before


@pytest.fixture
def _often_switched() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_often_switched")
def test_calls_by_several_threads_leave_the_settings_as_they_were() -> None:
    before, fast, x = settings(), compiled(dynamic=True), torch.ones(3, 4)

    def call() -> None:
        with torch.inference_mode():
            for _ in range(500):
                fast(x)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert settings() == before


def test_a_model_within_another_is_traced_as_that_says() -> None:
    inner = compiled(None)

    @torch.compiler.disable
    def left_to_python(x: torch.Tensor) -> torch.Tensor:
        return inner(x)

    outer = trtb.compile(lambda x: left_to_python(x).exp(), dynamic=True, engine="reference")
    with torch.inference_mode():
        for batch in (2, 3, 5):
            outer(torch.ones(batch, 4))
    assert trtb.report(inner).graphs == 1
