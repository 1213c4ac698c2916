"""Float64 in fp32, where the user lets it: TensorRT computes no float64.

Inputs are cast on their way into engines and results on their way out, both by PyTorch. What an engine cannot run stays
in float64.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from torchtrt_bridge.graph.edit import constant_of, fake_mode_of, finish, infer, insert_call, insert_constant
from torchtrt_bridge.graph.nodes import arguments_of, operator_name, tensors_of_node
from torchtrt_bridge.graph.torch_internals import schema_of
from torchtrt_bridge.graph.views import AT_BORDER
from torchtrt_bridge.lower import why_not
from torchtrt_bridge.options import Options

if TYPE_CHECKING:
    from torchtrt_bridge.graph.torch_internals import FakeTensorMode

aten = torch.ops.aten
LARGEST, SMALLEST = torch.finfo(torch.float32).max, torch.finfo(torch.float32).tiny

# Operators that mean the same with the nearest number in the range of fp32, as a mask of float64's least number, or the
# 1e-300 that keeps a divisor from zero. A factor of 1e300 has no such neighbour.
_TAKES_NEAREST = (
    *("add", "clamp", "clamp_max", "clamp_min", "full", "full_like", "masked_fill"),
    *("maximum", "minimum", "scalar_tensor", "sub", "where"),
)


def narrow_float64(module: fx.GraphModule, options: Options) -> fx.GraphModule:
    """Compute in fp32 what is float64 in the model; inputs and outputs of the graph keep their dtypes."""
    if options.float64 == "pytorch" or not any(map(_is_float64, module.graph.nodes)):
        return module
    _Casts(module, options).run()
    return finish(module, changed=True)


def _is_float64(node: fx.Node) -> bool:
    return any(value.dtype == torch.float64 for value in tensors_of_node(node))


class _Casts:
    """The casts of one graph, made in one walk over it.

    narrow: the nodes that are float64 in the user's graph, and fp32 from here on.
    """

    def __init__(self, module: fx.GraphModule, options: Options) -> None:
        self.graph = module.graph
        self.torch_ops = options.torch_ops
        self.narrow: set[fx.Node] = set()
        self._mode: FakeTensorMode = fake_mode_of(module)
        self._casts: dict[fx.Node, fx.Node] = {}

    def run(self) -> None:
        for node in list(self.graph.nodes):
            if node.op == "output":
                self._widen_inputs(node)
            elif node.op == "call_function" and tensors_of_node(node):
                self._call(node)

    def _call(self, node: fx.Node) -> None:
        was_float64 = _is_float64(node)
        if not was_float64 and not any(map(self._is_wide, node.all_input_nodes)):
            return
        before = node.args, node.kwargs
        if self._narrowed(node):
            if was_float64:
                self.narrow.add(node)
            return
        node.args, node.kwargs = before
        self._widen_inputs(node)
        infer(node, self._mode)

    def _is_wide(self, node: fx.Node) -> bool:
        return node in self.narrow or _is_float64(node)

    def _narrowed(self, node: fx.Node) -> bool:
        """Let a call compute in fp32; return whether an engine can run it so."""
        if node.target is operator.getitem:
            infer(node, self._mode)
            return node.args[0] in self.narrow
        if schema_of(node.target) is None or str(node.target) in self.torch_ops or not self._takes_numbers(node):
            return False
        node.args, node.kwargs = (map_aggregate(each, _in_fp32) for each in (node.args, node.kwargs))  # type: ignore[assignment]
        for source in [n for n in node.all_input_nodes if n not in self.narrow and _is_float64(n)]:
            node.replace_input_with(source, self._cast(source, torch.float32, node))
        infer(node, self._mode)
        return why_not(node) is None

    def _takes_numbers(self, node: fx.Node) -> bool:
        """Return whether the numbers and constants of a call are in the range of fp32, or may be moved there."""
        if operator_name(node.target) in _TAKES_NEAREST:
            return True
        numbers = [value for value in arguments_of(node).values() if isinstance(value, float)]
        constants = [value for n in node.all_input_nodes if _is_float64(n) and (value := constant_of(n)) is not None]
        return not any(
            map(_is_beyond, (*(torch.tensor(number, dtype=torch.float64) for number in numbers), *constants))
        )

    def _widen_inputs(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            if source in self.narrow:
                node.replace_input_with(source, self._cast(source, torch.float64, node))

    def _cast(self, source: fx.Node, dtype: torch.dtype, user: fx.Node) -> fx.Node:
        """Return `source` in the other dtype: one cast, which all its users share."""
        if source not in self._casts:
            constant = constant_of(source)
            if constant is not None:
                self._casts[source] = insert_constant(user, _nearest(constant), f"{source.name}_fp32", self._mode)
            else:
                cast = insert_call(user, self._mode, aten._to_copy.default, source, dtype=dtype)
                cast.meta[AT_BORDER] = True
                self._casts[source] = cast
        return self._casts[source]


def _in_fp32(value: Any) -> Any:
    """Return an argument of a float64 operator for one of fp32: a dtype, or the nearest number."""
    if value is torch.float64:
        return torch.float32
    if isinstance(value, float) and _is_beyond(number := torch.tensor(value, dtype=torch.float64)):
        return float(_nearest(number))
    return value


def _is_beyond(values: torch.Tensor) -> bool:
    """Return whether fp32 has other infinities than these numbers, or zeros alone where they are not zero."""
    size = values[values.isfinite()].abs()
    largest = float(size.max()) if size.numel() else 0.0
    return largest > LARGEST or 0 < largest < SMALLEST


def _nearest(values: torch.Tensor) -> torch.Tensor:
    """Return float64 numbers in fp32, finite ones as finite ones, and none but zero as zero."""
    size = torch.where(values == 0, 0.0, values.abs().clamp(SMALLEST, LARGEST))
    return torch.where(values.isinf(), values, torch.copysign(size, values)).float()
