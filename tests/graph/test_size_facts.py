"""What a trace knows of its symbolic sizes, and a new environment that knows the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import sympy
import torch
from torch import nn
from torch.export import Dim
from torch.fx.experimental import _config as size_config

from torchtrt_bridge.graph.export_internals import (
    SizeFacts,
    environment_from_facts,
    expression_class,
    facts_of_sizes,
    has_hints,
    learn_axioms,
    size_settings,
    symbolic_number,
    value_in_example,
)
from torchtrt_bridge.graph.torch_internals import statically_known_true


class Sums(nn.Module):
    """Model whose sizes are equal, even, and not 8."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        total = x + y
        return total.reshape(-1, 2).sum(1) if x.shape[0] != 8 and x.shape[0] % 2 == 0 else total


@pytest.fixture
def environment() -> Any:
    free = {0: Dim.AUTO(min=2, max=64)}
    program = torch.export.export(Sums(), (torch.randn(6), torch.randn(6)), dynamic_shapes=(free, free))
    (value, *_) = (node.meta["val"] for node in program.graph.find_nodes(op="placeholder"))
    return value.shape[0].node.shape_env


@pytest.fixture
def facts(environment: Any) -> SizeFacts:
    return facts_of_sizes(environment)


def number(expression: Any, environment: Any) -> Any:
    return symbolic_number(expression, "int", environment)


def test_a_new_environment_knows_the_facts(environment: Any, facts: SizeFacts) -> None:
    assert len(facts.symbols) == 2
    assert len(facts.replacements) == 1
    assert facts.divisible
    other = environment_from_facts(facts)
    assert facts_of_sizes(other) == facts
    (symbol, expression) = facts.replacements[0]
    for each in (environment, other):
        first, second = number(symbol, each), number(expression, each)
        assert statically_known_true(first == second)
        assert statically_known_true(first % 2 == 0)
        assert statically_known_true(first != 8)
        assert statically_known_true(first <= 64)
        assert not statically_known_true(first == 6)


def test_axioms_that_came_later_are_forgotten(facts: SizeFacts) -> None:
    environment = environment_from_facts(facts)
    size = number(facts.symbols[0][0], environment)
    assert bool(size != 10)
    assert statically_known_true(size != 10)
    learn_axioms(environment, facts)
    assert not statically_known_true(size != 10)


def test_more_than_facts_hold_is_an_error(environment: Any) -> None:
    environment.size_like.add(sympy.Symbol("s0"))
    with pytest.raises(ValueError, match="size_like"):
        facts_of_sizes(environment)


def test_what_a_later_pytorch_keeps_of_sizes_is_an_error(environment: Any) -> None:
    environment.parities = {"s0": 1}
    with pytest.raises(ValueError, match="parities"):
        facts_of_sizes(environment)


def test_a_size_that_depends_on_data_is_an_error(environment: Any) -> None:
    environment.var_to_range[sympy.Symbol("u0", integer=True)] = next(iter(environment.var_to_range.values()))
    with pytest.raises(ValueError, match="depends on data"):
        facts_of_sizes(environment)


def test_a_size_beyond_its_range_is_an_error(facts: SizeFacts) -> None:
    symbols = [(symbol, value, low, sympy.Integer(5)) for symbol, value, low, _ in facts.symbols]
    with pytest.raises(AssertionError, match="not in"):
        environment_from_facts(dataclasses.replace(facts, symbols=symbols))


def test_numbers_have_the_value_of_the_example(environment: Any, facts: SizeFacts) -> None:
    symbol = facts.symbols[0][0]
    assert value_in_example(2 * symbol + 1, environment) == 13
    size, half, flag = (
        symbolic_number(expression, kind, environment)
        for kind, expression in (("int", symbol + 1), ("float", symbol * 0.5), ("bool", sympy.Gt(symbol, 3)))
    )
    assert isinstance(size, torch.SymInt)
    assert size.node.hint == 7
    assert isinstance(half, torch.SymFloat)
    assert half.node.hint == 3.0
    assert isinstance(flag, torch.SymBool)
    assert number(sympy.Integer(4), environment) == 4


@pytest.mark.parametrize("name", ["sympify", "no_such_class", "annotations"])
def test_other_names_are_no_classes_of_expressions(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        expression_class(name)


def test_classes_of_expressions_are_those_of_pytorch() -> None:
    assert expression_class("Add") is sympy.Add
    assert expression_class("Max") is not sympy.Max


def test_hints_of_mark_dynamic() -> None:
    x = torch.ones(3, 4)
    assert not has_hints(x)
    torch._dynamo.mark_dynamic(x, 0)
    assert not has_hints(x)
    torch._dynamo.mark_dynamic(x, 1, hint_override=16)
    assert has_hints(x)


def test_settings_of_sizes_are_told_apart() -> None:
    before = size_settings()
    with size_config.patch(use_duck_shape=not size_config.use_duck_shape):
        assert size_settings() != before
    assert size_settings() == before
