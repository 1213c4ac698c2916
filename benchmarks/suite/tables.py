"""Tables of the results, for the terminal and as Markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
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
Cell = Callable[[Row], str]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table: the first `texts` columns are words, the others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    texts: int = len(PLACE)

    def markdown(self) -> str:
        rules = ["---" if index < self.texts else "---:" for index in range(len(self.columns))]
        lines = [self.columns, rules, *self.rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"**{self.title}**\n\n{table}"

    def print(self, console: Console) -> None:
        from rich import box
        from rich.table import Table as RichTable

        style: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "box": box.SIMPLE_HEAD}
        table = RichTable(title=self.title, pad_edge=False, **style)
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="left" if index < self.texts else "right")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)


def tables(results: Results) -> list[Table]:
    """Return the tables that contain a figure."""
    rows = sorted(results.rows, key=_order)
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("speed", "start", "build")}
    ours = [row for row in kinds["speed"] if family(row["contender"]) == "bridge" and "ms" in row]
    compared = comparisons(rows)
    found = [
        _summary(means(compared)),
        _speed(compared),
        _by_contender("One call at a time: ms per call", kinds["speed"], _figure("latency_ms")),
        _by_contender("Error: relative L2 distance to eager fp32", kinds["speed"], _error),
        _by_contender(
            "Device memory that stays taken, with the weights: MiB", kinds["speed"], _figure("device_held_mib", 0)
        ),
        _lines("Engines", ours, ENGINES),
        _by_contender("First result, caches empty / filled: s", kinds["start"], _both("seconds")),
        _by_contender("Of it, Dynamo's trace: s", kinds["start"], _both("trace_seconds")),
        _by_contender("Host memory for it, most above the loaded model: MiB", kinds["start"], _host_memory),
        _by_contender(
            "Device memory for it, PyTorch's most / what stays taken: MiB", kinds["start"], _device_memory
        ),
        _lines("An export for one target, on the CPU", kinds["build"], BUILDS),
    ]  # fmt: skip
    return [table for table in found if any(set(row[table.texts :]) - {NONE, FAILED} for row in table.rows)]


def footnotes(results: Results) -> list[str]:
    """Return the notes that a reader of the tables needs: the environment, and the problems."""
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


def _summary(found: Sequence[Mean]) -> Table:
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
    return Table("Speed-up", columns, lines, 4)


def _speed(compared: Sequence[Comparison]) -> Table:
    """Return the times, and the speed-ups of our contenders."""
    names = sorted({name for c in compared for name in c.rows}, key=lambda name: _rank(CONTENDERS, name))
    ours = [name for name in names if family(name) == "bridge"]
    ratios = [f"{title(name)} / {other}" for name in ours for other in ("best inductor", EAGER)]
    lines = []
    for c in compared:
        line = [c.model, str(c.batch), c.precision]
        line += [_cell(c.rows.get(name), _figure("ms")) for name in names]
        for name in ours:
            line += [_times(c.speedup(name, c.best_inductor)), _times(c.speedup(name, EAGER))]
        lines.append((*line, NONE if c.spread is None else f"{c.spread:.0%}"))
    return Table("Back to back: ms per call", (*PLACE, *map(title, names), *ratios, "spread"), lines)


def _by_contender(heading: str, rows: Sequence[Row], cell: Cell) -> Table:
    """Return a table of one figure, with a column for each contender."""
    names = sorted({row["contender"] for row in rows}, key=lambda name: _rank(CONTENDERS, name))
    groups: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault(_place(row), {})[row["contender"]] = row
    lines = [(*place, *(_cell(group.get(name), cell) for name in names)) for place, group in groups.items()]
    return Table(heading, (*PLACE, *map(title, names)), lines)


def _lines(heading: str, rows: Sequence[Row], cells: Mapping[str, Cell]) -> Table:
    """Return a table with a line for each row of results."""
    lines = [(*_place(row), *(_cell(row, cell) for cell in cells.values())) for row in rows]
    return Table(heading, (*PLACE, *cells), lines, len(PLACE) + ("contender" in cells))


def _order(row: Row) -> tuple[Any, ...]:
    return _rank(SUITE, row["model"]), row["precision"], row["batch"], _rank(CONTENDERS, row["contender"])


def _rank(table: Any, name: str) -> int:
    """Return the position in a table; behind all for a name that left it."""
    return list(table).index(name) if name in table else len(table)


def _place(row: Row) -> tuple[str, ...]:
    return tuple(str(row[field]) for field in PLACE)


def _cell(row: Row | None, cell: Cell) -> str:
    if row is None:
        return NONE
    return FAILED if "failed" in row else cell(row)


def _figure(field: str, digits: int = 3) -> Cell:
    """Return a cell of so many significant digits; 0 for whole numbers."""
    return lambda row: _number(row.get(field), digits)


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return NONE
    return f"{value:#.{digits}g}" if digits and abs(value) < 100 else f"{value:.0f}"


def _times(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}x"


def _error(row: Row) -> str:
    return "not finite" if row.get("error") is None else f"{row['error']:.1e}"


def _both(field: str) -> Cell:
    """Return a cell for empty and filled caches."""

    def cell(row: Row) -> str:
        both = [row.get(f"{part}_{field}") for part in ("cold", "warm")]
        return NONE if both == [None, None] else " / ".join(map(_number, both))

    return cell


def _host_memory(row: Row) -> str:
    peak, before = row.get("cold_host_peak_mib"), row.get("cold_host_before_mib")
    return NONE if peak is None or before is None else f"{peak - before:.0f}"


def _device_memory(row: Row) -> str:
    peak, held = row.get("cold_device_peak_mib"), row.get("cold_device_held_mib")
    return NONE if peak is None else f"{_number(peak, 0)} / {_number(held, 0)}"


def _seconds_without_build(row: Row) -> str:
    export, build = row.get("cold_export_s"), row.get("cold_build_s")
    return NONE if export is None or build is None else _number(export - build)


ENGINES: Mapping[str, Cell] = {
    "contender": lambda row: title(row["contender"]),
    "engines": _figure("engines", 0),
    "nodes in TensorRT": _figure("trt_nodes", 0),
    "in PyTorch": _figure("torch_nodes", 0),
    "ms": _figure("ms"),
    "engine alone: ms": _figure("replay_ms"),
    "build s": _figure("build_s"),
}
BUILDS: Mapping[str, Cell] = {
    "export s": _figure("cold_export_s"),
    "again s": _figure("warm_export_s"),
    "processor s": _figure("cold_cpu_s"),
    "without build s": _seconds_without_build,
    "build s": _figure("cold_build_s"),
    "peak MiB": _figure("cold_peak_mib", 0),
    "of it libraries": _figure("cold_libraries_mib", 0),
    "peak / weights": _figure("cold_peak_by_weights"),
    "built": _figure("cold_built", 0),
    "built again": _figure("warm_built", 0),
}
