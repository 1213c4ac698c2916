"""Run an engine on the GPU: the caller's stream, a context per thread, a CUDA graph where shapes are static."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from torchtrt_bridge.compile_report import tell_once
from torchtrt_bridge.engine.flavour import Flavour
from torchtrt_bridge.errors import EngineLoadError
from torchtrt_bridge.lower.dtypes import torch_dtype_from_trt

# Runs before an engine is trusted: the first two are enqueued call by call, the others replay a CUDA graph.
REHEARSALS = 8
PLAIN_RUNS = 2

# Contexts are created and graphs captured by one thread at a time.
_one_at_a_time = threading.Lock()


class GpuRunner:
    """A deserialized engine.

    kernels: TensorRT-RTX's compiled kernels from an earlier run; `on_kernels` is called with those of this one.
    Raises EngineLoadError, with TensorRT's own words, where this GPU or TensorRT cannot take the engine.
    """

    def __init__(
        self,
        plan: bytes,
        flavour: Flavour,
        cuda_graphs: bool = True,
        kernels: bytes | None = None,
        on_kernels: Callable[[bytes], None] | None = None,
    ) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._log = flavour.new_log()
        self._runtime = flavour.trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineLoadError(
                f"{flavour} does not load the engine here: {'; '.join(self._log.errors) or 'no reason given'}"
            )
        trt = flavour.trt
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self.inputs = [n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self.outputs = [n for n in names if n not in self.inputs]
        self.dtypes = {n: torch_dtype_from_trt(self._engine.get_tensor_dtype(n)) for n in names}
        self.is_static = all(-1 not in tuple(self._engine.get_tensor_shape(n)) for n in names)
        self._cuda_graphs = cuda_graphs
        self._context_config, self._kernel_cache = flavour.context_config(self._engine, kernels)
        self._on_kernels = on_kernels
        self._local = threading.local()

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        session = getattr(self._local, "session", None)
        if session is None:
            with _one_at_a_time:
                session = self._local.session = self._new_session()
        result: list[torch.Tensor] = session(inputs)
        if self._on_kernels is not None:
            self._keep_kernels()
        return result

    def rehearse(self, inputs: Sequence[torch.Tensor]) -> list[Sequence[torch.Tensor]]:
        """Several runs, queued one behind the other, call by call and from the CUDA graph.

        TensorRT-RTX 1.6 was seen to give other results from one run to the next on an H100: fp32 convolutions of
        ResNet-50 went from an error of 5e-4 to 1e-1 at the second call, or at the first replay.
        """
        return [self(inputs) for _ in range(REHEARSALS)]

    def _new_session(self) -> Session:
        context = self._engine.create_execution_context(runtime_config=self._context_config)
        if context is None:
            raise EngineLoadError(
                f"TensorRT gives no execution context: {'; '.join(self._log.errors) or 'no reason given'}"
            )
        return Session(self, context)

    def _keep_kernels(self) -> None:
        """After the first call, hand over the kernels that TensorRT-RTX compiled for it."""
        report, self._on_kernels = self._on_kernels, None
        if report is not None and self._kernel_cache is not None:
            report(bytes(self._kernel_cache.serialize()))

    @property
    def wants_graph(self) -> bool:
        return self._cuda_graphs and self.is_static

    def give_up_graphs(self, why: str) -> None:
        self._cuda_graphs = False
        tell_once(f"a CUDA graph could not be captured ({why}); the engine is enqueued call by call.")


class Session:
    """One thread's execution context, with the addresses that it is bound to."""

    def __init__(self, runner: GpuRunner, context: Any) -> None:
        self.runner = runner
        self.context = context
        self.plain_runs = 0
        self.graph: Graph | None = None
        self.stream: torch.cuda.Stream | None = None

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        inputs = [value.contiguous() for value in inputs]
        stream = torch.cuda.current_stream(self.runner.device)
        if stream != self.stream:
            self._move_to(stream)
        if not self.runner.wants_graph or torch.cuda.is_current_stream_capturing():
            return self.enqueue(inputs)
        if self.graph is None and self.plain_runs >= PLAIN_RUNS:
            self._capture(inputs)
        if self.graph is not None:
            return self.graph(inputs)
        self.plain_runs += 1
        return self.enqueue(inputs)

    def _move_to(self, stream: torch.cuda.Stream) -> None:
        """Let `stream` wait for what this context and its buffers still do on another one."""
        if self.stream is not None:
            stream.wait_stream(self.stream)
        self.stream = stream

    def _capture(self, inputs: Sequence[torch.Tensor]) -> None:
        try:
            with _one_at_a_time:
                self.graph = Graph(self, inputs)
        except RuntimeError as error:
            self.runner.give_up_graphs(str(error))

    def enqueue(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Queue one run on the current stream."""
        device = self.runner.device
        for name, value in zip(self.runner.inputs, inputs, strict=True):
            self.context.set_input_shape(name, tuple(value.shape))
            self.context.set_tensor_address(name, value.data_ptr())
        outputs = []
        for name in self.runner.outputs:
            shape = tuple(self.context.get_tensor_shape(name))
            output = torch.empty(shape, dtype=self.runner.dtypes[name], device=device)
            self.context.set_tensor_address(name, output.data_ptr())
            outputs.append(output)
        if not self.context.execute_async_v3(torch.cuda.current_stream(device).cuda_stream):
            raise EngineLoadError(f"TensorRT could not run the engine: {'; '.join(self.runner._log.errors[-3:])}")
        return outputs


class Graph:
    """A CUDA graph of one run, between buffers of its own; its results are copies, the caller's to keep."""

    def __init__(self, session: Session, inputs: Sequence[torch.Tensor]) -> None:
        self.inputs = [value.clone() for value in inputs]
        self.graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.outputs = session.enqueue(self.inputs)

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        for buffer, value in zip(self.inputs, inputs, strict=True):
            buffer.copy_(value)
        self.graph.replay()
        return [output.clone() for output in self.outputs]
