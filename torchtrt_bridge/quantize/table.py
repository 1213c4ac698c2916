"""Table: the layers of a quantized model, as rich prints them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from torchtrt_bridge.quantize.model import LayerEntry, QuantizationReport


def table_from_report(report: QuantizationReport) -> Table:
    """A row for each layer; columns that would be empty are left out."""
    from rich import box
    from rich.table import Table

    has_scales = any(layer.scale is not None for layer in report.layers)
    has_errors = any(layer.alone is not None for layer in report.layers)
    has_reasons = any(layer.reason for layer in report.layers)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in ("layer", "operator", "dtype"):
        table.add_column(title, no_wrap=True)
    for title, is_wanted in (("input scale", has_scales), ("error alone", has_errors)):
        if is_wanted:
            table.add_column(title, justify="right")
    if has_reasons:
        table.add_column("reason")
    for layer in report.layers:
        table.add_row(*_cells(layer, has_scales, has_errors, has_reasons))
    return table


def _cells(layer: LayerEntry, has_scales: bool, has_errors: bool, has_reasons: bool) -> list[str]:
    cells = [layer.name, layer.op, layer.dtype]
    if has_scales:
        cells.append("-" if layer.scale is None else f"{layer.scale:.3g}")
    if has_errors:
        cells.append("-" if layer.alone is None else f"{layer.alone:.1e}")
    return [*cells, layer.reason] if has_reasons else cells
