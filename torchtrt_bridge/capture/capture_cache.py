"""Cache of captured graphs: `torch.export` takes most of the start of a process whose engines are cached.

A cached graph holds no weights; it gets those of the call. Its results are compared with the model's own in the first
call, like those of a graph that was captured in this process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from torchtrt_bridge.cache import EngineCache
from torchtrt_bridge.capture import dynamo
from torchtrt_bridge.capture.capture_key import capture_key
from torchtrt_bridge.capture.export import CapturedGraph
from torchtrt_bridge.capture.graph_json import graph_from_text, text_from_graph
from torchtrt_bridge.capture.size_json import NoTextError
from torchtrt_bridge.graph.shapes import example_size, expression_of
from torchtrt_bridge.graph.torch_internals import tracing_disabled
from torchtrt_bridge.options import Options
from torchtrt_bridge.report.log import warn_once

KIND = "graph"


def load_or_capture(
    module: fx.GraphModule, args: Sequence[Any], weights: Sequence[int], numbers: Sequence[int], options: Options
) -> tuple[CapturedGraph, list[int]]:
    """Return what `dynamo.capture` returns, read from the cache of `options` if the graph is there."""
    cache = EngineCache.from_options(options)
    key = None if cache is None else capture_key(module, args, weights, numbers)
    if cache is None or key is None:
        return dynamo.capture(module, args, weights, numbers)
    constants = {f"{dynamo.WEIGHT_PREFIX}{index}": args[index].detach() for index in weights}
    positions = dynamo.input_positions(module, args, [*weights, *numbers])
    cached = _read(cache.get(key, KIND), constants, [args[index] for index in positions])
    if cached is not None:
        return cached, positions
    captured, inputs = dynamo.capture(module, args, weights, numbers)
    try:
        with tracing_disabled():  # as in a capture, whose fake mode is not Dynamo's
            text, captured = _written(captured, constants)
    except Exception:  # whatever has no text, the graph itself is right; it is captured in each process
        return captured, inputs
    cache.put(key, text.encode(), KIND)
    return captured, inputs


def _written(captured: CapturedGraph, constants: dict[str, torch.Tensor]) -> tuple[str, CapturedGraph]:
    """Return the text of a graph, and the graph to compile; an error for one whose text does not tell all.

    Of a graph with symbolic sizes that is the one that a later process reads. Passes would make another network of the
    one that was captured, with another key: they ask about sizes, and a trace repeats what it answered before it knew
    as much as at its end; and they follow the order in which the readers of a node were added.
    """
    text = text_from_graph(captured, constants)
    if not captured.ranges:
        return text, captured
    again = graph_from_text(text, constants)
    if text_from_graph(again, constants) != text:
        raise NoTextError("its sizes change when they are read")
    return text, again


def _read(content: bytes | None, constants: dict[str, torch.Tensor], inputs: Sequence[Any]) -> CapturedGraph | None:
    """Return the graph of a cache entry; None if there is no entry, or a damaged one.

    inputs: the tensors that it takes, beside those of its state.
    """
    if content is None:
        return None
    try:
        with tracing_disabled():
            captured = graph_from_text(content.decode(), constants)
        _check_inputs(captured, inputs)
        return captured
    except Exception as error:  # whatever is wrong with the entry, the model can be captured again
        warn_once(f"a captured graph in the cache is not as it was written ({error!r}); it is captured again.")
        return None


def _check_inputs(captured: CapturedGraph, inputs: Sequence[Any]) -> None:
    """Raise ValueError for a graph that was not captured with inputs of these dtypes and sizes."""
    nodes = captured.module.graph.find_nodes(op="placeholder")
    if len(nodes) != len(inputs) + len(captured.state):
        raise ValueError(f"its inputs are not the {len(inputs)} of the call")
    for node, value in zip(nodes, inputs, strict=False):  # behind them is the state
        fake = node.meta["val"]
        if (fake.dtype, list(map(example_size, fake.shape))) != (value.dtype, list(value.shape)):
            raise ValueError(f"its input {node.name} is not of the shape {list(value.shape)}")
        symbols = {each for size in map(expression_of, fake.shape) for each in getattr(size, "free_symbols", ())}
        if not symbols <= captured.ranges.keys():
            raise ValueError(f"its input {node.name} has sizes without a range")
