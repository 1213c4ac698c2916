"""The report of a compilation: where each node runs, what was built, and why the rest stayed in PyTorch."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx

from torchtrt_bridge.errors import OptionsError
from torchtrt_bridge.graph.nodes import source_of
from torchtrt_bridge.graph.version import __version__
from torchtrt_bridge.options import Options
from torchtrt_bridge.report.layers import RUNS, EngineLink, LayerTimes, add_layer_times, without_links

READY = "ready"
ABSENT_HINT = "the report's to_dict() has the names of the operators in each engine"


@dataclasses.dataclass
class EngineEntry:
    """One subgraph in TensorRT, as a report shows it; nothing that computes reads it.

    nodes: how many ATen operators it computes, by operator.
    engine: what built it, as "TensorRT-RTX 1.7.1.116"; "not built" in the report of `explain`.
    state: ``"ready"``, ``"building"``, or why PyTorch runs this subgraph after all.
    error: relative L2 distance to PyTorch on the first real inputs; None before that. Of a quantized subgraph, the
        distance to PyTorch without rounding activations to 8 bits.
    milliseconds: time per call of the engine, of PyTorch and of what else took part in the trial.
    choice: the winner of the trial: ``"engine"``, ``"PyTorch"`` or ``"inductor"``.
    by_torch_tensorrt: the nodes that converters of torch_tensorrt wrote, each with its operator.
    products: of a quantized subgraph, how many convolutions and matrix products the engine computes in each dtype;
        empty where the engine does not say.
    unquantized: why this engine replaces one of the same subgraph in 8 bits; empty if it does not.
    dtypes: how many operators have a first result of each dtype; "size" for those that compute a number.
    device: the GPU that it runs on, as "cuda:1"; empty for the first one and for the CPU.
    sources: how many of the operators come from each line of the user's source, as "model.py:12: x = f(x)"; operators
        of which PyTorch knows no line are left out.
    static_engines: the engines of the same subgraph for single sizes that came often.
    layer_times: what `CompileReport.profile` found; None where it was not called.
    link: leads to the engine, for `profile`; no part of the data.
    """

    name: str
    nodes: dict[str, int]
    inputs: list[str]
    outputs: list[str]
    dtypes: dict[str, int]
    layers: int = 0
    engine: str = ""
    build_seconds: float = 0.0
    bytes: int = 0
    from_cache: bool = False
    state: str = READY
    error: float | None = None
    milliseconds: dict[str, float] = dataclasses.field(default_factory=dict)
    choice: str = "engine"
    by_torch_tensorrt: dict[str, str] = dataclasses.field(default_factory=dict)
    products: dict[str, int] = dataclasses.field(default_factory=dict)
    unquantized: str = ""
    device: str = ""
    sources: dict[str, int] = dataclasses.field(default_factory=dict)
    static_engines: list[EngineEntry] = dataclasses.field(default_factory=list)
    layer_times: LayerTimes | None = None
    link: EngineLink = dataclasses.field(default_factory=EngineLink, repr=False, compare=False)

    @property
    def is_ready(self) -> bool:
        """True if the engine is built and right."""
        return self.state == READY

    @property
    def serves(self) -> bool:
        """True if the engine runs this subgraph."""
        return self.is_ready and self.choice == "engine"

    def within(self, module: str) -> EngineEntry:
        """Return a copy whose name begins with that of a module of the model."""
        statics = [static.within(module) for static in self.static_engines]
        return dataclasses.replace(self, name=f"{module}.{self.name}", static_engines=statics)

    def forget_trial(self) -> None:
        """Leave out what a trial found, as on another machine."""
        self.error, self.milliseconds, self.choice, self.layer_times = None, {}, "engine", None

    def copy_from(self, other: EngineEntry) -> None:
        """Describe another engine from now on, under the same name."""
        for field in dataclasses.fields(self):
            if field.name not in ("name", "link"):
                setattr(self, field.name, getattr(other, field.name))

    @property
    def node_count(self) -> int:
        return sum(self.nodes.values())


@dataclasses.dataclass(frozen=True)
class TorchEntry:
    """One node that stays in PyTorch, or does not run as it could, and why."""

    op: str
    node: str
    reason: str
    source: str | None


@dataclasses.dataclass(frozen=True)
class GraphBreak:
    """One place where Dynamo ends a graph and leaves code to Python, so that no graph holds its operators.

    source: the line, as "model.py:12: if x.sum() > 0:".
    in_torch: the code that PyTorch runs: "this line", "all of forward" or "the rest of forward".
    after: how many graphs are captured before this line.
    """

    reason: str
    source: str
    in_torch: str
    after: int = 0


@dataclasses.dataclass
class Stage:
    """One step of a graph, in the order of its data: an engine, or nodes in PyTorch between two engines.

    graph: the number of the graph, in the order of capture.
    name: of an engine, that of its entry; of nodes that inductor may compile, as "torch_0"; else empty.
    in_torch: the nodes in PyTorch; none for an engine.
    moves: how many other calls PyTorch runs here. They compute no elements: views, copies and sizes.
    reason: of a graph that PyTorch runs as a whole, why it does.
    milliseconds: time per call of PyTorch and of inductor, where they were compared; of an engine, its entry has them.
    choice: which of them runs the nodes; of an engine, its entry says what does.
    """

    graph: int
    name: str = ""
    in_torch: list[TorchEntry] = dataclasses.field(default_factory=list)
    moves: int = 0
    reason: str = ""
    milliseconds: dict[str, float] = dataclasses.field(default_factory=dict)
    choice: str = "PyTorch"


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    """Return the versions that every report has; that of TensorRT comes with the engines."""
    found = {"torchtrt_bridge": __version__, "PyTorch": torch.__version__, "Python": platform.python_version()}
    return found | ({"CUDA": torch.version.cuda} if torch.version.cuda else {})


@dataclasses.dataclass(repr=False)
class CompileReport:
    """The outcome of a compilation: `print` it, take it as data with `to_dict`, or `save` it as HTML.

    graphs: how many graphs PyTorch captured; more than one means graph breaks or several input shapes.
    notes: remarks on whole graphs, as "gradients are needed: PyTorch runs it".
    in_float: the layers that TensorRT runs in floating point although the model has them quantized.
    error: relative L2 distance of the first results to those of the model itself; None where it was not measured.
    breaks: the graph breaks. What PyTorch runs there is in no graph, so that no count of nodes has it.
    is_plan: the report is one of `explain`, which builds nothing.
    stages: what computes each graph, in the order of its data.
    model: the class or the function that was compiled; empty where it is unknown.
    versions: of the packages, as {"PyTorch": "2.11.0"}.
    gpus: the GPUs that the engines are on.
    created: when the report was begun, in the form of ISO 8601.
    quantization: what `quantize` did to the model, as its own report says in `to_dict`; None for other models.
    """

    options: Options
    engines: list[EngineEntry] = dataclasses.field(default_factory=list)
    in_torch: list[TorchEntry] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    graphs: int = 0
    in_float: list[TorchEntry] = dataclasses.field(default_factory=list)
    error: float | None = None
    breaks: list[GraphBreak] = dataclasses.field(default_factory=list)
    is_plan: bool = False
    stages: list[Stage] = dataclasses.field(default_factory=list)
    model: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=_versions)
    gpus: list[str] = dataclasses.field(default_factory=list)
    created: str = dataclasses.field(default_factory=_now)
    quantization: dict[str, Any] | None = None

    @property
    def trt_nodes(self) -> int:
        return sum(entry.node_count for entry in self.engines if entry.serves)

    @property
    def torch_nodes(self) -> int:
        return len(self.in_torch) + sum(e.node_count for e in self.engines if not e.serves)

    @property
    def is_whole(self) -> bool:
        """True if TensorRT runs every node, and graphs hold the whole model."""
        return bool(self.engines) and self.torch_nodes == 0 and not self.notes and not self.breaks

    def note(self, message: str) -> None:
        if message not in self.notes:
            self.notes.append(message)

    def add_break(self, found: GraphBreak) -> None:
        """Add a graph break, one for each line; of two, that which leaves more than the line to PyTorch.

        Dynamo comes to a line once for each function around it, of which it may leave the inner one as a whole.
        """
        lines = [known.source for known in self.breaks]
        if found.source not in lines:
            self.breaks.append(found)
        elif found.in_torch != "this line":
            self.breaks[lines.index(found.source)] = found

    def rename_inputs(self, names: Mapping[str, str]) -> None:
        """Give the inputs of engines the user's names, by those in the graph."""
        for entry in self.engines:
            parts = (text.partition(": ") for text in entry.inputs)
            entry.inputs = [names.get(name, name) + separator + spec for name, separator, spec in parts]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        options = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self.options).items()}
        stages = [dataclasses.asdict(stage) | {"in_torch": [e.node for e in stage.in_torch]} for stage in self.stages]
        return {**dataclasses.asdict(self, dict_factory=without_links), "options": options, "stages": stages}

    def profile(self, runs: int = RUNS) -> CompileReport:
        """Have TensorRT's profiler time the layers of each engine, and return this report, which has them from now on.

        Each engine runs so often on inputs made for it, of the sizes that it is tuned for. One that cannot be timed has
        the reason in place of times. Raises EngineLoadError if none can: without a GPU, or for what runs in PyTorch.
        """
        add_layer_times(self.engines, runs)
        return self

    def diff(self, other: CompileReport) -> str:
        """Return what changes from this report to `other`, as a table that is as wide as the terminal.

        It compares coverage, versions, options, errors, and of each engine its nodes, dtypes, size, error, time and the
        winner of its trial. Times within 5 % of each other count as equal.
        """
        from torchtrt_bridge.report.diff import text_from_difference

        return text_from_difference(self, other)

    def __repr__(self) -> str:
        from torchtrt_bridge.report.facts import headline

        return f"<CompileReport: {headline(self).partition(': ')[0].rstrip('.')}>"

    def __str__(self) -> str:
        from torchtrt_bridge.report.render import text_from_report

        return text_from_report(self)

    def _repr_html_(self) -> str:
        """Return the report for a notebook."""
        from torchtrt_bridge.report.page import html_for_notebook

        return html_for_notebook(self)

    def save(self, path: str | Path) -> None:
        """Write the report as one HTML page, which needs no other file and no network; to `*.json`, as `to_dict` does.

        Raises OptionsError if there is no folder to write it into.
        """
        from torchtrt_bridge.report.page import html_from_report

        path = Path(path)
        if not path.parent.is_dir() or path.is_dir():
            what = "is a folder" if path.is_dir() else f"is in no folder that exists: create {path.parent} first"
            raise OptionsError(f"save() writes one file, and {path} {what}.")
        is_data = path.suffix == ".json"
        text = json.dumps(self.to_dict(), indent=1, default=str) if is_data else html_from_report(self)
        path.write_text(text, encoding="utf-8")


def merged(reports: Iterable[CompileReport]) -> CompileReport:
    """Return one report of several graphs; engines of different graphs have the graph's number in their names."""
    reports = list(reports)
    has_many = sum(bool(report.engines) for report in reports) > 1
    options = reports[0].options if reports else Options()
    errors = [report.error for report in reports if report.error is not None]
    whole = CompileReport(options, error=max(errors, default=None))
    for report in reports:
        prefix = f"graph_{whole.graphs}." if has_many else ""
        whole.engines += [dataclasses.replace(e, name=prefix + e.name) if prefix else e for e in report.engines]
        whole.stages += [_moved(stage, whole.graphs, prefix) for stage in stages_of(report)]
        whole.in_torch += report.in_torch
        whole.in_float += report.in_float
        whole.is_plan |= report.is_plan
        whole.graphs += report.graphs
        whole.versions.update(report.versions)
        whole.gpus += [gpu for gpu in report.gpus if gpu not in whole.gpus]
        whole.created = min(whole.created, report.created)
        for found in report.breaks:
            whole.add_break(found)
        for note in report.notes:
            whole.note(note)
    note_absent_operators(whole)
    return whole


def note_absent_operators(report: CompileReport) -> None:
    """Note the operators of the option `torch_ops` that no compiled graph has."""
    if report.engines or report.in_torch:
        there = {entry.op for entry in report.in_torch}
        for name in report.options.torch_ops:
            if name not in there:
                report.note(f"torch_ops names {name}, which no compiled graph has; {ABSENT_HINT}")


def named_version(library: str) -> dict[str, str]:
    """Return the version of "TensorRT-RTX 1.7.1.116" as a report has it, by name."""
    name, _, version = library.partition(" ")
    return {name: version}


def _moved(stage: Stage, graph: int, prefix: str) -> Stage:
    return dataclasses.replace(stage, graph=graph, name=prefix + stage.name if stage.name else "")


def stages_of(report: CompileReport) -> list[Stage]:
    """Return the stages of a report; of one without any, its engines, or one stage for what PyTorch runs."""
    if report.stages:
        return report.stages
    found = [Stage(0, entry.name) for entry in report.engines]
    if report.in_torch:
        found.append(Stage(0, in_torch=list(report.in_torch)))
    return found if found or not report.graphs else [Stage(0, reason="; ".join(report.notes))]


def engine_entry(name: str, module: fx.GraphModule) -> EngineEntry:
    """Return the entry of a subgraph that is to be built."""
    nodes = collections.Counter(map(op_name, _calls(module)))
    firsts = [next((str(value.dtype) for value in _tensors(n.meta.get("val"))), "size") for n in _calls(module)]
    dtypes = collections.Counter(dtype.removeprefix("torch.") for dtype in firsts)
    return EngineEntry(
        name, dict(nodes.most_common()), [], [], dict(dtypes.most_common()), sources=source_lines(module)
    )


def source_lines(module: fx.GraphModule) -> dict[str, int]:
    """Return how many operators come from each line of the user's source, in the order of the data."""
    return dict(collections.Counter(line for node in _calls(module) if (line := source_of(node)) is not None))


def stages_from_graph(
    module: fx.GraphModule, in_torch: Iterable[TorchEntry], torch_subgraphs: Mapping[str, Iterable[str]]
) -> list[Stage]:
    """Return the stages of a graph whose subgraphs are modules.

    in_torch: the entries of the nodes in PyTorch.
    torch_subgraphs: the names of the nodes that each subgraph for inductor was made of.
    """
    entries = {entry.node: entry for entry in in_torch}
    stages: list[Stage] = []
    for node in module.graph.nodes:
        if node.op == "call_module":
            names = list(torch_subgraphs.get(node.target, ()))
            known = [entries[name] for name in names if name in entries]
            stages.append(Stage(0, node.target, known, moves=len(names) - len(known)))
        elif node.op == "call_function" and op_name(node) != "getitem":
            if not stages or stages[-1].name:
                stages.append(Stage(0))
            if node.name in entries:
                stages[-1].in_torch.append(entries[node.name])
            else:
                stages[-1].moves += 1
    return stages


def dtypes_of(module: fx.GraphModule) -> list[Any]:
    """Return the dtypes of the results of all operators, one for each tensor."""
    return [value.dtype for node in _calls(module) for value in _tensors(node.meta.get("val"))]


def _calls(module: fx.GraphModule) -> list[fx.Node]:
    return [n for n in module.graph.nodes if n.op == "call_function" and n.target.__name__ != "getitem"]


def torch_entry(node: fx.Node, reason: str) -> TorchEntry:
    return TorchEntry(op_name(node), node.name, reason, source_of(node))


def op_name(node: fx.Node) -> str:
    return str(node.target) if hasattr(node.target, "_schema") else getattr(node.target, "__name__", str(node.target))


def _tensors(value: Any) -> Iterator[Any]:
    values = value if isinstance(value, (tuple, list)) else [value]
    return (v for v in values if hasattr(v, "dtype"))
