"""Engines that are none: a runner that computes what a test wants, by a clock, and a TensorRT without memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx

from torchtrt_bridge.graph.shapes import TensorSpec
from torchtrt_bridge.options import Options
from torchtrt_bridge.report.model import EngineEntry
from torchtrt_bridge.runtime import EngineModule
from torchtrt_bridge.runtime.engine_module import EngineInputs

SPEC = TensorSpec("x", torch.float32, ((1, 4), (3, 3)), (2, 3), ("s0", 3))
Compute = Callable[[torch.Tensor], torch.Tensor]


class Clock:
    """Stands in for `time` in the trial: only candidates let it advance."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


clock = Clock()


def slow(compute: Compute, seconds: float = 0.02) -> Compute:
    """Return `compute`, which takes that long by the clock."""

    def computed(x: torch.Tensor) -> torch.Tensor:
        clock.advance(seconds)
        return compute(x)

    return computed


def right(x: torch.Tensor) -> torch.Tensor:
    return x.sin() * 2


def wrong(x: torch.Tensor) -> torch.Tensor:
    return x.sin() * 3


def nan(x: torch.Tensor) -> torch.Tensor:
    return right(x) * float("nan")


def of_other_shape(x: torch.Tensor) -> torch.Tensor:
    return right(x)[:, :2]


def raising(x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("CUDA error: an illegal memory access")


class FakeRunner:
    """Computes `calls`, after `first` in its first call, which is the trial's."""

    def __init__(self, first: Compute = right, calls: Compute = right, device: str = "cpu") -> None:
        self.first = first
        self.calls = calls
        self.device = torch.device(device)
        self.count = 0

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        self.count += 1
        return [(self.first if self.count == 1 else self.calls)(inputs[0])]


class InPyTorch(torch.nn.Module):
    """The subgraph itself; counts its calls, each of which takes `delay` by the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.count = 0
        self.delay = 0.0

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        self.count += 1
        clock.advance(self.delay)
        return (right(x),)


WRONG: dict[str, tuple[Compute, str]] = {
    "wrong": (wrong, "relative L2 distance"),
    "nan": (nan, "not finite"),
    "of another shape": (of_other_shape, "PyTorch gives"),
    "raising": (raising, "failed at run time: CUDA error"),
}


def module_of(runner: Any, engine: str = "reference", **options: Any) -> EngineModule:
    entry = EngineEntry("trt_0", {"aten.sin.default": 1}, [], [], {"float32": 1})
    pytorch: Any = InPyTorch()
    checked = Options.from_mapping({"engine": engine, **options})
    return EngineModule(pytorch, [SPEC], runner, [torch.float32], entry, checked)


def static_inputs() -> EngineInputs:
    return EngineInputs([TensorSpec("x", torch.float32, ((2, 2), (3, 3)), (2, 3), (2, 3))])


def in_pytorch(module: EngineModule) -> int:
    return int(module.pytorch.count)


def x_of(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3)


def assert_right(module: EngineModule, x: torch.Tensor) -> None:
    torch.testing.assert_close(module(x)[0], right(x), rtol=0, atol=0)


class FakeLog:
    def __init__(self) -> None:
        self.errors: list[str] = []

    def clear(self) -> None:
        self.errors.clear()


class FakeTensorRT:
    """Makes engines and contexts, with an error first as often as `short` says."""

    def __init__(self, words: str, **short: int) -> None:
        self.words = words
        self.short = short
        self.log = FakeLog()
        self.num_io_tensors = 0
        self.trt = SimpleNamespace()

    def new_log(self) -> Any:
        return self.log

    def new_runtime(self, log: Any) -> Any:
        return self

    def context_config(self, engine: Any, kernels: Any) -> tuple[None, None]:
        return None, None

    def allocator(self, allocate: Any) -> None:
        return None

    def wants_scratch(self, config: Any) -> bool:
        return False

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        return self._made("engine")

    def create_execution_context(self, runtime_config: Any) -> Any:
        return self._made("context")

    def _made(self, what: str) -> Any:
        if self.short.get(what, 0) == 0:
            return self
        self.short[what] -= 1
        self.log.errors.append(self.words)
        return None


class FakeCopy(FakeTensorRT):
    """An engine, which is its own context too, with an input `x` and an output `y`."""

    def __init__(self) -> None:
        super().__init__("")
        self.num_io_tensors = 2
        self.trt.TensorIOMode = SimpleNamespace(INPUT="x", OUTPUT="y")

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> str:
        return name

    def get_tensor_dtype(self, name: str) -> torch.dtype:
        return torch.float32

    def get_aliased_input_tensor(self, name: str) -> None:
        """Return that no output lies in the memory of an input."""
