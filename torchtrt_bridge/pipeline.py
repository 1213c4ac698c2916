"""The pipeline: normalize, partition, lower, build, run, with PyTorch beside each subgraph."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from torchtrt_bridge.capture import CapturedGraph, copy_graph, own_constants
from torchtrt_bridge.compile_report import CompileReport, EngineEntry, engine_entry, tell_once, torch_entry
from torchtrt_bridge.engine import flavour as flavours
from torchtrt_bridge.engine.build import engine_from_network
from torchtrt_bridge.engine.cache import EngineCache
from torchtrt_bridge.engine.flavour import Flavour
from torchtrt_bridge.engine.key import engine_key
from torchtrt_bridge.engine.probe import supports
from torchtrt_bridge.errors import BridgeError, EngineLoadError, UnsupportedOpError
from torchtrt_bridge.lower.network import Network, network_from_graph
from torchtrt_bridge.normalize import normalize
from torchtrt_bridge.options import Options
from torchtrt_bridge.partition import Proposal, fuse, propose
from torchtrt_bridge.progress import BuildProgress
from torchtrt_bridge.runtime import EngineModule, Execution
from torchtrt_bridge.runtime.gpu import GpuRunner
from torchtrt_bridge.runtime.module import Runner
from torchtrt_bridge.runtime.reference import ReferenceRunner
from torchtrt_bridge.shapes import Range, TensorSpec, spec_of
from torchtrt_bridge.source import describe


@dataclasses.dataclass
class CompiledGraph:
    """A captured graph whose subgraphs `trt_0`, ... are engines.

    module: the graph with an `EngineModule` for each subgraph; `run` computes it.
    flat: the same normalized graph before it was cut, in PyTorch throughout.
    plans: the bytes of each engine that was built, by subgraph.
    """

    captured: CapturedGraph
    module: fx.GraphModule
    run: Execution
    flat: fx.GraphModule
    proposal: Proposal
    plans: dict[str, bytes]
    report: CompileReport


def compile_graph(
    captured: CapturedGraph, options: Options, run: bool = True, original: ExportedProgram | None = None
) -> CompiledGraph:
    """All stages for one graph; its module is changed.

    run: load the engines, so that the module computes with them. Without it the plans are the result.
    original: the program that `captured` comes from, if the result is to keep no memory of the user's model.
    Raises, with ``fallback="error"``, what would otherwise become an entry of the report.
    """
    report = CompileReport(options, graphs=1)
    flavour = flavours.choose(options.engine)
    module = normalize(captured.module, options)
    is_reference = options.engine == "reference"
    if original is not None and is_reference:
        own_constants([module], original)  # the interpreter reads them from the network, which holds addresses
    proposal = propose(module, options)
    _report_rejections(proposal, options, report)
    flat = fx.GraphModule(module, copy_graph(module.graph))
    subgraphs = fuse(module, proposal.subgraphs)
    ranges = bounded(captured.ranges, options)
    plans: dict[str, bytes] = {}
    with BuildProgress(len(subgraphs), options.progress) as progress:
        for name, subgraph in subgraphs.items():
            entry = engine_entry(name, subgraph)
            report.engines.append(entry)
            builder = _Builder(subgraph, flavour, options, ranges, entry)
            plan, runner = builder.plan_and_runner(progress.next(name), run)
            if plan is not None:
                plans[name] = plan
            module.set_submodule(name, EngineModule(subgraph, input_specs(subgraph, ranges), runner, entry, options))
    if original is not None and not is_reference:
        own_constants([module, flat], original)  # not earlier: the builds need the memory
    run_it = Execution(module, captured.outputs, captured.mutations, options, report)
    return CompiledGraph(captured, module, run_it, flat, proposal, plans, report)


def input_specs(subgraph: fx.GraphModule, ranges: Mapping[Any, Range]) -> list[TensorSpec]:
    """The specs of a graph's inputs."""
    return [spec_of(n.name, n.meta["val"], ranges) for n in subgraph.graph.nodes if n.op == "placeholder"]


def bounded(ranges: Mapping[Any, tuple[int, int | None]], options: Options) -> dict[Any, Range]:
    """The ranges of the symbols, each with an upper end."""
    return {
        symbol: (low, max(low, options.max_dynamic_size) if high is None else high)
        for symbol, (low, high) in ranges.items()
    }


def _report_rejections(proposal: Proposal, options: Options, report: CompileReport) -> None:
    report.in_torch = [torch_entry(r.node, r.reason) for r in proposal.rejections]
    if not proposal.rejections:
        return
    told = "; ".join(f"{describe(r.node)}: {r.reason}" for r in proposal.rejections[:3])
    more = f" and {len(proposal.rejections) - 3} more" if len(proposal.rejections) > 3 else ""
    count = len(proposal.rejections)
    if options.fallback == "error":
        raise UnsupportedOpError(
            f"TensorRT cannot run {count} of the nodes: {told}{more}. fallback='pytorch' leaves them to PyTorch."
        )
    tell_once(f"{count} of the nodes stay in PyTorch: {told}{more}. trtb.report(...) lists all.")


class _Builder:
    """One subgraph on its way to an engine; a failure is kept to it."""

    def __init__(
        self,
        module: fx.GraphModule,
        flavour: Flavour,
        options: Options,
        ranges: Mapping[Any, Range],
        entry: EngineEntry,
    ) -> None:
        self.module, self.flavour, self.options, self.ranges, self.entry = (
            module,
            flavour,
            options,
            ranges,
            entry,
        )
        self.cache = EngineCache.from_options(options)

    def plan_and_runner(self, on_progress: Any, run: bool) -> tuple[bytes | None, Runner | None]:
        try:
            if self.options.engine == "reference":
                return None, ReferenceRunner(self._network(), self.flavour)
            key = engine_key(self.module, self.flavour, self.options, self.ranges)
            plan = self._plan(key, on_progress)
            return plan, self._load(plan, key) if run else None
        except Exception as error:  # a failure of any kind is kept to this subgraph
            if self.options.fallback == "error":
                raise
            self.entry.state = str(error) if isinstance(error, BridgeError) else f"{type(error).__name__}: {error}"
            tell_once(f"{self.entry.name} stays in PyTorch: {error}")
            return None, None

    def _network(self) -> Network:
        network = network_from_graph(self.module, self.flavour, self.ranges, self._can)
        self.entry.layers = network.layers
        self.entry.inputs = [f"{spec.name}: {spec}" for spec in network.inputs]
        self.entry.outputs = [str(spec) for spec in network.outputs]
        self.entry.engine = "reference" if self.options.engine == "reference" else str(self.flavour)
        return network

    def _can(self, capability: str) -> bool:
        return supports(capability, self.flavour, self.options).yes

    def _plan(self, key: str, on_progress: Any) -> bytes:
        """The engine under `key`, from the cache or built now; other processes that want it wait for this one."""
        cached = None if self.cache is None else self.cache.get(key)
        if cached is None and self.cache is not None:
            with self.cache.building(key):
                cached = self.cache.get(key)
                if cached is None:
                    plan = self._build(on_progress)
                    self.cache.put(key, plan)
                    return plan
        if cached is None:
            return self._build(on_progress)
        self.entry.engine, self.entry.from_cache, self.entry.bytes = str(self.flavour), True, len(cached)
        return cached

    def _build(self, on_progress: Any) -> bytes:
        network = self._network()
        started = time.perf_counter()
        plan = engine_from_network(network, self.flavour, self.options, on_progress)
        self.entry.build_seconds = time.perf_counter() - started
        self.entry.bytes = len(plan)
        return plan

    def _load(self, plan: bytes, key: str) -> Runner:
        return load_engine(plan, key, self.flavour, self.options)


def load_engine(plan: bytes, key: str, flavour: Flavour, options: Options) -> Runner:
    """An engine that is ready to run on this machine's GPU; EngineLoadError says why it is not."""
    if not torch.cuda.is_available():
        raise EngineLoadError("no CUDA GPU is visible to PyTorch, so the engine cannot run here.")
    cache = EngineCache.from_options(options)
    kernels = cache.get(key, "kernels") if cache else None
    keep = (lambda content: cache.put(key, content, "kernels")) if cache and kernels is None else None
    return GpuRunner(plan, flavour, kernels, keep)
