"""Precision: casts in an fp32 graph, so that it computes in half precision where that is safe."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from torchtrt_bridge.graph.edit import behind, constant_of, fake_mode_of, infer, insert_call
from torchtrt_bridge.graph.nodes import arguments_of, operator_name
from torchtrt_bridge.graph.ops import own
from torchtrt_bridge.graph.torch_internals import schema_of
from torchtrt_bridge.lower import precision_of, why_not
from torchtrt_bridge.lower.bounds import Bounds, bounds_of
from torchtrt_bridge.options import Options

if TYPE_CHECKING:
    from torchtrt_bridge.graph.torch_internals import FakeTensorMode

aten = torch.ops.aten
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

# Operators that make floats of narrow numbers, with the largest of these.
DEQUANTIZE: dict[Any, float] = {own.dequantize.default: 448, own.dequantize_int4.default: 8}

# Operators whose results have any size, whatever the size of one of their two inputs.
PRODUCTS = ("div", "mul")

# Operators that make floats of integers, beside those that compute element by element.
FLOATS_OF_INTEGERS = ("_to_copy", "cat")


def set_precision(module: fx.GraphModule, options: Options) -> fx.GraphModule:
    """Let fp32 operators compute in `options.precision`; inputs and outputs of the graph keep their dtypes.

    Tensors that the model itself holds in half precision, and operators that stay in PyTorch, do not change.
    """
    if options.precision == "fp32":
        return module
    _Casts(module, DTYPES[options.precision], options).run()
    module.graph.lint()
    module.recompile()
    return module


class _Casts:
    """The casts of one graph, made in one walk over it."""

    def __init__(self, module: fx.GraphModule, dtype: torch.dtype, options: Options) -> None:
        self.graph = module.graph
        self.dtype = dtype
        self.torch_ops = options.torch_ops
        self.mode: FakeTensorMode = fake_mode_of(module)
        self.lowered: set[fx.Node] = set()  # fp32 in the user's graph, half from here on
        self.wide: set[fx.Node] = set()  # fp32 values computed from numbers beyond the range of half precision
        self.small: set[fx.Node] = set()  # fp32 values that half precision may round to zero
        self.casts: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}
        self.bounds: dict[fx.Node, Bounds] = {}

    def run(self) -> None:
        for node in list(self.graph.nodes):
            if node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                self._restore(node)

    def _call(self, node: fx.Node) -> None:
        if node.target is own.quantize.default:  # takes each precision, with a scale in fp32
            return
        if node.target in DEQUANTIZE:
            self._dequantize(node)
            return
        was = _float_dtypes(node.meta.get("val"))
        if self._is_wide(node):
            self.wide.add(node)
        if self._is_small(node) or self._stays_fp32(node):
            self._restore(node)
            return
        sources = [n for n in node.all_input_nodes if self._is_fp32(n) or n in self.lowered]
        if precision_of(node) == "half" or any(n in self.lowered for n in sources):
            self._cast_inputs(node, [n for n in sources if n not in self.lowered], self.dtype)
        if sources:
            infer(node, self.mode)
        if torch.float32 in was and _float_dtypes(node.meta["val"]) != was:
            self.lowered.add(node)

    def _dequantize(self, node: fx.Node) -> None:
        """Dequantize to half precision, unless that overflows or no user computes in it."""
        arguments = arguments_of(node)
        scale = constant_of(arguments["scale"])
        if arguments["dtype"] != torch.float32 or scale is None:
            return
        if float(scale.max()) * DEQUANTIZE[node.target] > torch.finfo(self.dtype).max:
            self.wide.add(node)
        elif any(user.op != "output" and not self._stays_fp32(user) for user in node.users):
            node.args, node.kwargs = tuple((arguments | {"dtype": self.dtype}).values()), {}
            infer(node, self.mode)
            self.lowered.add(node)

    def _is_wide(self, node: fx.Node) -> bool:
        if precision_of(node) is not None:
            return False
        return torch.float32 in _float_dtypes(node.meta.get("val")) and self._reads_beyond(node)

    def _stays_fp32(self, node: fx.Node) -> bool:
        if node.target is operator.getitem:  # its source is a list, which no cast takes
            return False
        if precision_of(node) == "fp32" or not self._has_fitting_numbers(node):
            return True
        if precision_of(node) is None and self._reads_beyond(node):
            return True
        return str(node.target) in self.torch_ops or why_not(node) is not None

    def _reads_beyond(self, node: fx.Node) -> bool:
        """Return whether a call computes with a number, or with elements, beyond the range of half precision."""
        sources = node.all_input_nodes
        if not self._has_fitting_numbers(node):
            return True
        if any(source in self.wide or self._is_beyond(constant_of(source)) for source in sources):
            return True
        return _makes_floats_of_integers(node) and any(map(self._are_integers_beyond, sources))

    def _is_small(self, node: fx.Node) -> bool:
        """Return whether a call must stay in fp32 for a small number, as the 1e-12 that keeps a divisor from zero.

        What is computed from its result is as small, or as large where it divides; products and quotients of it are of
        any size. A sum of many products takes no harm from a zero among them.
        """
        if precision_of(node) == "half" or node.target is operator.getitem or not self._is_fp32(node):
            return False
        sources = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
        has_own = any(map(self._vanishes, _numbers_of(node))) or any(self._vanishes_whole(n) for n in sources)
        is_small = has_own or any(n in self.small for n in sources)
        if is_small and (has_own or len(sources) == 1 or operator_name(node.target) not in PRODUCTS):
            self.small.add(node)
        return is_small

    def _vanishes(self, number: float) -> bool:
        """Return whether half precision has no normal number as small as this one."""
        return 0 < abs(number) < torch.finfo(self.dtype).smallest_normal

    def _vanishes_whole(self, source: fx.Node) -> bool:
        """Return whether all elements of a constant vanish; a weight may have some that do."""
        constant = constant_of(source)
        if constant is None or constant.dtype != torch.float32 or not constant.numel():
            return False
        low, high = constant.aminmax()
        return self._vanishes(max(abs(float(low)), abs(float(high))))

    def _has_fitting_numbers(self, node: fx.Node) -> bool:
        """Return whether the numbers of a call are in the range of the half precision type."""
        largest = torch.finfo(self.dtype).max
        return all(abs(number) in (0, float("inf")) or not abs(number) > largest for number in _numbers_of(node))

    def _is_beyond(self, constant: torch.Tensor | None) -> bool:
        """Return whether a constant holds finite numbers that half precision would turn into infinities."""
        if constant is None or constant.dtype != torch.float32 or not constant.numel():
            return False
        largest = torch.finfo(self.dtype).max
        low, high = constant.aminmax()  # unlike the next line, this makes no tensor of the weight's size
        if -largest <= low and high <= largest:
            return False
        return bool((constant.isfinite() & (constant.abs() > largest)).any())

    def _are_integers_beyond(self, source: fx.Node) -> bool:
        """Return whether a tensor of integers may hold some that half precision turns into infinities."""
        value = source.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.dtype.is_floating_point or value.is_complex():
            return False
        return max(map(abs, bounds_of(source, self.bounds))) > torch.finfo(self.dtype).max

    def _within_range(self, source: fx.Node, before: fx.Node) -> fx.Node:
        """Limit `source` to the range of half precision, so that a mask of -1e9 stays a large negative number."""
        largest = torch.finfo(self.dtype).max
        return insert_call(before, self.mode, aten.clamp.default, source, -largest, largest)

    def _is_fp32(self, node: fx.Node) -> bool:
        value = node.meta.get("val")
        return isinstance(value, torch.Tensor) and value.dtype == torch.float32

    def _restore(self, node: fx.Node) -> None:
        lowered = [n for n in node.all_input_nodes if n in self.lowered]
        self._cast_inputs(node, lowered, torch.float32)

    def _cast_inputs(self, node: fx.Node, sources: list[fx.Node], dtype: torch.dtype) -> None:
        for source in sources:
            node.replace_input_with(source, self._cast(source, dtype, node))

    def _cast(self, source: fx.Node, dtype: torch.dtype, user: fx.Node) -> fx.Node:
        """Return `source` in `dtype`: one cast, which all its users share."""
        key = source, dtype
        if key not in self.casts:
            constant = constant_of(source)
            before = user if constant is not None else behind(source)
            if dtype == self.dtype and (source in self.wide or self._is_beyond(constant)):
                source = self._within_range(source, before)
            cast = insert_call(before, self.mode, aten._to_copy.default, source, dtype=dtype)
            cast.meta.update({k: v for k, v in source.meta.items() if k in ("stack_trace", "nn_module_stack")})
            self.casts[key] = cast
            if dtype == self.dtype:
                self.lowered.add(cast)
        return self.casts[key]


def _float_dtypes(value: Any) -> list[Any]:
    values = value if isinstance(value, (tuple, list)) else [value]
    return [v.dtype if isinstance(v, torch.Tensor) else None for v in values]


def _numbers_of(node: fx.Node) -> list[float]:
    """Return the numbers among the arguments of a call that are neither sizes nor positions."""
    schema = schema_of(node.target)
    if schema is None:
        return []
    computes = {argument.name for argument in schema.arguments if "int" not in str(argument.type)}
    numbers = [value for name, value in arguments_of(node).items() if name in computes]
    return [value for value in numbers if isinstance(value, (int, float)) and not isinstance(value, bool)]


def _makes_floats_of_integers(node: fx.Node) -> bool:
    """Return whether PyTorch converts a call's integers to its result's dtype; an index stays what it is."""
    is_pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    return is_pointwise or operator_name(node.target) in FLOATS_OF_INTEGERS
