"""Captures in several threads: one at a time, and calls of other threads go on meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.entry.reference import assert_same, compiled


def network() -> nn.Module:
    layers = [nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)) for _ in range(4)]
    return nn.Sequential(*layers, nn.Softmax(-1)).eval()


@pytest.fixture(autouse=True, scope="module")
def _first_trace_in_the_main_thread() -> None:
    """Without a GPU torch 2.11 crashes in a trace if the thread of the first one has ended."""
    torch.export.export(nn.Linear(8, 8), (torch.randn(2, 8),))


def at_once(call: Callable[[], Any], threads: int) -> list[Any]:
    """Return the results of calls that threads begin at the same time."""
    barrier = threading.Barrier(threads)

    def wait_and_call() -> Any:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(threads) as pool:
        return [future.result() for future in [pool.submit(wait_and_call) for _ in range(threads)]]


@pytest.mark.parametrize("is_module", [True, False], ids=["module", "function"])
def test_threads_that_call_a_model_first_at_once_make_one_set_of_engines(is_module: bool) -> None:
    model, x = network(), torch.randn(2, 8)
    fast = compiled(model if is_module else lambda x: model(x))

    def call() -> torch.Tensor:
        with torch.inference_mode():
            result: torch.Tensor = fast(x)
        return result

    expected = model(x).detach()
    for result in at_once(call, 8):
        assert_same(result, expected)
    report = trtb.report(fast)
    assert (report.graphs, len(report.engines), report.notes) == (1, 1, [])


def test_after_first_calls_in_threads_other_sizes_are_compiled_too() -> None:
    model = network()
    fast = compiled(model)

    @torch.inference_mode()
    def call(batch: int = 2) -> None:
        x = torch.ones(batch, 8)
        assert_same(fast(x), model(x))

    at_once(call, 8)  # each would be a graph of the 8 that Dynamo makes
    call(3)
    assert trtb.report(fast).graphs == 2


def test_exports_of_one_model_in_threads() -> None:
    model, x = network(), torch.randn(2, 8)
    programs = at_once(lambda: trtb.export(model, x, engine="reference"), 4)
    for program in programs:
        assert_same(program(x), model(x))


def test_calls_of_other_threads_are_not_part_of_what_is_captured() -> None:
    model, other, x = network(), network(), torch.randn(2, 8)
    fast = compiled(network())
    with torch.inference_mode():
        fast(x)
        expected = [other(x), fast(x)]
    is_done = threading.Event()

    def call_all() -> int:
        count = 0
        while not is_done.is_set():
            with torch.inference_mode():
                results = [other(x), fast(x)]
            assert {type(result) for result in results} == {torch.Tensor}
            torch.testing.assert_close(results, expected)
            count += 1
        return count

    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(call_all) for _ in range(3)]
        try:
            for _ in range(3):
                program = trtb.export(model, x, engine="reference")
                assert_same(program(x), model(x))
        finally:
            is_done.set()
        assert all(call.result() > 0 for call in calls)
