"""Accuracy check of a whole graph: compares its first results with those of the model as the user wrote it.

Each engine is compared with its own subgraph in PyTorch, in the precision of the engine. Only the whole graph shows a
value that this precision cannot hold, or a difference between the user's graph and the subgraphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx

from torchtrt_bridge.graph.nodes import is_random
from torchtrt_bridge.options import Options
from torchtrt_bridge.passes.precision import DTYPES
from torchtrt_bridge.runtime import Execution
from torchtrt_bridge.runtime.tolerance import Comparison, compare, graph_tolerance


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
        before = list(args)
        for index in self._written:
            before[index] = args[index].clone()
        results = self.run([args[index] for index in self.inputs])
        self.is_due = not self.run.is_settled
        try:
            expected = self.original(*before)
        except torch.OutOfMemoryError:
            self.is_due = False
            return results, None
        comparison = self._compare(
            [*results, *(args[index] for index in self._written)],
            [*expected, *(before[index] for index in self._written)],
        )
        if comparison.problem is not None:
            for index in self._written:
                args[index].copy_(before[index])
            results = expected
        return results, comparison

    def _compare(self, actual: Sequence[Any], expected: Sequence[Any]) -> Comparison:
        pairs = [(a, b) for a, b in zip(actual, expected, strict=True) if isinstance(b, torch.Tensor)]
        dtypes = {DTYPES.get(self.options.precision, torch.float32), *(value.dtype for _, value in pairs)}
        on_gpu = any(value.is_cuda for _, value in pairs)  # where PyTorch may use TF32
        is_quantized = any(engine.is_quantized for engine in self.run.engines)
        bound, share = graph_tolerance(dtypes, on_gpu or self.options.tf32, is_quantized)
        return compare([a for a, _ in pairs], [b for _, b in pairs], bound, share)


def _nodes(module: fx.GraphModule) -> Iterator[fx.Node]:
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            yield from part.graph.nodes
