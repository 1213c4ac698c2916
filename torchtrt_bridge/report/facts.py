"""Facts of a report in words, as the text and the page both show them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchtrt_bridge.options import defaults
from torchtrt_bridge.report.layers import all_engines

if TYPE_CHECKING:
    from torchtrt_bridge.report.layers import LayerTime, LayerTimes
    from torchtrt_bridge.report.model import CompileReport, EngineEntry, TorchEntry

NOT_BUILT = "not built"  # written by `explain` in place of the engine's name
BREAK_COLUMNS = ("PyTorch runs", "reason", "source line")
TORCH_COLUMNS = ("operator", "count", "reason", "first source line")
LAYER_COLUMNS = ("layer", "ms", "share", "source line")
MOST_INPUTS = 3  # of an engine; a decoder has dozens
NUMBERS = {"nodes", "build s", "MB", "error", "ms", "PyTorch ms", "count", "share"}

SHORT = {"float16": "fp16", "float32": "fp32", "bfloat16": "bf16", "float64": "fp64", "float8_e4m3fn": "fp8"}

Rows = list[tuple[str, ...]]

NOTHING_YET = (
    "Nothing was compiled yet: torch.compile compiles on the first call. If there was one, Dynamo captured nothing of "
    "it, and trtb.explain(model, inputs) says why."
)
NOTHING_CAPTURED = "No engine: Dynamo captured no operator, so PyTorch runs all of the model"


def headline(report: CompileReport) -> str:
    """Return in one line how much of the model TensorRT runs."""
    breaks = f", {counted(len(report.breaks), 'graph break')}" if report.breaks else ""
    if not report.engines and not report.in_torch:
        if report.notes and not report.is_plan:
            return f"No engine{breaks}."
        return f"{NOTHING_CAPTURED}{breaks}." if report.is_plan or report.breaks else NOTHING_YET
    total = report.trt_nodes + report.torch_nodes
    ready = [entry for entry in report.engines if entry.serves]
    where = "would run in TensorRT" if is_plan(report) else "in TensorRT"
    engines = counted(len(ready), "engine")
    graphs = f", {report.graphs} graphs" if report.graphs > 1 else ""
    nodes = "captured nodes" if breaks else "nodes"  # nobody counts those that no graph holds
    return f"{report.trt_nodes} of {total} {nodes} {where}, {engines}{graphs}{breaks}"


def settings(report: CompileReport) -> str:
    """Return in one line the options and the error of the whole model."""
    options = report.options
    targets = f"targets {', '.join(options.targets)}" if options.targets else ""
    computed = "computed by the reference interpreter, on CPU" if options.engine == "reference" else ""
    error = "" if report.error is None else f"error to the model itself {report.error:.1e}"
    return ", ".join(part for part in (f"precision {precision(report)}", targets, computed, error) if part)


def precision(report: CompileReport) -> str:
    """Return the precision of the option; that of the model where it is in half precision, which the option keeps."""
    found = {name for entry in report.engines for name in entry.dtypes}
    halves = [SHORT[name] for name in ("float16", "bfloat16") if name in found]
    is_of_model = report.options.precision == "fp32" and halves and "float32" not in found
    return f"{' and '.join(halves)}, the model's own" if is_of_model else report.options.precision


def changed_options(report: CompileReport) -> dict[str, str]:
    """Return the options that are not at their defaults, as Python writes them."""
    values = {name: getattr(report.options, name) for name in defaults()}
    return {name: option_text(value) for name, value in values.items() if value != defaults()[name]}


def option_text(value: Any) -> str:
    """Return the value of an option as Python writes it; a path as text."""
    return repr(str(value) if isinstance(value, Path) else value)


def coverage(report: CompileReport) -> str:
    """Return how many of the nodes in graphs TensorRT runs, as "102 of 105"."""
    return f"{report.trt_nodes} of {report.trt_nodes + report.torch_nodes}"


def largest_error(report: CompileReport) -> float | None:
    """Return the largest error of an engine to PyTorch; None where none was measured."""
    return max((entry.error for entry in report.engines if entry.error is not None), default=None)


def trial_times(report: CompileReport) -> tuple[float, float, int] | None:
    """Return milliseconds per call of PyTorch and of what runs instead, and of how many engines they are the sums.

    It is None where no trial has compared times.
    """
    timed = [(e.milliseconds["PyTorch"], e.milliseconds[e.choice]) for e in report.engines if _is_timed(e)]
    return (sum(a for a, _ in timed), sum(b for _, b in timed), len(timed)) if timed else None


def _is_timed(entry: EngineEntry) -> bool:
    return entry.is_ready and "PyTorch" in entry.milliseconds and entry.choice in entry.milliseconds


def is_plan(report: CompileReport) -> bool:
    """Return whether the report is one of `explain`, which builds nothing."""
    return report.is_plan or (bool(report.engines) and all(entry.engine == NOT_BUILT for entry in report.engines))


def engine_table(report: CompileReport) -> tuple[tuple[str, ...], Rows]:
    """Return the titles and the rows of the table of engines."""
    columns = _PLANNED_COLUMNS if is_plan(report) else _ENGINE_COLUMNS
    return tuple(columns), [tuple(cell(entry) for cell in columns.values()) for entry in report.engines]


def torch_rows(entries: Iterable[TorchEntry]) -> Rows:
    """Return the rows of nodes in PyTorch, or in floating point, by operator and reason, the most frequent first."""
    groups: dict[tuple[str, str], list[str | None]] = {}
    for entry in entries:
        groups.setdefault((entry.op, entry.reason), []).append(entry.source)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [
        (op, str(len(sources)), reason, next((source for source in sources if source), "unknown"))
        for (op, reason), sources in ordered
    ]


def break_rows(report: CompileReport) -> Rows:
    """Return the rows of the table of graph breaks."""
    return [(found.in_torch, found.reason, found.source) for found in report.breaks]


def failures(report: CompileReport) -> Rows:
    """Return the engines that PyTorch or inductor replaces, each with its reason."""
    return [(entry.name, instead(entry)) for entry in report.engines if not entry.serves]


def by_torch_tensorrt(report: CompileReport) -> Rows:
    """Return the engines with nodes that torch_tensorrt's converters wrote, and these nodes."""
    listed = [(e.name, [f"{op} ({node})" for node, op in e.by_torch_tensorrt.items()]) for e in report.engines]
    return [(name, ", ".join(nodes)) for name, nodes in listed if nodes]


def products(report: CompileReport) -> Rows:
    """Return the engines of quantized subgraphs, and the dtypes of their convolutions and matrix products."""
    return [(entry.name, products_text(entry)) for entry in report.engines if entry.products]


def products_text(entry: EngineEntry) -> str:
    """Return in which dtypes an engine computes its products, as "int8 (3), float16 (2)"."""
    return ", ".join(f"{dtype} ({count})" for dtype, count in entry.products.items())


def quantized(report: CompileReport) -> Rows:
    """Return the engines that were tried with and without their quantization, and the outcome."""
    found: Rows = []
    for entry in report.engines:
        times = entry.milliseconds
        if entry.unquantized:
            found.append((entry.name, f"computed without quantization: {entry.unquantized}"))
        elif "unquantized" in times:
            both = f"it takes {times['engine']:.3g} ms, without quantization {times['unquantized']:.3g} ms"
            found.append((entry.name, f"quantized: {both}"))
    return found


def static_engines(report: CompileReport) -> Rows:
    """Return the engines for sizes that came often, and what computes calls of these sizes."""
    return [(static.name, _of_these_sizes(static)) for entry in report.engines for static in entry.static_engines]


def _of_these_sizes(entry: EngineEntry) -> str:
    if not entry.is_ready:
        return f"what runs other sizes: {entry.state}"
    if entry.error is None:
        return "what runs other sizes, until a call tries the engine"
    times = ", ".join(f"{name} {milliseconds:.3g} ms" for name, milliseconds in entry.milliseconds.items())
    return f"{runs_in(entry)}{f' ({times})' if times else ''}"


def profiled(report: CompileReport) -> list[tuple[str, LayerTimes]]:
    """Return the engines that TensorRT's profiler was to time, each with what it found; none that was dropped since."""
    found = [(entry, entry.layer_times) for entry in all_engines(report.engines)]
    return [(entry.name, times) for entry, times in found if times is not None and (times.problem or entry.serves)]


def layers_text(times: LayerTimes) -> str:
    """Return in one line how long the layers of an engine take, and on which inputs; or why that is not known."""
    if times.problem:
        return f"not timed: {times.problem}"
    shown = times.inputs[:MOST_INPUTS]
    rest = f" and {counted(len(times.inputs) - len(shown), 'more input')}" if len(times.inputs) > len(shown) else ""
    inputs = f", for {'; '.join(shown)}{rest}" if shown else ""
    return f"{counted(len(times.layers), 'layer')}, {times.milliseconds:.3g} ms together{inputs}"


def layer_rows(layers: Iterable[LayerTime]) -> Rows:
    """Return the rows of layers."""
    return [
        (layer.name, f"{layer.milliseconds:.3g}", f"{100 * layer.share:.0f} %", _first_source(layer.sources))
        for layer in layers
    ]


def _first_source(sources: list[str]) -> str:
    """Return the first of several source lines, and how many more there are; "-" for none."""
    more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
    return short_source(sources[0]) + more if sources else "-"


def instead(entry: EngineEntry) -> str:
    """Return what runs a subgraph in place of its engine, and why."""
    if not entry.is_ready:
        return f"PyTorch: {entry.state}"
    times = entry.milliseconds
    return f"{entry.choice}: it takes {times[entry.choice]:.3g} ms, the engine {times['engine']:.3g} ms"


def runs_in(entry: EngineEntry) -> str:
    """Return what computes a subgraph, with its GPU unless that is the first one."""
    place = f" on {entry.device}" if entry.device else ""
    return f"{entry.choice if entry.is_ready else 'PyTorch'}{place}"


def _build_time(entry: EngineEntry) -> str:
    return "cached" if entry.from_cache else f"{entry.build_seconds:.2f}" if entry.build_seconds else "-"


def error_text(error: float | None) -> str:
    """Return an error with two digits; "-" for one that was not measured."""
    return "-" if error is None else f"{error:.1e}" if error else "0"


def time_text(entry: EngineEntry, candidate: str) -> str:
    """Return the milliseconds per call of a candidate with three digits; "-" where there are none."""
    return f"{entry.milliseconds[candidate]:.3g}" if candidate in entry.milliseconds else "-"


def size_text(entry: EngineEntry) -> str:
    """Return the size of an engine in MB; "-" where it is not known."""
    return f"{entry.bytes / 1e6:.1f}" if entry.bytes else "-"


def short_dtypes(entry: EngineEntry) -> str:
    """Return the dtypes of a subgraph with the number of values of each, as "fp16 170, fp32 2"."""
    return ", ".join(f"{SHORT.get(name, name)} {count}" for name, count in entry.dtypes.items())


# Cells of the table of engines, by the title of their column.
_ENGINE_COLUMNS: dict[str, Callable[[EngineEntry], str]] = {
    "name": lambda entry: entry.name,
    "nodes": lambda entry: str(entry.node_count),
    "dtypes": short_dtypes,
    "engine": lambda entry: entry.engine.replace("TensorRT-RTX", "RTX") or "-",
    "build s": _build_time,
    "MB": size_text,
    "error": lambda entry: error_text(entry.error),
    "ms": lambda entry: time_text(entry, "engine"),
    "PyTorch ms": lambda entry: time_text(entry, "PyTorch"),
    "runs in": runs_in,
}
_PLANNED_COLUMNS: dict[str, Callable[[EngineEntry], str]] = {
    **{title: _ENGINE_COLUMNS[title] for title in ("name", "nodes", "dtypes")},
    "inputs": lambda entry: "; ".join(entry.inputs),
}


def shortened(row: tuple[str, ...]) -> tuple[str, ...]:
    """Return a row with two parts of the path of its source file, as terminals and telephones are narrow."""
    *cells, source = row
    return *cells, short_source(source)


def short_source(source: str, parts: int = 2) -> str:
    """Return "a/b/model.py:12: x = f(x)" with the last parts of the path."""
    file, separator, rest = source.partition(":")
    return "/".join(file.split("/")[-parts:]) + separator + rest


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, as "1 engine" and "2 engines"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
