"""A compiled graph at work: whole calls replayed from CUDA graphs, on the caller's stream, from any thread."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx

from torchtrt_bridge.errors import BridgeError
from torchtrt_bridge.graph.fork_safety import renewed_in_children
from torchtrt_bridge.options import Options
from torchtrt_bridge.report.log import warn_once
from torchtrt_bridge.report.model import CompileReport
from torchtrt_bridge.runtime.call_context import is_capturing
from torchtrt_bridge.runtime.cuda_graph import CudaGraphCall, place_of
from torchtrt_bridge.runtime.engine_module import Changes, EngineModule
from torchtrt_bridge.runtime.thread_state import current_slot
from torchtrt_bridge.runtime.tolerance import difference
from torchtrt_bridge.runtime.torch_subgraph import TorchSubgraph
from torchtrt_bridge.runtime.weights import Holder, SpareWeights, buffers_of, memory_of

# Calls before one of its shape is recorded: the first warms up what allocates; sizes that vary must come back first.
CALLS_BEFORE_RECORDING = {True: 1, False: 3}

# Shapes per thread that keep their recordings.
MAX_SHAPES = 8

# A replay and a plain call differ by the order of a few sums at most.
REPLAY_BOUND = 1e-2


class Execution:
    """Called with the inputs of a captured graph; gives its results, and writes back what it mutates.

    module: the graph with its engines; outputs, mutations: as in `CapturedGraph`.
    theirs: tensors of the user's, which are not released.
    Results are the caller's to keep, unless the option `reuse_outputs` lets the next call overwrite them.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        outputs: int,
        mutations: Sequence[int],
        options: Options,
        report: CompileReport,
        theirs: Iterable[torch.Tensor] = (),
    ) -> None:
        self.module = module
        self.outputs = outputs
        self.mutations = tuple(mutations)
        self.options = options
        self.report = report
        self.engines = [m for m in module.modules() if isinstance(m, EngineModule)]
        self.pieces = [m for m in module.modules() if isinstance(m, TorchSubgraph)]
        self.device = next((e.device for e in self.engines if e.device.type == "cuda"), None)
        self.graphs = options.cuda_graphs == "auto" and self.device is not None
        self.is_static = _is_static(module)
        self.changes = Changes()
        self.weights = SpareWeights() if options.release_weights else None
        self._also_held: list[Holder] = []
        self._needed = {memory_of(value) for value in theirs}
        self._awaits_release = options.release_weights
        self._lanes: dict[int, ThreadState] = {}
        self._settled = False
        for engine in self.engines:
            engine.changes, engine.weights = self.changes, self.weights

    def __call__(self, inputs: Sequence[Any]) -> Sequence[Any]:
        if torch._C._is_any_autocast_enabled():  # the graph has the casts of when it was captured
            with torch._C._DisableAutocast():
                return self._called(inputs)
        return self._called(inputs)

    def _called(self, inputs: Sequence[Any]) -> Sequence[Any]:
        lane = self.lane
        with lane.lock:
            results = lane(inputs)
        if self._awaits_release and self.is_settled and not is_capturing(inputs):
            self._release_weights()
        return self._written_back(results, inputs)

    def in_pytorch(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """The same without engines, operator by operator."""
        with torch._C._DisableAutocast():
            results = _WithoutEngines(self.module).run(*inputs)
        return self._written_back(results, inputs)

    def _written_back(self, results: Sequence[Any], inputs: Sequence[Any]) -> Sequence[Any]:
        if self.mutations:
            for value, position in zip(results[self.outputs :], self.mutations, strict=True):
                inputs[position].copy_(value)
        return results[: self.outputs]

    @property
    def lane(self) -> ThreadState:
        """That of this thread."""
        slot = current_slot()
        lane = self._lanes.get(slot)
        return self._lanes.setdefault(slot, ThreadState(self)) if lane is None else lane

    @property
    def is_building(self) -> bool:
        """Whether engines are still being built, and calls are not to wait for them."""
        return self.options.build == "background" and not all(engine.is_built() for engine in self.engines)

    @property
    def is_settled(self) -> bool:
        """Whether every engine has been tried, so that a recording would hold what stays."""
        self._settled = self._settled or all(part.is_settled for part in (*self.engines, *self.pieces))
        return self._settled

    def track_releasable(self, holder: Holder, needed: Iterable[torch.Tensor]) -> None:
        """Release with the engines' weights what of `holder` is no other part's, but for what is `needed`."""
        self._also_held.append(holder)
        self._needed |= {memory_of(value) for value in needed}

    def restore_weights(self) -> None:
        """Have all weights where they were before they were released."""
        if self.weights is not None:
            with self.weights.at_hand():
                pass

    def _release_weights(self) -> None:
        """Move to host memory what PyTorch holds of the subgraphs that engines serve."""
        assert self.weights is not None
        self._awaits_release = False
        served = [engine for engine in self.engines if engine.has_won]
        for engine in self.engines:
            if engine not in served:
                engine.weights = None  # its own stay, and those of others are no concern of its
        spare = buffers_of(engine.pytorch for engine in served)
        needed = [holder for holder in buffers_of([self.module]) if not any(holder is other for other in spare)]
        kept = {memory_of(value) for holder in needed for value in holder.values()}
        self.weights.release([*spare, *self._also_held], kept | self._needed)

    def give_up_graphs(self, why: str) -> None:
        self.graphs = False
        self.changes.count += 1
        message = f"no CUDA graph ({why}); engines are enqueued call by call"
        self.report.note(message)
        warn_once(f"{message}.")


class ThreadState:
    """What one thread at a time may use: the stream it works on, and recordings by shape."""

    def __init__(self, execution: Execution) -> None:
        self.lock = threading.RLock()
        self.execution = execution
        self._stream: torch.cuda.Stream | None = None
        self._handle: int | None = None
        self._shapes: OrderedDict[Any, CudaGraphCache] = OrderedDict()
        self._changes = execution.changes.count
        renewed_in_children(self)

    def after_fork(self) -> None:
        self.lock = threading.RLock()
        self._stream = None

    def __call__(self, inputs: Sequence[Any]) -> Sequence[Any]:
        execution = self.execution
        if self._changes != execution.changes.count and not is_capturing(inputs):
            self._changes = execution.changes.count
            self._shapes.clear()  # they hold an engine that was let go, or are no longer wanted
        if execution.device is not None:
            self._follow_stream(execution.device)
            if execution.graphs and execution.is_settled and not torch.cuda.is_current_stream_capturing():
                return self._recordings(inputs)(inputs)
        results: Sequence[Any] = execution.module.forward(*inputs)
        return results

    def _follow_stream(self, device: torch.device) -> None:
        """Let the caller's stream wait for what this lane's buffers and contexts still do on another one."""
        if self._stream is None:
            torch.cuda.init()  # raises in a forked child, and says what to do
        handle = torch._C._cuda_getCurrentRawStream(device.index)  # a stream as an object takes 7 us of each call
        if handle != self._handle:
            stream = torch.cuda.current_stream(device)
            if self._stream is not None and not torch.cuda.is_current_stream_capturing():
                stream.wait_stream(self._stream)
            self._stream, self._handle = stream, handle

    def _recordings(self, inputs: Sequence[Any]) -> CudaGraphCache:
        if self.execution.is_static:
            key = None
        else:
            key = tuple(value.shape if isinstance(value, torch.Tensor) else value for value in inputs)
        found = self._shapes.get(key)
        if found is None:
            found = self._shapes[key] = CudaGraphCache(self.execution)
            if len(self._shapes) > MAX_SHAPES:
                self._shapes.popitem(last=False)
        elif key is not None:
            self._shapes.move_to_end(key)
        return found

    def replays(self) -> list[CudaGraphCall]:
        """The recordings whose results are lent, for who measures them."""
        return [found.lent for found in self._shapes.values() if found.lent is not None]


class CudaGraphCache:
    """The recordings of one shape: one lends its outputs while they are free, the other's are copied.

    They read an input where it lies if it has lain there in each call so far, as what a model changes does, or a
    buffer that the caller fills anew; once it lies elsewhere, they are made again, and copy it.
    """

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self.calls = 0
        self._places: dict[int, Any] | None = None
        self.lent: CudaGraphCall | None = None
        self.copied: CudaGraphCall | None = None

    def __call__(self, inputs: Sequence[Any]) -> Sequence[Any]:
        execution = self.execution
        lent = self.lent
        if lent is None or not lent.serves(inputs):
            self.lent = self.copied = None
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
        self._places = _stayed(self._places, inputs)
        if self.calls > CALLS_BEFORE_RECORDING[self.execution.is_static]:
            recording = self._record(inputs)
            if recording is not None and self._agrees(recording, inputs, results):
                self.lent = recording
        return results

    def _record(self, inputs: Sequence[Any]) -> CudaGraphCall | None:
        try:
            with torch.cuda.device(self.execution.device):
                recording = CudaGraphCall(self.execution.module.forward, inputs, in_place=self._places or ())
            recording.kept = [engine.runner for engine in self.execution.engines]
        except (RuntimeError, BridgeError) as error:
            self.execution.give_up_graphs(f"capture failed: {error}")
            return None
        if recording.returns_inputs:
            self.execution.give_up_graphs("a result is an input, or a view of one")
            return None
        return recording

    def _agrees(self, recording: CudaGraphCall, inputs: Sequence[Any], expected: Sequence[Any]) -> bool:
        """Whether a replay gives what the plain call gave: a graph leaves out what does not run on the GPU."""
        recording(inputs)
        comparison = difference(_tensors(recording.outputs), _tensors(expected), REPLAY_BOUND)
        if comparison.problem is not None:
            self.execution.give_up_graphs(f"a replay differs: {comparison.problem}")
        return comparison.problem is None


class _WithoutEngines(fx.Interpreter):
    """Runs a graph in PyTorch throughout."""

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        part = self.fetch_attr(target)
        return part.in_pytorch(args) if isinstance(part, (EngineModule, TorchSubgraph)) else part(*args, **kwargs)


def _stayed(places: dict[int, Any] | None, inputs: Sequence[Any]) -> dict[int, Any]:
    """Of the tensors that lie where `places` says, where they do; of all in the first call."""
    now = {i: place_of(value) for i, value in enumerate(inputs) if isinstance(value, torch.Tensor)}
    return now if places is None else {i: place for i, place in now.items() if places.get(i) == place}


def _tensors(values: Sequence[Any]) -> list[torch.Tensor]:
    return [value for value in values if isinstance(value, torch.Tensor)]


def _is_static(module: fx.GraphModule) -> bool:
    """Whether every input is a tensor of known sizes."""
    values = [node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"]
    return all(isinstance(v, torch.Tensor) and all(isinstance(size, int) for size in v.shape) for v in values)
