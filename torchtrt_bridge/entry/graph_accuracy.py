"""Accuracy check of a whole graph: compares its first results with those of the model as the user wrote it.

Each engine is compared with its own subgraph in PyTorch, in the precision of the engine. Only the whole graph shows a
value that this precision cannot hold, or a difference between the user's graph and the subgraphs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx

from torchtrt_bridge.graph.nodes import is_random
from torchtrt_bridge.graph.ops import own
from torchtrt_bridge.options import Options
from torchtrt_bridge.passes.precision import DTYPES
from torchtrt_bridge.runtime import Execution
from torchtrt_bridge.runtime.tolerance import (
    BOUNDS,
    Comparison,
    Reference,
    compare,
    graph_tolerance,
    quantized_reference,
    rounded_bound,
)


class GraphAccuracyCheck:
    """Comparison of calls of `run` with `original`, until every engine has had its trial.

    original: the graph as Dynamo gave it, which may write to its arguments.
    inputs: indices of the arguments that `run` takes.
    """

    def __init__(self, original: Callable[..., Any], run: Execution, inputs: Sequence[int], options: Options) -> None:
        self.original = original
        self.run = run
        self.inputs = inputs
        self.options = options
        self.is_due = options.trial != "off" and not any(map(is_random, _nodes(run.module)))
        self._written = [inputs[position] for position in run.mutations]

    def call(self, args: Sequence[Any]) -> tuple[Any, Comparison | None]:
        """Return the results of a call by engines, and their comparison; None without the memory for one.

        If they differ, the results and the tensors that the graph writes to are the model's own.
        """
        before, again = self._with_copies(args), self._with_copies(args)
        results = self.run([args[index] for index in self.inputs])
        self.is_due = not self.run.is_settled
        try:
            expected = self.original(*before)
            comparison = self._compare(self._all(results, args), self._all(expected, before), again)
        except torch.OutOfMemoryError:
            self.is_due = False
            return results, None
        if comparison.problem is not None:
            for index in self._written:
                args[index].copy_(before[index])
            results = expected
        return results, comparison

    def _with_copies(self, args: Sequence[Any]) -> list[Any]:
        """Return the arguments, with copies of those that the graph writes to."""
        return [args[i].clone() if i in self._written else args[i] for i in range(len(args))]

    def _all(self, results: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        """Return the results of a call, and what it wrote to its arguments."""
        return [*results, *(args[index] for index in self._written)]

    def _compare(self, actual: Sequence[Any], expected: Sequence[Any], args: Sequence[Any]) -> Comparison:
        """Compare results; args: those of the call, for another one that shows how far rounding moves its results."""
        are_tensors = [isinstance(value, torch.Tensor) for value in expected]

        def tensors(values: Sequence[Any]) -> list[torch.Tensor]:
            return [value for value, is_tensor in zip(values, are_tensors, strict=True) if is_tensor]

        actual, expected = tensors(actual), tensors(expected)
        dtypes = {DTYPES.get(self.options.precision, torch.float32), *(value.dtype for value in expected)}
        dtypes |= {dtype for engine in self.run.engines for dtype in engine.dtypes if dtype in BOUNDS}
        on_gpu = any(value.is_cuda and value.dtype != torch.float64 for value in expected)  # where PyTorch may use TF32
        usual = Reference(expected, *graph_tolerance(dtypes, on_gpu or self.options.tf32))
        comparison = compare(actual, expected, usual.bound, usual.share)
        if comparison.problem is None or not isinstance(self.original, fx.GraphModule):
            return comparison
        if any(engine.is_quantized for engine in self.run.engines):
            floats = self._all(_WithoutRounding(self.original).run(*args), args)
            reference = quantized_reference(usual, tensors(floats), expected)
        elif self.options.precision in DTYPES:
            with torch.autocast(self._device, DTYPES[self.options.precision]):
                rounded = self._all(self.original(*args), args)
            rounding = _distance(tensors(rounded), expected)
            reference = Reference(expected, rounded_bound(usual.bound, rounding), usual.share)
        else:
            return comparison
        return compare(actual, reference.expected, reference.bound, reference.share)

    @property
    def _device(self) -> str:
        return next((engine.device.type for engine in self.run.engines), "cpu")


# A graph of Dynamo's has an operator as its caller names it: with its overload or without.
_QUANTIZE = (own.quantize, own.quantize.default)
_DEQUANTIZE = (own.dequantize, own.dequantize.default)


class _WithoutRounding(fx.Interpreter):
    """An interpreter that leaves out the rounding of activations to 8 bits."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in _QUANTIZE and isinstance(args[0], torch.Tensor):
            return _Unrounded(args[0])
        if args and isinstance(args[0], _Unrounded):
            values = args[0].values
            return values if target in _DEQUANTIZE else _Unrounded(target(values, *args[1:], **kwargs))
        return super().call_function(target, args, kwargs)


@dataclasses.dataclass
class _Unrounded:
    """Floats in place of values in 8 bits, which only operators that move data read."""

    values: torch.Tensor


def _distance(actual: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """Return the largest relative L2 distance, whatever the dtypes; 0 for results that show nothing."""
    pairs = [(a.to(b.dtype), b) for a, b in zip(actual, expected, strict=True)]
    comparison = compare([a for a, _ in pairs], expected, math.inf, 1.0)
    return comparison.error if comparison.problem is None else 0.0


def _nodes(module: fx.GraphModule) -> Iterator[fx.Node]:
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            yield from part.graph.nodes
