"""The captured graph from the cache, or captured and kept there: `torch.export` takes most of a start with warm caches.

What is kept is the graph alone: weights are those of the call. Its results are held against the model's own in the
first call, like those of a graph that was captured in this process.
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
    """What `dynamo.capture` gives, from the cache that `options` names where it is there."""
    cache = EngineCache.from_options(options)
    key = None if cache is None else capture_key(module, args, weights, numbers)
    if cache is None or key is None:
        return dynamo.capture(module, args, weights, numbers)
    constants = {f"{dynamo.WEIGHT_PREFIX}{index}": args[index].detach() for index in weights}
    recalled = _recalled(cache.get(key, KIND), constants)
    if recalled is not None:
        return recalled, dynamo.input_positions(module, args, [*weights, *numbers])
    captured, inputs = dynamo.capture(module, args, weights, numbers)
    try:
        text = text_from_graph(captured, constants)
    except NoTextError:
        return captured, inputs  # it is captured each time
    cache.put(key, text.encode(), KIND)
    return captured, inputs


def _recalled(content: bytes | None, constants: dict[str, torch.Tensor]) -> CapturedGraph | None:
    """The graph that was kept; None if there is none."""
    if content is None:
        return None
    try:
        return graph_from_text(content.decode(), constants)
    except Exception as error:  # whatever is wrong with what was kept, the model can be captured
        warn_once(f"a captured graph in the cache is not as it was written ({error!r}); it is captured again.")
        return None
