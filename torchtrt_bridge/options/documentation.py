"""Documentation of the options: the table of docs/options.md, and sentences for the command line."""

from __future__ import annotations

from typing import Literal, get_args, get_origin

from torchtrt_bridge.options.declaration import members, range_text
from torchtrt_bridge.options.options import DECLARATIONS, defaults, type_hints


def choices(name: str) -> tuple[str, ...]:
    """Return the words that an option may be."""
    return get_args(type_hints()[name])


def first_sentence(name: str) -> str:
    """Return the meaning of an option in one sentence, without Markdown and the full stop."""
    return DECLARATIONS[name].meaning.partition(". ")[0].removesuffix(".").replace("`", "")


def options_table() -> str:
    """Return all options as a table in Markdown: values, default, meaning, part in an engine, use at `load`."""
    head = "| Option | Values | Default | Meaning | Shapes | `load` |\n| --- | --- | --- | --- | --- | --- |\n"
    return head + "".join(f"| {' | '.join(_cells(name))} |\n" for name in DECLARATIONS)


def _cells(name: str) -> tuple[str, ...]:
    declared = DECLARATIONS[name]
    at_load = "yes" if declared.at_load else ""
    default = defaults()[name]
    shown = f'`"{default}"`' if isinstance(default, str) else f"`{default!r}`"
    return f"`{name}`", _values_text(name), shown, declared.meaning, declared.shapes, at_load


def _values_text(name: str) -> str:
    """Return the values that an option may have, in words."""
    kinds = members(type_hints()[name])
    if get_origin(kinds[0]) is Literal:
        return ", ".join(f'`"{choice}"`' for choice in choices(name))
    words = {bool: "`True`, `False`", int: f"integer, {range_text(DECLARATIONS[name])}", str: "path"}
    text = words.get(kinds[0], "tuple of strings")
    return f"{text}, or `None`" if type(None) in kinds else text
