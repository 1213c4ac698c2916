"""A compiled graph at work: whole calls replayed from CUDA graphs, on the caller's stream, from any thread."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from torchtrt_bridge.compile_report import CompileReport, tell_once
from torchtrt_bridge.errors import BridgeError
from torchtrt_bridge.options import Options
from torchtrt_bridge.runtime.check import difference
from torchtrt_bridge.runtime.module import EngineModule
from torchtrt_bridge.runtime.recording import Recording
from torchtrt_bridge.runtime.slots import current_slot

# Calls before one of its shape is recorded: the first warms up what allocates; sizes that vary must come back first.
CALLS_BEFORE_RECORDING = {True: 1, False: 3}

# Shapes per thread that keep their recordings.
MAX_SHAPES = 8

# A replay and a plain call differ by the order of a few sums at most.
REPLAY_BOUND = 1e-2


class Execution:
    """Called with the inputs of a captured graph; gives its results, and writes back what it mutates.

    module: the graph with its engines; outputs, mutations: as in `CapturedGraph`.
    Results are the caller's to keep, unless the option `reuse_outputs` lets the next call overwrite them.
    """

    def __init__(
        self, module: fx.GraphModule, outputs: int, mutations: Sequence[int], options: Options, report: CompileReport
    ) -> None:
        self.module = module
        self.outputs = outputs
        self.mutations = tuple(mutations)
        self.options = options
        self.report = report
        self.engines = [m for m in module.modules() if isinstance(m, EngineModule)]
        self.device = next((e.device for e in self.engines if e.device.type == "cuda"), None)
        self.graphs = options.cuda_graphs == "auto" and self.device is not None
        self.is_static = _is_static(module)
        self._lanes: dict[int, Lane] = {}
        self._settled = False

    def __call__(self, inputs: Sequence[Any]) -> Sequence[Any]:
        lane = self.lane
        with lane.lock:
            results = lane(inputs)
        if self.mutations:
            for value, position in zip(results[self.outputs :], self.mutations, strict=True):
                inputs[position].copy_(value)
        return results[: self.outputs]

    @property
    def lane(self) -> Lane:
        """That of this thread."""
        slot = current_slot()
        lane = self._lanes.get(slot)
        return self._lanes.setdefault(slot, Lane(self)) if lane is None else lane

    @property
    def is_settled(self) -> bool:
        """Whether every engine has been tried, so that a recording would hold what stays."""
        self._settled = self._settled or all(engine.is_settled for engine in self.engines)
        return self._settled

    def give_up_graphs(self, why: str) -> None:
        self.graphs = False
        message = f"no CUDA graph ({why}); engines are enqueued call by call"
        self.report.note(message)
        tell_once(f"{message}.")


class Lane:
    """What one thread at a time may use: the stream it works on, and recordings by shape."""

    def __init__(self, execution: Execution) -> None:
        self.lock = threading.RLock()
        self.execution = execution
        self._stream: torch.cuda.Stream | None = None
        self._shapes: OrderedDict[Any, Recordings] = OrderedDict()

    def __call__(self, inputs: Sequence[Any]) -> Sequence[Any]:
        execution = self.execution
        if execution.device is not None:
            self._follow_stream(execution.device)
            if execution.graphs and execution.is_settled and not torch.cuda.is_current_stream_capturing():
                return self._recordings(inputs)(inputs)
        results: Sequence[Any] = execution.module.forward(*inputs)
        return results

    def _follow_stream(self, device: torch.device) -> None:
        """Let the caller's stream wait for what this lane's buffers and contexts still do on another one."""
        stream = torch.cuda.current_stream(device)
        if stream != self._stream:
            if self._stream is not None and not torch.cuda.is_current_stream_capturing():
                stream.wait_stream(self._stream)
            self._stream = stream

    def _recordings(self, inputs: Sequence[Any]) -> Recordings:
        if self.execution.is_static:
            key = None
        else:
            key = tuple(value.shape if isinstance(value, torch.Tensor) else value for value in inputs)
        found = self._shapes.get(key)
        if found is None:
            found = self._shapes[key] = Recordings(self.execution)
            if len(self._shapes) > MAX_SHAPES:
                self._shapes.popitem(last=False)
        elif key is not None:
            self._shapes.move_to_end(key)
        return found

    def replays(self) -> list[Recording]:
        """The recordings whose results are lent, for who measures them."""
        return [found.lent for found in self._shapes.values() if found.lent is not None]


class Recordings:
    """The recordings of one shape: one lends its outputs while they are free, the other's are copied."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self.calls = 0
        self.lent: Recording | None = None
        self.copied: Recording | None = None

    def __call__(self, inputs: Sequence[Any]) -> Sequence[Any]:
        execution = self.execution
        lent = self.lent
        if lent is None:
            return self._before_recording(inputs)
        if execution.options.reuse_outputs or lent.is_free:
            lent(inputs)
            return lent.lent()
        if self.copied is None:
            self.copied = self._record(inputs)
        if self.copied is None:
            results: Sequence[Any] = execution.module.forward(*inputs)
            return results
        self.copied(inputs)
        return self.copied.copied()

    def _before_recording(self, inputs: Sequence[Any]) -> Sequence[Any]:
        results: Sequence[Any] = self.execution.module.forward(*inputs)
        self.calls += 1
        if self.calls > CALLS_BEFORE_RECORDING[self.execution.is_static]:
            recording = self._record(inputs)
            if recording is not None and self._agrees(recording, inputs, results):
                self.lent = recording
        return results

    def _record(self, inputs: Sequence[Any]) -> Recording | None:
        try:
            with torch.cuda.device(self.execution.device):
                recording = Recording(self.execution.module.forward, inputs)
        except (RuntimeError, BridgeError) as error:
            self.execution.give_up_graphs(f"capture failed: {error}")
            return None
        if recording.returns_inputs:
            self.execution.give_up_graphs("a result is an input, or a view of one")
            return None
        return recording

    def _agrees(self, recording: Recording, inputs: Sequence[Any], expected: Sequence[Any]) -> bool:
        """Whether a replay gives what the plain call gave: a graph leaves out what does not run on the GPU."""
        recording(inputs)
        verdict = difference(_tensors(recording.outputs), _tensors(expected), REPLAY_BOUND)
        if verdict.problem is not None:
            self.execution.give_up_graphs(f"a replay differs: {verdict.problem}")
        return verdict.problem is None


def _tensors(values: Sequence[Any]) -> list[torch.Tensor]:
    return [value for value in values if isinstance(value, torch.Tensor)]


def _is_static(module: fx.GraphModule) -> bool:
    """Whether every input is a tensor of known sizes."""
    values = [node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"]
    return all(isinstance(v, torch.Tensor) and all(isinstance(size, int) for size in v.shape) for v in values)
