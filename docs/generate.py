"""Write the generated parts of the documentation anew: python -m docs.generate.

A page holds a generated part between two comments, which name it. The table of operators comes from the registry of
converters, the table of options from the declaration of `Options`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchtrt_bridge.lower import CONVERTERS
from torchtrt_bridge.options import AT_LOAD, options_table

FOLDER = Path(__file__).parent
COMMAND = "python -m docs.generate"
PART = re.compile(r"(<!-- generated: (?P<name>[^\n]+?) -->\n\n).*?(\n\n<!-- end of generated -->)", re.DOTALL)

MARK = "°"
CONVERTER_FOLDER = "../torchtrt_bridge/lower/converters"
FOOTNOTE = (
    f"{MARK} The operator declines some arguments, which then run in PyTorch; `torchtrt-bridge explain` and the "
    "report give the reason. Overloads are merged."
)


def operators() -> str:
    """Return the table of operators: a row for each file of converters."""
    families: dict[str, dict[str, bool]] = {}
    for found in CONVERTERS.values():
        listed = families.setdefault(found.lower.__module__, {})
        name = operator_name(found.op)
        listed[name] = listed.get(name, False) or found.why_not is not None
    rows = [_row(module, families[module]) for module in sorted(families)]
    count = sum(map(len, families.values()))
    head = [f"{count} operators in {len(rows)} families.", "", "| Family | Content | Operators |", "|---|---|---|"]
    return "\n".join([*head, *rows, "", FOOTNOTE])


def operator_name(op: Any) -> str:
    """Return an operator's name without `aten.` and overload, as `add`."""
    schema = getattr(op, "_schema", None)
    return str(op.__name__) if schema is None else str(schema.name).removeprefix("aten::").replace("::", ".")


def options() -> str:
    """Return the table of options."""
    return options_table().strip()


def options_of_load() -> str:
    """Return the names of the options that `load` takes, in one line."""
    return f"`trtb.load` takes {', '.join(f'`{name}`' for name in AT_LOAD[:-1])} and `{AT_LOAD[-1]}`."


PARTS: dict[str, Callable[[], str]] = {"operators": operators, "options": options, "options of load": options_of_load}


def with_parts(text: str) -> str:
    """Return the text of a page with its generated parts written anew; KeyError for a part that is unknown."""
    return PART.sub(lambda found: found[1] + PARTS[found["name"]]() + found[3], text)


def _row(module: str, listed: dict[str, bool]) -> str:
    name = module.rpartition(".")[2]
    shown = ", ".join(f"`{op}`{MARK if declines else ''}" for op, declines in listed.items())
    return f"| [{name}]({CONVERTER_FOLDER}/{name}.py) | {_first_sentence(sys.modules[module].__doc__)} | {shown} |"


def _first_sentence(docstring: str | None) -> str:
    text = " ".join((docstring or "").split())
    return re.split(r"\.(?:\s|$)", text, maxsplit=1)[0]


def main() -> None:
    """Rewrite the pages that have generated parts."""
    for path in sorted(FOLDER.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        path.write_text(with_parts(text), encoding="utf-8")


if __name__ == "__main__":
    main()
