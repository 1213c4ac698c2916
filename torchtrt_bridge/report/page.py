"""Rendering of a report as one HTML page, or as a part of a notebook, from the template beside this file."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torchtrt_bridge.report import facts
from torchtrt_bridge.report.picture import dtype_parts, largest, picture_of

if TYPE_CHECKING:
    from jinja2 import Template

    from torchtrt_bridge.report.layers import LayerTimes
    from torchtrt_bridge.report.model import CompileReport

TEMPLATE = "page.html.jinja"
MOST_BARS = 10  # layers of an engine that have one


def html_from_report(report: CompileReport) -> str:
    """Return the report as one HTML page that needs no other file."""
    return _template().render(_content(report), is_page=True, level=1)


def html_for_notebook(report: CompileReport) -> str:
    """Return the report as a part of a page, with styles that apply to nothing else there."""
    return _template().render(_content(report), is_page=False, level=2)


@functools.cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("torchtrt_bridge", "report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(TEMPLATE)


def _content(report: CompileReport) -> dict[str, Any]:
    """Return what the template shows of a report, by the names that it has there."""
    is_empty = facts.headline(report) == facts.NOTHING_YET
    return {
        "report": report,
        "headline": facts.headline(report),
        "is_empty": is_empty,
        "percent": _percent(report),
        "has_nodes": bool(report.trt_nodes + report.torch_nodes),
        "facts": _facts(report, is_empty),
        "options": [] if is_empty else [f"{name}={value}" for name, value in facts.changed_options(report).items()],
        "picture": picture_of(report),
        "engine_table": facts.engine_table(report),
        "is_plan": facts.is_plan(report),
        "largest": largest(report.engines),
        "dtype_parts": dtype_parts,
        "counted": facts.counted,
        "runs_in": facts.runs_in,
        "short_source": facts.short_source,
        "size_text": facts.size_text,
        "SHORT": facts.SHORT,
        "NUMBERS": facts.NUMBERS,
        "profiles": [_profile(name, times) for name, times in facts.profiled(report)],
        "tables": _tables(report),
        "quantization": _quantization(report.quantization),
    }


def _facts(report: CompileReport, is_empty: bool) -> list[tuple[str, str]]:
    """Return what the top of the page says, each with its title."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    about = [("Versions", versions), ("Date", report.created.replace("T", " "))]
    if is_empty:
        return about
    found = [("Model", report.model), ("Precision", _precision(report)), ("Coverage", _coverage(report))]
    if not facts.is_plan(report):
        found += [("Error", _error(report)), ("Speed", _speed(report))]
    return [(title, text) for title, text in [*found, ("GPU", _gpu(report)), *about] if text]


def _precision(report: CompileReport) -> str:
    return facts.precision(report) + (" with TF32" if report.options.tf32 else "")


def _coverage(report: CompileReport) -> str:
    engines = facts.counted(sum(entry.serves for entry in report.engines), "engine")
    return f"{facts.coverage(report)} nodes ({_percent(report)} %), {engines}"


def _percent(report: CompileReport) -> int:
    """Return the share of nodes in TensorRT in whole percent; 100 only if it is all of them."""
    return 100 * report.trt_nodes // max(1, report.trt_nodes + report.torch_nodes)


def _error(report: CompileReport) -> str:
    if report.error is not None:
        return f"{facts.error_text(report.error)}, of the results to the model's own"
    error = facts.largest_error(report)
    return "not measured" if error is None else f"up to {facts.error_text(error)}, of an engine to PyTorch"


def _speed(report: CompileReport) -> str:
    times = facts.trial_times(report)
    if times is None:
        return "not measured"
    pytorch, taken, count = times
    subgraphs = "" if count == len(report.engines) else f" of {count} of {len(report.engines)} subgraphs"
    ratio = f"{pytorch / taken:.2g} times as fast as PyTorch: " if taken else ""
    return f"{ratio}{taken:.3g} ms per call instead of {pytorch:.3g} ms, in the trial{subgraphs}"


def _gpu(report: CompileReport) -> str:
    found = ", ".join(report.gpus)
    if not found:
        found = "none: the reference interpreter, on the CPU" if report.options.engine == "reference" else "none here"
    targets = report.options.targets
    return f"{found}; engines are for {', '.join(targets)}" if targets else found


def _tables(report: CompileReport) -> list[tuple[str, tuple[str, ...], facts.Rows]]:
    """Return the tables below the engines, each with its title and columns, without those that would be empty."""
    found: list[tuple[str, tuple[str, ...], facts.Rows]] = [
        ("Subgraphs that run without their engine", ("name", "runs in"), facts.failures(report)),
        ("Engines for sizes that came often", ("name", "runs in"), facts.static_engines(report)),
        ("Quantization", ("name", "it is"), facts.quantized(report)),
        ("Nodes by torch_tensorrt", ("name", "nodes by converters"), facts.by_torch_tensorrt(report)),
        ("Graph breaks", facts.BREAK_COLUMNS, _shortened(facts.break_rows(report))),
        ("In PyTorch", facts.TORCH_COLUMNS, _shortened(facts.torch_rows(report.in_torch))),
        ("Not quantized", facts.TORCH_COLUMNS, _shortened(facts.torch_rows(report.in_float))),
    ]
    return [(title, columns, rows) for title, columns, rows in found if rows]


def _shortened(rows: facts.Rows) -> facts.Rows:
    return [facts.shortened(row) for row in rows]


def _profile(name: str, times: LayerTimes) -> dict[str, Any]:
    """Return what the template shows of the layers of an engine; a bar's share is that of the slowest layer."""
    slowest = max((layer.milliseconds for layer in times.layers), default=0.0)
    rows = zip(facts.layer_rows(times.layers), times.layers, strict=True)
    return {
        "name": name,
        "text": facts.layers_text(times),
        "bars": [
            (layer.name, layer.milliseconds / slowest, f"{layer.milliseconds:.3g} ms")
            for layer in times.layers[:MOST_BARS]
        ],
        "columns": (*facts.LAYER_COLUMNS[:-1], "in TensorRT", facts.LAYER_COLUMNS[-1]),
        "rows": [(*row, layer.kind, source) for (*row, source), layer in rows],
    }


def _quantization(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the table of the layers of a quantized model, without the columns that would be empty."""
    if found is None:
        return None
    cells: dict[str, Callable[[dict[str, Any]], str]] = {
        "layer": lambda layer: layer["name"],
        "operator": lambda layer: layer["op"],
        "dtype": lambda layer: layer["dtype"],
        "input scale": lambda layer: _number(layer["scale"]),
        "error alone": lambda layer: _number(layer["sensitivity"]),
        "reason": lambda layer: layer["reason"],
    }
    layers = found["layers"]
    columns = [title for title, cell in cells.items() if any(cell(layer) not in ("", "-") for layer in layers)]
    return {
        "headline": _quantized_layers(found),
        "columns": tuple(columns),
        "rows": [tuple(cells[title](layer) for title in columns) for layer in layers],
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _quantized_layers(found: dict[str, Any]) -> str:
    error = "" if found["error"] is None else f"; error of the outputs {found['error']:.2e}"
    return f"{found['quantized']} of {len(found['layers'])} layers in {found['dtype']}: {found['choice']}{error}"
