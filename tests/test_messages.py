"""Each message that a user can meet has a row in docs/messages.md, found by a walk over the source.

A message is the first argument of an exception of errors.py, of `warn_once`, of `info`, or of the `note` of a report.
Its text may also come from a variable of the same function, from a constant of the module, or from a function of the
module, whose `return` has it. Of an f-string only the constant parts are known. The first `MOST` characters of each
have to occur in the first cell of one row, whatever the spaces, backticks and line breaks. Parts that are shorter than
`LEAST` do not count: a message of nothing else is another message with something around it, and needs no row.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pages import ROOT

PACKAGE = ROOT / "torchtrt_bridge"
PAGE = ROOT / "docs" / "messages.md"
ERRORS = {each.name for each in ast.parse((PACKAGE / "errors.py").read_text()).body if isinstance(each, ast.ClassDef)}
SPEAKERS = ERRORS | {"warn_once", "info", "note"}
MOST, LEAST = 60, 9

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Module


def missing(files: list[Path], page: str) -> list[str]:
    """Return the messages of these files that a page has no row for, each with its place."""
    cells = cells_of(page)
    return [
        f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name}:{line}: {' ... '.join(parts)}"
        for path in files
        for line, parts in sorted(messages_of(path))
        if not any(all(part[:MOST] in cell for part in parts) for cell in cells)
    ]


def cells_of(page: str) -> list[str]:
    """Return the first cells of all rows of tables."""
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    return [plain(re.split(r"(?<!\\)\|", row)[1]) for row in rows]


def plain(text: str) -> str:
    """Return text without Markdown, with single spaces."""
    return " ".join(text.replace("`", "").replace("\\|", "|").replace("<br>", " ").split())


def messages_of(path: Path) -> set[tuple[int, tuple[str, ...]]]:
    """Return line and constant parts of each message in a file."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for function, call in _calls(module, module):
        for text in _texts(call.args[0], function, module) if call.args else ():
            parts = tuple(part for part in map(plain, text) if len(part) >= LEAST)
            if parts:
                found.add((call.lineno, parts))
    return found


def _calls(node: ast.AST, function: Function) -> Iterator[tuple[Function, ast.Call]]:
    """Yield the calls that give a message to the user, each with the function around it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call) and _name_of(child.func) in SPEAKERS and not _is_of_logger(child.func):
            yield function, child
        yield from _calls(child, child if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) else function)


def _name_of(function: ast.expr) -> str:
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def _is_of_logger(function: ast.expr) -> bool:
    return isinstance(function, ast.Attribute) and _name_of(function.value) == "logger"


def _texts(value: ast.expr | None, function: Function, module: ast.Module) -> list[list[str]]:
    """Return the messages that an expression may be, each as its constant parts."""
    if isinstance(value, ast.Constant):
        return [[value.value]] if isinstance(value.value, str) else []
    if isinstance(value, ast.JoinedStr):
        return [[part.value for part in value.values if isinstance(part, ast.Constant)]]
    if isinstance(value, ast.BinOp):
        left, right = (_texts(side, function, module) for side in (value.left, value.right))
        return [a + b for a in left or [[]] for b in right or [[]]]
    if isinstance(value, ast.IfExp):
        return _texts(value.body, function, module) + _texts(value.orelse, function, module)
    if isinstance(value, ast.Name):
        return [text for each in _values_of(value.id, function, module) for text in _texts(each, function, module)]
    if isinstance(value, ast.Call):
        return [text for each, home in _returned(value, module) for text in _texts(each, home, module)]
    return []


def _values_of(name: str, function: Function, module: ast.Module) -> list[ast.expr]:
    """Return what is assigned to a variable in a function, or to a constant of the module."""
    within = [each for each in ast.walk(function) if isinstance(each, ast.Assign)]
    above = [each for each in module.body if isinstance(each, ast.Assign)]
    return [each.value for each in {*within, *above} if any(_name_of(target) == name for target in each.targets)]


def _returned(call: ast.Call, module: ast.Module) -> list[tuple[ast.expr | None, Function]]:
    """Return what a function of the module returns, with the function."""
    functions = [each for each in module.body if isinstance(each, ast.FunctionDef) and each.name == _name_of(call.func)]
    return [(each.value, home) for home in functions for each in ast.walk(home) if isinstance(each, ast.Return)]


def test_each_message_has_a_row() -> None:
    assert missing(sorted(PACKAGE.rglob("*.py")), PAGE.read_text(encoding="utf-8")) == []


# The walk itself -----------------------------------------------------------------------------------------------------

MADE_UP = """
HINT = "a constant of the module says it"

def why(name):
    return f"{name} is a reason that a function returns"

def f(report, name, is_new):
    warn_once(f"{name} gives a warning that nobody knows; {HINT}")
    report.note("a note" + " in two parts of a text")
    if is_new:
        raise OptionsError(why(name)) from None
    problem = "is an unknown folder" if name else f"{name} was another problem"
    raise BuildError(problem)

def g(name):
    info(HINT)
    raise ValueError("an error of Python that is none of errors.py")
    raise LoweringError(f"{name}: {why(name)}")
"""
FOUND = [
    "8: gives a warning that nobody knows;",
    "9: in two parts of a text",
    "11: is a reason that a function returns",
    "13: is an unknown folder",
    "13: was another problem",
    "16: a constant of the module says it",
]


def test_a_message_without_a_row_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "made_up.py"
    path.write_text(MADE_UP)
    assert missing([path], PAGE.read_text(encoding="utf-8")) == [f"made_up.py:{each}" for each in FOUND]


def test_a_row_matches_in_its_first_cell_only(tmp_path: Path) -> None:
    path = tmp_path / "made_up.py"
    path.write_text('warn_once(f"{name} gives a warning that nobody knows")')
    assert missing([path], "| `<name> gives a warning that\\| nobody knows` | - |") != []
    assert missing([path], "| other | `<name> gives a warning that nobody knows` |") != []
    assert missing([path], "gives a warning that nobody knows") != []
    assert missing([path], "| other<br>`<name> gives a warning that  nobody knows`... | - |") == []


@pytest.mark.parametrize("line", [row for row in PAGE.read_text(encoding="utf-8").splitlines() if row[:2] == "| "])
def test_a_row_has_four_cells(line: str) -> None:
    assert len(re.split(r"(?<!\\) \| ", line.strip("| "))) == 4
