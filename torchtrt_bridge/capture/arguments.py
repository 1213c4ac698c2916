"""Example inputs of a user, as the arguments of a call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx, nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def arguments_from(model: Callable[..., Any], example_inputs: Any, kwargs: Mapping[str, Any] | None) -> Arguments:
    """Return the positional and the keyword arguments of an example call.

    example_inputs: a tuple of positional arguments; a mapping by parameter, as a tokenizer gives it; or one argument.
    """
    named = dict(kwargs or {})
    if isinstance(example_inputs, Mapping) and _names_parameters(model, example_inputs):
        return (), {**example_inputs, **named}
    return example_inputs if isinstance(example_inputs, tuple) else (example_inputs,), named


def in_order(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments in the order of the parameters, without gaps where `torch.export` needs that.

    It passes keyword arguments of an `fx.GraphModule`, as a quantized model is, by position. A gap before the last one
    is filled with the parameter's default.
    """
    named = dict(kwargs)
    if not named:
        return named
    signature = inspect.signature(model.forward)
    order = list(signature.parameters)
    if isinstance(model, fx.GraphModule) and named.keys() <= set(order):
        signature.bind(*args, **named)  # raises TypeError as a call would
        last = max((order.index(name) for name in named), default=-1)
        for name in order[len(args) : last]:
            named.setdefault(name, signature.parameters[name].default)
    return dict(sorted(named.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def _names_parameters(model: Callable[..., Any], values: Mapping[Any, Any]) -> bool:
    """Return whether each key is a parameter of the model; otherwise the mapping itself is an argument."""
    try:
        parameters = inspect.signature(model.forward if isinstance(model, nn.Module) else model).parameters
    except (TypeError, ValueError):  # a callable without a signature
        return False
    return bool(values) and all(key in parameters for key in values)
