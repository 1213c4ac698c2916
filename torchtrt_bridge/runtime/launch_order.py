"""The order of an engine's kernels: each begins when those it depends on have ended.

TensorRT-RTX queues the kernels of an engine by programmatic dependent launch: the GPU may begin one before the kernel
whose results it reads has ended. On an H100 with TensorRT-RTX 1.6.1 its kernels do not wait as that asks of them.
Results then differ from call to call, by up to 1e-1: every replay of ResNet-50 in fp32, one replay in thirty of an
fp16 network with parallel branches. With each such dependency made a full one, 40,000 replays of four such networks,
beside processes that kept the GPU busy, were equal bit by bit. The price there was 3 to 17 % of a replay.

A GPU of compute capability 8.x has no such launches.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

# The first compute capability whose kernels may overlap so.
FIRST_CAPABILITY = (9, 0)

# CUDA graphs are captured by one thread at a time.
capture_lock = threading.Lock()

_EDGE_BYTES = 8  # CUgraphEdgeData: two ports, the type of the edge, and five reserved bytes; all zero for a full one
_CAPTURING = 1


def may_overlap(device: torch.device) -> bool:
    """Return whether kernels on this GPU can begin before those they depend on have ended."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FIRST_CAPABILITY


def order_captured_kernels(stream: int) -> int:
    """Make every programmatic dependency of the CUDA graph that `stream` is captured into a full one.

    stream: the handle of a stream that is being captured. Returns the number of dependencies that changed.
    Raises RuntimeError with the number of CUDA's error.
    """
    graph = _captured_graph(stream)
    sources, targets, kinds = _edges(graph)
    found = [i for i in range(len(sources)) if any(kinds[i * _EDGE_BYTES : (i + 1) * _EDGE_BYTES])]
    if found:
        begins = (ctypes.c_void_p * len(found))(*(sources[i] for i in found))
        ends = (ctypes.c_void_p * len(found))(*(targets[i] for i in found))
        data = (ctypes.c_ubyte * (len(found) * _EDGE_BYTES))(
            *(kinds[i * _EDGE_BYTES + byte] for i in found for byte in range(_EDGE_BYTES))
        )
        count = ctypes.c_size_t(len(found))
        _call("cuGraphRemoveDependencies_v2", graph, begins, ends, data, count)
        _call("cuGraphAddDependencies_v2", graph, begins, ends, None, count)
    return len(found)


@contextlib.contextmanager
def unbroken(stream: torch.cuda.Stream) -> Iterator[None]:
    """Let PyTorch's random numbers go on after a capture on `stream` that fails within.

    Its generator counts as captured until a capture has ended well: each random number on the GPU would raise.
    """
    try:
        yield
    except RuntimeError:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            torch.zeros(1, device=stream.device)
            graph.capture_end()
        raise


class OrderedQueue:
    """Queue for kernels outside a capture, in order: they are captured into a CUDA graph first, which is then launched.

    That takes the host some 0.3 ms more than to queue them directly. Calls that come again are replayed from a CUDA
    graph anyway.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._last: torch.cuda.CUDAGraph | None = None

    def __call__(self, queue: Callable[[int], bool]) -> bool:
        """Launch on the current stream what `queue` puts on the stream whose handle it is given.

        queue: returns whether it succeeded. Memory that it takes from PyTorch's allocator is of the captured graph, and
            free once it returns: the next launch, on this stream, may have it. Returns the same; nothing runs if it
            failed.
        """
        graph = torch.cuda.CUDAGraph()
        with capture_lock, unbroken(self._stream), torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                queued = queue(self._stream.cuda_stream)
                if queued:
                    order_captured_kernels(self._stream.cuda_stream)
            finally:
                graph.capture_end()
        if queued:
            graph.replay()
            self._last = graph  # lives until the next launch
        return queued


def _captured_graph(stream: int) -> ctypes.c_void_p:
    status, identity = ctypes.c_int(), ctypes.c_ulonglong()
    graph, dependencies, edges, count = (ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_size_t())
    pointers = [ctypes.byref(value) for value in (status, identity, graph, dependencies, edges, count)]
    _call("cuStreamGetCaptureInfo_v3", ctypes.c_void_p(stream), *pointers)
    if status.value != _CAPTURING:
        raise RuntimeError(f"The stream is not being captured into a CUDA graph (status {status.value}).")
    return graph


def _edges(graph: ctypes.c_void_p) -> tuple[Any, Any, Any]:
    """Return the nodes where the edges of a graph begin, those where they end, and the bytes of their kinds."""
    count = ctypes.c_size_t()
    _call("cuGraphGetEdges_v2", graph, None, None, None, ctypes.byref(count))
    sources, targets = (ctypes.c_void_p * count.value)(), (ctypes.c_void_p * count.value)()
    kinds = (ctypes.c_ubyte * (count.value * _EDGE_BYTES))()
    if count.value:
        _call("cuGraphGetEdges_v2", graph, sources, targets, kinds, ctypes.byref(count))
    return sources, targets, kinds


def _call(name: str, *arguments: Any) -> None:
    error = getattr(_driver(), name)(*arguments)
    if error:
        raise RuntimeError(f"CUDA's {name} failed with error {error}.")


@functools.cache
def _driver() -> ctypes.CDLL:
    """Return the library of the CUDA driver; these functions are there since CUDA 12.3."""
    return ctypes.CDLL("nvcuda.dll" if hasattr(ctypes, "windll") else "libcuda.so.1")
