"""Runners of engines: TensorRT on the GPU and the reference interpreter, and errors that say memory was short."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from torchtrt_bridge.errors import EngineLoadError, ShapeRangeError
from torchtrt_bridge.lower.network import Network
from torchtrt_bridge.reference import NetworkInterpreter
from torchtrt_bridge.runtime.call_context import on_device, thread_number
from torchtrt_bridge.runtime.launch_order import OrderedQueue, may_overlap, order_captured_kernels
from torchtrt_bridge.trt.dtypes import torch_dtype_from_trt
from torchtrt_bridge.trt.error_log import ErrorLog
from torchtrt_bridge.trt.library import TensorRTLibrary

# What TensorRT asks of the address of an input, in bytes; PyTorch's allocator gives more, but a slice starts anywhere.
ALIGNMENT = 256

# Contexts are created by one thread at a time.
_one_at_a_time = threading.Lock()

# How PyTorch's allocators and TensorRT say that there was too little memory, without spaces.
_OUT_OF_MEMORY = ("outofmemory", "allocatememory", "couldnotbeallocated")


class Runner(Protocol):
    """Something that computes an engine: TensorRT on a GPU, or the reference interpreter.

    It may write caches of keys and values in place, and return them (see graph/kv_cache.py).
    """

    device: torch.device

    def __call__(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]: ...


@dataclasses.dataclass(frozen=True)
class NoEngine:
    """Stands for an engine that could not be built or loaded, with the reason."""

    reason: str


# The result of a build; None where the engine is built for other machines only.
Built = Runner | NoEngine | None


class ReferenceRunner:
    """A network that was lowered but never built, computed by the reference interpreter on CPU tensors."""

    device = torch.device("cpu")

    def __init__(self, network: Network, library: TensorRTLibrary) -> None:
        self._interpreter = NetworkInterpreter(library.trt, network.definition, network.constants)

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return self._interpreter(*inputs)


class GpuRunner:
    """A deserialized engine, with an execution context for each thread number.

    kernels: TensorRT-RTX's compiled kernels from an earlier run; `on_kernels` is called with those of this one.
    overlap: let kernels begin before those they depend on have ended (see launch_order.py).
    Raises EngineLoadError, with TensorRT's own words, where this GPU or TensorRT cannot take the engine.
    """

    def __init__(
        self,
        plan: bytes,
        library: TensorRTLibrary,
        kernels: bytes | None = None,
        on_kernels: Callable[[bytes], None] | None = None,
        overlap: bool = False,
    ) -> None:
        self._sessions: dict[int, Session] = {}
        self._spare: Session | None = None
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._library = library
        self._log = library.new_log()
        self._runtime = library.new_runtime(self._log)
        self._engine = self._made(lambda: self._runtime.deserialize_cuda_engine(plan))
        if self._engine is None:
            raise EngineLoadError(f"{library} does not load the engine here: {self.errors}")
        trt = library.trt
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = [n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        dtypes = {n: torch_dtype_from_trt(self._engine.get_tensor_dtype(n)) for n in names}
        self._context_config, self._kernel_cache = library.context_config(self._engine, kernels)
        has_scratch = library.wants_scratch(self._context_config)
        outputs = [n for n in names if n not in inputs]
        is_ordered = may_overlap(self.device) and not overlap
        aliased = {name: self._engine.get_aliased_input_tensor(name) for name in outputs}
        in_place = {name: inputs.index(other) for name, other in aliased.items() if other}
        self._io = EngineIO(inputs, outputs, dtypes, in_place, self.device, has_scratch, is_ordered, self._log)
        self._on_kernels = on_kernels

    def __del__(self) -> None:
        """Contexts go first, as they use all the rest."""
        self._sessions.clear()
        self._spare = None

    def prepare(self) -> None:
        """Make what the first call will need, which compiles kernels and takes seconds."""
        session = self._new_session()
        with _one_at_a_time:
            self._spare = session

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Queue one run on the current stream of the engine's GPU."""
        if torch.cuda.current_device() != self.device.index:
            with torch.cuda.device(self.device):
                return self._run(inputs)
        return self._run(inputs)

    def _run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        thread = thread_number()
        session = self._sessions.get(thread)
        if session is None:
            session = self._sessions[thread] = self._new_session()
        results = session.enqueue([_as_tensorrt_takes(value) for value in inputs])
        if self._on_kernels is not None:
            self._keep_kernels()
        return results

    def plan(self) -> bytes:
        """Return the bytes of the engine, as TensorRT gives them back."""
        return bytes(self._engine.serialize())

    def time_layers(self, inputs: Sequence[torch.Tensor], runs: int) -> list[list[tuple[str, float]]]:
        """Return the layers of each of so many runs, in order, with their milliseconds by TensorRT's profiler.

        They run in an execution context of their own, as no CUDA graph can hold a call with a profiler. So kernels are
        not kept in order by one either (see launch_order.py), and the results are not to be used.
        """
        found: list[list[tuple[str, float]]] = []
        profiler = self._library.profiler(lambda name, milliseconds: found[-1].append((name, milliseconds)))
        with on_device(self.device):
            context = self._new_context()
            context.profiler = profiler
            session = Session(dataclasses.replace(self._io, is_ordered=False), context, self._library)
            for _ in range(runs):
                found.append([])
                session.enqueue(inputs)
        return found

    @property
    def errors(self) -> str:
        """Return TensorRT's last messages."""
        return _last_of(self._log)

    def _made(self, make: Callable[[], Any]) -> Any:
        """Return what `make` makes. Where TensorRT lacks memory, PyTorch's allocator first empties its cache."""
        made = make()
        if made is None and says_out_of_memory(self.errors):
            self._log.clear()
            torch.cuda.empty_cache()
            made = make()
        return made

    def _new_session(self) -> Session:
        with _one_at_a_time:
            if self._spare is not None:
                spare, self._spare = self._spare, None
                return spare
        return Session(self._io, self._new_context(), self._library)

    def _new_context(self) -> Any:
        with _one_at_a_time:
            context = self._made(lambda: self._engine.create_execution_context(runtime_config=self._context_config))
        if context is None:
            raise EngineLoadError(f"TensorRT gives no execution context: {self.errors}")
        return context

    def _keep_kernels(self) -> None:
        """After the first call, hand over the kernels that TensorRT-RTX compiled for it."""
        report, self._on_kernels = self._on_kernels, None
        if report is not None and self._kernel_cache is not None:
            report(bytes(self._kernel_cache.serialize()))


@dataclasses.dataclass(frozen=True)
class EngineIO:
    """Metadata shared by all execution contexts of an engine.

    Holds no reference to the runner, so that dropping the runner frees the engine at once.
    in_place: for each output that is written in the memory of an input, the index of that input.
    has_scratch: scratch memory is given to a context for each run.
    is_ordered: kernels are kept from beginning before those they depend on have ended.
    """

    inputs: list[str]
    outputs: list[str]
    dtypes: dict[str, torch.dtype]
    in_place: dict[str, int]
    device: torch.device
    has_scratch: bool
    is_ordered: bool
    log: ErrorLog


class TemporaryMemory:
    """Memory that TensorRT asks for within a run, from PyTorch's allocator.

    By itself TensorRT lets CUDA allocate it. A CUDA graph with such allocations cannot be changed, so that its kernels
    would stay as they are ordered (see launch_order.py).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._taken: list[torch.Tensor] = []

    def take(self, size: int) -> int:
        """Return the address of so many bytes, which are kept until `clear`."""
        self._taken.append(torch.empty(size, dtype=torch.uint8, device=self.device))
        return self._taken[-1].data_ptr()

    def clear(self) -> None:
        """Give the memory back, once the run is queued: what follows on this stream may have it."""
        self._taken.clear()


class Session:
    """An execution context with the shapes and addresses that are set in it; one thread uses it at a time."""

    def __init__(self, io: EngineIO, context: Any, library: TensorRTLibrary) -> None:
        self.io = io
        self.context = context
        self._temporary = TemporaryMemory(io.device)
        context.temporary_allocator = self._allocator = library.allocator(self._temporary.take)
        self._shapes: tuple[torch.Size, ...] | None = None
        self._output_shapes: list[tuple[int, ...]] = []
        self._scratch_bytes = 0
        self._addresses: dict[str, int] = {}
        self._ordered = OrderedQueue(io.device) if io.is_ordered else None
        self._has_run = False

    def enqueue(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Queue one run on the current stream; sizes and addresses are set where they differ from the last run's."""
        io = self.io
        shapes = tuple(value.shape for value in inputs)
        if shapes != self._shapes:
            self._set_shapes(shapes)
        outputs = [
            inputs[io.in_place[name]]
            if name in io.in_place
            else torch.empty(shape, dtype=io.dtypes[name], device=io.device)
            for name, shape in zip(io.outputs, self._output_shapes, strict=True)
        ]
        for name, value in zip((*io.inputs, *io.outputs), (*inputs, *outputs), strict=True):
            address = value.data_ptr()
            if self._addresses.get(name) != address:
                self.context.set_tensor_address(name, address)
                self._addresses[name] = address
        if self._scratch_bytes:
            # Given back as soon as the run is queued: what follows on this stream, another engine too, may have it.
            scratch = torch.empty(self._scratch_bytes, dtype=torch.uint8, device=io.device)
            self.context.set_device_memory(scratch.data_ptr(), self._scratch_bytes)
        if not self._queue(torch.cuda.current_stream(io.device).cuda_stream):
            raise EngineLoadError(f"TensorRT could not run the engine: {_last_of(io.log)}")
        self._temporary.clear()
        return outputs

    def _queue(self, stream: int) -> bool:
        """Queue the kernels; return whether TensorRT could."""
        execute: Callable[[int], bool] = self.context.execute_async_v3
        if self._ordered is None:
            return execute(stream)
        if torch.cuda.is_current_stream_capturing():
            queued = execute(stream)
            order_captured_kernels(stream)
            return queued
        if not self._has_run:  # the first run of a shape may load kernels, which no capture allows
            self._has_run = execute(stream)
            if not self._has_run:
                return False
        return self._ordered(execute)

    def _set_shapes(self, shapes: tuple[torch.Size, ...]) -> None:
        for name, shape in zip(self.io.inputs, shapes, strict=True):
            if not self.context.set_input_shape(name, tuple(shape)):
                self._shapes = None
                raise ShapeRangeError(f"The engine takes no {name} of shape {tuple(shape)}: {_last_of(self.io.log)}")
        self._output_shapes = [tuple(self.context.get_tensor_shape(name)) for name in self.io.outputs]
        if self.io.has_scratch:
            self._scratch_bytes = max(int(self.context.update_device_memory_size_for_shapes()), 1)
        self._shapes = shapes
        self._has_run = False


def _as_tensorrt_takes(value: torch.Tensor) -> torch.Tensor:
    """Return the same values, contiguous, at an address that TensorRT takes, and with the signs in memory."""
    value = value.resolve_neg().contiguous()
    return value if value.data_ptr() % ALIGNMENT == 0 else value.clone()


def _last_of(log: ErrorLog) -> str:
    return "; ".join(log.errors[-3:]) or "TensorRT gave no reason"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of PyTorch's or of TensorRT's says that there was too little memory."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or says_out_of_memory(str(error))


def says_out_of_memory(text: str) -> bool:
    """Return whether a message says that there was too little memory."""
    dense = "".join(text.lower().split())
    return any(word in dense for word in _OUT_OF_MEMORY)
