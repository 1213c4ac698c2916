"""An extension of Griffe: parameters in this package's docstrings become a list on the page of the API.

A docstring here describes a parameter in a line of its own, `name: meaning`, further lines of which are indented.
Markdown would join these lines to one paragraph.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

PARAMETER = re.compile(r"(?P<names>\w+(?:, \w+)*): (?P<meaning>.+)")


class Parameters(Extension):
    """Rewrites each docstring once, when its object has been loaded."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = with_list(obj.docstring.value)


def with_list(docstring: str) -> str:
    """Return a docstring whose lines `name: meaning` are items of a list, and whose errors are a paragraph."""
    lines: list[str] = []
    in_list = False
    for line in docstring.splitlines():
        found = PARAMETER.fullmatch(line)
        continues = not line or line.startswith(" ")
        begins_list = found is not None and not in_list
        ends_list = found is None and in_list and not continues
        if begins_list or ends_list or line.startswith("Raises "):
            lines.append("")
        lines.append(line if found is None else _item(found))
        in_list = found is not None or (in_list and continues)
    return "\n".join(lines)


def _item(found: re.Match[str]) -> str:
    names = ", ".join(f"`{name}`" for name in found["names"].split(", "))
    return f"- {names}: {found['meaning']}"
