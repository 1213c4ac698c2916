"""The times of an engine's layers, as part of a report, and the link from a report to the engines that it is of."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torchtrt_bridge.errors import EngineLoadError

if TYPE_CHECKING:
    from torchtrt_bridge.report.model import EngineEntry

# Runs of each engine that count; a layer's time is their median.
RUNS = 10

NO_LINK = "the report leads to no engine: it is one of explain, or a copy, or nobody holds the compiled model any more"


@dataclasses.dataclass(frozen=True)
class LayerTime:
    """One layer of an engine, which may compute several nodes, and its time.

    name: the names of its nodes, as "linear_4 + gelu"; where none is known, the same as `kind`.
    nodes: the nodes that it computes, each with its operator. It may compute others, of which its engine says nothing.
    kind: what TensorRT does there, as "matrix product, add, erf".
    sources: the lines of the user's source that it comes from, as "model.py:12: x = f(x)".
    milliseconds: median time in a call.
    share: its part of the time of all layers, from 0 to 1.
    in_tensorrt: TensorRT's own name of it.
    """

    name: str
    nodes: dict[str, str]
    kind: str
    sources: list[str]
    milliseconds: float
    share: float
    in_tensorrt: str


@dataclasses.dataclass(frozen=True)
class LayerTimes:
    """What TensorRT's profiler found of one engine.

    layers: the slowest first, without those that take no time.
    inputs: the inputs that it was given, as "x: float32[1, 3, 224, 224]".
    problem: why there are no times; else empty.
    """

    layers: list[LayerTime] = dataclasses.field(default_factory=list)
    inputs: list[str] = dataclasses.field(default_factory=list)
    problem: str = ""

    @property
    def milliseconds(self) -> float:
        """The time of all layers in a call."""
        return sum(layer.milliseconds for layer in self.layers)


class TimedEngine(Protocol):
    """What computes a subgraph, and times the layers of its engine."""

    def time_layers(self, runs: int) -> LayerTimes: ...


class EngineLink:
    """Weak reference from a report to what computes a subgraph; a copy of it leads nowhere."""

    def __init__(self, engine: TimedEngine | None = None) -> None:
        self._engine = None if engine is None else weakref.ref(engine)

    def __reduce__(self) -> tuple[Any, ...]:
        return EngineLink, ()

    def time_layers(self, runs: int) -> LayerTimes:
        """Time the layers of the engine, if it still exists."""
        engine = None if self._engine is None else self._engine()
        return LayerTimes(problem=NO_LINK) if engine is None else engine.time_layers(runs)


def add_layer_times(entries: Sequence[EngineEntry], runs: int) -> None:
    """Have TensorRT's profiler time the layers of each engine, and of those beside it for single sizes.

    Raises EngineLoadError if there is none that it can time.
    """
    found = {id(entry): entry.link.time_layers(runs) for entry in all_engines(entries)}
    if all(times.problem for times in found.values()):
        reasons = dict.fromkeys(f"{entry.name}: {found[id(entry)].problem}" for entry in entries)
        raise EngineLoadError(
            f"profile() times engines that run on a GPU, and there is none here: {'; '.join(reasons) or 'no engine'}."
        )
    for entry in all_engines(entries):
        entry.layer_times = found[id(entry)]


def without_links(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return fields as a dictionary, without those that lead to an engine."""
    return {name: value for name, value in items if not isinstance(value, EngineLink)}


def all_engines(entries: Iterable[EngineEntry]) -> list[EngineEntry]:
    """Return the entries, each with those of its engines for single sizes behind it."""
    return [each for entry in entries for each in (entry, *all_engines(entry.static_engines))]
