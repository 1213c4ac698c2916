"""Inputs that share memory with one that is written to: results are right in each call, and engines run the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import torchtrt_bridge as trtb
from torchtrt_bridge.capture.shared_memory import MemoryGuard, apart, overlaps

Pair = tuple[torch.Tensor, torch.Tensor]


def whole() -> torch.Tensor:
    return torch.arange(24.0).reshape(6, 4) / 24


def of_whole(parts: Callable[[torch.Tensor], Pair]) -> Callable[[], Pair]:
    return lambda: parts(whole())


SHARED: dict[str, Callable[[], Pair]] = {
    "the same twice": of_whole(lambda x: (x, x)),
    "a view of it": of_whole(lambda x: (x, x.view(6, 4))),
    "rows of both": of_whole(lambda x: (x[:4], x[2:])),
    "transposed": of_whole(lambda x: (x[:4], x[:4].t())),
    "every other row": of_whole(lambda x: (x[::2], x[:3])),
}
APART: dict[str, Callable[[], Pair]] = {
    "two tensors": lambda: (whole(), whole()),
    "other rows": of_whole(lambda x: (x[:3], x[3:])),
    "nothing": lambda: (whole()[:0], whole()[:0]),
}


def added(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a.add_(1)
    return a.sum() + (b * 3).exp()


def read_first(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    y = (b * 3).exp()
    a.mul_(2)
    return y + b


def row_written(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a[0] = 5.0
    return b.exp().sin()


def read_only(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * 2).sum() + b.exp()


WRITING = [added, read_first, row_written]


def assert_same(fast: Callable[..., Any], function: Callable[..., Any], pair: Callable[[], Pair]) -> None:
    """Assert that results are those of the function, and what is written too."""
    given, expected = pair(), pair()
    torch.testing.assert_close(fast(*given), function(*expected))
    torch.testing.assert_close(given, expected)


@pytest.mark.first(7)
@pytest.mark.parametrize("function", [*WRITING, read_only])
@pytest.mark.parametrize("name", SHARED)
def test_compiled_for_shared_memory(name: str, function: Callable[..., Any]) -> None:
    fast = trtb.compile(function, engine="reference")
    for _ in range(2):
        assert_same(fast, function, SHARED[name])
    report = trtb.report(fast)
    is_one = name == "the same twice"  # Dynamo's graph has one input
    is_served = function is read_only or is_one
    assert [bool(entry.error is not None) for entry in report.engines] == [is_served]
    assert ["shares memory" in note for note in report.notes] == [True] * (not is_served)


@pytest.mark.parametrize("function", WRITING)
def test_compiled_for_both(function: Callable[..., Any]) -> None:
    """Dynamo has one graph for tensors that overlap and for those that do not."""
    fast = trtb.compile(function, engine="reference")
    apart, shared = of_whole(lambda x: (x[:3], x[3:])), of_whole(lambda x: (x[:3], x[2:5]))
    for pair in (apart, shared, apart, shared):
        assert_same(fast, function, pair)
    (engine,) = trtb.report(fast).engines
    assert engine.error is not None
    (note,) = trtb.report(fast).notes
    assert "L['a'], which it writes to, shares memory with L['b']" in note


def test_a_call_that_pytorch_would_run_is_an_error_where_errors_are_asked_for() -> None:
    fast = trtb.compile(added, engine="reference", fallback="error")
    with pytest.raises(trtb.CaptureError, match=r"L\['a'\], which it writes to, shares memory with L\['b'\]"):
        fast(*SHARED["rows of both"]())


@pytest.mark.parametrize("name", [name for name in APART if name != "nothing"])
@pytest.mark.parametrize("function", WRITING)
def test_exported(name: str, function: Callable[..., Any]) -> None:
    example = of_whole(lambda x: (x[:3], x[3:])) if name == "other rows" else APART[name]
    program = trtb.export(function, example(), engine="reference")
    assert_same(program, function, example)
    assert program.report.is_whole
    first = example()[0]
    before = first.clone()
    with pytest.raises(trtb.ShapeRangeError, match="Argument a shares memory with b, and the program writes to a"):
        program(first, first)
    torch.testing.assert_close(first, before)


@pytest.mark.parametrize("name", ["the same twice", "rows of both"])
def test_exported_with_an_example_that_shares_memory(name: str) -> None:
    program = trtb.export(added, SHARED[name](), engine="reference")
    assert_same(program, added, lambda: (SHARED[name]()[0].clone(), SHARED[name]()[1]))
    with pytest.raises(trtb.ShapeRangeError, match="a copy of b"):
        program(*SHARED[name]())


@pytest.mark.parametrize("name", [*SHARED, *APART])
def test_overlaps(name: str) -> None:
    assert bool(overlaps({**SHARED, **APART}[name]())) is (name in SHARED)


def test_the_pair_begins_with_what_is_written() -> None:
    x = whole()
    values = [torch.ones(3), x[:4], None, x[2:], x[5:]]
    assert MemoryGuard([3]).shared(values) == (3, 1)
    assert MemoryGuard([1]).shared(values) == (1, 3)
    assert MemoryGuard([0]).shared(values) is None
    assert MemoryGuard([]).shared(values) is None


def test_the_guard_looks_at_each_call() -> None:
    guard, x, y = MemoryGuard([0]), whole(), whole()
    assert [guard.shared(pair) for pair in ([x, y], [x, y], [x, x], [x, y])] == [None, None, (0, 1), None]
    assert guard.shared([x[:2], x[4:]]) is None
    assert guard.shared([x[:5], x[4:]]) == (0, 1)  # the same addresses


def test_copies_have_the_strides_of_what_they_are_copied_from() -> None:
    x = whole()
    first, second = x[:4], x[:4].t()
    copied = apart({"pair": (first, second), "number": 3})
    assert copied["pair"][0] is first
    assert copied["pair"][1].stride() == second.stride()
    assert not overlaps(copied["pair"])
    torch.testing.assert_close(copied["pair"][1], second)
