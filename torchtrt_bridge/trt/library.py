"""TensorRT libraries: everything that differs between `tensorrt` and `tensorrt_rtx`, and between versions."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch

from torchtrt_bridge.errors import BuildError, EngineLoadError, OptionsError
from torchtrt_bridge.options import TARGET_PREFIX, EngineKind
from torchtrt_bridge.trt.error_log import ErrorLog, no_collection

LIBRARIES = ("tensorrt_rtx", "tensorrt")

# What to install for a GPU that newer TensorRT-RTX no longer serves, and the first version that does not. TensorRT-RTX
# 1.7 dropped compute capability 9.0, which 1.4 to 1.6 serve through the portable engine.
RTX_BY_CAPABILITY = {"sm_90": "tensorrt-rtx>=1.6,<1.7"}
RTX_DROPPED = {"sm_90": (1, 7)}

# Target in keys of an engine for Ampere and newer.
PORTABLE = "portable"


class TensorRTLibrary:
    """Installed TensorRT: its Python module, and the few calls in which libraries and versions differ."""

    def __init__(self, name: str, module: ModuleType) -> None:
        self.name = name
        self.trt: Any = module
        self.version: str = module.__version__

    @property
    def is_rtx(self) -> bool:
        return self.name == "tensorrt_rtx"

    def __str__(self) -> str:
        title = "TensorRT-RTX" if self.is_rtx else "TensorRT"
        return f"{title} {self.version}"

    def new_log(self) -> ErrorLog:
        """Return a log of the errors from now on."""
        return ErrorLog(self.trt)

    def new_builder(self, log: ErrorLog) -> Any:
        """Return a builder of networks and engines."""
        with no_collection():
            return self.trt.Builder(log.logger)

    def new_runtime(self, log: ErrorLog) -> Any:
        """Return what loads engines."""
        with no_collection():
            return self.trt.Runtime(log.logger)

    def new_network(self, builder: Any) -> Any:
        """Return an empty, strongly typed network."""
        flag = self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return builder.create_network(1 << int(flag))

    def set_targets(self, config: Any, targets: Sequence[str]) -> None:
        """Make `config` build for compute capabilities such as ``("sm_86", "sm_120")``.

        No target means the GPU of this machine, or the portable engine (Ampere and newer) without a GPU.
        TensorRT-RTX has no target ``sm_90``: the portable engine runs there, up to TensorRT-RTX 1.6.
        """
        problem = self.problem_of_targets(targets)
        if problem is not None:
            raise BuildError(problem)
        names = [target.upper().replace("_", "") for target in targets]
        if not self.is_rtx or not names or "SM90" in names:
            return
        known = self.trt.ComputeCapability.__members__
        config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            config.set_compute_capability(known[name], index)

    def check_targets(self, targets: Sequence[str]) -> None:
        """Raise OptionsError for GPUs that the user names and that this TensorRT does not build for."""
        problem = self.problem_of_targets(targets) if targets else None
        if problem is not None:
            raise OptionsError(f"targets: {problem}")

    def problem_of_targets(self, targets: Sequence[str]) -> str | None:
        """Return why this TensorRT does not build for these compute capabilities, and what does; None if it does."""
        if not self.is_rtx:
            return self._problem_of_other_gpus(targets)
        served = [*self.capabilities, *(target for target in RTX_DROPPED if self._serves(target))]
        for target in targets:
            if not self._serves(target):
                wanted = RTX_BY_CAPABILITY[target]
                return f'{self} builds nothing that runs on {target}. Run: pip install "{wanted}"'
        unknown = [target for target in targets if target not in served]
        return f"{self} cannot build for {', '.join(unknown)}. It builds for: {', '.join(served)}." if unknown else None

    @property
    def capabilities(self) -> list[str]:
        """Compute capabilities that TensorRT-RTX has by name, as ``"sm_89"``."""
        names = [name for name in self.trt.ComputeCapability.__members__ if name[2:].isdigit()]
        return [name.lower().replace("sm", TARGET_PREFIX) for name in names]

    def _serves(self, target: str) -> bool:
        major, minor = self.version.split(".")[:2]
        return target not in RTX_DROPPED or (int(major), int(minor)) < RTX_DROPPED[target]

    def _problem_of_other_gpus(self, targets: Sequence[str]) -> str | None:
        current = current_target()
        if current is None:
            return f"{self} builds only on a machine with a GPU. Use engine='tensorrt_rtx' here."
        if targets and set(targets) != {current}:
            return (
                f"{self} builds only for the GPU it runs on ({current}), not for {', '.join(targets)}. "
                "Use engine='tensorrt_rtx' to build for other GPUs."
            )
        return None

    def context_config(self, engine: Any, kernels: bytes | None) -> tuple[Any, Any]:
        """Return a runtime configuration, and in it TensorRT-RTX's cache of compiled kernels, filled with `kernels`.

        Where TensorRT allows it, contexts take their scratch memory from the caller. TensorRT itself reserves memory
        for the largest sizes of the profile, for as long as a context lives.
        """
        config = engine.create_runtime_config()
        if hasattr(config, "set_execution_context_allocation_strategy"):
            config.set_execution_context_allocation_strategy(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if not self.is_rtx:
            return config, None
        cache = config.create_runtime_cache()
        if kernels:
            cache.deserialize(kernels)  # a refusal leaves the cache empty, and the kernels are compiled again
        config.set_runtime_cache(cache)
        return config, cache

    def wants_scratch(self, config: Any) -> bool:
        """Return whether contexts of this configuration take their scratch memory from the caller."""
        if not hasattr(config, "get_execution_context_allocation_strategy"):
            return False
        strategy = config.get_execution_context_allocation_strategy()
        return bool(strategy == self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)

    def progress_monitor(self, on_progress: Callable[[float], bool]) -> Any:
        """Return a TensorRT progress monitor that reports the completed fraction of the build's outermost phase."""
        return _monitor_class(self.trt)(on_progress)

    def stream_writer(self, write: Callable[[bytes], Any]) -> Any:
        """Return a stream to which TensorRT writes an engine; it ``has_failed`` if `write` raised OSError."""
        return _writer_class(self.trt)(write)

    def allocator(self, allocate: Callable[[int], int]) -> Any:
        """Return a TensorRT allocator that takes memory by `allocate`, from a size in bytes to an address.

        It releases nothing: that is for the owner of the memory, once the work that uses it is queued.
        """
        return _allocator_class(self.trt)(allocate)

    def profiler(self, report: Callable[[str, float], object]) -> Any:
        """Return a TensorRT profiler that reports the name of each layer of a run, and its milliseconds."""
        return _profiler_class(self.trt)(report)

    @functools.cached_property
    def refusal(self) -> str | None:
        """Reason why this TensorRT cannot run engines on this machine's GPU, found by a build; None if it can."""
        if not torch.cuda.is_available():
            return "no CUDA GPU is visible to PyTorch"
        log = self.new_log()
        try:
            builder = self.new_builder(log)
            network = self.new_network(builder)
            tensor = network.add_input("x", self.trt.float32, (1,))
            network.mark_output(network.add_unary(tensor, self.trt.UnaryOperation.NEG).get_output(0))
            plan = builder.build_serialized_network(network, builder.create_builder_config())
            engine = plan and self.new_runtime(log).deserialize_cuda_engine(plan)
        except Exception as error:
            return f"{self}: {error}"
        return None if engine else f"{self}: {'; '.join(log.errors) or 'it gave no reason'}"


@functools.cache
def _monitor_class(trt: Any) -> type:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self, on_progress: Callable[[float], bool]) -> None:
            trt.IProgressMonitor.__init__(self)
            self.on_progress = on_progress
            self.outermost: tuple[str, int] | None = None

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            if parent is None or self.outermost is None:
                self.outermost = name, max(steps, 1)

        def phase_finish(self, name: str) -> None:
            if self.outermost is not None and self.outermost[0] == name:
                self.outermost = None

        def step_complete(self, name: str, step: int) -> bool:
            if self.outermost is None or self.outermost[0] != name:
                return True
            return bool(self.on_progress((step + 1) / self.outermost[1]))

    return Monitor


@functools.cache
def _allocator_class(trt: Any) -> type:
    class Allocator(trt.IGpuAsyncAllocator):  # type: ignore[misc]
        def __init__(self, allocate: Callable[[int], int]) -> None:
            trt.IGpuAsyncAllocator.__init__(self)
            self._allocate = allocate

        def allocate_async(self, size: int, alignment: int, flags: int, stream: int) -> int | None:
            try:
                return self._allocate(size) if size else None
            except RuntimeError:  # TensorRT's own code stands between this one and the caller; it says what it lacks
                return None

        def deallocate_async(self, memory: int, stream: int) -> bool:
            return True

    return Allocator


@functools.cache
def _profiler_class(trt: Any) -> type:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self, report: Callable[[str, float], object]) -> None:
            trt.IProfiler.__init__(self)
            self._report = report

        def report_layer_time(self, name: str, milliseconds: float) -> None:
            self._report(name, milliseconds)

    return Profiler


@functools.cache
def _writer_class(trt: Any) -> type:
    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self, write: Callable[[bytes], Any]) -> None:
            trt.IStreamWriter.__init__(self)
            self._write = write
            self.has_failed = False

        def write(self, data: bytes) -> int:
            try:
                self._write(data)
            except OSError:  # TensorRT's own code stands between this one and the caller
                self.has_failed = True
                return 0
            return len(data)

    return Writer


def current_target() -> str | None:
    """Return the compute capability of the current GPU as ``"sm_90"``; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"{TARGET_PREFIX}{major}{minor}"


def installed(name: str) -> bool:
    """Return whether a package is installed under its own name.

    torch_tensorrt, once imported, gives TensorRT-RTX the second name `tensorrt`.
    """
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__package__ != name:
        return False
    return importlib.util.find_spec(name) is not None


@functools.cache
def load(name: str) -> TensorRTLibrary:
    """Return the library of this name; EngineLoadError says how to install one that is missing or broken."""
    package = name.replace("_", "-")
    if not installed(name):
        raise EngineLoadError(f"{package} is not installed. Run: pip install {package}")
    try:
        module = importlib.import_module(name)
        _ = module.Builder
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        raise EngineLoadError(
            f"{package} is installed but does not import: {error}. Run: pip install --force-reinstall {package}"
        ) from error
    return TensorRTLibrary(name, module)


@functools.cache
def choose(engine: EngineKind) -> TensorRTLibrary:
    """Return the library for an option `engine`.

    ``"auto"`` takes TensorRT-RTX, unless it refuses this machine's GPU and an installed `tensorrt` does not.
    ``"reference"`` takes a library too, as the reference interpreter reads its network definitions.
    """
    if engine in LIBRARIES:
        return load(engine)
    present = [name for name in LIBRARIES if installed(name)]
    if not present:
        raise EngineLoadError("No TensorRT is installed. Run: pip install tensorrt-rtx")
    if engine == "auto" and len(present) > 1 and torch.cuda.is_available():
        for name in present:
            if load(name).refusal is None:
                return load(name)
    return load(present[0])
