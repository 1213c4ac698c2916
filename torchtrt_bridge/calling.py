"""What a program takes: the arguments of a call as its graph wants them, checked."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from torchtrt_bridge.capture import CapturedGraph
from torchtrt_bridge.errors import ShapeRangeError
from torchtrt_bridge.shapes import UNBOUNDED, TensorSpec, spec_of


class Signature:
    """How the arguments of a program are nested, and what each of them must be.

    module: the graph with its engines, whose placeholders these are.
    """

    def __init__(self, exported: ExportedProgram, module: fx.GraphModule, captured: CapturedGraph) -> None:
        self._in_spec = exported.call_spec.in_spec
        ranges = {symbol: (low, UNBOUNDED if high is None else high) for symbol, (low, high) in captured.ranges.items()}
        specs = [spec for spec in exported.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
        nodes = [node for node in module.graph.nodes if node.op == "placeholder"]  # those of the state come last
        self._wanted: list[_Tensor | _Constant | None] = []
        for spec, node in zip(specs, nodes[: len(nodes) - len(captured.state)], strict=True):
            if isinstance(spec.arg, ConstantArgument):
                self._wanted.append(_Constant(node.name, spec.arg.value))
            else:
                self._wanted.append(_tensor_of(node, ranges))

    def flat(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The arguments as the graph takes them; ShapeRangeError for others than it was exported for."""
        values, spec = pytree.tree_flatten((args, self._in_order(kwargs)))
        if spec != self._in_spec:
            raise ShapeRangeError(f"The program takes arguments nested as {self._in_spec}, and got {spec}.")
        for value, wanted in zip(values, self._wanted, strict=True):
            if wanted is not None:
                wanted.check(value)
        return values

    def _in_order(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        names = self._in_spec.child(1).context if kwargs else []
        return {name: kwargs[name] for name in names} if set(names) == set(kwargs) else kwargs


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """An argument that is a tensor."""

    spec: TensorSpec
    device: str

    def check(self, value: Any) -> None:
        if isinstance(value, torch.Tensor) and value.device.type != self.device:
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
    """An argument that is no tensor: the graph was traced with its value, and computes nothing else."""

    name: str
    value: Any

    def check(self, value: Any) -> None:
        if type(value) is not type(self.value) or repr(value) != repr(self.value):  # nan is itself, -0.0 is not 0.0
            raise ShapeRangeError(
                f"Argument {self.name} is {_describe(value)}; the program was exported with {_describe(self.value)}, "
                "which is part of it. Export it with this value too, or with a tensor in its place."
            )


def _tensor_of(node: fx.Node, ranges: dict[Any, tuple[int, int]]) -> _Tensor | None:
    """What a placeholder takes; None for a symbolic size, which is not checked."""
    value = node.meta.get("val")
    return _Tensor(spec_of(node.name, value, ranges), value.device.type) if isinstance(value, torch.Tensor) else None


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if value is None or isinstance(value, bool):
        return str(value)
    kind = type(value).__name__
    return f"the {kind} {value!r}" if isinstance(value, (int, float, str)) else f"a {kind}"
