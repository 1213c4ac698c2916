"""A compiled graph at work: whole calls replayed from CUDA graphs, on the caller's stream, from any thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from torchtrt_bridge.errors import EngineLoadError
from torchtrt_bridge.graph.nodes import graph_of
from torchtrt_bridge.graph.torch_internals import (
    autocast_disabled,
    current_raw_stream,
    is_any_autocast_enabled,
    is_operator,
)
from torchtrt_bridge.options import Options
from torchtrt_bridge.report.log import warn_once
from torchtrt_bridge.report.model import CompileReport
from torchtrt_bridge.runtime.call_context import is_capturing, thread_number
from torchtrt_bridge.runtime.cuda_graph import CudaGraphCache, GraphedModule
from torchtrt_bridge.runtime.engine_module import EngineModule, Generation
from torchtrt_bridge.runtime.result_views import take_result_views
from torchtrt_bridge.runtime.static_engines import FrequentSizes
from torchtrt_bridge.runtime.torch_subgraph import TorchSubgraph
from torchtrt_bridge.runtime.trial import TriedModule
from torchtrt_bridge.runtime.weights import Holder, SpareWeights, buffers_of, movable_memory_of
from torchtrt_bridge.runtime.write_back import append_write_back


class Execution:
    """A callable that takes the inputs of a captured graph, returns its results, and writes back what it mutates.

    module: the graph with its engines; outputs, mutations: as in `CapturedGraph`.
    user_tensors: tensors of the user's model, which are not released.
    Results are the caller's to keep, unless the option `reuse_outputs` lets the next call overwrite them.
    Raises EngineLoadError in a process that was forked after it was made.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        outputs: int,
        mutations: Sequence[int],
        options: Options,
        report: CompileReport,
        user_tensors: Iterable[torch.Tensor] = (),
    ) -> None:
        self.module = module
        self.mutations = tuple(mutations)
        self._views, outputs = take_result_views(module, outputs, mutations)
        append_write_back(module, outputs, mutations)
        self.options = options
        self.report = report
        self.engines = [m for m in module.modules() if isinstance(m, EngineModule)]
        self.torch_subgraphs = [m for m in module.modules() if isinstance(m, TorchSubgraph)]
        self.devices = sorted({e.device for e in self.engines if e.device.type == "cuda"}, key=str)
        has_one_gpu = len(self.devices) == 1  # a graph is of one GPU
        self.uses_graphs = options.cuda_graphs == "auto" and has_one_gpu and not _depends_on_values(module)
        self.generation = Generation()
        device = self.devices[0] if self.devices else None
        self.graphed = GraphedModule(
            module,
            device,
            _is_static(module),
            options.reuse_outputs,
            self._runners,
            self.give_up_graphs,
            self.mutations,
        )
        self.weights = SpareWeights() if options.release_weights else None
        self._releasable: list[Holder] = []
        self._needed = {movable_memory_of(value) for value in user_tensors}
        self._awaits_release = options.release_weights
        self._threads: dict[int, ThreadState] = {}
        self._process = os.getpid()
        self._is_settled = False
        for engine in self.engines:
            engine.generation, engine.weights = self.generation, self.weights
        is_specialized = any(engine.static_engines is not None for engine in self.engines)
        self.frequent_sizes = FrequentSizes(module, options.static_engines) if is_specialized else None

    def __call__(self, inputs: Sequence[Any]) -> Sequence[Any]:
        if is_any_autocast_enabled():  # the graph has the casts of when it was captured
            with autocast_disabled():
                return self._call(inputs)
        return self._call(inputs)

    def _call(self, inputs: Sequence[Any]) -> Sequence[Any]:
        if self.frequent_sizes is not None and not is_capturing(inputs) and self.frequent_sizes.install():
            self.generation.count += 1  # CUDA graphs hold what computed these sizes before
        thread = self._threads.get(thread_number()) or self.thread_state
        with thread.lock:
            results = thread(inputs)
        if self._awaits_release and self.is_settled and not is_capturing(inputs):
            self._release_weights()
        return results if self._views is None else self._views(results, inputs)

    def in_pytorch(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Compute the same without engines, operator by operator."""
        self._check_process()
        with autocast_disabled():
            results: Sequence[Any] = _WithoutEngines(self.module).run(*inputs)
        return results if self._views is None else self._views(results, inputs)

    @property
    def thread_state(self) -> ThreadState:
        """The state of this thread; a forked process has none of those that its parent made."""
        number = thread_number()
        if number not in self._threads:
            self._check_process()
            self._threads.setdefault(number, ThreadState(self))
        return self._threads[number]

    def _check_process(self) -> None:
        """Raise EngineLoadError in a forked process: CUDA, locks and builds of its parent are out of reach there."""
        if os.getpid() != self._process:
            raise EngineLoadError(
                f"This model was compiled in process {self._process}, from which process {os.getpid()} was forked. "
                "Engines cannot be used in a forked process: start it with the method 'spawn' (of multiprocessing, or "
                "multiprocessing_context='spawn' of a DataLoader), or compile or load the model within it."
            )

    def _runners(self) -> list[Any]:
        statics = [engine.static_engines.runners for engine in self.engines if engine.static_engines is not None]
        return [*(engine.runner for engine in self.engines), *statics]

    def drop_engines(self, why: str) -> None:
        """Drop all engines for good, without a look at alternatives."""
        for engine in self.engines:
            engine.alternatives.clear()
            engine.drop(why)

    @property
    def is_building(self) -> bool:
        """True while engines are being built for which calls do not wait."""
        return self.options.build == "background" and not all(engine.is_built() for engine in self.engines)

    @property
    def is_settled(self) -> bool:
        """True once every trial is over, so that a CUDA graph holds the winners."""
        self._is_settled = self._is_settled or all(p.is_settled for p in (*self.engines, *self.torch_subgraphs))
        return self._is_settled

    def track_releasable(self, holder: Holder, needed: Iterable[torch.Tensor]) -> None:
        """Release the tensors of `holder` with the engines' weights, without those that others hold or need."""
        self._releasable.append(holder)
        self._needed |= {movable_memory_of(value) for value in needed}

    def restore_weights(self) -> None:
        """Bring all weights back to where they were before they were released."""
        if self.weights is not None:
            with self.weights.loaded():
                pass

    def _release_weights(self) -> None:
        """Move the weights of the subgraphs that engines compute to host memory."""
        assert self.weights is not None
        self._awaits_release = False
        winners = [engine for engine in self.engines if engine.has_won]
        for engine in self.engines:
            if engine not in winners:
                engine.weights = None  # its own stay, and those of others are no concern of its
        spare = buffers_of(engine.pytorch for engine in winners)
        needed = [holder for holder in buffers_of([self.module]) if not any(holder is other for other in spare)]
        kept = {movable_memory_of(value) for holder in needed for value in holder.values()}
        self.weights.release([*spare, *self._releasable], kept | self._needed)

    def give_up_graphs(self, why: str) -> None:
        """Capture no more CUDA graphs, and drop those that there are."""
        self.uses_graphs = False
        self.generation.count += 1
        message = f"no CUDA graph ({why}); engines are enqueued call by call"
        self.report.note(message)
        warn_once(f"{message}.")


class ThreadState:
    """The stream and the CUDA graphs of one thread; threads that share a number take turns."""

    def __init__(self, execution: Execution) -> None:
        self.lock = threading.RLock()
        self.execution = execution
        self.graphs = CudaGraphCache(execution.graphed)
        self._streams: dict[torch.device, tuple[int, torch.cuda.Stream]] = {}
        self._generation = execution.generation.count

    def __call__(self, inputs: Sequence[Any]) -> Sequence[Any]:
        execution = self.execution
        if self._generation != execution.generation.count and not is_capturing(inputs):
            self._generation = execution.generation.count
            self.graphs.clear()  # they hold an engine that was dropped, or are no longer wanted
        for device in execution.devices:
            self._follow_stream(device)
        frequent = execution.frequent_sizes
        if frequent is not None and execution.is_settled and not is_capturing(inputs) and frequent.is_due(inputs):
            return frequent.begin(inputs)
        if execution.uses_graphs and execution.is_settled and not torch.cuda.is_current_stream_capturing():
            return self.graphs.pair_for(inputs)(inputs)
        results: Sequence[Any] = execution.module.forward(*inputs)
        return results

    def _follow_stream(self, device: torch.device) -> None:
        """Let the caller's stream wait for what this thread's buffers and contexts still do on another one."""
        handle = current_raw_stream(device.index or 0)
        last = self._streams.get(device)
        if last is None or handle != last[0]:
            stream = torch.cuda.current_stream(device)
            if last is not None and not torch.cuda.is_current_stream_capturing():
                stream.wait_stream(last[1])
            self._streams[device] = handle, stream


class _WithoutEngines(fx.Interpreter):
    """An interpreter that runs a graph in PyTorch throughout."""

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        part = self.fetch_attr(target)
        return part.in_pytorch(args) if isinstance(part, TriedModule) else part(*args, **kwargs)


def _is_static(module: fx.GraphModule) -> bool:
    """Return whether every input is a tensor of known sizes."""
    values = [node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"]
    return all(isinstance(v, torch.Tensor) and all(isinstance(size, int) for size in v.shape) for v in values)


def _depends_on_values(module: fx.GraphModule) -> bool:
    """Return whether a call reads elements on the host, or computes there: a CUDA graph would repeat what it found."""
    return any(_runs_on_the_host(node) for node in module.graph.nodes if node.op == "call_function")


def _runs_on_the_host(node: fx.Node) -> bool:
    if is_operator(node.target) and any(tag in node.target.tags for tag in _OF_THE_HOST):
        return True
    if any(map(graph_of, node.all_input_nodes)):
        return True
    values = [n.meta.get("val") for n in (node, *node.all_input_nodes) if n.op != "get_attr"]
    return any(isinstance(each, torch.Tensor) and each.device.type == "cpu" for each in pytree.tree_leaves(values))


_OF_THE_HOST = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
