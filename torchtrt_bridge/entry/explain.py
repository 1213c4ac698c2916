"""Explanation of a model: the place where each operator would run, and why not in TensorRT, with no engine built."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from torchtrt_bridge.capture import dynamo, graph_breaks, recurrent_layers
from torchtrt_bridge.capture.arguments import arguments_from
from torchtrt_bridge.entry.option_signature import shows_options
from torchtrt_bridge.entry.reported_model import describe_model
from torchtrt_bridge.entry.torch_compile import TRAINING, is_training, with_own_code
from torchtrt_bridge.errors import BridgeError, EngineLoadError
from torchtrt_bridge.graph.dynamo_internals import ends_in_break, forgetting_graphs
from torchtrt_bridge.graph.nodes import gpu_of
from torchtrt_bridge.graph.torch_internals import compiled_call, tracing_disabled
from torchtrt_bridge.interop import provider_for
from torchtrt_bridge.options import KeywordOptions, Options
from torchtrt_bridge.partition import extract_subgraphs, propose
from torchtrt_bridge.passes import normalize
from torchtrt_bridge.pipeline import bounded, gpu_names, input_specs, left_in_float, planned_entry
from torchtrt_bridge.report.model import (
    CompileReport,
    GraphBreak,
    merged,
    named_version,
    stages_from_graph,
    torch_entry,
)
from torchtrt_bridge.trt import library as libraries

if TYPE_CHECKING:
    from typing_extensions import Unpack

MOST_NAMED = 100  # arguments of *args that the report names
_numbers = itertools.count()


@shows_options(KeywordOptions)
def explain(
    model: Callable[..., Any],
    example_inputs: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    **options: Unpack[KeywordOptions],
) -> CompileReport:
    """Run `model` once in PyTorch and report where each operator would run.

    example_inputs, kwargs: as in `export`, on any device.
    options: the fields of `Options`.
    The report lists graph breaks: lines at which Dynamo ends a graph and leaves code to Python.
    What Dynamo compiled before stays as it is.
    """
    checked = Options.from_mapping(options)
    if checked.targets:
        libraries.choose(checked.engine).check_targets(checked.targets)
    analysis = _Analysis(checked, _parameters(model))
    if compiled_call(model) is not None:
        model = copy.copy(model)  # a copy has no compiled call of `nn.Module.compile` or `accelerate`
    args, named = arguments_from(model, example_inputs, kwargs)
    graph_breaks.watch()
    recurrent_layers.watch()
    call = with_own_code(model, f"explain_{next(_numbers)}")
    with torch.no_grad(), forgetting_graphs(analysis):
        torch.compile(call, backend=analysis)(*args, **named)
    report = analysis.report
    describe_model(report, model)
    if is_training(model):
        report.notes.insert(0, TRAINING)
    return report


def _parameters(model: Callable[..., Any]) -> list[str]:
    """Return the names of the arguments that a model or a function takes by position, as ``x``, or ``xs[1]``."""
    function = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a function in C
        return []
    names = [each.name for each in found if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    rest = [f"{each.name}[{i}]" for each in found if each.kind is each.VAR_POSITIONAL for i in range(MOST_NAMED)]
    return names + rest


class _Analysis:
    """Dynamo backend that partitions a graph, reports the parts, and runs the graph in PyTorch.

    parameters: the names of the model's positional arguments.
    """

    def __init__(self, options: Options, parameters: Sequence[str]) -> None:
        self.options, self.parameters = options, parameters
        self.reports: list[CompileReport] = []
        self.breaks: list[GraphBreak] = []
        self._ends: list[bool] = []

    def on_graph_break(self, found: GraphBreak, _: Any) -> None:
        """Keep a graph break for the report."""
        self.breaks.append(dataclasses.replace(found, after=len(self.reports)))

    @property
    def report(self) -> CompileReport:
        breaks = graph_breaks.placed(self.breaks, range(len(self.reports)), self._ends)
        return merged([*self.reports, CompileReport(self.options, breaks=breaks, is_plan=True)])

    def __call__(self, module: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        report = CompileReport(self.options, graphs=1)
        self.reports.append(report)
        self._ends.append(ends_in_break(module))
        try:
            with tracing_disabled():
                self._analyse(module, example_inputs, report)
        except Exception as error:  # whatever goes wrong here, the model has graphs besides
            kind = "" if isinstance(error, BridgeError) else f"{type(error).__name__}: "
            report.note(f"PyTorch runs a whole graph: {kind}{error}")
        return module

    def _analyse(self, module: fx.GraphModule, args: Sequence[Any], report: CompileReport) -> None:
        weights, numbers = dynamo.weight_positions(module, args), dynamo.number_positions(module, args)
        captured, inputs = dynamo.capture(module, args, weights, numbers)
        names = dynamo.input_names(module, captured.module, inputs, self.parameters)
        normalized = normalize(captured.module, self.options, captured.outputs, captured.mutations)
        with contextlib.suppress(EngineLoadError):  # without TensorRT there is no answer to a probe
            library = libraries.choose(self.options.engine)
            report.versions |= named_version(str(library))
            report.in_float = left_in_float(normalized, library, self.options)
        proposal = propose(normalized, self.options, provider_for(self.options))
        report.in_torch = [torch_entry(rejection.node, rejection.reason) for rejection in proposal.rejections]
        report.gpus = gpu_names([gpu_of(normalized)])
        ranges = bounded(captured.ranges, self.options)
        for name, subgraph in extract_subgraphs(normalized, proposal.subgraphs).items():
            entry = planned_entry(name, subgraph)
            entry.inputs = [f"{spec.name}: {spec}" for spec in input_specs(subgraph, ranges)]
            entry.engine = "not built"
            report.engines.append(entry)
        report.rename_inputs(names)
        report.stages = stages_from_graph(normalized, report.in_torch, {})
