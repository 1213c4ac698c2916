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
    """Return a docstring whose lines `name: meaning` are items of a list."""
    lines: list[str] = []
    in_list = False
    for line in docstring.splitlines():
        found = PARAMETER.fullmatch(line)
        starts_paragraph = bool(line) and not line.startswith(" ")
        if found is not None or (in_list and starts_paragraph):
            lines += [] if in_list and found is not None else [""]
        if found is not None:
            names = ", ".join(f"`{name}`" for name in found["names"].split(", "))
            line = f"- {names}: {found['meaning']}"
        in_list = found is not None or (in_list and not starts_paragraph)
        lines.append(line)
    return "\n".join(lines)
