"""Builder of the engines of a graph: lowers subgraphs one by one, builds and loads engines in threads."""

from __future__ import annotations

import collections
import dataclasses
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import fx

from torchtrt_bridge.cache import EngineCache
from torchtrt_bridge.engine.build import OnProgress, engine_from_network
from torchtrt_bridge.engine.engine_key import engine_key
from torchtrt_bridge.errors import BridgeError, BuildError, EngineLoadError, LoweringError
from torchtrt_bridge.graph.shapes import Range
from torchtrt_bridge.interop import TorchTensorRT, provider_for
from torchtrt_bridge.lower.network import Network, network_from_graph
from torchtrt_bridge.options import Options
from torchtrt_bridge.report.log import info, warn_once
from torchtrt_bridge.report.model import READY, EngineEntry
from torchtrt_bridge.report.progress import BuildProgress
from torchtrt_bridge.runtime.call_context import on_device
from torchtrt_bridge.runtime.engine_module import computing_device
from torchtrt_bridge.runtime.runners import Built, GpuRunner, NoEngine, ReferenceRunner, Runner
from torchtrt_bridge.trt import library as libraries
from torchtrt_bridge.trt.inspector import product_dtypes
from torchtrt_bridge.trt.library import TensorRTLibrary
from torchtrt_bridge.trt.probe import supports

# Largest number of engines that are built at the same time. Their networks hold weights on the host during the build.
AT_ONCE = max(1, min(4, os.cpu_count() or 1))


class RepartitionError(Exception):
    """Failure of a subgraph with nodes that the provider wrote; the provider refuses these nodes from now on."""


@dataclasses.dataclass(frozen=True)
class BuildContext:
    """Library, cache, ranges and options for all subgraphs of one graph, looked up once.

    ranges: smallest and largest value of each symbolic size.
    provider: writes the nodes that have no converter here.
    """

    options: Options
    library: TensorRTLibrary
    ranges: Mapping[Any, Range]
    cache: EngineCache | None
    provider: TorchTensorRT | None

    @classmethod
    def from_options(cls, options: Options, ranges: Mapping[Any, Range]) -> BuildContext:
        """Look up the library, the cache and the provider of options; EngineLoadError without TensorRT."""
        library = libraries.choose(options.engine)
        return cls(options, library, ranges, EngineCache.from_options(options), provider_for(options))


class Builder:
    """Builder of the subgraphs of one graph, one after the other; a failure affects its own subgraph only.

    run: load the engines, to compute with them. keep: put their bytes into `plans`, by subgraph.
    is_optional: whether calls do without these engines. They are built in the thread that begins them, until the main
        thread has ended, and a failure is only logged.
    """

    def __init__(self, context: BuildContext, *, run: bool, keep: bool, is_optional: bool = False) -> None:
        self.context, self.options = context, context.options
        self.run, self.keep, self.is_optional = run, keep, is_optional
        self.plans: dict[str, bytes] = {}
        self._progress = BuildProgress(self.options.progress)
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="torchtrt_bridge-build")
        self._free = threading.BoundedSemaphore(AT_ONCE)

    def __enter__(self) -> Builder:
        return self

    def __exit__(self, *error: object) -> None:
        """Take no more subgraphs; builds that have begun go on in their threads."""
        self._threads.shutdown(wait=False)

    def begin(self, module: fx.GraphModule, entry: EngineEntry, count: int) -> Future[Built]:
        """Lower a subgraph and begin to build its engine in another thread.

        count: number of subgraphs of the graph.
        A failure becomes the state of `entry`. With ``fallback="error"`` it is raised, here or by the future;
        RepartitionError is raised in any case.
        """
        self._free.acquire()
        entry.state = "building"
        on_progress = _until_main_ends if self.is_optional else self._progress.begin(entry.name, count)
        engine = _Engine(self, entry, on_progress)
        try:
            engine.prepare(module)  # here, as the graph belongs to this thread
        except BaseException as error:
            self._end(entry)
            return _done(self._failed(error, entry))
        return _done(self._carry_out(engine)) if self.is_optional else self._threads.submit(self._carry_out, engine)

    def _carry_out(self, engine: _Engine) -> Built:
        try:
            runner = engine.runner()
            engine.entry.state = READY
            return runner
        except Exception as error:
            return self._failed(error, engine.entry)
        finally:
            self._end(engine.entry)

    def _end(self, entry: EngineEntry) -> None:
        self._free.release()
        self._progress.end(entry.name)

    def _failed(self, error: BaseException, entry: EngineEntry) -> NoEngine:
        if self.options.fallback == "error" or not isinstance(error, Exception):
            raise error
        provider = self.context.provider
        if provider is not None and entry.by_torch_tensorrt and isinstance(error, (LoweringError, BuildError)):
            provider.refuse(list(entry.by_torch_tensorrt), str(error))
            raise RepartitionError from error
        entry.state = str(error) if isinstance(error, BridgeError) else f"{type(error).__name__}: {error}"
        if self.is_optional:
            info(f"{entry.name} has no engine: {error}")
        else:
            warn_once(f"{entry.name} stays in PyTorch: {error}")
        return NoEngine(entry.state)


def _until_main_ends(_: float) -> bool:
    """Return whether a build may go on: a program that ends does not wait for engines that it does without."""
    return threading.main_thread().is_alive()


def _done(built: Built) -> Future[Built]:
    future: Future[Built] = Future()
    future.set_result(built)
    return future


class _Engine:
    """Engine of one subgraph, from its key to its runner."""

    def __init__(self, builder: Builder, entry: EngineEntry, on_progress: OnProgress | None) -> None:
        self.builder, self.entry, self.on_progress = builder, entry, on_progress
        self.context, self.options, self.cache = builder.context, builder.options, builder.context.cache
        self.library = builder.context.library
        self._key = ""
        self._plan: bytes | None = None
        self._network: Network | None = None
        self._device = torch.device("cpu")

    def prepare(self, module: fx.GraphModule) -> None:
        """Find the engine in the cache, or lower the subgraph."""
        self._device = computing_device(module, self.options)
        if self.options.engine != "reference":
            context = self.context
            with on_device(self._device):
                self._key = engine_key(module, self.library, self.options, context.ranges, context.provider)
            self._plan = self._cached()
        if self._plan is None:
            self._lower(module)

    def runner(self) -> Runner | None:
        """Build the engine unless it is cached, and load it if it is to run."""
        if self.options.engine == "reference":
            assert self._network is not None
            return ReferenceRunner(self._network, self.library)
        plan = self._plan or self._cached_or_built()
        self._plan = self._network = None
        if {"int8", "float8_e4m3fn"} & set(self.entry.dtypes):
            self.entry.products = dict(collections.Counter(product_dtypes(plan).values()).most_common())
        if self.builder.keep:
            self.builder.plans[self.entry.name] = plan
        if not self.builder.run:
            return None
        runner = load_engine(plan, self._key, self.library, self.options, self._device)
        with on_device(self._device):
            runner.prepare()
        return runner

    def _lower(self, module: fx.GraphModule) -> None:
        context = self.context
        network = self._network = network_from_graph(
            module,
            self.library,
            context.ranges,
            self._supports,
            context.provider,
            self.options.fp16_accumulation,
        )
        self.entry.layers = network.layers
        self.entry.inputs = [f"{spec.name}: {spec}" for spec in network.inputs]
        self.entry.outputs = [str(spec) for spec in network.outputs]
        self.entry.engine = "reference" if self.options.engine == "reference" else str(self.library)

    def _supports(self, capability: str) -> bool:
        return supports(capability, self.library, self.options).yes

    def _cached(self) -> bytes | None:
        plan = None if self.cache is None else self.cache.get(self._key)
        if plan is not None:
            self.entry.engine, self.entry.from_cache, self.entry.bytes = str(self.library), True, len(plan)
            info(f"{self.entry.name} comes from the cache, {len(plan) / 1e6:.1f} MB")
        return plan

    def _cached_or_built(self) -> bytes:
        """Return the engine, which one process or thread builds while the others wait for it."""
        if self.cache is None:
            return self._built()
        with self.cache.building(self._key):
            plan = self._cached()
            if plan is None:
                plan = self._built()
                self.cache.put(self._key, plan)
            return plan

    def _built(self) -> bytes:
        assert self._network is not None
        started = time.perf_counter()
        with on_device(self._device):  # TensorRT builds for the current one
            plan = engine_from_network(self._network, self.library, self.options, self.on_progress)
        self.entry.build_seconds = time.perf_counter() - started
        self.entry.bytes = len(plan)
        info(f"{self.entry.name} was built in {self.entry.build_seconds:.1f} s, {len(plan) / 1e6:.1f} MB")
        return plan


def load_engine(plan: bytes, key: str, library: TensorRTLibrary, options: Options, device: torch.device) -> GpuRunner:
    """Load an engine on a GPU of this machine; EngineLoadError says why it cannot run."""
    if not torch.cuda.is_available():
        raise EngineLoadError(
            "no CUDA GPU is visible to PyTorch, so the engine cannot run here; `torchtrt-bridge doctor` says why."
        )
    cache = EngineCache.from_options(options)
    kernels = cache.get(key, "kernels") if cache else None
    keep = (lambda content: cache.put(key, content, "kernels")) if cache and kernels is None else None
    with on_device(device):
        return GpuRunner(plan, library, kernels, keep, options.overlap_kernels)
