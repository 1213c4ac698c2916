"""The README's table of operators, made from the registry: `python -m torchtrt_bridge.lower.op_table README.md`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchtrt_bridge.lower import CONVERTERS

BEGIN, END = "<!-- op table -->", "<!-- end of op table -->"
MARK = "°"
FOLDER = "torchtrt_bridge/lower/converters"
FOOTNOTE = (
    f"{MARK} Declines some arguments, which then run in PyTorch; `torchtrt-bridge explain` and the report say why. "
    "Overloads are merged."
)


def op_table() -> str:
    """The table in Markdown: a row for each module of converters, with its operators."""
    families: dict[str, dict[str, bool]] = {}
    for found in CONVERTERS.values():
        operators = families.setdefault(found.lower.__module__, {})
        name = op_name(found.op)
        operators[name] = operators.get(name, False) or found.why_not is not None
    rows = [_row(module, families[module]) for module in sorted(families)]
    count = sum(len(operators) for operators in families.values())
    head = [f"{count} operators in {len(rows)} families.", "", "| Family | What | Operators |", "|---|---|---|"]
    return "\n".join([*head, *rows, "", FOOTNOTE])


def op_name(op: Any) -> str:
    """An operator's name without `aten.` and overload, as `add`."""
    schema = getattr(op, "_schema", None)
    return str(op.__name__) if schema is None else str(schema.name).removeprefix("aten::").replace("::", ".")


def with_table(text: str) -> str:
    """`text` with the block between the two marks made anew; ValueError if it has no such block."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"There is no block from {BEGIN} to {END}.")
    return f"{before}{BEGIN}\n{op_table()}\n{END}{after}"


def _row(module: str, operators: dict[str, bool]) -> str:
    name = module.rpartition(".")[2]
    listed = ", ".join(f"`{op}`{MARK if is_choosy else ''}" for op, is_choosy in operators.items())
    return f"| [{name}]({FOLDER}/{name}.py) | {_first_sentence(sys.modules[module].__doc__)} | {listed} |"


def _first_sentence(docstring: str | None) -> str:
    text = " ".join((docstring or "").split())
    return re.split(r"\.(?:\s|$)", text, maxsplit=1)[0]


def main(arguments: Sequence[str]) -> int:
    """Rewrite the block in each of the files; without one, print the table."""
    if not arguments:
        print(op_table())
    for path in map(Path, arguments):
        path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
