"""A compiled model's CUDA graph replayed, without what surrounds it in a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchtrt_bridge.backend import backend_of


def engine_replay(compiled: Any) -> Callable[[], Any] | None:
    """What launches the CUDA graph of a compiled model once.

    None where there is no such thing: another contender's callable, several graphs, or none that was recorded.
    """
    backend = backend_of(compiled)
    graphs = [] if backend is None else [graph.compiled for graph in backend.graphs if graph.compiled is not None]
    recordings = [recording for graph in graphs for recording in graph.run.lane.replays()]
    return recordings[0].replay if len(recordings) == 1 else None
