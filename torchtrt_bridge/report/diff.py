"""The difference between two reports, as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torchtrt_bridge.options import defaults
from torchtrt_bridge.report.facts import (
    counted,
    coverage,
    error_text,
    option_text,
    products_text,
    runs_in,
    short_dtypes,
    short_source,
    size_text,
    time_text,
    torch_rows,
)
from torchtrt_bridge.report.render import tables, terminal_width, text_console, text_from_console

if TYPE_CHECKING:
    from torchtrt_bridge.report.model import CompileReport, EngineEntry

# Times within this share of each other count as equal: a trial takes them from few calls.
SAME_TIME = 0.05

NONE = "-"
COLUMNS = ("what", "before", "after")

Row = tuple[str, str, str]


def text_from_difference(before: CompileReport, after: CompileReport) -> str:
    """Return what changes from one report to another, as wide as the terminal."""
    rows = [row for row in _compared(before, after) if row[1] != row[2]]
    console = text_console(terminal_width())
    if not rows:
        console.print("No difference in coverage, versions, options, engines, choices, errors and times.")
        return text_from_console(console)
    console.print(counted(len(rows), "difference"))
    for table in tables("", COLUMNS, [*rows], console.width):
        console.print()
        console.print(table)
    return text_from_console(console)


def _compared(before: CompileReport, after: CompileReport) -> Iterator[Row]:
    """Yield what both reports say of each thing, whether it differs or not."""
    yield from _pairs("", _facts(before), _facts(after))
    yield from _pairs("", before.versions, after.versions)
    for name in defaults():
        old, new = (option_text(getattr(report.options, name)) for report in (before, after))
        yield f"option {name}", old, new
    yield from _engines(before, after)
    yield from _pairs("in PyTorch: ", *(_grouped(report.in_torch) for report in (before, after)))
    yield from _pairs("not quantized: ", *(_grouped(report.in_float) for report in (before, after)))
    for source, old, new in _pairs("", *({b.source: b.reason for b in report.breaks} for report in (before, after))):
        yield f"graph break: {short_source(source)}", old, new
    yield from _pairs("note: ", *(dict.fromkeys(report.notes, "yes") for report in (before, after)))


def _pairs(prefix: str, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Row]:
    for name in [*before, *(name for name in after if name not in before)]:
        yield prefix + name, before.get(name, NONE), after.get(name, NONE)


def _facts(report: CompileReport) -> dict[str, str]:
    return {
        "model": report.model or NONE,
        "nodes in TensorRT": coverage(report),
        "engines that run": str(sum(entry.serves for entry in report.engines)),
        "graphs": str(report.graphs),
        "graph breaks": str(len(report.breaks)),
        "GPU": ", ".join(report.gpus) or NONE,
        "error to the model itself": error_text(report.error),
    }


def _grouped(entries: Any) -> dict[str, str]:
    """Return how many nodes there are of each operator and reason."""
    return {f"{op}: {reason}": count for op, count, reason, _ in torch_rows(entries)}


def _engines(before: CompileReport, after: CompileReport) -> Iterator[Row]:
    """Yield the engines of one report alone, and the facts of those in both, in the order of their names."""
    olds, news = ({entry.name: entry for entry in report.engines} for report in (before, after))
    for name in [*olds, *(name for name in news if name not in olds)]:
        old, new = olds.get(name), news.get(name)
        if old is None or new is None:
            yield name, _summary(old), _summary(new)
            continue
        yield from _pairs(f"{name}: ", _engine_facts(old), _engine_facts(new))
        yield from _times(old, new)


def _summary(entry: EngineEntry | None) -> str:
    return NONE if entry is None else f"{counted(entry.node_count, 'node')}, runs in {runs_in(entry)}"


def _engine_facts(entry: EngineEntry) -> dict[str, str]:
    return {
        "nodes": str(entry.node_count),
        "dtypes": short_dtypes(entry),
        "products in": products_text(entry) or NONE,
        "engine": entry.engine or NONE,
        "runs in": runs_in(entry),
        "reason": NONE if entry.is_ready else entry.state,
        "error": error_text(entry.error),
        "MB": size_text(entry),
    }


def _times(old: EngineEntry, new: EngineEntry) -> Iterator[Row]:
    for candidate in dict.fromkeys([*old.milliseconds, *new.milliseconds]):
        before, after = old.milliseconds.get(candidate), new.milliseconds.get(candidate)
        what = f"{old.name}: ms of {candidate if candidate != 'engine' else 'the engine'}"
        if before is None or after is None:
            yield what, time_text(old, candidate), time_text(new, candidate)
        elif abs(after - before) > SAME_TIME * max(before, after):
            share = f" ({100 * (after / before - 1):+.0f} %)" if before else ""
            yield what, time_text(old, candidate), time_text(new, candidate) + share
