"""Options from text, as ``NAME=VALUE`` of a command line: each value is read by the type that is declared for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from torchtrt_bridge.errors import OptionsError
from torchtrt_bridge.options.declaration import members, suggestion
from torchtrt_bridge.options.options import DECLARATIONS, check_name, type_hints

BOOLEANS = {"true": True, "false": False}


def options_from_text(texts: Iterable[str], given: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return options by name from texts as ``"precision=fp16"``.

    given: options that are there already, from arguments of their own.
    Raises OptionsError for an unknown name, a value of another type, and an option that is given twice.
    """
    options = dict(given or {})
    for text in texts:
        name, value = option_from_text(text)
        if name in options:
            raise OptionsError(f"{name} is given twice: {options[name]!r} and {value!r}. Leave out one of the two.")
        options[name] = value
    return options


def option_from_text(text: str) -> tuple[str, Any]:
    """Return name and value of ``"NAME=VALUE"``; tuples have commas between their items, and None is ``none``."""
    name, sign, value = (part.strip() for part in text.partition("="))
    if not sign:
        raise OptionsError(f"{text!r} gives an option no value. Write NAME=VALUE, as precision=fp16.")
    name = name.replace("-", "_")
    check_name(name)
    return name, _value(name, value)


def _value(name: str, text: str) -> Any:
    kinds = members(type_hints()[name])
    if type(None) in kinds and text.lower() == "none":
        return None
    kind = kinds[0]
    if kind is bool:
        if text.lower() not in BOOLEANS:
            raise OptionsError(f"{name}={text} is not a choice.{suggestion(text, list(BOOLEANS))}")
        return BOOLEANS[text.lower()]
    if kind is int:
        return _integer(name, text)
    if get_origin(kind) is tuple:
        return tuple(item.strip() for item in text.split(",") if item.strip())
    return text


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise OptionsError(f"{name}={text} is not an integer. {DECLARATIONS[name].meaning}") from None


def names_text() -> str:
    """Return the options with their values for the help of a command, as ``tf32=true|false``."""
    return "\n".join(f"  {name}={_values(name)}" for name in DECLARATIONS)


def _values(name: str) -> str:
    kinds = members(type_hints()[name])
    kind = kinds[0]
    if get_origin(kind) is Literal:
        words = "|".join(get_args(kind))
    elif get_origin(kind) is tuple:
        words = "A,B,..."
    else:
        words = {bool: "true|false", int: "N"}.get(kind, "PATH")
    return f"{words}|none" if type(None) in kinds else words
