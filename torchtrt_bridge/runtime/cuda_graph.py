"""CUDA graphs of whole calls: when one is captured, which inputs it reads in place, and whose its outputs are.

A call is captured once it has come often enough. Its graph reads an input in place if that has lain at one address so
far, and copies the others. Its outputs are handed out as they are while nobody holds earlier ones, else as copies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from torchtrt_bridge.errors import BridgeError
from torchtrt_bridge.graph.memory import memory_of, place_of
from torchtrt_bridge.graph.torch_internals import clear_cublas_workspaces, copy_all, storages_of, use_count
from torchtrt_bridge.runtime.launch_order import capture_lock, unbroken
from torchtrt_bridge.runtime.tolerance import REPLAY_BOUND, compare
from torchtrt_bridge.runtime.write_back import write_back

# Calls that are made before a call is captured, by each thread after the trial. The first one warms up what allocates;
# where sizes are dynamic, a shape must come back before its graph is worth its memory.
STATIC_CALLS_BEFORE_CAPTURE = 1
DYNAMIC_CALLS_BEFORE_CAPTURE = 3

# Shapes per thread that keep their graphs.
MOST_SHAPES = 8


class CudaGraphCall:
    """The work of `run` on `inputs`, captured once and replayed with other values of the same shapes.

    in_place: the indices of the inputs that are read where they lie; `accepts` says whether others lie there too.
    written: the indices of the inputs that `run` writes to.
    outputs: its results, which each replay overwrites.
    returns_inputs: whether an output shares memory with an input.
    resources: objects that live as long as the graph, as its kernels read their memory.
    It is of the current GPU, which must be that of all tensors.
    Raises RuntimeError, with CUDA's own words, for a call that cannot be captured.
    """

    def __init__(
        self,
        run: Callable[..., Sequence[Any]],
        inputs: Sequence[Any],
        in_place: Collection[int] = (),
        written: Collection[int] = (),
    ) -> None:
        tensors = [i for i, value in enumerate(inputs) if isinstance(value, torch.Tensor)]
        in_place = [i for i in in_place if i not in written or not inputs[i].is_inference()]  # no writes while captured
        self._copied = [i for i in tensors if i not in in_place]
        self._written_copies = [i for i in self._copied if i in written]
        self._places = {i: place_of(inputs[i]) for i in tensors if i in in_place}
        self._graph = torch.cuda.CUDAGraph()
        # Buffers made under the caller's inference mode could not be written to outside it.
        with torch.inference_mode(False), torch.no_grad(), capture_lock:
            values = [value.clone() if i in self._copied else value for i, value in enumerate(inputs)]
            with _own_workspaces(), capturing(self._graph):
                self.outputs = tuple(run(*values))
        self.resources: object = None
        self._buffers = [values[i] for i in self._copied]
        self._new_values = [values[i] for i in self._written_copies]
        self._storages = storages_of(tensors_of(self.outputs))
        self.returns_inputs = _share_memory(self._storages, [values[i] for i in tensors])
        self._unused = [use_count(storage) for storage in self._storages]

    def replay(self) -> None:
        """Queue the captured work on the current stream."""
        self._graph.replay()

    def __call__(self, inputs: Sequence[Any]) -> None:
        """Compute `outputs` from new inputs."""
        if self._buffers:
            copy_all(self._buffers, [inputs[i] for i in self._copied])
        self._graph.replay()
        write_back([inputs[i] for i in self._written_copies], self._new_values)

    def accepts(self, inputs: Sequence[Any]) -> bool:
        """Return whether the inputs that it reads in place lie where they did."""
        return all(place_of(inputs[i]) == place for i, place in self._places.items())

    @property
    def is_free(self) -> bool:
        """True if nobody holds an output, or a view of one, any more."""
        return all(map(_is_count, self._storages, self._unused))

    def aliased_outputs(self) -> list[Any]:
        """Return the outputs themselves, for a caller to keep: `is_free` says when the last of them is gone."""
        return [value.detach() if isinstance(value, torch.Tensor) else value for value in self.outputs]

    def copied_outputs(self) -> list[Any]:
        """Return copies of the outputs."""
        return [value.clone() if isinstance(value, torch.Tensor) else value for value in self.outputs]


@dataclasses.dataclass(frozen=True)
class GraphedModule:
    """A module whose calls become CUDA graphs.

    is_static: whether every input is a tensor of known sizes, so that all calls have one shape.
    reuse_outputs: whether each call may overwrite the results of the last one.
    resources: returns what a graph's kernels read the memory of.
    give_up: called with the reason where no graph can be captured.
    written: the indices of the inputs that the module writes to.
    """

    module: nn.Module
    device: torch.device | None
    is_static: bool
    reuse_outputs: bool
    resources: Callable[[], object]
    give_up: Callable[[str], None]
    written: tuple[int, ...] = ()


class CudaGraphCache:
    """The CUDA graphs of one thread, by the shapes of the inputs; those used last are kept."""

    def __init__(self, graphed: GraphedModule) -> None:
        self.graphed = graphed
        self._pairs: OrderedDict[Any, CudaGraphPair] = OrderedDict()

    def pair_for(self, inputs: Sequence[Any]) -> CudaGraphPair:
        """Return the graphs for inputs of these shapes, captured or not."""
        if self.graphed.is_static:
            key = None
        else:
            key = tuple(value.shape if isinstance(value, torch.Tensor) else value for value in inputs)
        pair = self._pairs.get(key)
        if pair is None:
            pair = self._pairs[key] = CudaGraphPair(self.graphed)
            if len(self._pairs) > MOST_SHAPES:
                self._pairs.popitem(last=False)
        elif key is not None:
            self._pairs.move_to_end(key)
        return pair

    def clear(self) -> None:
        """Drop all graphs, and with them the memory that they hold."""
        self._pairs.clear()

    def pairs(self) -> list[CudaGraphPair]:
        """Return the graphs of each shape, those used last at the end."""
        return list(self._pairs.values())

    def captured(self) -> list[CudaGraphCall]:
        """Return the graphs whose outputs are handed out as they are, for measurements."""
        return [pair.aliased for pair in self._pairs.values() if pair.aliased is not None]


class CudaGraphPair:
    """The CUDA graphs of one shape.

    aliased: the graph whose outputs are handed out as they are, while the caller holds none of its earlier outputs.
    copied: the graph whose outputs are copied for the caller, made when the caller still holds outputs of `aliased`.

    They read an input where it lies if it has lain there in each call so far, as what a model changes does, or a
    buffer that the caller fills anew; once it lies elsewhere, they are captured again, and copy it.
    """

    def __init__(self, graphed: GraphedModule) -> None:
        self.graphed = graphed
        self.calls = 0
        self._places: dict[int, Any] | None = None
        self.aliased: CudaGraphCall | None = None
        self.copied: CudaGraphCall | None = None

    def __call__(self, inputs: Sequence[Any]) -> Sequence[Any]:
        graphed = self.graphed
        aliased = self.aliased
        if aliased is None or not aliased.accepts(inputs):
            self.aliased = self.copied = None
            return self._before_capture(inputs)
        if graphed.reuse_outputs or aliased.is_free:
            aliased(inputs)
            return aliased.aliased_outputs()
        if self.copied is None:
            self.copied = self._capture(inputs)
        if self.copied is None:
            results: Sequence[Any] = graphed.module.forward(*inputs)
            return results
        self.copied(inputs)
        return self.copied.copied_outputs()

    def _before_capture(self, inputs: Sequence[Any]) -> Sequence[Any]:
        self.calls += 1
        self._places = _places_kept(self._places, inputs)
        least = STATIC_CALLS_BEFORE_CAPTURE if self.graphed.is_static else DYNAMIC_CALLS_BEFORE_CAPTURE
        before = self._written(inputs) if self.calls > least else []
        results: Sequence[Any] = self.graphed.module.forward(*inputs)
        if self.calls > least:
            graph = self._capture(inputs)
            if graph is not None and self._agrees(graph, inputs, before, results):
                self.aliased = graph
        return results

    def _written(self, inputs: Sequence[Any]) -> list[torch.Tensor]:
        """Return copies of the inputs that the module writes to."""
        return [inputs[i].clone() for i in self.graphed.written]

    def _capture(self, inputs: Sequence[Any]) -> CudaGraphCall | None:
        graphed = self.graphed
        try:
            with torch.cuda.device(graphed.device):
                graph = CudaGraphCall(graphed.module.forward, inputs, self._places or (), graphed.written)
            graph.resources = graphed.resources()
        except (RuntimeError, BridgeError) as error:
            graphed.give_up(f"capture failed: {error}")
            return None
        if graph.returns_inputs:
            graphed.give_up("a result is an input, or a view of one")
            return None
        return graph

    def _agrees(
        self, graph: CudaGraphCall, inputs: Sequence[Any], before: Sequence[torch.Tensor], results: Sequence[Any]
    ) -> bool:
        """Check that a replay gives the results of the plain call: a graph leaves out what does not run on the GPU.

        before: what the inputs that are written to held before that call.
        """
        targets, after = [inputs[i] for i in self.graphed.written], self._written(inputs)
        write_back(targets, before)
        graph(inputs)
        actual = [*tensors_of(graph.outputs), *self._written(inputs)]
        write_back(targets, after)
        comparison = compare(actual, [*tensors_of(results), *after], REPLAY_BOUND)
        if comparison.problem is not None:
            self.graphed.give_up(f"a replay differs: {comparison.problem}")
        return comparison.problem is None


@contextlib.contextmanager
def capturing(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    """Capture what is queued within on the current GPU.

    PyTorch's own stream for captures is of the GPU that was current when the first graph was captured.
    """
    stream = _capture_stream(torch.cuda.current_device())
    with unbroken(stream), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        yield


@functools.cache
def _capture_stream(gpu: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(gpu)


@contextlib.contextmanager
def _own_workspaces() -> Iterator[None]:
    """Let cuBLAS take its workspace from the memory of the graph that is captured within.

    PyTorch keeps one workspace for the stream on which all graphs are captured. Without this, it would lie in the
    memory of the first of them: to be freed with it, or by `torch.compile(mode="reduce-overhead")`, which drops
    workspaces, while later graphs write there.
    """
    clear_cublas_workspaces()
    try:
        yield
    finally:
        clear_cublas_workspaces()


def tensors_of(values: Sequence[Any]) -> list[torch.Tensor]:
    """Return the tensors among `values`."""
    return [value for value in values if isinstance(value, torch.Tensor)]


def _places_kept(places: dict[int, Any] | None, inputs: Sequence[Any]) -> dict[int, Any]:
    """Return the places of the tensors that lie where `places` says; those of all in the first call."""
    now = {i: place_of(value) for i, value in enumerate(inputs) if isinstance(value, torch.Tensor)}
    return now if places is None else {i: place for i, place in now.items() if places.get(i) == place}


def _share_memory(storages: Sequence[torch.UntypedStorage], values: Sequence[torch.Tensor]) -> bool:
    memory = set(map(memory_of, values))
    return any(storage.data_ptr() in memory for storage in storages)


def _is_count(storage: torch.UntypedStorage, count: int) -> bool:
    return use_count(storage) == count
