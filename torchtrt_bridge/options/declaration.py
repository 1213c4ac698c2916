"""Declaration of an option, and the check of a value against it."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import textwrap
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from torchtrt_bridge.errors import OptionsError

# "engine": a setting of TensorRT's builder, so the key of an engine holds its value.
# "graph": decides which nodes and sizes an engine gets, or which TensorRT builds it; the key holds these themselves.
# "run": decides how engines are checked, run and kept; no part of the key.
Shapes = Literal["engine", "graph", "run"]

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Declaration:
    """All that is said of an option beside its type and default.

    meaning: one sentence, and further ones if need be, in Markdown.
    shapes: the part that it has in an engine.
    at_load: `load` takes it, and a saved program does not keep it.
    least, most: the range of an integer; None for no limit.
    """

    meaning: str
    shapes: Shapes
    at_load: bool = False
    least: int | None = None
    most: int | None = None


def option(default: T, meaning: str, *, shapes: Shapes, **further: Any) -> T:
    """Declare an option as a field of `Options`; further: the other fields of its `Declaration`."""
    declaration = Declaration(" ".join(meaning.split()), shapes, **further)
    return dataclasses.field(default=default, metadata={"declaration": declaration})


def checked(name: str, value: Any, hint: Any, declaration: Declaration) -> Any:
    """Return the value of an option; a string or a list where a tuple of strings is wanted becomes one.

    Raises OptionsError for a value of another type, or outside the range.
    """
    kinds = members(hint)
    if value is None and type(None) in kinds:
        return None
    kind = kinds[0]
    if get_origin(kind) is Literal:
        _check_choice(name, value, get_args(kind))
    elif kind is bool and not isinstance(value, bool):
        raise OptionsError(f"{name} must be bool, not {value!r}.")
    elif kind is int:
        _check_range(name, value, declaration)
    elif get_origin(kind) is tuple:
        return _tuple_of_strings(name, value)
    elif not isinstance(value, kinds):
        raise OptionsError(f"{name} must be a path or None, not {value!r}.")
    return value


def members(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union; any other type alone."""
    return get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)


def suggestion(word: str, known: list[str]) -> str:
    """Return the end of a message about an unknown word: the most similar known one, and all known ones."""
    near = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{hint} Known: {', '.join(known)}."


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionsError(f"{name}={value!r} is not a choice.{suggestion(str(value), list(choices))}")


def _check_range(name: str, value: object, declaration: Declaration) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise OptionsError(f"{name} must be an integer, not {value!r}.")
    least, most = declaration.least, declaration.most
    if (least is not None and value < least) or (most is not None and value > most):
        raise OptionsError(f"{name}={value} is out of range: {range_text(declaration)}.")


def range_text(declaration: Declaration) -> str:
    """Return the range of an integer in words."""
    return f"{declaration.least} or more" if declaration.most is None else f"{declaration.least} to {declaration.most}"


def _tuple_of_strings(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, (tuple, list)) or not all(isinstance(v, str) for v in value):
        raise OptionsError(f"{name} must be a tuple of strings, not {value!r}.")
    return tuple(value)


def text_of(declarations: Mapping[str, Declaration]) -> str:
    """Return the text of options for a docstring: one paragraph for each."""
    wrap = functools.partial(textwrap.fill, width=116, initial_indent=" " * 4, subsequent_indent=" " * 8)
    return "\n".join(wrap(f"{name}: {declared.meaning.replace('`', '``')}") for name, declared in declarations.items())
