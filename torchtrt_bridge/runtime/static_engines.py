"""Engines for single sizes: built in the background for sizes that come often, beside an engine for all sizes.

TensorRT chooses other kernels where it knows each size: an engine of a diffusion model's UNet took 8.3 ms a call on an
H200 for one size, and 34 ms for the same size where it was built for many.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from torchtrt_bridge.graph.static_sizes import like
from torchtrt_bridge.report.log import info
from torchtrt_bridge.runtime.call_context import is_capturing
from torchtrt_bridge.runtime.trial import ENGINE_FOR_ALL_SIZES, ready

if TYPE_CHECKING:
    from torchtrt_bridge.runtime.engine_module import EngineModule

# Calls with the same sizes after which engines for these are begun. A diffusion pipeline makes 20 calls for an image.
CALLS_BEFORE_BUILD = 16

# Combinations of sizes that are counted; beyond so many, all are forgotten.
MOST_COUNTED = 256

# Builds the engine of a subgraph for fake inputs of these sizes, and returns its module.
Build = Callable[[Sequence[torch.Tensor]], "EngineModule"]


class StaticEngines:
    """The engines of one subgraph for single sizes; each computes calls of its sizes once its trial has found it best.

    build: of the subgraph's engine for given sizes.
    """

    def __init__(self, build: Build) -> None:
        self.build = build
        self._by_sizes: dict[Any, EngineModule] = {}

    def add(self, engine: EngineModule, dynamic: EngineModule) -> None:
        """Let `engine` compute calls of its sizes if it wins a trial, in which the engine for all sizes takes part."""
        if dynamic.has_won and dynamic.runner is not None:
            engine.further = [ready(ENGINE_FOR_ALL_SIZES, dynamic.runner)]
        engine.generation = dynamic.generation
        engine.successor = "what runs other sizes runs this one"
        self._by_sizes[tuple(spec.example for spec in engine.inputs.specs)] = engine

    @property
    def runners(self) -> list[Any]:
        """The engines as they run, for what has to keep them alive."""
        return [engine.runner for engine in list(self._by_sizes.values())]

    def engine_for(self, inputs: Sequence[torch.Tensor]) -> EngineModule | None:
        """Return what computes calls of these sizes; None if that is what computes all other sizes."""
        sizes = tuple(value.shape for value in inputs)
        engine = self._by_sizes.get(sizes)
        if engine is None:
            return None
        if not engine.is_settled:  # its trial has to come first, which no capture allows
            return None if is_capturing(inputs) else engine
        if engine.state == "failed" or engine.choice == ENGINE_FOR_ALL_SIZES:
            self._by_sizes.pop(sizes, None)
            return None
        return engine


class FrequentSizes:
    """Counts the calls of a graph by the sizes of their inputs, and has engines built for those that come often.

    module: the graph with its engines; most: the number of sizes that get engines of their own.
    """

    def __init__(self, module: fx.GraphModule, most: int) -> None:
        self.module = module
        self.most = most
        self._calls: Counter[Any] = Counter()
        self._begun: set[Any] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._built: list[Callable[[], None]] = []

    def is_due(self, inputs: Sequence[Any]) -> bool:
        """Count a call; return whether engines are to be begun for its sizes."""
        if len(self._begun) >= self.most:
            return False
        sizes = _sizes_of(inputs)
        if len(self._calls) >= MOST_COUNTED:
            self._calls.clear()
        self._calls[sizes] += 1
        return self._calls[sizes] >= CALLS_BEFORE_BUILD and sizes not in self._begun

    def begin(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Compute a call, and begin to build the engines for its sizes in the background."""
        recorder = _RecordsInputs(self.module)
        results: Sequence[Any] = recorder.run(*inputs)
        with self._lock:
            sizes = _sizes_of(inputs)
            if sizes not in self._begun and len(self._begun) < self.most:
                self._begun.add(sizes)
                # Not of a pool, for which a program that ends would wait before the build can see that it does.
                thread = threading.Thread(target=self._build, args=[recorder.inputs], name="torchtrt_bridge-static")
                self._threads.append(thread)
                thread.start()
        return results

    def install(self) -> bool:
        """Give the engines that are built to their subgraphs; return whether there were any."""
        if not self._built:
            return False
        with self._lock:
            built, self._built = self._built, []
        for add in built:
            add()
        return bool(built)

    def wait(self) -> None:
        """Wait for all engines that were begun."""
        for thread in list(self._threads):
            thread.join()

    def _build(self, inputs: dict[EngineModule, Sequence[torch.Tensor]]) -> None:
        for dynamic, values in inputs.items():
            statics = dynamic.static_engines
            if statics is None:  # it was dropped meanwhile
                continue
            try:
                engine = statics.build(values)
            except Exception as error:  # whatever goes wrong here, the engine for all sizes is there
                info(f"{dynamic.name} gets no engine for single sizes: {type(error).__name__}: {error}")
                continue
            if engine.state != "failed":
                with self._lock:
                    self._built.append(functools.partial(statics.add, engine, dynamic))


class _RecordsInputs(fx.Interpreter):
    """An interpreter that keeps fake twins of the inputs of the subgraphs that may have engines for single sizes."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.inputs: dict[EngineModule, Sequence[torch.Tensor]] = {}

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        part: Any = self.fetch_attr(target)
        if getattr(part, "static_engines", None) is not None:
            self.inputs[part] = like(args)
        return part(*args, **kwargs)


def _sizes_of(inputs: Sequence[Any]) -> Any:
    return tuple(value.shape if isinstance(value, torch.Tensor) else value for value in inputs)
