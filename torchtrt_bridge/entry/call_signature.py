"""Signature of a program: checks the arguments of a call and brings them into the order of its graph."""

from __future__ import annotations

import dataclasses
import itertools
from collections import OrderedDict
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from torchtrt_bridge.capture.export import CapturedGraph
from torchtrt_bridge.errors import ShapeRangeError
from torchtrt_bridge.graph.packed import are_lengths
from torchtrt_bridge.graph.shapes import UNBOUNDED, SharedSizes, TensorSpec, spec_of


class CallSignature:
    """Nesting of the arguments of a program, and the tensor or constant that each of them must be.

    module: the graph with its engines, whose placeholders these are. names: those of the placeholders.
    """

    def __init__(self, exported: ExportedProgram, module: fx.GraphModule, captured: CapturedGraph) -> None:
        self._form = exported.call_spec.in_spec
        self._names = list(self._form.child(1).context)
        self._positions = _positions(exported, self._form.child(0).num_children)
        ranges = {symbol: (low, UNBOUNDED if high is None else high) for symbol, (low, high) in captured.ranges.items()}
        specs = [spec for spec in exported.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        nodes = placeholders[: len(placeholders) - len(captured.state)]  # those of the state come last
        self.names = [node.name for node in nodes]
        self._wanted: list[_Tensor | _Constant | None] = []
        for spec, node in zip(specs, nodes, strict=True):
            if isinstance(spec.arg, ConstantArgument):
                self._wanted.append(_Constant(node.name, spec.arg.value))
            else:
                self._wanted.append(_tensor_of(node, ranges))
        self._sizes = SharedSizes((node.name, node.meta.get("val")) for node in nodes)

    @property
    def tensors(self) -> dict[str, TensorSpec]:
        """Return the tensors that a call takes, by their argument's name; within a nested one by the graph's name."""
        forms = [form for part in self._form.children() for form in part.children()]
        found: dict[str, TensorSpec] = {}
        wanted = iter(self._wanted)
        for name, form in zip([*self._positions, *self._names], forms, strict=True):
            for tensor in itertools.islice(wanted, form.num_leaves):
                if isinstance(tensor, _Tensor):
                    found[name if form.is_leaf() else tensor.spec.name] = tensor.spec
        return found

    def flat(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Return the arguments in the order of the graph; ShapeRangeError if the program was exported for others."""
        values, form = pytree.tree_flatten((args, kwargs))
        if form != self._form:
            values = self._arranged(*self._bound(args, kwargs))
        for value, wanted in zip(values, self._wanted, strict=True):
            if wanted is not None:
                wanted.check(value)
        if (reason := self._sizes.why_not(values)) is not None:
            raise ShapeRangeError(f"{reason}: the program was exported with a Dim that they share.")
        return values

    def laid_out(self, values: list[Any]) -> list[Any]:
        """Return the values, contiguous where they were in the export: a `view` of the graph may need its strides."""
        return [
            value.contiguous() if isinstance(wanted, _Tensor) and wanted.is_contiguous else value
            for value, wanted in zip(values, self._wanted, strict=True)
        ]

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments by position and by name, as in the export; a call may name a positional argument."""
        missing = self._positions[len(args) :]
        named = dict(kwargs)
        bound = (*args, *(named.pop(name) for name in missing if name in kwargs))
        if len(bound) != len(self._positions) or named.keys() != set(self._names):
            raise ShapeRangeError(
                f"The program takes {_listed(self._positions, self._names)}, as it was exported; "
                f"this call gives {_listed(self._positions[: len(args)], list(kwargs), more=len(args))}. "
                "Give all that it was exported with, and nothing else."
            )
        return bound, named

    def _arranged(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Return the tensors and constants in the order of the export, whatever the order of the keys is."""
        values: list[Any] = []
        forms = [form for part in self._form.children() for form in part.children()]
        given = [*args, *(kwargs[name] for name in self._names)]
        for name, form, value in zip([*self._positions, *self._names], forms, given, strict=True):
            try:
                values += form.flatten_up_to(value)
            except ValueError as error:
                own = pytree.tree_structure(value)
                raise ShapeRangeError(
                    f"Argument {name} is nested as {_nesting(own)}; the program was exported for {_nesting(form)}. "
                    "Give it that form, or export the model with this one."
                ) from error
        return values


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """Argument that is a tensor, on any device if `device` is None."""

    spec: TensorSpec
    device: str | None
    is_contiguous: bool

    def check(self, value: Any) -> None:
        if isinstance(value, torch.Tensor) and self.device not in (None, value.device.type):
            raise ShapeRangeError(
                f"Argument {self.spec.name} is on {value.device}, and the program on {self.device}. "
                f"Save it and load it with device={value.device.type!r}, or move the argument."
            )
        if not (isinstance(value, torch.Tensor) and self.spec.accepts(value)):
            raise ShapeRangeError(
                f"Argument {self.spec.name} is {_describe(value)}; the program was exported for {self.spec}. "
                "Export it with dynamic_shapes that hold this size, or with an input of this dtype."
            )


@dataclasses.dataclass(frozen=True)
class _Constant:
    """Argument that is not a tensor: the graph was traced with its value, and holds for no other."""

    name: str
    value: Any

    def check(self, value: Any) -> None:
        if type(value) is not type(self.value) or repr(value) != repr(self.value):  # nan is itself, -0.0 is not 0.0
            raise ShapeRangeError(
                f"Argument {self.name} is {_describe(value)}; the program was exported with {_describe(self.value)}, "
                "which is part of it. Export it with this value too, or with a tensor in its place."
            )


def _tensor_of(node: fx.Node, ranges: dict[Any, tuple[int, int]]) -> _Tensor | None:
    """Return the tensor that a placeholder takes; None for a symbolic size, which is not checked."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    device = None if are_lengths(node) else value.device.type
    return _Tensor(spec_of(node.name, value, ranges), device, value.is_contiguous())


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if value is None or isinstance(value, bool):
        return str(value)
    kind = type(value).__name__
    return f"the {kind} {value!r}" if isinstance(value, (int, float, str)) else f"a {kind}"


def _positions(exported: ExportedProgram, count: int) -> list[str]:
    """Return the names of the arguments that were given by position."""
    signature = exported.module_call_graph[0].signature
    names = (signature.forward_arg_names or []) if signature is not None else []
    return list(names[:count]) if len(names) >= count else [f"args_{index}" for index in range(count)]


def _listed(positions: list[str], names: list[str], more: int = 0) -> str:
    """Return arguments in words; more: number of arguments by position, if there are more than positions."""
    by_position = f"{more} arguments" if more > len(positions) else ", ".join(positions)
    parts = [f"{by_position} by position"] if by_position else []
    parts += [f"{', '.join(names)} by name"] if names else []
    return " and ".join(parts) or "no arguments"


def _nesting(form: pytree.TreeSpec) -> str:
    """Return a structure as it would be written in Python, with a star for each value."""
    if form.is_leaf():
        return "*"
    inner = [_nesting(child) for child in form.children()]
    if form.type in (dict, OrderedDict):
        return "{" + ", ".join(f"{key!r}: {child}" for key, child in zip(form.context, inner, strict=True)) + "}"
    if form.type is list:
        return f"[{', '.join(inner)}]"
    name = "" if form.type is tuple else getattr(form.type, "__name__", str(form.type))
    return f"{name}({', '.join(inner)})"
