"""Rendering of a report as text for the terminal."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torchtrt_bridge.report.facts import (
    BREAK_COLUMNS,
    LAYER_COLUMNS,
    NOTHING_YET,
    NUMBERS,
    TORCH_COLUMNS,
    Rows,
    break_rows,
    by_torch_tensorrt,
    engine_table,
    failures,
    headline,
    layer_rows,
    layers_text,
    products,
    profiled,
    quantized,
    settings,
    shortened,
    static_engines,
    torch_rows,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from torchtrt_bridge.report.model import CompileReport

WIDTH = 100  # where there is no terminal
NARROWEST = 40
MOST_OF_A_WORD = 20  # longer ones, as paths, are folded
MOST_LAYERS = 10  # of each engine; the data and the page have all


def text_from_report(report: CompileReport) -> str:
    """Return the report as plain text, as wide as the terminal."""
    console = text_console(terminal_width())
    console.print(headline(report))
    if headline(report) != NOTHING_YET:
        console.print(settings(report))
    if report.engines:
        for table in tables("Engines", *engine_table(report), console.width):
            console.print()
            console.print(table)
    if any(rows(report) for rows in (failures, by_torch_tensorrt, products, quantized, static_engines)):
        console.print()
    for name, dtypes in products(report):
        console.print(f"{name} computes its products in {dtypes}")
    for name, found in quantized(report):
        console.print(f"{name} is {found}")
    for name, reason in failures(report):
        console.print(f"{name} runs in {reason}")
    for name, found in static_engines(report):
        console.print(f"{name} runs in {found}")
    for name, nodes in by_torch_tensorrt(report):
        console.print(f"{name} has nodes that converters of torch_tensorrt wrote: {nodes}")
    for name, times in profiled(report):
        console.print()
        console.print(f"Layers of {name}: {layers_text(times)}")
        rows = layer_rows(times.layers[:MOST_LAYERS])
        for table in tables(f"Slowest layers of {name}", LAYER_COLUMNS, rows, console.width) if rows else ():
            console.print()
            console.print(table)
    if report.breaks:
        console.print()
        console.print(_table("Graph breaks", BREAK_COLUMNS, [shortened(row) for row in break_rows(report)]))
    if report.in_torch:
        console.print()
        console.print(_table("In PyTorch", TORCH_COLUMNS, [shortened(row) for row in torch_rows(report.in_torch)]))
    if report.in_float:
        console.print()
        console.print(_table("Not quantized", TORCH_COLUMNS, [shortened(r) for r in torch_rows(report.in_float)]))
    if report.notes:
        console.print()
    for note in report.notes:
        console.print(f"note: {note}")
    return text_from_console(console)


def terminal_width() -> int:
    """Return the columns that text may take."""
    return max(NARROWEST, shutil.get_terminal_size((WIDTH, 24)).columns)


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


GAP = 3  # columns between two cells


def tables(title: str, columns: Sequence[str], rows: Rows, width: int) -> list[Table]:
    """Return a table as one, or as several with the first column in each, so that no word is cut in `width`."""
    cells = list(zip(columns, *rows, strict=True))
    least = [max(len(name), *map(_least_width(name), values)) for name, *values in cells]
    groups: list[list[int]] = [[0]]
    for index in range(1, len(columns)):
        if sum(least[i] + GAP for i in groups[-1]) + least[index] > width and len(groups[-1]) > 1:
            groups.append([0])
        groups[-1].append(index)
    found: list[Table] = []
    for group in groups:
        widths = _widths([least[i] for i in group], [max(map(len, cells[i])) for i in group], width)
        name = title if not found else f"{title}, continued"
        found.append(_table(name, [columns[i] for i in group], [tuple(r[i] for i in group) for r in rows], widths))
    return found


def _widths(least: Sequence[int], most: Sequence[int], width: int) -> list[int]:
    """Return the widths of columns that fill `width`, where their cells need it; the narrowest one grows first."""
    widths = list(least)
    for _ in range(width - sum(least) - GAP * (len(least) - 1)):
        folded = [index for index, wanted in enumerate(most) if widths[index] < wanted]
        if folded:
            widths[min(folded, key=widths.__getitem__)] += 1
    return widths


def _least_width(column: str) -> Callable[[str], int]:
    """Return the function from a cell of this column to the width that it needs."""
    if column in NUMBERS or column == "name":
        return len
    return lambda cell: min(MOST_OF_A_WORD, max(map(len, cell.split()), default=0))


def _table(title: str, columns: Sequence[str], rows: Rows, widths: Sequence[int] = ()) -> Table:
    """Return a table; widths: that of each column, if rich is not to choose them."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=title or None,
        title_justify="left",
        title_style="",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    for index, column in enumerate(columns):
        is_number = column in NUMBERS
        table.add_column(
            column,
            justify="right" if is_number else "left",
            no_wrap=is_number or column == "name",
            width=widths[index] if widths else None,
        )
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    return table
