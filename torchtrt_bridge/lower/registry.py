"""The table of converters: one for each ATen operator, with the reasons for which TensorRT does not take a node."""

from __future__ import annotations

import dataclasses
import inspect
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch.fx import Node

from torchtrt_bridge.graph.nodes import graph_of, operator_name
from torchtrt_bridge.graph.packed import why_packed
from torchtrt_bridge.graph.torch_internals import SizeGuardError, schema_of, sizes_unread
from torchtrt_bridge.lower.quantizers import why_not_quantizer
from torchtrt_bridge.trt.dtypes import COMPUTE_DTYPES

if TYPE_CHECKING:
    from torchtrt_bridge.lower.context import Context

MAX_RANK = 8
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
NUMBERS = (*FLOATS, torch.int64, torch.int32)
NO_CONVERTER = "no converter for this operator"
TAKES_GRAPHS = "PyTorch runs it, with the graphs that it takes"

WhyNot = Callable[..., "str | None"]

# An operator whose result holds elements of its first argument and no others:
# "reshape": all of them in their order, under other sizes;
# "view": all or some of them, in another order, memory or dtype, which costs PyTorch nothing or a copy;
# "gather": those that an index picks, or all of them reversed or repeated, which can be worth an engine.
Movement = Literal["reshape", "view", "gather"]

# The precision in which an operator of an fp32 graph computes if the user asks for half precision:
# "half": a sum of many products, which half precision is for;
# "fp32": a function that loses its meaning in 10 mantissa bits, or leaves fp16's range.
Precision = Literal["half", "fp32"]


@dataclasses.dataclass(frozen=True)
class Converter:
    """The way to write one operator into a network: `lower(ctx, *args, **kwargs)`, arguments as in its schema."""

    op: Any
    lower: Callable[..., Any]
    why_not: WhyNot | None
    dtypes: tuple[torch.dtype, ...]
    movement: Movement | None = None
    precision: Precision | None = None


CONVERTERS: dict[Any, Converter] = {}

# The first converter of each operator by the operator's name, which all its overloads share.
_BY_NAME: dict[str, Converter] = {}


class ConverterProvider(Protocol):
    """Converters of another library, for the operators that have none here."""

    def why_not(self, node: Node) -> str | None:
        """Return the reason for which it cannot write `node`; None if it can."""

    def lower(self, ctx: Context, *args: Any, **kwargs: Any) -> Any:
        """Write ``ctx.node``."""

    def identity(self, node: Node) -> str:
        """Return a text that differs between versions that write `node` differently."""


def converter(
    *ops: Any,
    why_not: WhyNot | None = None,
    dtypes: tuple[torch.dtype, ...] = COMPUTE_DTYPES,
    movement: Movement | None = None,
    precision: Precision | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as the converter of `ops`.

    why_not: takes the operator's arguments, fake tensors in place of tensors, and returns the reason for which
        TensorRT cannot run this call, or None.
    dtypes: the dtypes that its tensors may have.
    movement: set if the operator only moves data. Partition, bounds and the passes go by it.
    precision: the one that the operator asks for in a graph of half precision; None for that of its inputs.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for op in ops:
            if op in CONVERTERS:
                raise ValueError(f"{op} has a converter already: {CONVERTERS[op].lower.__module__}.")
            for checked in filter(None, (function, why_not)):
                _check_signature(op, checked, skip=1 if checked is function else 0)
            new = Converter(op, function, why_not, dtypes, movement, precision)
            _register_name(new)
            CONVERTERS[op] = new
        return function

    return register


def _register_name(new: Converter) -> None:
    """Check that the overloads of an operator agree on `movement` and `precision`, which hold for its name."""
    schema = schema_of(new.op)
    if schema is None:
        return
    first = _BY_NAME.setdefault(operator_name(new.op), new)
    if (first.movement, first.precision) != (new.movement, new.precision):
        raise ValueError(f"{new.op} and {first.op} differ in movement or precision, which their name decides.")


def movement_of(node: Node) -> Movement | None:
    """Return how a call moves data; None if it computes. Overloads without a converter count by their name."""
    found = _BY_NAME.get(operator_name(node.target))
    return None if found is None else found.movement


def only_moves_data(node: Node) -> bool:
    """Return whether a call only renames, reorders, cuts or copies data: an engine of such calls never pays."""
    return movement_of(node) in ("reshape", "view")


def precision_of(node: Node) -> Precision | None:
    """Return the precision that a call asks for. Overloads without a converter count by their name."""
    found = _BY_NAME.get(operator_name(node.target))
    return None if found is None else found.precision


def _check_signature(op: Any, function: Callable[..., Any], skip: int) -> None:
    """Check that parameter names and defaults equal those of the ATen schema."""
    schema = schema_of(op)
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
    """Return the reason, for the user to read, for which TensorRT cannot run `node`; None if it can.

    provider: decides about an operator that has no converter here.
    """
    found = CONVERTERS.get(node.target)
    reason = why_not_quantizer(node)  # apart from converters: the libraries of some may not be installed
    if reason is not None:
        return reason
    if found is None:
        if any(map(graph_of, node.all_input_nodes)):
            return TAKES_GRAPHS
        return why_packed(node) or (NO_CONVERTER if provider is None else provider.why_not(node))
    reason = tensor_reason(node, found.dtypes)
    if reason is not None or found.why_not is None:
        return reason
    try:
        with sizes_unread(n.meta.get("val") for n in (*node.all_input_nodes, node)):
            return _reason_of_call(node, found.why_not)
    except SizeGuardError as error:
        return f"whether TensorRT can run it depends on a size that is known only at run time ({error})"


def _reason_of_call(node: Node, why_not: WhyNot) -> str | None:
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: n.meta.get("val"))
    schema = schema_of(node.target)
    if schema is None:
        return why_not(*args, **kwargs)
    names = [argument.name for argument in schema.arguments]
    return why_not(**dict(zip(names, args, strict=False)), **kwargs)


def is_foreign(node: Node) -> bool:
    """Return whether `node` calls an operator that has no converter here; a provider may write it."""
    return node.op == "call_function" and node.target is not operator.getitem and node.target not in CONVERTERS


def tensor_reason(node: Node, dtypes: tuple[torch.dtype, ...] = COMPUTE_DTYPES) -> str | None:
    """Return the reason for which TensorRT has no such tensor as one that `node` takes or gives; None if it has."""
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
