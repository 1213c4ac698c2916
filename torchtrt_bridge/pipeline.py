"""The pipeline: normalize, partition, lower, build, run, with PyTorch beside each subgraph."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from torchtrt_bridge.capture.export import CapturedGraph
from torchtrt_bridge.engine.builder import Builder, RepartitionError
from torchtrt_bridge.errors import UnsupportedOpError
from torchtrt_bridge.graph.edit import copy_graph, own_constants
from torchtrt_bridge.graph.nodes import describe
from torchtrt_bridge.graph.shapes import Range, TensorSpec, spec_of
from torchtrt_bridge.interop import provider_for
from torchtrt_bridge.lower import is_foreign
from torchtrt_bridge.options import Options
from torchtrt_bridge.partition import TORCH_SUBGRAPH_PREFIX, Proposal, extract_subgraphs, propose, propose_torch_subgraphs
from torchtrt_bridge.passes import drop_quantization, normalize, quantizes, without_quantization, without_rounding
from torchtrt_bridge.report.log import warn_once
from torchtrt_bridge.report.model import CompileReport, EngineEntry, TorchEntry, engine_entry, op_name, torch_entry
from torchtrt_bridge.runtime import EngineModule, Execution, QuantizedEngineModule, TorchSubgraph
from torchtrt_bridge.runtime.engine_module import Runner
from torchtrt_bridge.runtime.pytorch_form import flatten_linear_inputs
from torchtrt_bridge.trt import library as libraries
from torchtrt_bridge.trt.library import TensorRTLibrary
from torchtrt_bridge.trt.probe import supports


@dataclasses.dataclass
class EngineGraph:
    """A captured graph whose subgraphs `trt_0`, ... are engines.

    module: the graph with an `EngineModule` for each subgraph; `run` computes it.
    flat: the same normalized graph before it was cut, in PyTorch throughout, where it is part of the result.
    plans: the bytes of each engine, by subgraph, where they are the result; else none.
    """

    captured: CapturedGraph
    module: fx.GraphModule
    run: Execution
    flat: fx.GraphModule | None
    proposal: Proposal
    plans: dict[str, bytes]
    report: CompileReport


def compile_graph(
    captured: CapturedGraph, options: Options, run: bool = True, original: ExportedProgram | None = None
) -> EngineGraph:
    """All stages for one graph; its module is changed.

    run: load the engines, so that the module computes with them. Without it the plans are the result.
    original: the program that `captured` comes from, if the result is to keep no memory of the user's model.
    Raises, with ``fallback="error"``, what would otherwise become an entry of the report.
    """
    library = libraries.choose(options.engine)
    theirs = [] if original is not None else list(captured.module.buffers())
    module = normalize(captured.module, options)
    floats = left_in_float(module, library, options)
    is_reference = options.engine == "reference"
    if original is not None and is_reference:
        # now, as the interpreter reads them from the network, which holds addresses
        own_constants([module], _tensors_of(original))
    provider, compiled = provider_for(options), None
    is_result = original is not None or not run  # else the engines that run are, and nobody asks for their bytes
    while compiled is None:
        proposal = propose(module, options, provider)
        flat = fx.GraphModule(module, copy_graph(module.graph))
        ranges = bounded(captured.ranges, options)
        try:
            with Builder(library, options, ranges, provider, run=run, keep=is_result) as builder:
                compiled = _compiled(captured, module, proposal, builder, theirs)
        except RepartitionError:  # without the nodes that its provider wrote, the graph is cut anew
            module = flat
    compiled.report.in_float = floats
    if is_result:
        compiled.flat = flat
    if original is not None and not is_reference:
        rivals = [rival.pytorch for engine in compiled.run.engines for rival in engine.rivals]
        # not earlier, as the builds need the memory
        own_constants([compiled.module, flat, *rivals], _tensors_of(original))
    return compiled


def _tensors_of(program: ExportedProgram) -> list[Any]:
    return [*program.state_dict.values(), *program.constants.values()]


def _compiled(
    captured: CapturedGraph, module: fx.GraphModule, proposal: Proposal, builder: Builder, theirs: list[torch.Tensor]
) -> EngineGraph:
    """Cut `module` as proposed, and begin to build its subgraphs; theirs: tensors of the user's model."""
    options = builder.options
    report = CompileReport(options, graphs=1)
    _report_rejections(proposal, options, report)
    engines = []
    subgraphs = extract_subgraphs(module, proposal.subgraphs)
    rivals = _rivals(subgraphs, builder)
    for name, subgraph in subgraphs.items():
        engine = _begun(name, subgraph, rivals.get(name), builder, len(subgraphs) + len(rivals))
        module.set_submodule(name, engine)
        report.engines.append(engine.entry)
        engines.append(engine)
    for engine in engines:
        if builder.keep or options.fallback == "error" or engine.entry.by_torch_tensorrt:
            engine.wait()
    if builder.run:
        compile_torch_subgraphs(module, report)
    plans = {name: builder.plans[name] for name in subgraphs if name in builder.plans}
    run = Execution(module, captured.outputs, captured.mutations, options, report, theirs)
    return EngineGraph(captured, module, run, None, proposal, plans, report)


def _begun(
    name: str, subgraph: fx.GraphModule, rival: fx.GraphModule | None, builder: Builder, count: int
) -> EngineModule:
    """The module of a subgraph, and of its rival, of which the engines are being built."""
    entry = planned_entry(name, subgraph)
    runner = builder.begin(subgraph, entry, count)
    flatten_linear_inputs(subgraph)
    other = None if rival is None else _begun(f"{name} without quantization", rival, None, builder, count)
    return engine_module(subgraph, input_specs(subgraph, builder.ranges), runner, entry, builder.options, other)


def engine_module(
    subgraph: fx.GraphModule,
    specs: Sequence[TensorSpec],
    runner: Future[Runner | None] | Runner | None,
    entry: EngineEntry,
    options: Options,
    rival: EngineModule | None = None,
) -> EngineModule:
    """The module of one subgraph, quantized or not."""
    if quantizes(subgraph):
        return QuantizedEngineModule(subgraph, specs, runner, entry, options, without_rounding, rival)
    return EngineModule(subgraph, specs, runner, entry, options)


def _rivals(subgraphs: Mapping[str, fx.GraphModule], builder: Builder) -> dict[str, fx.GraphModule]:
    """The quantized subgraphs without their quantization, where the trial is to compare the two."""
    options = builder.options
    if not builder.run or options.keep_int8 or options.trial != "check+time" or options.engine == "reference":
        return {}
    return {
        name: without_quantization(subgraph, options)
        for name, subgraph in subgraphs.items()
        if quantizes(subgraph) and not any(map(is_foreign, subgraph.graph.nodes))
    }


def compile_torch_subgraphs(module: fx.GraphModule, report: CompileReport) -> None:
    """Let inductor compile what stays in PyTorch between the engines of `module`, if the options say so."""
    if report.options.inductor != "off":
        for name, piece in extract_subgraphs(module, propose_torch_subgraphs(module), TORCH_SUBGRAPH_PREFIX).items():
            module.set_submodule(name, TorchSubgraph(name, piece, report))


def left_in_float(module: fx.GraphModule, library: TensorRTLibrary, options: Options) -> list[TorchEntry]:
    """Hand floats to the quantized layers that this TensorRT cannot build, and tell of them; `module` is changed."""
    dropped = drop_quantization(module, lambda capability: _missing(capability, library, options))
    return [torch_entry(node, reason) for node, reason in dropped.items()]


def _missing(capability: str, library: TensorRTLibrary, options: Options) -> str | None:
    """Why TensorRT cannot build a quantized layer; None if it can."""
    support = supports(capability, library, options)
    return None if support.yes else f"{library} does not build {capability}: {support.reason}"


def planned_entry(name: str, subgraph: fx.GraphModule) -> EngineEntry:
    """The report's entry of a subgraph that is to be built, with the nodes that are torch_tensorrt's to write."""
    entry = engine_entry(name, subgraph)
    entry.by_torch_tensorrt = {node.name: op_name(node) for node in subgraph.graph.nodes if is_foreign(node)}
    return entry


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
    warn_once(f"{count} of the nodes stay in PyTorch: {told}{more}. trtb.report(...) lists all.")
