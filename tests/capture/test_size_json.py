"""Symbolic sizes as JSON: what is read knows what was known, and what JSON does not hold is not written."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from torch.export import Dim

from tests.models import Called
from torchtrt_bridge.capture.export import CapturedGraph, export_program, graph_from_program
from torchtrt_bridge.capture.graph_json import graph_from_text, text_from_graph
from torchtrt_bridge.capture.size_json import NoTextError, SizeReader, SizeWriter
from torchtrt_bridge.graph.export_internals import expression_class
from torchtrt_bridge.graph.shapes import example_size, expression_of
from torchtrt_bridge.graph.torch_internals import statically_known_true

Function = Callable[..., Any]


def captured(function: Function, *args: torch.Tensor, **limits: int) -> CapturedGraph:
    """Capture a function of tensors with all their sizes free, in these limits."""
    free = tuple(dict.fromkeys(range(value.dim()), Dim.AUTO(**limits)) for value in args)
    return graph_from_program(export_program(Called(function), args, dynamic_shapes=(free,)))


def read(graph: CapturedGraph) -> CapturedGraph:
    return graph_from_text(text_from_graph(graph, {}), {})


def sums(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x + y


def rows_in_twos(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(x.shape[0] // 2, 2, x.shape[1]).sum(1) if x.shape[0] % 2 == 0 else x


def scaled(x: torch.Tensor) -> torch.Tensor:
    return x / (x.shape[0] / 2) + 1.5 * x.shape[1]


def bounded(x: torch.Tensor) -> torch.Tensor:
    return x.new_zeros(torch.sym_max(x.shape[0], 5), torch.sym_min(x.shape[1], 7)) + 1


def steps(x: torch.Tensor) -> torch.Tensor:
    return x[::2, : -(-x.shape[1] // 3)]


def powers(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, x]).reshape(-1) * (x.shape[0] ** 2 - 1)


FUNCTIONS: dict[str, tuple[Function, int]] = {
    "equal sizes": (sums, 2),
    "even sizes": (rows_in_twos, 1),
    "sizes that are floats": (scaled, 1),
    "the larger of two sizes": (bounded, 1),
    "quotients": (steps, 1),
    "powers": (powers, 1),
}


@pytest.mark.first(6)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_read_computes_and_knows_the_same(name: str) -> None:
    function, count = FUNCTIONS[name]
    graph = captured(function, *[torch.randn(4, 9) for _ in range(count)])
    found = read(graph)
    assert text_from_graph(found, {}) == text_from_graph(graph, {})
    assert found.ranges == graph.ranges != {}
    for sizes in ((4, 9), (6, 5), (12, 10)):
        args = [torch.randn(sizes) for _ in range(count)]
        (result,) = found.module(*args)
        torch.testing.assert_close(result, function(*args), rtol=0, atol=0)


def sizes_of_input(graph: CapturedGraph) -> list[Any]:
    return list(graph.module.graph.find_nodes(op="placeholder")[0].meta["val"].shape)


def test_conditions_of_the_trace_are_known() -> None:
    graph = captured(rows_in_twos, torch.randn(6, 5), max=64)
    for found in (graph, read(graph)):
        rows, columns = sizes_of_input(found)
        assert statically_known_true(rows % 2 == 0)
        assert not statically_known_true(columns % 2 == 0)
        assert statically_known_true(columns <= 64)
        assert not statically_known_true(columns <= 63)
        assert [example_size(size) for size in (rows, columns)] == [6, 5]


def test_sizes_that_were_found_to_be_equal_are_one() -> None:
    found = read(captured(sums, torch.randn(4, 9), torch.randn(4, 9)))
    first, second = (node.meta["val"].shape for node in found.module.graph.find_nodes(op="placeholder"))
    assert list(map(expression_of, first)) == list(map(expression_of, second))


def test_reading_makes_no_guards() -> None:
    """The quotient may be 0, which a new tensor of that size asks for."""
    graph = captured(steps, torch.randn(4, 9))
    size = next(s for s in sizes_of_input(read(graph)))
    own = next(s for s in sizes_of_input(graph))
    assert [guard.expr for guard in size.node.shape_env.guards] == [guard.expr for guard in own.node.shape_env.guards]
    assert size.node.shape_env.axioms == own.node.shape_env.axioms


WITHOUT_TEXT: dict[str, tuple[Function, str]] = {
    "sizes that depend on data": (lambda x: x.nonzero(), "depends on data"),
    "memory that is read by offsets": (lambda x: x.as_strided((x.shape[0],), (1,)), "reads memory by offsets"),
}


@pytest.mark.parametrize("name", WITHOUT_TEXT)
def test_what_json_does_not_hold_has_no_text(name: str) -> None:
    function, reason = WITHOUT_TEXT[name]
    with pytest.raises(NoTextError, match=reason):
        text_from_graph(captured(function, torch.randn(4, 9)), {})


def test_a_size_of_another_trace_has_no_text() -> None:
    writer = SizeWriter()
    one, other = (sizes_of_input(captured(torch.sin, torch.randn(4, 9)))[0] for _ in range(2))
    assert writer.text_of(one) == {"int": 0}
    with pytest.raises(NoTextError, match="another trace"):
        writer.text_of(other)


def table_of(expression: Any) -> list[Any]:
    writer = SizeWriter()
    writer.place(expression)
    rows: list[Any] = json.loads(json.dumps(writer.rows))
    return rows


def expression_from(rows: list[Any]) -> Any:
    """Return the last expression of a table."""
    content = {
        "settings": {}, "is_frozen": True, "is_simplified": True, "symbols": [], "replacements": [],
        "divisible": [len(rows) - 1], "guards": [], "axioms": [], "ranges": [], "rows": rows,
    }  # fmt: skip
    (found,) = SizeReader(content).environment.divisible
    return found


S, T = (sympy.Symbol(name, positive=True, integer=True) for name in ("s0", "s17"))
FLOOR, MAX = expression_class("FloorDiv"), expression_class("Max")

EXPRESSIONS = {
    "sum": S + 3 * T - 1,
    "product": S * (T + 1),
    "quotient": FLOOR(S - 1, 2) + 1,
    "fraction": S / 3,
    "float": sympy.Float(0.1) * S,
    "maximum": MAX(S, T, 4),
    "equality": sympy.Eq(S, T, evaluate=False),
    "what sympy would find true": sympy.Ge(S, 1, evaluate=False),
    "what sympy would multiply out": sympy.Mul(2, S + T, evaluate=False),
    "conditions": sympy.And(S < T, sympy.Not(sympy.Eq(S, 4))),
    "true": sympy.true,
    "no end": expression_class("IntInfinity")(),
    "a size that may be negative": sympy.Symbol("s3", integer=True) + 1,
}


@pytest.mark.first(13)
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_is_read_as_it_was_written(name: str) -> None:
    expression = EXPRESSIONS[name]
    found = expression_from(table_of(expression))
    assert found == expression
    assert type(found) is type(expression)
    assert sympy.srepr(found) == sympy.srepr(expression)


def test_a_part_of_several_expressions_is_written_once() -> None:
    writer = SizeWriter()
    part = FLOOR(S, 2)
    places = [writer.place(each) for each in (part, part + 1, part * T, part)]
    assert places[0] == places[3]
    assert writer.rows.count(["FloorDiv", 0, 1]) == 1


@pytest.mark.parametrize(
    "expression",
    [sympy.Symbol("s0"), sympy.Max(S, T), sympy.Float("0.1", 30)],
    ids=["a symbol of any number", "another library's maximum", "more digits"],
)
def test_other_expressions_have_no_text(expression: Any) -> None:
    with pytest.raises(NoTextError):
        SizeWriter().place(expression)
