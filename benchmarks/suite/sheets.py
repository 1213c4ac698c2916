"""Tables of the results, for the terminal and as Markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.suite.contenders import CONTENDERS, EAGER, family, title
from benchmarks.suite.job import Row
from benchmarks.suite.models import SUITE
from benchmarks.suite.results import Results
from benchmarks.suite.summary import Comparison, Mean, comparisons, means, problems

if TYPE_CHECKING:
    from rich.console import Console

PLACE = ("model", "batch", "precision")
FAILED, NONE = "failed", "-"


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A table: the first `texts` columns are words, the others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    texts: int = 1

    def markdown(self) -> str:
        rules = ["---" if index < self.texts else "---:" for index in range(len(self.columns))]
        lines = [self.columns, rules, *self.rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"**{self.title}**\n\n{table}"

    def print(self, console: Console) -> None:
        from rich import box
        from rich.table import Table

        table = Table(title=self.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="left" if index < self.texts else "right")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)


def sheets(results: Results) -> list[Sheet]:
    """The tables that have something to say."""
    rows = sorted(results.rows, key=_order)
    compared = comparisons(rows)
    tables = [
        _summary(means(compared)),
        _speed(compared),
        _pivot("One call at a time: ms per call", rows, "speed", lambda row: _number(row.get("latency_ms"))),
        _pivot("Error: relative L2 distance to eager fp32", rows, "speed", lambda row: _small(row.get("error"))),
        _pivot("Device memory that stays taken, with the weights: MiB", rows, "speed", _held),
        _engines(compared),
        _pivot("First result, caches empty / filled: s", rows, "start", lambda row: _pair(row, "seconds")),
        _pivot("Of it, Dynamo's trace: s", rows, "start", lambda row: _pair(row, "trace_seconds")),
        _pivot("Host memory for it, most above the loaded model: MiB", rows, "start", _host),
        _pivot("Device memory for it, PyTorch's most / what stays taken: MiB", rows, "start", _device),
        _builds([row for row in rows if row["kind"] == "build"]),
    ]
    return [table for table in tables if any(set(row[table.texts :]) - {NONE, FAILED} for row in table.rows)]


def footnotes(results: Results) -> list[str]:
    """What a reader of the tables has to know beside them."""
    e = results.environment
    versions = [f"PyTorch {e['torch']}", str(e["tensorrt"]), f"transformers {e['transformers']}"]
    where = f"{e['gpu']}, driver {e['driver']}" if e["gpu"] else f"no GPU, {e['cpu']}"
    notes = [f"{where}; {', '.join(versions)}."]
    if any(row["kind"] == "speed" for row in results.rows):
        notes.append("Medians over rounds in which the contenders take turns; spread: the largest quartile range.")
    sources = {row["source"] for row in results.rows}
    if len(sources) > 1:
        notes.append(f"The rows are of {len(sources)} states of the source code of torchtrt_bridge.")
    return notes + problems(sorted(results.rows, key=_order))


def _order(row: Row) -> tuple[Any, ...]:
    return _rank(SUITE, row["model"]), row["precision"], row["batch"], _rank(CONTENDERS, row["contender"])


def _rank(table: Any, name: str) -> int:
    """The position in a table; behind all for a name that left it."""
    return list(table).index(name) if name in table else len(table)


def _contenders(rows: Sequence[Row]) -> list[str]:
    return sorted({row["contender"] for row in rows}, key=lambda name: _rank(CONTENDERS, name))


def _pivot(heading: str, rows: Sequence[Row], kind: str, cell: Callable[[Row], str]) -> Sheet:
    """One figure, a column for each contender."""
    chosen = [row for row in rows if row["kind"] == kind]
    names = _contenders(chosen)
    groups: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in chosen:
        groups.setdefault(tuple(str(row[field]) for field in PLACE), {})[row["contender"]] = row
    lines = [(*place, *(_cell(group.get(name), cell) for name in names)) for place, group in groups.items()]
    return Sheet(heading, (*PLACE, *map(title, names)), lines, len(PLACE))


def _cell(row: Row | None, cell: Callable[[Row], str]) -> str:
    if row is None:
        return NONE
    return FAILED if "failed" in row else cell(row)


def _speed(compared: Sequence[Comparison]) -> Sheet:
    """Times, and how many times as fast ours are."""
    names = _contenders([row for c in compared for row in c.rows.values()])
    ours = [name for name in names if family(name) == "bridge"]
    ratios = [f"{title(name)} / {other}" for name in ours for other in ("best inductor", "eager")]
    lines = []
    for c in compared:
        line = [c.model, str(c.batch), c.precision]
        line += [_cell(c.rows.get(name), lambda row: _number(row["ms"])) for name in names]
        for name in ours:
            line += [_times(c.speedup(name, c.best_inductor)), _times(c.speedup(name, EAGER))]
        lines.append((*line, NONE if c.spread is None else f"{c.spread:.0%}"))
    return Sheet("Back to back: ms per call", (*PLACE, *map(title, names), *ratios, "spread"), lines, len(PLACE))


def _summary(found: Sequence[Mean]) -> Sheet:
    columns = ("precision", "batch", "speed-up of", "over", "rows", "geometric mean", "least", "at")
    lines = [
        (
            mean.precision,
            "all" if mean.batch is None else str(mean.batch),
            title(mean.contender),
            "best inductor" if mean.against != EAGER else EAGER,
            f"{mean.compared} of {mean.total}",
            _times(mean.mean),
            _times(mean.least),
            mean.least_at or NONE,
        )
        for mean in found
    ]
    return Sheet("Speed-up", columns, lines, 4)


def _engines(compared: Sequence[Comparison]) -> Sheet:
    """What torchtrt_bridge made of each model, and its engine's own time where there is one engine."""
    columns = (*PLACE, "contender", "engines", "nodes in TensorRT", "in PyTorch", "ms", "engine alone: ms", "build s")
    lines = []
    for c in compared:
        for name, row in c.rows.items():
            if family(name) == "bridge" and "ms" in row:
                counts = (str(row.get(field, NONE)) for field in ("engines", "trt_nodes", "torch_nodes"))
                times = (_number(row["ms"]), _number(row.get("replay_ms")), _number(row.get("build_s")))
                lines.append((c.model, str(c.batch), c.precision, title(name), *counts, *times))
    return Sheet("Engines", columns, lines, 4)


def _builds(rows: Sequence[Row]) -> Sheet:
    fields = {
        "export s": "cold_export_s",
        "again s": "warm_export_s",
        "processor s": "cold_cpu_s",
        "without build s": "stages_without_build_s",
        "build s": "stages_build_s",
        "peak MiB": "cold_peak_mib",
        "of it libraries": "cold_libraries_mib",
        "peak / weights": "cold_peak_by_weights",
        "built": "cold_built",
        "built again": "warm_built",
    }
    lines = [
        (*(str(row[name]) for name in PLACE), *(_cell(row, _picked(field)) for field in fields.values()))
        for row in rows
    ]
    return Sheet("An export for one target, on the CPU", (*PLACE, *fields), lines, len(PLACE))


def _picked(field: str) -> Callable[[Row], str]:
    return lambda row: _number(row.get(field)) if field.endswith(("_s", "_weights")) else _whole(row.get(field))


def _pair(row: Row, field: str) -> str:
    both = [row.get(f"{part}_{field}") for part in ("cold", "warm")]
    return NONE if both == [None, None] else " / ".join(map(_number, both))


def _host(row: Row) -> str:
    peak, before = row.get("cold_host_peak_mib"), row.get("cold_host_before_mib")
    return NONE if peak is None or before is None else f"{peak - before:.0f}"


def _held(row: Row) -> str:
    return _whole(row.get("device_held_mib"))


def _device(row: Row) -> str:
    peak, held = row.get("cold_device_peak_mib"), row.get("cold_device_held_mib")
    return NONE if peak is None else f"{_whole(peak)} / {_whole(held)}"


def _number(value: float | None) -> str:
    """Three significant digits."""
    return NONE if value is None else f"{value:#.3g}" if abs(value) < 100 else f"{value:.0f}"


def _whole(value: float | None) -> str:
    return NONE if value is None else f"{value:.0f}"


def _small(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"


def _times(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}x"
