"""Symbolic sizes as JSON, with all that a trace has found out about them.

An expression is a row of a table, of which others name the index: an int, a truth value, or a list of its class and of
the rows of its parts. So each expression is written and read once, however often it is part of others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sympy
import torch

from torchtrt_bridge.graph.export_internals import (
    SizeFacts,
    environment_from_facts,
    expression_class,
    facts_of_sizes,
    learn_axioms,
    symbolic_number,
    value_in_example,
)
from torchtrt_bridge.graph.torch_internals import new_export_mode

SIZE_TYPES = (torch.SymInt, torch.SymFloat, torch.SymBool)


class NoTextError(ValueError):
    """A graph holds something that JSON has no form for here, such as a size that depends on data."""


class SizeWriter:
    """Writer of the sizes of one graph; rows: the table of their expressions, which grows with each that is written."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self._environment: Any = None
        self._places: dict[tuple[type, Any], int] = {}

    def text_of(self, size: Any) -> Any:
        """Return a symbolic number as JSON; NoTextError if its size in the example is not that of its expression."""
        node = size.node
        self._environment = self._environment or node.shape_env
        if node.shape_env is not self._environment:
            raise NoTextError(f"{size} is a size of another trace")
        expression = sympy.sympify(node.expr)
        if not node.has_hint() or value_in_example(expression, self._environment) != node.hint:
            raise NoTextError(f"{size} depends on data")
        return {node.pytype.__name__: self.place(expression)} if expression.free_symbols else node.pytype(expression)

    def place(self, expression: Any) -> int:
        """Return the row of an expression, after those of its parts."""
        known = (type(expression), expression)
        if known not in self._places:
            row = self._row(expression)
            self._places[known] = len(self.rows)
            self.rows.append(row)
        return self._places[known]

    def _row(self, expression: Any) -> Any:
        if expression in (sympy.true, sympy.false):
            return bool(expression)
        if isinstance(expression, sympy.Integer):
            return int(expression)
        if isinstance(expression, sympy.Symbol):
            is_positive = bool(expression.is_positive)
            if _symbol(expression.name, is_positive) != expression:
                raise NoTextError(f"{expression} is a symbol of another kind")
            return ["Symbol", expression.name, is_positive]
        if isinstance(expression, sympy.Float):
            number = float(expression)
            if sympy.srepr(sympy.Float(number)) != sympy.srepr(expression):
                raise NoTextError(f"{expression} is no number of 64 bits")
            return ["Float", number]
        name = type(expression).__name__
        if isinstance(expression, sympy.Rational):
            return ["Rational", *(self.place(sympy.Integer(part)) for part in (expression.p, expression.q))]
        if expression_class(name) is not type(expression):
            raise NoTextError(f"{name} is another class than that of sizes")
        return [name, *map(self.place, expression.args)]

    def facts(self, ranges: Mapping[Any, tuple[int, int | None]]) -> dict[str, Any]:
        """Return all that is known of the sizes, as JSON.

        ranges: the smallest and the largest size of each symbol of the graph.
        """
        if self._environment is None:
            raise NoTextError("no tensor has the symbolic sizes that it was captured for")
        try:
            facts = facts_of_sizes(self._environment)
        except ValueError as error:
            raise NoTextError(str(error)) from error
        known = {symbol for symbol, *_ in facts.symbols}
        if not ranges.keys() <= known:
            raise NoTextError(f"it has sizes that depend on data: {sorted(map(str, ranges.keys() - known))}")
        return {
            "settings": facts.settings,
            "is_frozen": facts.is_frozen,
            "is_simplified": facts.is_simplified,
            "symbols": [list(map(self.place, row)) for row in facts.symbols],
            "replacements": [list(map(self.place, pair)) for pair in facts.replacements],
            "divisible": list(map(self.place, facts.divisible)),
            "guards": [[self.place(condition), flag] for condition, flag in facts.guards],
            "axioms": [list(map(self.place, pair)) for pair in facts.axioms],
            "ranges": [[self.place(symbol), *ends] for symbol, ends in ranges.items()],
            "rows": self.rows,
        }


class SizeReader:
    """Reader of the sizes that a SizeWriter wrote.

    environment: a new ShapeEnv that knows what the trace knew.
    ranges: the smallest and the largest size of each symbol of the graph.
    """

    def __init__(self, text: Mapping[str, Any]) -> None:
        self._expressions = _expressions_from(text["rows"])
        self._numbers: dict[tuple[str, int], Any] = {}
        self._facts = SizeFacts(
            text["settings"],
            text["is_frozen"],
            text["is_simplified"],
            [tuple(map(self._at, row)) for row in text["symbols"]],
            [tuple(map(self._at, pair)) for pair in text["replacements"]],
            list(map(self._at, text["divisible"])),
            [(self._at(place), flag) for place, flag in text["guards"]],
            [tuple(map(self._at, pair)) for pair in text["axioms"]],
        )
        self.environment = environment_from_facts(self._facts)
        self.ranges = {self._at(place): (low, high) for place, low, high in text["ranges"]}

    @contextlib.contextmanager
    def making_values(self) -> Iterator[None]:
        """Let tensors be fake ones of these sizes; the sizes tell no more of themselves afterwards than before."""
        with self.environment.suppress_guards(), new_export_mode(self.environment):
            yield
        learn_axioms(self.environment, self._facts)

    def _at(self, place: int) -> Any:
        return self._expressions[place]

    def number(self, kind: str, place: int) -> Any:
        """Return the symbolic number of an expression."""
        if (kind, place) not in self._numbers:
            self._numbers[kind, place] = symbolic_number(self._at(place), kind, self.environment)
        return self._numbers[kind, place]


def _symbol(name: str, is_positive: bool) -> sympy.Symbol:
    """Return the symbol of a size as PyTorch makes it."""
    return sympy.Symbol(name, positive=is_positive or None, integer=True)


def _expressions_from(rows: Sequence[Any]) -> list[Any]:
    """Return the expressions of a table.

    They are not evaluated: they are in the form that PyTorch found for them, which need not be sympy's.
    """
    made: list[Any] = []
    for row in rows:
        if isinstance(row, (bool, int)):
            made.append(sympy.sympify(row))
            continue
        name, *parts = row
        if name == "Symbol":
            made.append(_symbol(*parts))
        elif name == "Float":
            made.append(sympy.Float(*parts))
        elif name == "Rational":
            made.append(sympy.Rational(*(made[place] for place in parts)))
        else:
            kind: Any = expression_class(name)
            made.append(kind(*(made[place] for place in parts), evaluate=False) if parts else kind())
    return made
