"""Rendering of a report, as text for the terminal and as one HTML page."""

from __future__ import annotations

import html
import io
import shutil
import string
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from torchtrt_bridge.report.model import CompileReport, EngineEntry, TorchEntry

WIDTH = 100  # where there is no terminal
NARROWEST = 60
MOST_OF_A_WORD = 20  # longer ones, as paths, are folded
NOT_BUILT = "not built"  # written by `explain` in place of the engine's name
BREAK_COLUMNS = ("PyTorch runs", "reason", "source line")
TORCH_COLUMNS = ("operator", "count", "reason", "first source line")
_NUMBERS = {"nodes", "build s", "MB", "error", "ms", "PyTorch ms", "count"}

Rows = list[tuple[str, ...]]


def text_from_report(report: CompileReport) -> str:
    """Return the report as plain text, as wide as the terminal."""
    console = text_console(max(NARROWEST, shutil.get_terminal_size((WIDTH, 24)).columns))
    console.print(headline(report))
    if headline(report) != NOTHING_YET:
        console.print(settings(report))
    if report.engines:
        for table in _tables("Engines", *engine_table(report), console.width):
            console.print()
            console.print(table)
    if failures(report) or by_torch_tensorrt(report) or products(report) or quantized(report):
        console.print()
    for name, dtypes in products(report):
        console.print(f"{name} computes its products in {dtypes}")
    for name, found in quantized(report):
        console.print(f"{name} is {found}")
    for name, reason in failures(report):
        console.print(f"{name} runs in {reason}")
    for name, nodes in by_torch_tensorrt(report):
        console.print(f"{name} has nodes that converters of torch_tensorrt wrote: {nodes}")
    if report.breaks:
        console.print()
        console.print(_table("Graph breaks", BREAK_COLUMNS, [_shortened(row) for row in break_rows(report)]))
    if report.in_torch:
        console.print()
        console.print(_table("In PyTorch", TORCH_COLUMNS, [_shortened(row) for row in torch_rows(report.in_torch)]))
    if report.in_float:
        console.print()
        console.print(_table("Not quantized", TORCH_COLUMNS, [_shortened(r) for r in torch_rows(report.in_float)]))
    if report.notes:
        console.print()
    for note in report.notes:
        console.print(f"note: {note}")
    return text_from_console(console)


def text_console(width: int) -> Console:
    """Return a console that keeps the plain text printed to it."""
    from rich.console import Console

    # Without force_jupyter=False, rich would display in a notebook instead of writing to its file.
    options: dict[str, Any] = {"color_system": None, "highlight": False, "markup": False, "emoji": False}
    return Console(file=io.StringIO(), width=width, force_jupyter=False, **options)


def text_from_console(console: Console) -> str:
    """Return the text of a console, without spaces at the ends of its lines."""
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


NOTHING_YET = (
    "Nothing was compiled yet: torch.compile compiles on the first call. If there was one, Dynamo captured nothing of "
    "it, and trtb.explain(model, inputs) says why."
)
NOTHING_CAPTURED = "No engine: Dynamo captured no operator, so PyTorch runs all of the model"


def headline(report: CompileReport) -> str:
    """Return in one line how much of the model TensorRT runs."""
    breaks = f", {_counted(len(report.breaks), 'graph break')}" if report.breaks else ""
    if not report.engines and not report.in_torch:
        if report.notes and not report.is_plan:
            return f"No engine{breaks}."
        return f"{NOTHING_CAPTURED}{breaks}." if report.is_plan or report.breaks else NOTHING_YET
    total = report.trt_nodes + report.torch_nodes
    ready = [entry for entry in report.engines if entry.serves]
    where = "would run in TensorRT" if is_plan(report) else "in TensorRT"
    engines = _counted(len(ready), "engine")
    graphs = f", {report.graphs} graphs" if report.graphs > 1 else ""
    nodes = "captured nodes" if breaks else "nodes"  # nobody counts those that no graph holds
    return f"{report.trt_nodes} of {total} {nodes} {where}, {engines}{graphs}{breaks}"


def settings(report: CompileReport) -> str:
    """Return in one line the options and the error of the whole model."""
    options = report.options
    targets = f"targets {', '.join(options.targets)}" if options.targets else ""
    computed = "computed by the reference interpreter, on CPU" if options.engine == "reference" else ""
    error = "" if report.error is None else f"error to the model itself {report.error:.1e}"
    return ", ".join(part for part in (f"precision {options.precision}", targets, computed, error) if part)


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


def failures(report: CompileReport) -> list[tuple[str, str]]:
    """Return the engines that PyTorch or inductor replaces, each with its reason."""
    return [(entry.name, _instead(entry)) for entry in report.engines if not entry.serves]


def by_torch_tensorrt(report: CompileReport) -> list[tuple[str, str]]:
    """Return the engines with nodes that torch_tensorrt's converters wrote, and these nodes."""
    listed = [(e.name, [f"{op} ({node})" for node, op in e.by_torch_tensorrt.items()]) for e in report.engines]
    return [(name, ", ".join(nodes)) for name, nodes in listed if nodes]


def products(report: CompileReport) -> list[tuple[str, str]]:
    """Return the engines of quantized subgraphs, and the dtypes of their convolutions and matrix products."""
    listed = [(e.name, ", ".join(f"{dtype} ({count})" for dtype, count in e.products.items())) for e in report.engines]
    return [(name, dtypes) for name, dtypes in listed if dtypes]


def quantized(report: CompileReport) -> list[tuple[str, str]]:
    """Return the engines that were tried with and without their quantization, and the outcome."""
    found = []
    for entry in report.engines:
        times = entry.milliseconds
        if entry.unquantized:
            found.append((entry.name, f"computed without quantization: {entry.unquantized}"))
        elif "unquantized" in times:
            both = f"it takes {times['engine']:.3g} ms, without quantization {times['unquantized']:.3g} ms"
            found.append((entry.name, f"quantized: {both}"))
    return found


def _instead(entry: EngineEntry) -> str:
    if not entry.is_ready:
        return f"PyTorch: {entry.state}"
    times = entry.milliseconds
    return f"{entry.choice}: it takes {times[entry.choice]:.3g} ms, the engine {times['engine']:.3g} ms"


def _runs_in(entry: EngineEntry) -> str:
    place = f" on {entry.device}" if entry.device else ""
    return f"{entry.choice if entry.is_ready else 'PyTorch'}{place}"


def _build_time(entry: EngineEntry) -> str:
    return "cached" if entry.from_cache else f"{entry.build_seconds:.2f}" if entry.build_seconds else "-"


def _error(entry: EngineEntry) -> str:
    return "-" if entry.error is None else f"{entry.error:.1e}" if entry.error else "0"


def _milliseconds(entry: EngineEntry, candidate: str) -> str:
    return f"{entry.milliseconds[candidate]:.3g}" if candidate in entry.milliseconds else "-"


def _short_dtypes(entry: EngineEntry) -> str:
    """Return the dtypes of a subgraph with the number of values of each, as "fp16 170, fp32 2"."""
    short = {"float16": "fp16", "float32": "fp32", "bfloat16": "bf16", "float64": "fp64"}
    return ", ".join(f"{short.get(name, name)} {count}" for name, count in entry.dtypes.items())


# Cells of the table of engines, by the title of their column.
_ENGINE_COLUMNS: dict[str, Callable[[EngineEntry], str]] = {
    "name": lambda entry: entry.name,
    "nodes": lambda entry: str(entry.node_count),
    "dtypes": _short_dtypes,
    "engine": lambda entry: entry.engine.replace("TensorRT-RTX", "RTX") or "-",
    "build s": _build_time,
    "MB": lambda entry: f"{entry.bytes / 1e6:.1f}" if entry.bytes else "-",
    "error": _error,
    "ms": lambda entry: _milliseconds(entry, "engine"),
    "PyTorch ms": lambda entry: _milliseconds(entry, "PyTorch"),
    "runs in": lambda entry: _runs_in(entry),
}
_PLANNED_COLUMNS: dict[str, Callable[[EngineEntry], str]] = {
    **{title: _ENGINE_COLUMNS[title] for title in ("name", "nodes", "dtypes")},
    "inputs": lambda entry: "; ".join(entry.inputs),
}


def _shortened(row: tuple[str, ...]) -> tuple[str, ...]:
    """Return a row with two parts of the path of its source file, as the terminal is narrow."""
    *cells, source = row
    file, separator, rest = source.partition(":")
    return *cells, "/".join(file.split("/")[-2:]) + separator + rest


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


GAP = 3  # columns between two cells


def _tables(title: str, columns: Sequence[str], rows: Rows, width: int) -> list[Table]:
    """Return a table as one, or as several with the first column in each, so that no word is cut in `width`."""
    cells = list(zip(columns, *rows, strict=True))
    least = [max(len(name), *map(_least_width(name), values)) for name, *values in cells]
    groups: list[list[int]] = [[0]]
    for index in range(1, len(columns)):
        if sum(least[i] + GAP for i in groups[-1]) + least[index] > width and len(groups[-1]) > 1:
            groups.append([0])
        groups[-1].append(index)
    tables: list[Table] = []
    for group in groups:
        widths = _widths([least[i] for i in group], [max(map(len, cells[i])) for i in group], width)
        name = title if not tables else f"{title}, continued"
        tables.append(_table(name, [columns[i] for i in group], [tuple(r[i] for i in group) for r in rows], widths))
    return tables


def _widths(least: Sequence[int], most: Sequence[int], width: int) -> list[int]:
    """Return the widths of columns that fill `width`, where their cells need it, from the left."""
    spare = width - sum(least) - GAP * (len(least) - 1)
    widths = []
    for low, high in zip(least, most, strict=True):
        widths.append(low + max(0, min(spare, high - low)))
        spare -= widths[-1] - low
    return widths


def _least_width(column: str) -> Callable[[str], int]:
    """Return the function from a cell of this column to the width that it needs."""
    if column in _NUMBERS or column == "name":
        return len
    return lambda cell: min(MOST_OF_A_WORD, max(map(len, cell.split()), default=0))


def _table(title: str, columns: Sequence[str], rows: Rows, widths: Sequence[int] = ()) -> Table:
    """Return a table; widths: that of each column, if rich is not to choose them."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=title,
        title_justify="left",
        title_style="",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    for index, column in enumerate(columns):
        is_number = column in _NUMBERS
        table.add_column(
            column,
            justify="right" if is_number else "left",
            no_wrap=is_number or column == "name",
            width=widths[index] if widths else None,
        )
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    return table


_PAGE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>torchtrt_bridge: $headline</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem; margin-bottom: .2rem }
h2 { font-size: 1.05rem; margin-top: 2rem }
p.settings { color: #666; margin-top: 0 }
.bar { background: #e7e7ea; border-radius: 4px; height: 10px }
.bar div { background: #4b8f29; border-radius: 4px; height: 10px }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .35rem .7rem .35rem 0;
  border-bottom: 1px solid #e7e7ea }
th { color: #666; font-weight: 500 }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
details { margin: .4rem 0 }
code { font-size: .9em }
</style>
</head>
<body>
$content
</body>
</html>
""")

_CONTENT = string.Template("""<h1>$headline</h1>
<p class="settings">$settings</p>
<div class="bar"><div style="width: $percent%"></div></div>
$sections""")


def html_from_report(report: CompileReport) -> str:
    """Return the report as one self-contained HTML page."""
    return _PAGE.substitute(headline=html.escape(headline(report)), content=_content(report))


def html_for_notebook(report: CompileReport) -> str:
    """Return the report as a part of a page, which has its own styles."""
    return f"<div>{_content(report)}</div>"


def _content(report: CompileReport) -> str:
    total = report.trt_nodes + report.torch_nodes
    sections = []
    if report.engines:
        sections += ["<h2>Engines</h2>", _html_table(*engine_table(report)), *map(_details, report.engines)]
    if failures(report):
        sections += [
            "<h2>Engines that PyTorch replaces</h2>",
            _html_table(("name", "reason"), list(failures(report))),
        ]
    if products(report):
        sections += ["<h2>Products</h2>", _html_table(("name", "computed in"), products(report))]
    if quantized(report):
        sections += ["<h2>Quantization</h2>", _html_table(("name", "it is"), quantized(report))]
    if by_torch_tensorrt(report):
        sections += ["<h2>Nodes by torch_tensorrt</h2>", _html_table(("name", "nodes"), by_torch_tensorrt(report))]
    if report.breaks:
        sections += ["<h2>Graph breaks</h2>", _html_table(BREAK_COLUMNS, break_rows(report))]
    if report.in_torch:
        sections += ["<h2>In PyTorch</h2>", _html_table(TORCH_COLUMNS, torch_rows(report.in_torch))]
    if report.in_float:
        sections += ["<h2>Not quantized</h2>", _html_table(TORCH_COLUMNS, torch_rows(report.in_float))]
    if report.notes:
        items = "".join(f"<li>{html.escape(note)}</li>" for note in report.notes)
        sections += ["<h2>Notes</h2>", f"<ul>{items}</ul>"]
    return _CONTENT.substitute(
        headline=html.escape(headline(report)),
        settings="" if headline(report) == NOTHING_YET else html.escape(settings(report)),
        percent=f"{100 * report.trt_nodes / total:.0f}" if total else "0",
        sections="\n".join(sections),
    )


def _html_table(columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> str:
    kinds = [' class="number"' if column in _NUMBERS else "" for column in columns]
    head = "".join(f"<th{kind}>{html.escape(column)}</th>" for kind, column in zip(kinds, columns, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{html.escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _details(entry: EngineEntry) -> str:
    """Return the operators, inputs and outputs of an engine as a folded section."""
    rows: Rows = [(op, str(count)) for op, count in entry.nodes.items()]
    ends = "".join(
        f"<p>{title}: <code>{html.escape('; '.join(values))}</code></p>"
        for title, values in (("Inputs", entry.inputs), ("Outputs", entry.outputs))
        if values
    )
    title = f"{html.escape(entry.name)}: {_counted(entry.node_count, 'operator')}"
    return f"<details><summary>{title}</summary>{ends}{_html_table(('operator', 'count'), rows)}</details>"
