"""When CUDA graphs read an input in place, on a GPU that is not there; real graphs: test_execution_on_gpu.py."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from torchtrt_bridge.runtime import cuda_graph
from torchtrt_bridge.runtime.cuda_graph import MOST_SHAPES, CudaGraphCache, CudaGraphCall, CudaGraphPair, GraphedModule


class Replayed(CudaGraphCall):
    """Replays by computing from the very tensors that it was captured with, as a CUDA graph does from their memory."""

    made: list[Replayed]

    def __init__(
        self,
        run: Callable[..., Any],
        inputs: Sequence[Any],
        in_place: Collection[int] = (),
        written: Collection[int] = (),
    ) -> None:
        taken: list[Any] = []

        def noting(*values: Any) -> Any:
            taken.extend(values)
            return run(*values)

        before = [value.clone() for value in inputs]
        super().__init__(noting, inputs, in_place, written)
        for value, held in zip(inputs, before, strict=True):
            value.copy_(held)  # a capture computes nothing
        self.in_place = sorted(self._places)
        self._graph.replay = lambda: [o.copy_(r) for o, r in zip(self.outputs, run(*taken), strict=True)]
        self.made.append(self)


def computed(x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor]:
    return (x * 2 + state,)


def counted(x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor]:
    """Write to the state."""
    result = x * 2 + state
    state.add_(1)
    return (result,)


def graphed(is_static: bool, forward: Any = computed, written: tuple[int, ...] = ()) -> GraphedModule:
    module: Any = SimpleNamespace(forward=forward)
    return GraphedModule(module, None, is_static, False, resources=list, give_up=pytest.fail, written=written)


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> CudaGraphPair:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", SimpleNamespace)
    monkeypatch.setattr(cuda_graph, "capturing", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "device", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(cuda_graph, "_own_workspaces", contextlib.nullcontext)
    monkeypatch.setattr(cuda_graph, "CudaGraphCall", Replayed)
    Replayed.made = []
    return CudaGraphPair(graphed(is_static=True))


def assert_right(pair: CudaGraphPair, *inputs: torch.Tensor) -> None:
    torch.testing.assert_close(pair(inputs)[0], computed(*inputs)[0])


def test_what_lies_still_is_read_in_place(pair: CudaGraphPair) -> None:
    x, state = torch.randn(3), torch.randn(3)
    for _ in range(5):
        assert_right(pair, x.normal_(), state.normal_())
    assert [each.in_place for each in Replayed.made] == [[0, 1]]


def test_what_moves_is_copied(pair: CudaGraphPair) -> None:
    state = torch.randn(3)
    inputs = [torch.randn(3) for _ in range(5)]
    for x in inputs:
        assert_right(pair, x, state.normal_())
    assert [each.in_place for each in Replayed.made] == [[1]]


@pytest.mark.parametrize("moved", [0, 1])
def test_what_moves_later_is_copied_from_then_on(moved: int, pair: CudaGraphPair) -> None:
    still = [torch.randn(3), torch.randn(3)]
    for _ in range(4):
        assert_right(pair, *still)
    for _ in range(3):
        other = list(still)
        other[moved] = torch.randn(3)
        assert_right(pair, *other)
        assert_right(pair, *still)
    assert [each.in_place for each in Replayed.made] == [[0, 1], [1 - moved]]


def test_the_same_memory_in_another_order_is_another_place(pair: CudaGraphPair) -> None:
    x, state = torch.randn(3, 3), torch.randn(3, 3)
    for _ in range(3):
        assert_right(pair, x, state)
    assert_right(pair, x.t(), state)


def test_a_lazy_negative_is_in_another_place_than_its_positive(pair: CudaGraphPair) -> None:
    x, state = torch.randn(3), torch.randn(3)
    for _ in range(3):
        assert_right(pair, x, state)
    assert_right(pair, torch._neg_view(x), state)


def test_results_that_are_kept_and_given_back_as_inputs(pair: CudaGraphPair) -> None:
    """They lie in a graph's own memory, which only a copy of it may be computed from."""
    state = torch.randn(3)
    y, kept = torch.randn(3), []
    for _ in range(8):
        expected = computed(y, state)[0].clone()
        y = pair([y, state])[0]
        torch.testing.assert_close(y, expected)
        kept.append((y, expected))
    for result, expected in kept:
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("is_still", [True, False], ids=["still", "moving"])
@pytest.mark.parametrize("is_inference", [True, False], ids=["inference", "plain"])
def test_what_is_written_is_the_callers(is_still: bool, is_inference: bool, pair: CudaGraphPair) -> None:
    """It is written once in each call, also in the one that is captured; tensors of inference mode are copied."""
    pair = CudaGraphPair(graphed(True, counted, written=(1,)))
    with torch.inference_mode(is_inference):
        state = torch.zeros(3)
        for number in range(6):
            state = state if is_still else state.clone()
            (result,) = pair([torch.ones(3), state])
            assert result.tolist() == [2.0 + number] * 3
            assert state.tolist() == [number + 1.0] * 3
    assert Replayed.made[0].in_place == ([1] if is_still and not is_inference else [])


def test_the_shapes_that_were_used_last_are_kept() -> None:
    cache = CudaGraphCache(graphed(is_static=False))
    often = cache.pair_for([torch.empty(99)])
    for size in range(3 * MOST_SHAPES):
        pair = cache.pair_for([torch.empty(size)])
        assert cache.pair_for([torch.empty(size)]) is pair
        assert cache.pair_for([torch.empty(99)]) is often
    assert len(cache.pairs()) == MOST_SHAPES


def test_static_calls_have_one_shape() -> None:
    cache = CudaGraphCache(graphed(is_static=True))
    assert cache.pair_for([torch.empty(3)]) is cache.pair_for([torch.empty(3)])
    cache.clear()
    assert cache.pairs() == []
