"""The pipeline: normalize, partition, lower, build, run, with PyTorch beside each subgraph."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from torchtrt_bridge.capture.export import CapturedGraph
from torchtrt_bridge.engine.builder import BuildContext, Builder, RepartitionError
from torchtrt_bridge.errors import UnsupportedOpError
from torchtrt_bridge.graph.edit import copy_graph, own_constants
from torchtrt_bridge.graph.kv_cache import write_in_place, written_inputs
from torchtrt_bridge.graph.nodes import describe
from torchtrt_bridge.graph.shapes import Range, TensorSpec, spec_of
from torchtrt_bridge.graph.static_sizes import with_static_sizes
from torchtrt_bridge.graph.torch_internals import tracing_lock
from torchtrt_bridge.lower import is_foreign
from torchtrt_bridge.options import Options
from torchtrt_bridge.partition import (
    TORCH_SUBGRAPH_PREFIX,
    Proposal,
    extract_subgraphs,
    propose,
    propose_torch_subgraphs,
)
from torchtrt_bridge.passes import drop_quantization, normalize, quantizes, without_quantization, without_rounding
from torchtrt_bridge.report.facts import counted
from torchtrt_bridge.report.log import warn_once
from torchtrt_bridge.report.model import (
    CompileReport,
    EngineEntry,
    TorchEntry,
    dtypes_of,
    engine_entry,
    named_version,
    op_name,
    stages_from_graph,
    torch_entry,
)
from torchtrt_bridge.runtime import EngineModule, Execution, TorchSubgraph
from torchtrt_bridge.runtime.inductor import flatten_linear_inputs
from torchtrt_bridge.runtime.layer_names import node_facts
from torchtrt_bridge.runtime.recurrent_weights import join_recurrent_weights
from torchtrt_bridge.runtime.runners import Built
from torchtrt_bridge.runtime.static_engines import StaticEngines
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
    """Run all stages for one graph; its module is changed.

    run: load the engines, so that the module computes with them. Without it the plans are the result.
    original: the program that `captured` comes from, if the result is to keep no memory of the user's model.
    Raises, with ``fallback="error"``, what would otherwise become an entry of the report.
    """
    context = BuildContext.from_options(options, bounded(captured.ranges, options))
    user_tensors = [] if original is not None else list(captured.module.buffers())
    module = normalize(captured.module, options, captured.outputs, captured.mutations)
    in_float = left_in_float(module, context.library, options)
    is_reference = options.engine == "reference"
    if original is not None and is_reference:
        # now, as the interpreter reads them from the network, which holds addresses
        own_constants([module], _tensors_of(original))
    is_result = original is not None or not run  # else the engines that run are, and nobody asks for their bytes
    while True:
        proposal = propose(module, options, context.provider)
        flat = fx.GraphModule(module, copy_graph(module.graph))
        try:
            with Builder(context, run=run, keep=is_result) as builder:
                report = _build_engines(module, proposal, builder)
            break
        except RepartitionError:  # without the nodes that its provider wrote, the graph is cut anew
            module = flat
    report.in_float = in_float
    execution = Execution(module, captured.outputs, captured.mutations, options, report, user_tensors)
    if original is not None and not is_reference:
        alternatives = [other.pytorch for engine in execution.engines for other in engine.alternatives]
        # not earlier, as the builds need the memory
        own_constants([module, flat, *alternatives], _tensors_of(original))
    join_recurrent_weights(module)
    return EngineGraph(
        captured, module, execution, flat if is_result else None, proposal, _plans(report, builder), report
    )


def _tensors_of(program: ExportedProgram) -> list[Any]:
    return [*program.state_dict.values(), *program.constants.values()]


def _plans(report: CompileReport, builder: Builder) -> dict[str, bytes]:
    """Return the bytes of the engines in the order of the subgraphs, without those of alternatives."""
    return {entry.name: builder.plans[entry.name] for entry in report.engines if entry.name in builder.plans}


def _build_engines(module: fx.GraphModule, proposal: Proposal, builder: Builder) -> CompileReport:
    """Cut `module` as proposed, and begin to build its subgraphs."""
    options = builder.options
    report = CompileReport(options, graphs=1)
    report.versions |= named_version(str(builder.context.library))
    _report_rejections(proposal, options, report)
    subgraphs = extract_subgraphs(module, proposal.subgraphs)
    alternatives = _alternatives(subgraphs, builder)
    count = len(subgraphs) + len(alternatives)
    awaited = []
    for name, subgraph in subgraphs.items():
        entry = planned_entry(name, subgraph)
        engine = _begin(subgraph, entry, builder, count, alternatives.get(name))
        module.set_submodule(name, engine)
        report.engines.append(entry)
        if builder.keep or options.fallback == "error" or entry.by_torch_tensorrt:
            awaited.append(engine)
    for engine in awaited:
        engine.wait()
    torch_subgraphs = compile_torch_subgraphs(module, report) if builder.run else {}
    report_stages(module, report, torch_subgraphs)
    return report


def report_stages(module: fx.GraphModule, report: CompileReport, torch_subgraphs: Mapping[str, list[str]]) -> None:
    """Have a report say in which order its engines and the rest of `module` compute, and on which GPUs.

    torch_subgraphs: the names of the nodes of each subgraph for inductor.
    """
    report.stages = stages_from_graph(module, report.in_torch, torch_subgraphs)
    report.gpus = gpu_names(engine.device for engine in module.modules() if isinstance(engine, EngineModule))


def gpu_names(devices: Iterable[torch.device | None]) -> list[str]:
    """Return the names of the GPUs among these devices, with the number of each but the first, as "NVIDIA L4 (1)"."""
    gpus = sorted({gpu.index or 0 for gpu in devices if gpu is not None and gpu.type == "cuda"})
    return [torch.cuda.get_device_name(gpu) + (f" ({gpu})" if gpu else "") for gpu in gpus]


def _begin(
    subgraph: fx.GraphModule,
    entry: EngineEntry,
    builder: Builder,
    count: int,
    unquantized: fx.GraphModule | None = None,
) -> EngineModule:
    """Begin to build the engines of a subgraph, and of the same without quantization; return its module."""
    ranges, options = builder.context.ranges, builder.options
    build = builder.begin(subgraph, entry, count)
    alternative = None
    if unquantized is not None:
        other = planned_entry(f"{entry.name} without quantization", unquantized)
        alternative = _begin(unquantized, other, builder, count)
    statics = _static_engines(subgraph, entry, builder)
    engine = engine_module(subgraph, ranges, build, entry, options, alternative)
    engine.static_engines = statics
    return engine


def _static_engines(subgraph: fx.GraphModule, entry: EngineEntry, builder: Builder) -> StaticEngines | None:
    """Return what builds engines of a subgraph for single sizes; None where none are wanted.

    A decoder's subgraphs, which write caches, get none: each engine holds the weights.
    """
    options = builder.options
    has_one_size = all(spec.has_one_size for spec in input_specs(subgraph, builder.context.ranges))
    if has_one_size or not options.static_engines or not builder.run or builder.keep or options.release_weights:
        return None
    if any(map(is_foreign, subgraph.graph.nodes)) or written_inputs(subgraph):
        return None
    original = fx.GraphModule(subgraph, copy_graph(subgraph.graph))  # what PyTorch runs is changed afterwards
    quiet = dataclasses.replace(options, progress=False, fallback="pytorch")
    context = dataclasses.replace(builder.context, options=quiet, ranges={})

    def build(inputs: Sequence[torch.Tensor]) -> EngineModule:
        with tracing_lock():  # fake tensors are of one thread at a time
            static = with_static_sizes(original, inputs)
        sizes = ", ".join("x".join(map(str, value.shape)) or "scalar" for value in inputs)
        other = planned_entry(f"{entry.name} for {sizes}", static)
        with Builder(context, run=True, keep=False, is_optional=True) as one:
            engine = _begin(static, other, one, 1)
        engine.wait()
        if engine.state != "failed":
            entry.static_engines.append(other)
        return engine

    return StaticEngines(build)


def engine_module(
    subgraph: fx.GraphModule,
    ranges: Mapping[Any, Range],
    build: Future[Built] | Built,
    entry: EngineEntry,
    options: Options,
    alternative: EngineModule | None = None,
) -> EngineModule:
    """Return the module of one subgraph, quantized or not, whose engine has been lowered; `subgraph` is changed."""
    dtypes, specs = set(dtypes_of(subgraph)), input_specs(subgraph, ranges)
    in_floats = without_rounding if quantizes(subgraph) else None
    nodes = node_facts(subgraph)
    flatten_linear_inputs(subgraph)
    write_in_place(subgraph)
    engine = EngineModule(subgraph, specs, build, dtypes, entry, options, in_floats, alternative)
    engine.nodes = nodes
    return engine


def _alternatives(subgraphs: Mapping[str, fx.GraphModule], builder: Builder) -> dict[str, fx.GraphModule]:
    """Return the quantized subgraphs without their quantization, where the trial is to compare the two."""
    options = builder.options
    if not builder.run or options.keep_int8 or options.trial != "check+time" or options.engine == "reference":
        return {}
    return {
        name: without_quantization(subgraph, options)
        for name, subgraph in subgraphs.items()
        if quantizes(subgraph) and not any(map(is_foreign, subgraph.graph.nodes))
    }


def compile_torch_subgraphs(module: fx.GraphModule, report: CompileReport) -> dict[str, list[str]]:
    """Let inductor compile what stays in PyTorch between the engines of `module`, if the options say so.

    Returns the names of the nodes of each such subgraph, without those that take an item of a result.
    """
    if report.options.inductor == "off":
        return {}
    proposed = propose_torch_subgraphs(module)
    items = {node.name for node in module.graph.find_nodes(op="call_function", target=operator.getitem)}
    for name, nodes in extract_subgraphs(module, proposed, TORCH_SUBGRAPH_PREFIX).items():
        module.set_submodule(name, TorchSubgraph(name, nodes, report))
    return {name: [node for node in nodes if node not in items] for name, nodes in proposed.items()}


def left_in_float(module: fx.GraphModule, library: TensorRTLibrary, options: Options) -> list[TorchEntry]:
    """Hand floats to the quantized layers that this TensorRT cannot build, and return them; `module` is changed."""
    dropped = drop_quantization(module, lambda capability: _missing(capability, library, options))
    return [torch_entry(node, reason) for node, reason in dropped.items()]


def _missing(capability: str, library: TensorRTLibrary, options: Options) -> str | None:
    """Return why TensorRT cannot build a quantized layer; None if it can."""
    support = supports(capability, library, options)
    return None if support.yes else f"{library} does not build {capability}: {support.reason}"


def planned_entry(name: str, subgraph: fx.GraphModule) -> EngineEntry:
    """Return the report's entry of a subgraph, with the nodes that torch_tensorrt is to write."""
    entry = engine_entry(name, subgraph)
    entry.by_torch_tensorrt = {node.name: op_name(node) for node in subgraph.graph.nodes if is_foreign(node)}
    return entry


def input_specs(subgraph: fx.GraphModule, ranges: Mapping[Any, Range]) -> list[TensorSpec]:
    """Return the specs of a graph's inputs."""
    return [spec_of(n.name, n.meta["val"], ranges) for n in subgraph.graph.nodes if n.op == "placeholder"]


def bounded(ranges: Mapping[Any, tuple[int, int | None]], options: Options) -> dict[Any, Range]:
    """Return the ranges of the symbols, each with an upper end."""
    return {
        symbol: (low, max(low, options.max_dynamic_size) if high is None else high)
        for symbol, (low, high) in ranges.items()
    }


def _report_rejections(proposal: Proposal, options: Options, report: CompileReport) -> None:
    report.in_torch = [torch_entry(r.node, r.reason) for r in proposal.rejections]
    if not proposal.rejections:
        return
    first = "; ".join(f"{describe(r.node)}: {r.reason}" for r in proposal.rejections[:3])
    more = f" and {len(proposal.rejections) - 3} more" if len(proposal.rejections) > 3 else ""
    nodes = counted(len(proposal.rejections), "node")
    if options.fallback == "error":
        raise UnsupportedOpError(
            f"TensorRT cannot run {nodes}: {first}{more}. fallback='pytorch' leaves what it cannot run to PyTorch."
        )
    stay = "stays" if len(proposal.rejections) == 1 else "stay"
    warn_once(f"{nodes} {stay} in PyTorch: {first}{more}. trtb.report(...) lists all.")
