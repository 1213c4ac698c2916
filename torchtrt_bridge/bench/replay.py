"""The engine's own time: its CUDA graph replayed, without what surrounds it in a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchtrt_bridge.backend import Backend


def engine_replay(compiled: Any) -> Callable[[], Any] | None:
    """What launches the CUDA graph of a compiled model's engine once.

    None where there is no such thing: another contender's callable, several engines or none, no CUDA graph.
    An engine module takes part by having a method ``replay``, or an attribute of that name that is None.
    """
    backends = [value for value in getattr(compiled, "__dict__", {}).values() if isinstance(value, Backend)]
    graphs = [graph.compiled.module for backend in backends for graph in backend.graphs if graph.compiled is not None]
    engines = [module for graph in graphs for module in graph.modules() if hasattr(module, "replay")]
    if len(engines) != 1:
        return None
    replay = engines[0].replay
    return replay if callable(replay) else None
