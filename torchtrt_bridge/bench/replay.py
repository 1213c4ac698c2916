"""A compiled model's CUDA graph replayed, without what surrounds it in a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchtrt_bridge.backend import Backend


def engine_replay(compiled: Any) -> Callable[[], Any] | None:
    """What launches the CUDA graph of a compiled model once.

    None where there is no such thing: another contender's callable, several graphs, or none that was recorded.
    """
    backends = [value for value in getattr(compiled, "__dict__", {}).values() if isinstance(value, Backend)]
    graphs = [graph.compiled for backend in backends for graph in backend.graphs if graph.compiled is not None]
    recordings = [recording for graph in graphs for recording in graph.run.lane.replays()]
    return recordings[0].replay if len(recordings) == 1 else None
