"""A compiled model's CUDA graph replayed, without what surrounds it in a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.suite.contenders import Exported
from torchtrt_bridge.entry.torch_compile import backend_of
from torchtrt_bridge.runtime import Execution


def engine_replay(compiled: Any) -> Callable[[], Any] | None:
    """What launches the CUDA graph of a compiled model once.

    None where there is no such thing: another contender's callable, several graphs, or none that was recorded.
    """
    recordings = [recording for run in _executions(compiled) for recording in run.lane.replays()]
    return recordings[0].replay if len(recordings) == 1 else None


def _executions(compiled: Any) -> list[Execution]:
    if isinstance(compiled, Exported):
        return [] if compiled.program is None else [compiled.program._run]
    backend = backend_of(compiled)
    return [] if backend is None else [graph.compiled.run for graph in backend.graphs if graph.compiled is not None]
