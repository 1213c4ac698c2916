"""The profile of an engine: the time of each of its layers, by TensorRT's profiler, on inputs made for it."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch

from torchtrt_bridge.errors import BridgeError
from torchtrt_bridge.graph.shapes import TensorSpec
from torchtrt_bridge.report.layers import LayerTime, LayerTimes
from torchtrt_bridge.runtime.layer_names import layer_names
from torchtrt_bridge.runtime.runners import is_out_of_memory
from torchtrt_bridge.runtime.trial import ENGINE

if TYPE_CHECKING:
    from torchtrt_bridge.runtime.engine_module import EngineModule

# Runs before those that count: the first one loads kernels.
WARM_UP = 3


@runtime_checkable
class TimedRunner(Protocol):
    """A runner that TensorRT's profiler can look at; the reference interpreter is none."""

    device: torch.device

    def plan(self) -> bytes: ...

    def time_layers(self, inputs: Sequence[torch.Tensor], runs: int) -> list[list[tuple[str, float]]]: ...


def time_layers(engine: EngineModule, runs: int) -> LayerTimes:
    """Run the engine of a subgraph so often, and return the time of each of its layers, or why there is none.

    It runs on inputs of its own, of the sizes that it was tuned for, so that nothing of the user's is written.
    """
    try:
        engine.wait()
        runner = engine.runner
        if not isinstance(runner, TimedRunner):
            return LayerTimes(problem=_why_not(engine))
        inputs = example_inputs(engine.inputs.specs, runner.device)
        found = runner.time_layers(inputs, WARM_UP + runs)[WARM_UP:]
        plan = runner.plan()
    except (BridgeError, RuntimeError, MemoryError) as error:
        return LayerTimes(problem=f"{'too little memory' if is_out_of_memory(error) else 'it failed'}: {error}")
    return LayerTimes(_layers(found, plan, engine), _described(engine, inputs))


def _why_not(engine: EngineModule) -> str:
    """Return why there is no engine to time."""
    if engine.runner is not None:
        return "the reference interpreter computes it, which has no kernels"
    if engine.failure is not None:
        return f"PyTorch runs it: {engine.failure}"
    if engine.choice != ENGINE:
        return f"{engine.choice} runs it, which was faster in the trial"
    return "its engine is built for other machines and not loaded here; save the program, and load it on one of them"


def example_inputs(specs: Iterable[TensorSpec], device: torch.device) -> list[torch.Tensor]:
    """Return inputs of the sizes that an engine is tuned for: zeros of integers and bools, and random floats."""
    generator = torch.Generator(device).manual_seed(0)  # of its own, as the user's numbers are not to change
    return [
        torch.randn(spec.example_in_range, generator=generator, device=device).to(spec.dtype)
        if spec.dtype.is_floating_point
        else torch.zeros(spec.example_in_range, dtype=spec.dtype, device=device)
        for spec in specs
    ]


def _described(engine: EngineModule, inputs: Sequence[torch.Tensor]) -> list[str]:
    """Return the inputs of a profile, as "x: float32[1, 3, 224, 224]", by their names in the report."""
    names = [text.partition(": ")[0] for text in engine.entry.inputs] or [spec.name for spec in engine.inputs.specs]
    kinds = (f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}" for value in inputs)
    return [f"{name}: {kind}" for name, kind in zip(names, kinds, strict=True)]


def _layers(runs: Sequence[Sequence[tuple[str, float]]], plan: bytes, engine: EngineModule) -> list[LayerTime]:
    """Return the layers that take time, the slowest first; runs: the layers of each run, with their milliseconds."""
    times = _medians(runs)
    whole = sum(times.values())
    nodes = engine.nodes
    found = [
        LayerTime(
            name.text,
            {node: nodes[node].operator for node in name.nodes},
            name.kind,
            name.sources(nodes),
            milliseconds,
            milliseconds / whole,
            layer,
        )
        for (layer, milliseconds), name in zip(times.items(), layer_names(list(times), plan, nodes), strict=True)
        if milliseconds
    ]
    return sorted(found, key=lambda layer: -layer.milliseconds)


def _medians(runs: Sequence[Sequence[tuple[str, float]]]) -> dict[str, float]:
    """Return the median milliseconds of each layer; what runs several times in one run, as within a loop, is added."""
    totals: dict[str, list[float]] = {}
    for run in runs:
        of_run: dict[str, float] = collections.defaultdict(float)
        for layer, milliseconds in run:
            of_run[layer] += milliseconds
        for layer, milliseconds in of_run.items():
            totals.setdefault(layer, []).append(milliseconds)
    return {layer: statistics.median(found) for layer, found in totals.items()}
