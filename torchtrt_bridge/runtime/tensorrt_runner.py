"""An engine on the GPU: deserialized once, with an execution context for each slot of threads."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from torchtrt_bridge.errors import EngineLoadError, ShapeRangeError
from torchtrt_bridge.runtime.out_of_memory import tells_of_shortage
from torchtrt_bridge.runtime.thread_state import current_slot
from torchtrt_bridge.trt.dtypes import torch_dtype_from_trt
from torchtrt_bridge.trt.library import TensorRTLibrary

# What TensorRT asks of the address of an input, in bytes; PyTorch's allocator gives more, but a slice starts anywhere.
ALIGNMENT = 256

# Contexts are created by one thread at a time.
_one_at_a_time = threading.Lock()


class GpuRunner:
    """A deserialized engine.

    kernels: TensorRT-RTX's compiled kernels from an earlier run; `on_kernels` is called with those of this one.
    Raises EngineLoadError, with TensorRT's own words, where this GPU or TensorRT cannot take the engine.
    """

    def __init__(
        self,
        plan: bytes,
        library: TensorRTLibrary,
        kernels: bytes | None = None,
        on_kernels: Callable[[bytes], None] | None = None,
    ) -> None:
        self._sessions: dict[int, Session] = {}
        self._spare: Session | None = None
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._log = library.new_log()
        self._runtime = library.trt.Runtime(self._log)
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
        self._signature = Signature(inputs, outputs, dtypes, self.device, has_scratch, self._log)
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
        """Queue one run on the current stream."""
        slot = current_slot()
        session = self._sessions.get(slot)
        if session is None:
            session = self._sessions[slot] = self._new_session()
        results = session.enqueue([_as_tensorrt_takes(value) for value in inputs])
        if self._on_kernels is not None:
            self._keep_kernels()
        return results

    @property
    def errors(self) -> str:
        """What TensorRT logged of late."""
        return _last_of(self._log)

    def _made(self, make: Callable[[], Any]) -> Any:
        """What TensorRT makes. Where it lacks memory, PyTorch's allocator first gives back what it keeps for later."""
        made = make()
        if made is None and tells_of_shortage(self.errors):
            self._log.errors.clear()
            torch.cuda.empty_cache()
            made = make()
        return made

    def _new_session(self) -> Session:
        with _one_at_a_time:
            if self._spare is not None:
                spare, self._spare = self._spare, None
                return spare
            context = self._made(lambda: self._engine.create_execution_context(runtime_config=self._context_config))
        if context is None:
            raise EngineLoadError(f"TensorRT gives no execution context: {self.errors}")
        return Session(self._signature, context)

    def _keep_kernels(self) -> None:
        """After the first call, hand over the kernels that TensorRT-RTX compiled for it."""
        report, self._on_kernels = self._on_kernels, None
        if report is not None and self._kernel_cache is not None:
            report(bytes(self._kernel_cache.serialize()))


@dataclasses.dataclass(frozen=True)
class Signature:
    """What all contexts of an engine have in common; its runner is not, as an engine that is let go shall go at once.

    has_scratch: scratch memory is given to it for each run.
    """

    inputs: list[str]
    outputs: list[str]
    dtypes: dict[str, torch.dtype]
    device: torch.device
    has_scratch: bool
    log: Any


class Session:
    """An execution context, and what it is bound to; one thread uses it at a time."""

    def __init__(self, signature: Signature, context: Any) -> None:
        self.signature = signature
        self.context = context
        self._shapes: tuple[torch.Size, ...] | None = None
        self._output_shapes: list[tuple[int, ...]] = []
        self._scratch_bytes = 0
        self._addresses: dict[str, int] = {}

    def enqueue(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Queue one run on the current stream; sizes and addresses are set where they differ from the last run's."""
        signature = self.signature
        shapes = tuple(value.shape for value in inputs)
        if shapes != self._shapes:
            self._set_shapes(shapes)
        outputs = [
            torch.empty(shape, dtype=signature.dtypes[name], device=signature.device)
            for name, shape in zip(signature.outputs, self._output_shapes, strict=True)
        ]
        for name, value in zip((*signature.inputs, *signature.outputs), (*inputs, *outputs), strict=True):
            address = value.data_ptr()
            if self._addresses.get(name) != address:
                self.context.set_tensor_address(name, address)
                self._addresses[name] = address
        if self._scratch_bytes:
            # Given back as soon as the run is queued: what follows on this stream, another engine too, may have it.
            scratch = torch.empty(self._scratch_bytes, dtype=torch.uint8, device=signature.device)
            self.context.set_device_memory(scratch.data_ptr(), self._scratch_bytes)
        if not self.context.execute_async_v3(torch.cuda.current_stream(signature.device).cuda_stream):
            raise EngineLoadError(f"TensorRT could not run the engine: {_last_of(signature.log)}")
        return outputs

    def _set_shapes(self, shapes: tuple[torch.Size, ...]) -> None:
        for name, shape in zip(self.signature.inputs, shapes, strict=True):
            if not self.context.set_input_shape(name, tuple(shape)):
                self._shapes = None
                raise ShapeRangeError(
                    f"The engine takes no {name} of shape {tuple(shape)}: {_last_of(self.signature.log)}"
                )
        self._output_shapes = [tuple(self.context.get_tensor_shape(name)) for name in self.signature.outputs]
        if self.signature.has_scratch:
            self._scratch_bytes = max(int(self.context.update_device_memory_size_for_shapes()), 1)
        self._shapes = shapes


def _as_tensorrt_takes(value: torch.Tensor) -> torch.Tensor:
    """The same values, contiguous and at an address that TensorRT takes."""
    value = value.contiguous()
    return value if value.data_ptr() % ALIGNMENT == 0 else value.clone()


def _last_of(log: Any) -> str:
    """What TensorRT logged of late."""
    return "; ".join(log.errors[-3:]) or "TensorRT gave no reason"
