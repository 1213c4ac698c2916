"""Results of a bench of the user's model: as data, as a table, as a file."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from torchtrt_bridge.cache import written_aside
from torchtrt_bridge.cli.arguments import Request
from torchtrt_bridge.cli.calls import ModelCall
from torchtrt_bridge.report.facts import coverage

if TYPE_CHECKING:
    from rich.table import Table

    from torchtrt_bridge.report.model import CompileReport

MEANINGLESS = "Measured on a CPU with the reference interpreter: the command works, and its times mean nothing."


@dataclasses.dataclass(frozen=True)
class Row:
    """One contender's result.

    milliseconds: time per call, one for each turn; none if it failed.
    first_seconds: the first call, with all that is compiled for it.
    error: largest relative L2 distance of the outputs to eager PyTorch in the model's own dtypes.
    failure: why it has no times.
    """

    name: str
    milliseconds: tuple[float, ...] = ()
    first_seconds: float | None = None
    error: float | None = None
    failure: str | None = None

    @property
    def median(self) -> float | None:
        """The median of the turns."""
        return statistics.median(self.milliseconds) if self.milliseconds else None


def results(
    request: Request, call: ModelCall, rows: Sequence[Row], report: CompileReport | None, device: str
) -> dict[str, Any]:
    """Return all that was found as plain data; a number that is not finite is None."""
    inputs = [f"{'x'.join(map(str, t.shape))}:{str(t.dtype).removeprefix('torch.')}" for t in call.inputs]
    return {
        "model": request.model,
        "inputs": inputs,
        "options": {name: list(v) if isinstance(v, tuple) else v for name, v in request.options.items()},
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "versions": {"torch": str(torch.__version__)} if report is None else dict(report.versions),
        "times_mean_nothing": device == "cpu",
        "nodes_in_tensorrt": None if report is None else coverage(report),
        "rows": [_plain(row) for row in rows],
    }


def _plain(row: Row) -> dict[str, Any]:
    values = dataclasses.asdict(row) | {"median_ms": row.median}
    is_finite = row.error is None or math.isfinite(row.error)
    return values | {"error": row.error if is_finite else None, "error_is_finite": is_finite}


def write_results(content: dict[str, Any], path: Path) -> None:
    """Write the results as JSON, whole or not at all."""
    with written_aside(path, mode=None) as aside:
        aside.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(f"wrote {path}")


def print_results(content: dict[str, Any], rows: Sequence[Row]) -> None:
    """Print the results as a table."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    chosen = ", ".join(f"{name}={value}" for name, value in content["options"].items())
    head = f"{content['model']} with {', '.join(content['inputs'])} on {content['device']}"
    console.print(head + (f", {chosen}" if chosen else ""))
    console.print(_table(rows, has_ratio=not content["times_mean_nothing"]))
    for row in rows:
        if row.failure:
            console.print(f"{row.name}: {row.failure}")
    if content["nodes_in_tensorrt"]:
        console.print(f"nodes in TensorRT: {content['nodes_in_tensorrt']}")
    if content["times_mean_nothing"]:
        console.print(MEANINGLESS)


def _table(rows: Sequence[Row], has_ratio: bool) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, title in enumerate(("", "ms", "from - to", "to eager", "first call s", "error")):
        table.add_column(title, justify="right" if index else "left", no_wrap=True)
    eager = next((row.median for row in rows if row.name == "eager" and has_ratio), None)
    for row in rows:
        table.add_row(row.name, *_cells(row, eager))
    return table


def _cells(row: Row, eager: float | None) -> tuple[str, ...]:
    median = row.median
    if median is None:
        return ("failed", "-", "-", "-", "-")
    spread = f"{min(row.milliseconds):.3g} - {max(row.milliseconds):.3g}"
    ratio = "-" if eager is None else f"{eager / median:.2f}x"
    return f"{median:.3g}", spread, ratio, f"{row.first_seconds:.1f}", f"{row.error:.1e}"
