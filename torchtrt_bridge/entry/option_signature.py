"""Signatures of entry points: `help` and editors show each option where a function takes ``**options``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast, get_type_hints

from torchtrt_bridge.options import DECLARATIONS, defaults, text_of, type_hints

F = TypeVar("F", bound=Callable[..., Any])


def shows_options(taken: type) -> Callable[[F], F]:
    """Return a decorator that puts the options of a `TypedDict` into the signature and the docstring of a function.

    The function has them as ``**options``, of which `help` would show no names.
    """
    taken_names = get_type_hints(taken)
    declarations = {name: declared for name, declared in DECLARATIONS.items() if name in taken_names}

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        plain = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        keyword = inspect.Parameter.KEYWORD_ONLY
        options = [
            inspect.Parameter(n, keyword, default=defaults()[n], annotation=type_hints()[n]) for n in declarations
        ]
        cast(Any, function).__signature__ = signature.replace(parameters=[*plain, *options])
        function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nOptions:\n{text_of(declarations)}\n"
        return function

    return decorate
