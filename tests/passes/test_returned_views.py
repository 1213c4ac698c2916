"""Results that share memory with each other or with an input, and the strides of results, as in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import torchtrt_bridge as trtb
from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.options import Options
from torchtrt_bridge.passes import normalize

Function = Callable[..., Any]
CONVOLUTION = torch.nn.Conv2d(4, 8, 3)


def halves(x: torch.Tensor) -> Any:
    h = x * 2
    p, q = h.chunk(2, 1)
    return (p + q).relu(), p, h


def halves_without_the_whole(x: torch.Tensor) -> Any:
    p, q = (x * 2).chunk(2, 1)
    return p, q, p + q


def views_of_views(x: torch.Tensor) -> Any:
    turned = x.relu().t()
    rows = turned[1:3]
    return turned, rows, rows[:, ::2], (rows * 2).sum(0)


def view_of_an_input(x: torch.Tensor) -> Any:
    v = x.reshape(2, -1)
    return v, v[1], (v * 2).relu()


def one_result_twice(x: torch.Tensor) -> Any:
    h = x.sin()
    return h, h.view(-1), h.contiguous(), h.unsqueeze(0)


def items(x: torch.Tensor) -> Any:
    return x.relu().unbind(0)


def written_within(x: torch.Tensor) -> Any:
    h = x * 2
    part = h[:, :3]
    part.mul_(3)
    return h, part


def turned(x: torch.Tensor) -> Any:
    return (x * 2).t()


def moved_by_attention(x: torch.Tensor) -> Any:
    q = x.view(x.shape[0], 2, 3).transpose(0, 1)
    return F.scaled_dot_product_attention(q, q, q).transpose(0, 1)


def cut(x: torch.Tensor) -> Any:
    return (x * 2)[:, 1::2]


def widened(x: torch.Tensor) -> Any:
    return x.sum(1, keepdim=True).expand(-1, 5) * 1, x.sum(1, keepdim=True).expand(-1, 5)


def turned_by_its_input(x: torch.Tensor) -> Any:
    return x.t() * 2 + x.t()


def column_as_a_row(x: torch.Tensor) -> Any:
    return x.mean(-1, keepdim=True).t(), (x.amax(-1, keepdim=True) * 2).t().relu(), x.sum(0, keepdim=True).t()


FUNCTIONS: list[Function] = [
    halves, halves_without_the_whole, views_of_views, view_of_an_input, one_result_twice, items, written_within,
    turned, moved_by_attention, cut, widened, column_as_a_row,
    turned_by_its_input,
]  # fmt: skip
functions = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
settings = pytest.mark.parametrize("settings", [{}, {"dynamic": True}, {"precision": "fp16"}], ids=str)


def results_of(function: Function, *args: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        results = function(*args)
    return list(results) if isinstance(results, (tuple, list)) else [results]


def shared(values: Sequence[torch.Tensor]) -> list[list[int]]:
    places = [value.untyped_storage().data_ptr() for value in values]
    return [[index for index, other in enumerate(places) if other == place] for place in places]


def assert_laid_out_alike(fast: Function, function: Function, *args: torch.Tensor) -> None:
    """Compare values, strides, and memory, which is written to at last."""
    own = [torch.empty_strided(x.shape, x.stride()).copy_(x) for x in args]
    found, expected = results_of(fast, *own), results_of(function, *args)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
    assert [value.stride() for value in found] == [value.stride() for value in expected]
    assert shared([*found, *own]) == shared([*expected, *args])
    for results in (found, expected):
        if 0 not in results[0].stride():
            results[0].fill_(7)
    torch.testing.assert_close([*found, *own], [*expected, *args], rtol=2e-3, atol=2e-3)


@pytest.mark.first(12)
@functions
@settings
def test_compiled(function: Function, settings: dict[str, Any]) -> None:
    fast = trtb.compile(function, engine="reference", fallback="error", **settings)
    for _ in range(2):
        assert_laid_out_alike(fast, function, torch.randn(4, 6))
    report = trtb.report(fast)
    assert report.is_whole
    assert len(report.engines) == 1


@pytest.mark.first(8)
@functions
@pytest.mark.parametrize("is_dynamic", [False, True])
def test_exported_and_loaded(function: Function, is_dynamic: bool, tmp_path: Path) -> None:
    x = torch.randn(4, 6)
    is_dynamic = is_dynamic and function is not items and function is not view_of_an_input
    shapes = {"x": {0: torch.export.Dim("n", min=3, max=8)}} if is_dynamic else None
    program = trtb.export(function, x, dynamic_shapes=shapes, engine="reference", fallback="error")
    trtb.save(program, tmp_path / "program.pt2")
    for run in (program, trtb.load(tmp_path / "program.pt2")):
        for count in {4, 7 if is_dynamic else 4}:
            assert_laid_out_alike(run, function, torch.randn(count, 6))
    assert program.report.is_whole


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@settings
def test_images(memory_format: torch.memory_format, settings: dict[str, Any]) -> None:
    def function(x: torch.Tensor) -> Any:
        y = CONVOLUTION(x)
        return y, y.permute(0, 2, 3, 1), y.mean((2, 3))

    fast = trtb.compile(function, engine="reference", fallback="error", **settings)
    assert_laid_out_alike(fast, function, torch.randn(2, 4, 6, 6).to(memory_format=memory_format))


def test_a_view_of_an_input_that_the_program_changes() -> None:
    def function(x: torch.Tensor) -> Any:
        x.add_(1)
        return x[:2], x.relu()

    program = trtb.export(function, torch.randn(4, 6), engine="reference")
    assert_laid_out_alike(program, function, torch.randn(4, 6))


def test_what_is_written_after_a_graph_break() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        h = x * 2
        p, q = h.chunk(2, 1)
        (p + q).relu()
        torch._dynamo.graph_break()
        p.mul_(10)
        return h

    fast = trtb.compile(function, engine="reference")
    assert_laid_out_alike(fast, function, torch.randn(4, 6))


def test_a_result_in_another_order_costs_nothing() -> None:
    """The engine gives the tensor before the transpose, which PyTorch turns."""

    class Turned(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * 2).transpose(0, 1)

    module = graph_from_program(export_program(Turned(), (torch.randn(4, 6),))).module
    normalize(module, Options())
    calls = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
    assert calls == ["aten.mul.Tensor", "aten.permute.default"]
