"""Check of an export: whether a lower precision holds what a program computes from its example inputs.

Nobody compares a program with the model when it runs, and the machine that exports it may have no GPU. So the graph is
computed as an engine would: each call in fp32, each result rounded to the dtype that the graph gives it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from torchtrt_bridge.capture.export import graph_from_program, tensor_of
from torchtrt_bridge.graph.nodes import is_random
from torchtrt_bridge.options import Options
from torchtrt_bridge.passes import normalize, quantizes
from torchtrt_bridge.passes.precision import DTYPES
from torchtrt_bridge.runtime.tolerance import GRAPH_FACTOR, compare, error_bound


def why_not_in_half(program: ExportedProgram, options: Options) -> str | None:
    """Return why a program has other results in the half precision of `options`; None if it has not."""
    if options.precision not in DTYPES:
        return None
    return _difference(program, options, GRAPH_FACTOR * error_bound([DTYPES[options.precision]], tf32=False))


def why_not_in_fp32(program: ExportedProgram, options: Options) -> str | None:
    """Return why a program has other results if `options` let float64 be fp32; None if it has not."""
    if options.float64 == "pytorch":
        return None
    in_fp32 = dataclasses.replace(options, precision="fp32")
    return _difference(program, in_fp32, GRAPH_FACTOR * error_bound([torch.float32], tf32=False))


def _difference(program: ExportedProgram, options: Options, bound: float) -> str | None:
    """Return how a program computed as `options` say differs from itself beyond `bound`.

    None too where no check is wanted (``trial="off"``), or possible: the program has no example inputs, or computes
    with random numbers.
    """
    if options.trial == "off" or program.example_inputs is None:
        return None
    captured = graph_from_program(program)
    if any(map(is_random, captured.module.graph.nodes)):
        return None
    rounded = normalize(graph_from_program(program).module, options, captured.outputs)
    values = [*pytree.tree_leaves(program.example_inputs), *(tensor_of(program, name) for name in captured.state)]
    with torch.no_grad():
        expected = captured.module(*values)
        actual = _Rounded(rounded).run(*values)
    pairs = [(a.to(b.dtype), b) for a, b in zip(actual, expected, strict=True) if isinstance(b, torch.Tensor)]
    most = math.inf if quantizes(rounded) else bound
    return compare([a for a, _ in pairs], [b for _, b in pairs], most, 1.0).problem


class _Rounded(fx.Interpreter):
    """An interpreter that computes in fp32 what a graph has in half precision, and rounds each result."""

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        value = node.meta.get("val")
        dtype = value.dtype if isinstance(value, torch.Tensor) else None
        if node.op == "output" or dtype not in DTYPES.values():
            return result
        return result.to(dtype).float()
