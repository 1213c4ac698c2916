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
from torchtrt_bridge.capture.graph_json import NoTextError, graph_from_text, text_from_graph
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
    cached = _read(cache.get(key, KIND), constants, len(positions))
    if cached is not None:
        return cached, positions
    captured, inputs = dynamo.capture(module, args, weights, numbers)
    try:
        text = text_from_graph(captured, constants)
    except NoTextError:
        return captured, inputs  # such a graph is captured in each process
    cache.put(key, text.encode(), KIND)
    return captured, inputs


def _read(content: bytes | None, constants: dict[str, torch.Tensor], inputs: int) -> CapturedGraph | None:
    """Return the graph of a cache entry; None if there is no entry, or a damaged one."""
    if content is None:
        return None
    try:
        captured = graph_from_text(content.decode(), constants)
        if len(captured.module.graph.find_nodes(op="placeholder")) != inputs + len(captured.state):
            raise ValueError(f"its inputs are not the {inputs} of the call")
        return captured
    except Exception as error:  # whatever is wrong with the entry, the model can be captured again
        warn_once(f"a captured graph in the cache is not as it was written ({error!r}); it is captured again.")
        return None
