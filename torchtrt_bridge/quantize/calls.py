"""Calls of a quantized model: what its graph has for fixed, and a model as written would not."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from torchtrt_bridge.errors import ShapeRangeError
from torchtrt_bridge.graph.shapes import UNBOUNDED
from torchtrt_bridge.quantize.capture import FloatGraph


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a quantized model takes.

    positional: how many of its arguments may be given by position: those before the first that calibration left out.
    sizes: by argument, the dimensions that are not free, with their smallest and largest size.
    values: the arguments that are no tensors, which are part of the graph.
    """

    positional: int
    names: tuple[str, ...]
    sizes: Mapping[str, tuple[tuple[int, int, int], ...]]
    values: Mapping[str, Any]

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise TypeError or ShapeRangeError for what the graph would compute something else with."""
        if len(args) > self.positional:
            raise TypeError(
                f"{len(args)} arguments by position, but {self.names[self.positional]!r} must be given by its name: "
                "an argument before it was left out in calibration."
            )
        for name, value in (*zip(self.names, args, strict=False), *kwargs.items()):
            if name in self.values:
                self._check_value(name, value)
            elif isinstance(value, torch.Tensor):
                for dim, low, high in self.sizes.get(name, ()):
                    if not low <= value.shape[dim] <= high:
                        raise ShapeRangeError(_told(name, value.shape[dim], dim, low, high))

    def _check_value(self, name: str, value: Any) -> None:
        known = self.values[name]
        if type(value) is not type(known) or value != known:
            raise ShapeRangeError(
                f"Argument {name} is {value!r}, and calibration gave {known!r}. What is no tensor is part of the "
                "quantized graph: quantize the model for each value."
            )


def _told(name: str, size: Any, dim: int, low: int, high: int) -> str:
    sizes = f"{low}" if low == high else f"{low} or more" if high == UNBOUNDED else f"{low} to {high}"
    return (
        f"Argument {name} has size {size} in dimension {dim}, and the quantized graph is for {sizes}. Calibrate with "
        "such inputs, and name sizes that vary with quantize(..., dynamic_shapes=...), as in torch.export.export."
    )


def limits_of(graph: FloatGraph, model: nn.Module) -> Limits:
    """Those of a graph that was traced from a call of `model`; what is nested is left to PyTorch."""
    sizes, values = {}, {}
    arguments, _ = pytree.tree_unflatten(list(range(len(graph.specs))), graph.in_spec)
    for name, index in zip(graph.names, arguments, strict=True):
        if not isinstance(index, int):
            continue
        spec = graph.specs[index]
        if spec is None:
            values[name] = graph.constants[index]
        else:
            ranges = enumerate(graph.ranges_of(spec))
            sizes[name] = tuple((dim, low, high) for dim, (low, high) in ranges if low > 1 or high < UNBOUNDED)
    return Limits(_positional(graph.names, model), graph.names, sizes, values)


def _positional(names: tuple[str, ...], model: nn.Module) -> int:
    """How many of these arguments are the first parameters of the model's forward."""
    count = 0
    for name, parameter in zip(names, inspect.signature(model.forward).parameters.values(), strict=False):
        if parameter.kind is parameter.VAR_POSITIONAL:
            return len(names)
        if name != parameter.name or parameter.kind is parameter.KEYWORD_ONLY:
            break
        count += 1
    return count


def check_call(module: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A forward pre-hook of quantized models."""
    module.meta["limits"].check(args, kwargs)
