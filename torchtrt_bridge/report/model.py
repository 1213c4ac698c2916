"""The report of a compilation: where each node runs, what was built, and why the rest stayed in PyTorch."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import fx

from torchtrt_bridge.graph.nodes import source_of
from torchtrt_bridge.options import Options

READY = "ready"


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

    @property
    def is_ready(self) -> bool:
        """True if the engine is built and right."""
        return self.state == READY

    @property
    def serves(self) -> bool:
        """True if the engine runs this subgraph."""
        return self.is_ready and self.choice == "engine"

    def forget_trial(self) -> None:
        """Leave out what a trial found, as on another machine."""
        self.error, self.milliseconds, self.choice = None, {}, "engine"

    def copy_from(self, other: EngineEntry) -> None:
        """Describe another engine from now on, under the same name."""
        for field in dataclasses.fields(self):
            if field.name != "name":
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
    """

    reason: str
    source: str
    in_torch: str


@dataclasses.dataclass
class CompileReport:
    """The outcome of a compilation: `print` it, take it as data with `to_dict`, or `save` it as HTML.

    graphs: how many graphs PyTorch captured; more than one means graph breaks or several input shapes.
    notes: remarks on whole graphs, as "gradients are needed: PyTorch runs it".
    in_float: the layers that TensorRT runs in floating point although the model has them quantized.
    error: relative L2 distance of the first results to those of the model itself; None where it was not measured.
    breaks: the graph breaks. What PyTorch runs there is in no graph, so that no count of nodes has it.
    is_plan: the report is one of `explain`, which builds nothing.
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

    def to_dict(self) -> dict[str, Any]:
        options = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self.options).items()}
        return {
            "options": options,
            "graphs": self.graphs,
            "engines": [dataclasses.asdict(entry) for entry in self.engines],
            "in_torch": [dataclasses.asdict(entry) for entry in self.in_torch],
            "in_float": [dataclasses.asdict(entry) for entry in self.in_float],
            "breaks": [dataclasses.asdict(entry) for entry in self.breaks],
            "notes": list(self.notes),
            "error": self.error,
        }

    def __str__(self) -> str:
        from torchtrt_bridge.report.render import text_from_report

        return text_from_report(self)

    def _repr_html_(self) -> str:
        """Return the report for a notebook."""
        from torchtrt_bridge.report.render import html_for_notebook

        return html_for_notebook(self)

    def save(self, path: str | Path) -> None:
        """Write the report as one HTML page."""
        from torchtrt_bridge.report.render import html_from_report

        Path(path).write_text(html_from_report(self), encoding="utf-8")


def merged(reports: Iterable[CompileReport]) -> CompileReport:
    """Return one report of several graphs; engines of different graphs have the graph's number in their names."""
    reports = list(reports)
    has_engines = [report for report in reports if report.engines]
    options = reports[0].options if reports else Options()
    errors = [report.error for report in reports if report.error is not None]
    whole = CompileReport(options, graphs=sum(r.graphs for r in reports), error=max(errors, default=None))
    for report in reports:
        whole.engines += report.engines if len(has_engines) == 1 else _numbered(report, has_engines)
        whole.in_torch += report.in_torch
        whole.in_float += report.in_float
        whole.is_plan |= report.is_plan
        for found in report.breaks:
            whole.add_break(found)
        for note in report.notes:
            whole.note(note)
    return whole


def _numbered(report: CompileReport, reports: Sequence[CompileReport]) -> list[EngineEntry]:
    """Return the engines of a report as "graph_0.trt_0", by its place among those with engines."""
    number = next((index for index, other in enumerate(reports) if other is report), 0)
    return [dataclasses.replace(entry, name=f"graph_{number}.{entry.name}") for entry in report.engines]


def engine_entry(name: str, module: fx.GraphModule) -> EngineEntry:
    """Return the entry of a subgraph that is to be built."""
    nodes = collections.Counter(map(op_name, _calls(module)))
    firsts = [next((str(value.dtype) for value in _tensors(n.meta.get("val"))), "size") for n in _calls(module)]
    dtypes = collections.Counter(dtype.removeprefix("torch.") for dtype in firsts)
    return EngineEntry(name, dict(nodes.most_common()), [], [], dict(dtypes.most_common()))


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
