"""Bounds: as narrow as is known, and no result outside them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.export import Dim

from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.lower.bounds import bounds_of

LOWEST = torch.finfo(torch.float32).min
INT64 = (-(2.0**63), 2.0**63)
ANY = (-math.inf, math.inf)
TABLE = torch.tensor([[0.5, -2.0], [3.0, 1.0]])
WEIRD = torch.tensor([1.0, math.nan])


class Called(nn.Module):
    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: torch.Tensor, b: torch.Tensor, i: torch.Tensor) -> Any:
        return self.call(x, b, i)


def samples() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return floats, bools and integers, with extremes of each."""
    extreme = torch.tensor([0.0, -0.0, 1e38, -3e38, math.inf, -math.inf, 1e-40, -7.5])
    bools = torch.tensor([True, False] * 4)
    whole = torch.tensor([0, 1, -1, 5, 2**62, -(2**63), 2**63 - 1, 1])
    return [
        (extreme, bools, whole),
        (torch.randn(8) * 100, torch.ones(8, dtype=torch.bool), torch.arange(8)),
        (torch.zeros(8), torch.zeros(8, dtype=torch.bool), torch.full((8,), -3)),
    ]


def result_of(call: Callable[..., Any], dynamic: bool = False) -> tuple[fx.GraphModule, fx.Node]:
    shape = {0: Dim("n", min=2, max=64)}
    shapes = {"x": shape, "b": shape, "i": shape} if dynamic else None
    module = graph_from_program(export_program(Called(call), samples()[0], dynamic_shapes=shapes)).module
    output = next(node for node in module.graph.nodes if node.op == "output")
    return module, output.args[0][0]


@functools.cache
def known_ones() -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    """Return one graph of all known calls, and the result of each."""
    calls = [call for call, _ in KNOWN.values()]
    together = Called(lambda x, b, i: [call(x, b, i) for call in calls])
    module = graph_from_program(export_program(together, samples()[0])).module
    (output,) = module.graph.find_nodes(op="output")
    return module, dict(zip(KNOWN, output.args[0], strict=True))


@functools.cache
def results_of(sample: int) -> dict[str, torch.Tensor]:
    module, _ = known_ones()
    return dict(zip(KNOWN, module(*samples()[sample]), strict=True))


KNOWN: dict[str, tuple[Callable[..., Any], tuple[float, float]]] = {
    "a float input": (lambda x, b, i: x * 1.0, ANY),
    "an input of bools": (lambda x, b, i: b & b, (0, 1)),
    "a whole input": (lambda x, b, i: i * 1, INT64),
    "a constant": (lambda x, b, i: TABLE.clone(), (-2, 3)),
    "a constant with NaN": (lambda x, b, i: WEIRD.clone(), ANY),
    "the rows of a table": (lambda x, b, i: nn.functional.embedding(b.long(), TABLE), (-2, 3)),
    "a view": (lambda x, b, i: TABLE.clone().t()[None, :, 1:].expand(3, 2, 1), (-2, 3)),
    "other bits": (lambda x, b, i: TABLE.clone().view(torch.int32), (-(2.0**31), 2.0**31 - 1)),
    "a cast of bools": (lambda x, b, i: b.float(), (0, 1)),
    "a cast to bools": (lambda x, b, i: (b.float() + 1).bool(), (1, 1)),
    "a cast of no bools": (lambda x, b, i: (b.float() * 0).bool(), (0, 0)),
    "a cast to whole numbers": (lambda x, b, i: (b.float() * 0.5 - 0.25).int(), (-1, 1)),
    "a cast out of range": (lambda x, b, i: (b.float() * LOWEST).half(), (-math.inf, 0)),
    "a cast of what just fits": (lambda x, b, i: (b.float() * -65505).half(), (-65504, 0)),
    "an overflow": (lambda x, b, i: b.float() * LOWEST + LOWEST, (-math.inf, LOWEST)),
    "a sum that is absorbed": (lambda x, b, i: b.float() * LOWEST - 3.0, (LOWEST, -3)),
    "an overflow of whole numbers": (lambda x, b, i: b.to(torch.int8) + 127, (-128, 127)),
    "a sum": (lambda x, b, i: b.float() + 0.5, (0.5, 1.5)),
    "a sum with alpha": (lambda x, b, i: torch.add(b.float(), b.float(), alpha=-2), ANY),
    "a difference": (lambda x, b, i: b.float() - b.float() * 2, (-2, 1)),
    "one minus": (lambda x, b, i: 1.0 - b.float(), (0, 1)),
    "a product": (lambda x, b, i: (b.float() - 2) * (b.float() - 3), (2, 6)),
    "a product with infinity": (lambda x, b, i: b.float() * -math.inf, ANY),
    "the negative": (lambda x, b, i: -(b.float() + 1), (-2, -1)),
    "the size": (lambda x, b, i: (b.float() * 3 - 1).abs(), (0, 2)),
    "a choice": (lambda x, b, i: torch.where(b, -1e4, b.float()), (-1e4, 1)),
    "no choice": (lambda x, b, i: torch.where(b | True, b.float(), LOWEST), (0, 1)),
    "never chosen": (lambda x, b, i: torch.where(b & False, LOWEST, b.float()), (0, 1)),
    "filled": (lambda x, b, i: b.float().masked_fill(b, -math.inf), (-math.inf, 1)),
    "limited": (lambda x, b, i: x.clamp(-65504, 65504), (-65504, 65504)),
    "limited from below": (lambda x, b, i: x.clamp(min=0), ANY),
    "the larger": (lambda x, b, i: torch.maximum(b.float(), x), (0, math.inf)),
    "the smaller": (lambda x, b, i: torch.minimum(b.float(), x), (-math.inf, 1)),
    "full": (lambda x, b, i: torch.full_like(x, 3.0), (3, 3)),
    "a line": (lambda x, b, i: torch.arange(2, 7) + b[0], (2, 8)),
    "a line backwards": (lambda x, b, i: torch.arange(7, 2, -1), ANY),
    "both": (lambda x, b, i: b & (b | True), (0, 1)),
    "always": (lambda x, b, i: b | True, (1, 1)),
    "not always": (lambda x, b, i: ~(b | True), (0, 0)),
    "logic": (lambda x, b, i: torch.logical_or(torch.logical_not(b), b | True), (1, 1)),
    "logic of numbers": (lambda x, b, i: i & 3, INT64),
    "at least": (lambda x, b, i: b.long() >= 0, (1, 1)),
    "at most": (lambda x, b, i: b.long() <= 0, (0, 1)),
    "more": (lambda x, b, i: b.long() > 1, (0, 0)),
    "less": (lambda x, b, i: b.long() < 2, (1, 1)),
    "floats are rounded": (lambda x, b, i: b.float() >= 0, (0, 1)),
    "too large to tell": (lambda x, b, i: i <= 2**63 - 1, (0, 1)),
    "something else": (lambda x, b, i: torch.sigmoid(x), ANY),
}


@pytest.mark.parametrize("name", KNOWN)
def test_bounds(name: str) -> None:
    expected, node = KNOWN[name][1], known_ones()[1][name]
    low, high = bounds_of(node)
    if node.meta["val"].dtype == torch.int64 and expected == ANY:
        expected = INT64
    assert (low, high) == pytest.approx(expected)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("sample", range(3))
def test_no_result_lies_outside(name: str, sample: int) -> None:
    low, high = bounds_of(known_ones()[1][name])
    result = results_of(sample)[name].double()
    assert bool((result.isnan() | ((result >= low) & (result <= high))).all())


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x, b, i: (torch.arange(x.shape[0]) + 0)[None, :] >= 0, (1, 1)),
        (lambda x, b, i: torch.arange(x.shape[0]) - 1 >= 0, (0, 1)),
        (lambda x, b, i: torch.arange(x.shape[0])[None] <= torch.arange(x.shape[0])[:, None], (0, 1)),
    ],
    ids=["positions", "one before", "causal"],
)
def test_sizes_known_only_at_run_time(call: Callable[..., Any], expected: tuple[float, float]) -> None:
    _, node = result_of(call, dynamic=True)
    assert bounds_of(node) == expected


def test_a_chain_of_doublings_takes_no_time() -> None:
    """Each sum reads its predecessor twice: bounds that are not cached would take 2**200 steps."""

    def call(x: torch.Tensor, b: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        value = b.double()
        for _ in range(200):
            value = value + value
        return value

    _, node = result_of(call)
    assert bounds_of(node) == (0, 2.0**200)


@pytest.mark.parametrize(("number", "expected"), [(2, (2, 2)), (-0.5, (-0.5, -0.5)), (True, (1, 1)), (None, ANY)])
def test_numbers(number: Any, expected: tuple[float, float]) -> None:
    assert bounds_of(number) == expected
