"""Check of data from JSON against the fields of a dataclass, so that a damaged file is one error with a reason."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def faults_of(content: Any, kind: type, where: str) -> Iterator[str]:
    """Yield what hinders `kind`, a dataclass, from being made of `content`."""
    if not isinstance(content, dict):
        yield f"{where} is a {type(content).__name__}"
        return
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in content:
        if name not in fields:
            yield f"{where} has an unknown field {name!r}"
    for name, field in fields.items():
        is_needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name not in content and is_needed:
            yield f"{where} lacks {name!r}"
        if name in content and not _fits(content[name], _hints(kind)[name]):
            yield f"{name!r} of {where} is {str(content[name])[:80]!r}"


def _fits(value: Any, hint: Any) -> bool:
    """Check a value of JSON against a type hint."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (types.UnionType, Union):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin in (list, frozenset):
        return isinstance(value, list) and all(_fits(each, parts[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(each, parts[1]) for each in value.values())
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)
