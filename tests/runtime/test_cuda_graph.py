"""When recordings read an input where it lies, on a GPU that is not there; real graphs: test_execution_on_gpu.py."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from torchtrt_bridge.runtime import cuda_graph as recording
from torchtrt_bridge.runtime import execution as home
from torchtrt_bridge.runtime.cuda_graph import CudaGraphCall
from torchtrt_bridge.runtime.execution import CudaGraphCache


class Replayed(CudaGraphCall):
    """Replays by computing from the very tensors that it was recorded with, as a CUDA graph does from their memory."""

    made: list[Replayed]

    def __init__(self, run: Callable[..., Any], inputs: Sequence[Any], in_place: Collection[int] = ()) -> None:
        taken: list[Any] = []

        def noting(*values: Any) -> Any:
            taken.extend(values)
            return run(*values)

        super().__init__(noting, inputs, in_place)
        self.in_place = sorted(in_place)
        self._graph.replay = lambda: [o.copy_(r) for o, r in zip(self.outputs, run(*taken), strict=True)]
        self.made.append(self)


def computed(x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor]:
    return (x * 2 + state,)


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> CudaGraphCache:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", SimpleNamespace)
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "device", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(recording, "_own_workspaces", contextlib.nullcontext)
    monkeypatch.setattr(home, "CudaGraphCall", Replayed)
    Replayed.made = []
    options = SimpleNamespace(reuse_outputs=False)
    execution = SimpleNamespace(
        module=SimpleNamespace(forward=computed), engines=[], is_static=True, options=options, device=None
    )
    return CudaGraphCache(execution)  # type: ignore[arg-type]


def assert_right(recordings: CudaGraphCache, *inputs: torch.Tensor) -> None:
    torch.testing.assert_close(recordings(inputs)[0], computed(*inputs)[0])


def test_what_lies_still_is_read_in_place(recordings: CudaGraphCache) -> None:
    x, state = torch.randn(3), torch.randn(3)
    for _ in range(5):
        assert_right(recordings, x.normal_(), state.normal_())
    assert [each.in_place for each in Replayed.made] == [[0, 1]]


def test_what_moves_is_copied(recordings: CudaGraphCache) -> None:
    state = torch.randn(3)
    inputs = [torch.randn(3) for _ in range(5)]
    for x in inputs:
        assert_right(recordings, x, state.normal_())
    assert [each.in_place for each in Replayed.made] == [[1]]


@pytest.mark.parametrize("moved", [0, 1])
def test_what_moves_later_is_copied_from_then_on(moved: int, recordings: CudaGraphCache) -> None:
    still = [torch.randn(3), torch.randn(3)]
    for _ in range(4):
        assert_right(recordings, *still)
    for _ in range(3):
        other = list(still)
        other[moved] = torch.randn(3)
        assert_right(recordings, *other)
        assert_right(recordings, *still)
    assert [each.in_place for each in Replayed.made] == [[0, 1], [1 - moved]]


def test_the_same_memory_in_another_order_is_another_place(recordings: CudaGraphCache) -> None:
    x, state = torch.randn(3, 3), torch.randn(3, 3)
    for _ in range(3):
        assert_right(recordings, x, state)
    assert_right(recordings, x.t(), state)


def test_results_that_are_kept_and_given_back_as_inputs(recordings: CudaGraphCache) -> None:
    """They lie in a recording's own memory, which only a copy of it may be computed from."""
    state = torch.randn(3)
    y, kept = torch.randn(3), []
    for _ in range(8):
        expected = computed(y, state)[0].clone()
        y = recordings([y, state])[0]
        torch.testing.assert_close(y, expected)
        kept.append((y, expected))
    for result, expected in kept:
        torch.testing.assert_close(result, expected)
