"""A picture of the results: the speed over inductor's best, with a bar for each model and batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.suite.contenders import CONTENDERS, EAGER, family, title
from benchmarks.suite.models import SUITE
from benchmarks.suite.results import Results
from benchmarks.suite.summary import Comparison, comparisons
from torchtrt_bridge.errors import OptionsError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind people can tell apart; the hatching tells bars apart in print.
STYLES = (("#0072B2", ""), ("#E69F00", "//"), ("#009E73", ".."), ("#CC79A7", "\\\\"))
PLATE = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}  # else the line of 1 crosses numbers
NUMBER: dict[str, Any] = {
    "xytext": (3, 0), "textcoords": "offset points", "va": "center", "fontsize": 8, "zorder": 4, "bbox": PLATE,
}  # fmt: skip
MEANING = "Speed over the fastest mode of inductor: 1 is as fast, longer is faster"
INSTALL = 'pip install "torchtrt_bridge[bench]"'
INCHES_A_ROW, INCHES_A_PANEL = 0.42, 3.6


def plot(results: Results, path: Path) -> None:
    """Draw the speed-ups into an image file, of the kind that its name says.

    A panel for each precision and batch, a line for each model, blank where nothing was measured. Raises OptionsError
    without matplotlib, without a row to draw, or for a name that is no image's.
    """
    compared = [c for c in comparisons(results.rows) if c.best_inductor is not None]
    ours = [name for name in CONTENDERS if family(name) == "bridge" and any(name in c.rows for c in compared)]
    if not ours:
        raise OptionsError(f"{results.path} has no row of torchtrt_bridge beside one of inductor: nothing to draw.")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionsError(f"A picture needs matplotlib: {error}. Run: {INSTALL}") from error
    batches = sorted({c.batch for c in compared})
    models = _models(compared)
    heights = [len(names) * (0.6 + 0.4 * len(ours)) for names in models.values()]
    width, height = INCHES_A_PANEL * len(batches), 0.5 * len(heights) + INCHES_A_ROW * sum(heights)
    figure = Figure(figsize=(1.8 + width, 1.8 + height), layout="constrained")
    shape: dict[str, Any] = {"sharex": True, "sharey": "row", "squeeze": False, "height_ratios": heights}
    grid = figure.subplots(len(heights), len(batches), **shape)
    for line, (precision, names) in zip(grid, models.items(), strict=True):
        for axes, batch in zip(line, batches, strict=True):
            cells = {c.model: c for c in compared if (c.precision, c.batch) == (precision, batch)}
            _panel(axes, names, cells, ours)
            axes.set_title(f"batch {batch}, {precision}", fontsize=10)
    speedups = [_speedup(c, name) or 0.0 for c in compared for name in (*ours, EAGER)]
    grid[0][0].set_xlim(0, max(1.5, 1.25 * max(speedups)))  # room for the longest bar and its number
    figure.suptitle(_title(results), fontsize=11)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise OptionsError(f"{path} cannot be drawn: {error}") from error


def _models(compared: Sequence[Comparison]) -> dict[str, list[str]]:
    """Return the models of each precision, the precision with the most of them first."""
    names = {
        precision: sorted({c.model for c in compared if c.precision == precision}, key=_place)
        for precision in sorted({c.precision for c in compared})
    }
    return dict(sorted(names.items(), key=lambda entry: -len(entry[1])))


def _place(model: str) -> int:
    return [*SUITE, model].index(model)


def _panel(axes: Axes, models: Sequence[str], cells: dict[str, Comparison], ours: Sequence[str]) -> None:
    """Draw the bars of one precision and batch."""
    height = 0.8 / len(ours)
    for index, name in enumerate(ours):
        colour, hatch = STYLES[index % len(STYLES)]
        places = [place - 0.4 + height * (index + 0.5) for place in range(len(models))]
        widths = [_speedup(cells.get(model), name) for model in models]
        lengths = [width or 0.0 for width in widths]
        axes.barh(places, lengths, height * 0.92, color=colour, hatch=hatch, edgecolor="white", label=title(name))
        for model, place, width in zip(models, places, widths, strict=True):
            failed = "failed" if model in cells and name in cells[model].rows else ""
            axes.annotate(failed if width is None else f"{width:.2f}", (width or 0.0, place), **NUMBER)
    eager = {place: _speedup(cells.get(model), EAGER) for place, model in enumerate(models)}
    drawn = {place: speedup for place, speedup in eager.items() if speedup is not None}
    style: dict[str, Any] = {"marker": "D", "s": 20, "color": "#555555", "edgecolor": "white", "zorder": 3}
    axes.scatter(list(drawn.values()), list(drawn), label="PyTorch eager", **style)
    axes.axvline(1, color="black", linewidth=1, zorder=2)
    axes.set_yticks(range(len(models)), models, fontsize=9)
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _speedup(cell: Comparison | None, name: str) -> float | None:
    return None if cell is None else cell.speedup(name, cell.best_inductor)


def _title(results: Results) -> str:
    """Return the title: the GPU, the versions and dates, and the meaning of the bars."""
    environment = results.environment
    dates = sorted({row["date"] for row in results.rows})
    when = " to ".join(sorted({dates[0], dates[-1]}))
    versions = f"PyTorch {environment['torch']}, {environment['tensorrt']}, {when}"
    return f"torchtrt_bridge on {environment['gpu'] or environment['cpu']}\n{versions}\n{MEANING}"
