"""The table of converters: one per ATen operator, with the reasons for which it declines a node."""

from __future__ import annotations

import dataclasses
import inspect
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.fx import Node

from torchtrt_bridge.lower.quantizers import why_not_quantizer
from torchtrt_bridge.trt.dtypes import COMPUTE_DTYPES

if TYPE_CHECKING:
    from torchtrt_bridge.lower.context import Context

MAX_RANK = 8
NO_CONVERTER = "no converter for this operator"

WhyNot = Callable[..., "str | None"]


@dataclasses.dataclass(frozen=True)
class Converter:
    """How one operator is written into a network: `lower(ctx, *args, **kwargs)`, arguments as in its schema."""

    op: Any
    lower: Callable[..., Any]
    why_not: WhyNot | None
    dtypes: tuple[torch.dtype, ...]


CONVERTERS: dict[Any, Converter] = {}


class ConverterProvider(Protocol):
    """Another library's converters, which are asked for the operators that have none here."""

    def why_not(self, node: Node) -> str | None:
        """Why it cannot write `node`; None if it can."""

    def lower(self, ctx: Context, *args: Any, **kwargs: Any) -> Any:
        """Write ``ctx.node``."""

    def identity(self, node: Node) -> str:
        """What tells its way of writing `node` from those of its other versions."""


def converter(
    *ops: Any, why_not: WhyNot | None = None, dtypes: tuple[torch.dtype, ...] = COMPUTE_DTYPES
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as the converter of `ops`.

    why_not: takes the operator's arguments, fake tensors in place of tensors, and returns the reason for which
        TensorRT cannot run this call, or None.
    dtypes: the dtypes that its tensors may have.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for op in ops:
            if op in CONVERTERS:
                raise ValueError(f"{op} has a converter already: {CONVERTERS[op].lower.__module__}.")
            for checked in filter(None, (function, why_not)):
                _check_signature(op, checked, skip=1 if checked is function else 0)
            CONVERTERS[op] = Converter(op, function, why_not, dtypes)
        return function

    return register


def _check_signature(op: Any, function: Callable[..., Any], skip: int) -> None:
    """Parameter names and defaults must equal the ATen schema's."""
    schema = getattr(op, "_schema", None)
    if schema is None:
        return
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        parameters = parameters[:-1]  # a why_not may ignore the rest
        arguments = schema.arguments[: len(parameters)]
    else:
        arguments = schema.arguments
    names = [p.name.rstrip("_") for p in parameters]
    if names != [a.name for a in arguments]:
        raise TypeError(f"{op}: {function.__name__}{tuple(names)} differs from the schema {schema}")
    for parameter, argument in zip(parameters, arguments, strict=True):
        default = argument.default_value if argument.has_default_value() else inspect.Parameter.empty
        if _plain(parameter.default) != _plain(default):
            raise TypeError(f"{op}: default of {parameter.name} is {default} in the schema {schema}")


def _plain(default: Any) -> Any:
    return list(default) if isinstance(default, tuple) else default


def why_not(node: Node, provider: ConverterProvider | None = None) -> str | None:
    """Why TensorRT cannot run `node`, in words for the user; None if it can.

    provider: asked about an operator that has no converter here.
    """
    found = CONVERTERS.get(node.target)
    reason = why_not_quantizer(node)  # apart from converters: the libraries of some may not be installed
    if reason is not None:
        return reason
    if found is None:
        return NO_CONVERTER if provider is None else provider.why_not(node)
    reason = tensor_reason(node, found.dtypes)
    if reason is not None or found.why_not is None:
        return reason
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: n.meta.get("val"))
    if not hasattr(found.op, "_schema"):
        return found.why_not(*args, **kwargs)
    names = [argument.name for argument in found.op._schema.arguments]
    return found.why_not(**dict(zip(names, args, strict=False)), **kwargs)


def is_foreign(node: Node) -> bool:
    """Whether `node` calls an operator that has no converter here: what is lowered of these, a provider writes."""
    return node.op == "call_function" and node.target is not operator.getitem and node.target not in CONVERTERS


def tensor_reason(node: Node, dtypes: tuple[torch.dtype, ...] = COMPUTE_DTYPES) -> str | None:
    """What is wrong with a tensor that `node` takes or gives; None if TensorRT has such tensors."""
    return next((reason for value in _values(node) if (reason := _reason_of(value, dtypes))), None)


def _values(node: Node) -> list[Any]:
    own = node.meta.get("val")
    own_list = list(own) if isinstance(own, (tuple, list)) else [own]
    used = {id(user.target): user for user in node.users}
    if isinstance(own, (tuple, list)) and used and all(u.target.__name__ == "getitem" for u in node.users):  # type: ignore[union-attr]
        own_list = [own[u.args[1]] for u in node.users]  # type: ignore[index]
    return own_list + [n.meta.get("val") for n in node.all_input_nodes]


def _reason_of(value: Any, dtypes: tuple[torch.dtype, ...]) -> str | None:
    if not isinstance(value, torch.Tensor):
        return None
    if value.layout is not torch.strided:
        return f"a {value.layout} tensor: TensorRT knows dense tensors only"
    if value.dtype not in dtypes:
        return f"dtype {str(value.dtype).removeprefix('torch.')}"
    if value.dim() > MAX_RANK:
        return f"{value.dim()} dimensions; TensorRT has at most {MAX_RANK}"
    if any(isinstance(size, int) and size == 0 for size in value.shape):
        return "a tensor without elements"
    return None
