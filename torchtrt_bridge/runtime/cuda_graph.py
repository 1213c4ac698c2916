"""A CUDA graph of one call, whose inputs are copied to it, or read where they always lie."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch

# Graphs are captured by one thread at a time.
_one_at_a_time = threading.Lock()


class CudaGraphCall:
    """What `run` does with `inputs`, recorded once and replayed with other values of the same shapes.

    in_place: the indices of the inputs that are read where they lie; `serves` tells whether others lie there too.
    outputs: its results, which each replay overwrites.
    returns_inputs: whether an output shares memory with an input.
    kept: what must live as long as the recording, as its kernels read their memory.
    Raises RuntimeError, with CUDA's own words, for a call that cannot be recorded.
    """

    def __init__(
        self, run: Callable[..., Sequence[Any]], inputs: Sequence[Any], in_place: Collection[int] = ()
    ) -> None:
        tensors = [i for i, value in enumerate(inputs) if isinstance(value, torch.Tensor)]
        self._copied = [i for i in tensors if i not in in_place]
        self._places = {i: place_of(inputs[i]) for i in tensors if i in in_place}
        self._graph = torch.cuda.CUDAGraph()
        # Buffers made under the caller's inference mode could not be written to outside it.
        with torch.inference_mode(False), torch.no_grad(), _one_at_a_time:
            values = [value.clone() if i in self._copied else value for i, value in enumerate(inputs)]
            with _own_workspaces(), torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self.outputs = tuple(run(*values))
        self.kept: object = None
        self._buffers = [values[i] for i in self._copied]
        self._storages = _storages(self.outputs)
        self.returns_inputs = _share_memory(self._storages, [values[i] for i in tensors])
        self._unused = [_use_count(storage) for storage in self._storages]

    def replay(self) -> None:
        """Queue the recorded work on the current stream."""
        self._graph.replay()

    def __call__(self, inputs: Sequence[Any]) -> None:
        """Compute `outputs` from new inputs."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, [inputs[i] for i in self._copied])
        self._graph.replay()

    def serves(self, inputs: Sequence[Any]) -> bool:
        """Whether the inputs that it reads in place lie where they did."""
        return all(place_of(inputs[i]) == place for i, place in self._places.items())

    @property
    def is_free(self) -> bool:
        """Whether nobody holds an output, or a view of one, any more."""
        return all(map(_is_count, self._storages, self._unused))

    def lent(self) -> list[Any]:
        """The outputs, for a caller to keep: `is_free` tells when the last of them is gone."""
        return [value.detach() if isinstance(value, torch.Tensor) else value for value in self.outputs]

    def copied(self) -> list[Any]:
        """Copies of the outputs."""
        return [value.clone() if isinstance(value, torch.Tensor) else value for value in self.outputs]


@contextlib.contextmanager
def _own_workspaces() -> Iterator[None]:
    """Let cuBLAS take its workspace from the memory of the graph that is captured within.

    PyTorch keeps one workspace for the stream on which all graphs are captured. Without this, it would lie in the
    memory of the first of them: to be freed with it, or by `torch.compile(mode="reduce-overhead")`, which drops
    workspaces, while later graphs write there.
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


def place_of(value: torch.Tensor) -> tuple[int, tuple[int, ...]]:
    """Where the elements of a tensor lie."""
    return value.data_ptr(), value.stride()


def _share_memory(storages: Sequence[torch.UntypedStorage], values: Sequence[torch.Tensor]) -> bool:
    memory = {value.untyped_storage().data_ptr() for value in values}
    return any(storage.data_ptr() in memory for storage in storages)


def _storages(values: Sequence[Any]) -> list[torch.UntypedStorage]:
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    return list({t.untyped_storage()._cdata: t.untyped_storage() for t in tensors}.values())


def _use_count(storage: torch.UntypedStorage) -> int:
    return int(torch._C._storage_Use_Count(storage._cdata))


def _is_count(storage: torch.UntypedStorage, count: int) -> bool:
    return _use_count(storage) == count
