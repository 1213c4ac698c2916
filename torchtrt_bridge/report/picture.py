"""The picture of a report: its graphs as blocks in the order of the data, with what each block shows."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from torchtrt_bridge.report.facts import (
    SHORT,
    Rows,
    counted,
    error_text,
    instead,
    is_plan,
    torch_rows,
)
from torchtrt_bridge.report.model import stages_of

if TYPE_CHECKING:
    from torchtrt_bridge.report.model import CompileReport, EngineEntry, GraphBreak, Stage

Kind = Literal["engine", "torch", "inductor"]
PLACES: dict[Kind, str] = {"engine": "TensorRT", "torch": "PyTorch", "inductor": "inductor"}

BY_TIME = "Each block is as high as its time per call."
BY_NODES = "Each block is as high as its number of nodes, as no times were measured."
BY_BOTH = (
    "Each block is as high as its time per call. What was not timed has the height of its nodes, each at the mean time "
    "of a node in PyTorch in the blocks that were timed."
)

# A block that has no other beside it, to which its height could be compared, is so many times less high.
ALONE = 4

_SOURCE = re.compile(r"(?P<file>.+?):(?P<line>\d+)(?:: (?P<code>.*))?$", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class SourceLine:
    """A line of the user's source, and how many nodes of a block come from it."""

    file: str
    line: str
    code: str
    count: int

    @property
    def short_file(self) -> str:
        """The last two parts of the path."""
        return "/".join(self.file.split("/")[-2:])

    @classmethod
    def from_text(cls, text: str, count: int) -> SourceLine:
        """Read "model.py:12: x = f(x)"."""
        found = _SOURCE.match(text)
        if found is None:
            return cls(text, "", "", count)
        return cls(found["file"], found["line"], found["code"] or "", count)


@dataclasses.dataclass(frozen=True)
class Block:
    """A stage as the picture shows it.

    reason: why the stage runs where it does, in a line or two.
    share: its part of the whole picture, from 0 to 1.
    rows: of nodes in PyTorch, by operator and reason; of an engine, none.
    """

    kind: Kind
    name: str
    nodes: int
    reason: str
    share: float
    milliseconds: float | None
    rows: Rows
    sources: list[SourceLine]
    entry: EngineEntry | None

    @property
    def place(self) -> str:
        """The name of what computes the block."""
        return PLACES[self.kind]

    @property
    def amount(self) -> str:
        """The number of its nodes, and their time, as far as these are known."""
        time = "" if self.milliseconds is None else f"{self.milliseconds:.3g} ms"
        return ", ".join(part for part in (counted(self.nodes, "node") if self.nodes else "", time) if part)


@dataclasses.dataclass(frozen=True)
class GraphPart:
    """A graph's blocks, below the graph breaks in front of it.

    number: of the graph, from 0; None for breaks behind the last graph.
    """

    number: int | None
    breaks: list[GraphBreak]
    blocks: list[Block]

    @property
    def title(self) -> str:
        """The graph's number, and what is in it."""
        nodes = sum(block.nodes for block in self.blocks)
        places = collections.Counter(block.place for block in self.blocks)
        inside = ", ".join(f"{count} in {place}" for place, count in places.items())
        return f"Graph {self.number}: {counted(nodes, 'node')}, {counted(len(self.blocks), 'part')} ({inside})"


@dataclasses.dataclass(frozen=True)
class Picture:
    """All graphs of a report, and how its blocks are sized."""

    parts: list[GraphPart]
    caption: str

    @property
    def blocks(self) -> list[Block]:
        return [block for part in self.parts for block in part.blocks]


def picture_of(report: CompileReport) -> Picture:
    """Return the picture of a report."""
    stages = stages_of(report)
    entries = {entry.name: entry for entry in report.engines}
    weights, caption = _weights(stages, entries)
    whole = (sum(weights) or 1.0) * (ALONE if len(stages) == 1 else 1)
    blocks = [_block(report, s, entries.get(s.name), w / whole) for s, w in zip(stages, weights, strict=True)]
    numbers = range(max([report.graphs, *(stage.graph + 1 for stage in stages)]))
    parts = [
        GraphPart(
            number,
            [found for found in report.breaks if found.after == number],
            [block for stage, block in zip(stages, blocks, strict=True) if stage.graph == number],
        )
        for number in numbers
    ]
    behind = [found for found in report.breaks if found.after >= len(numbers)]
    return Picture([*parts, GraphPart(None, behind, [])] if behind else parts, caption)


def _weights(stages: Sequence[Stage], entries: dict[str, EngineEntry]) -> tuple[list[float], str]:
    """Return a size for each stage, and the sentence that says what the sizes mean."""
    times = [_time_of(stage, entries.get(stage.name)) for stage in stages]
    nodes = [float(_node_count(stage, entries.get(stage.name))) for stage in stages]
    if all(time is None for time in times):
        return nodes, BY_NODES
    if all(time is not None for time in times):
        return [time or 0.0 for time in times], BY_TIME
    mean = _mean_time_of_a_node(stages, entries)
    return [n * mean if time is None else time for time, n in zip(times, nodes, strict=True)], BY_BOTH


def _mean_time_of_a_node(stages: Sequence[Stage], entries: dict[str, EngineEntry]) -> float:
    """Return the mean milliseconds of a node in PyTorch, where there are times of it; else of whatever was timed."""
    timed = []
    for stage in stages:
        entry = entries.get(stage.name)
        times = stage.milliseconds if entry is None else entry.milliseconds
        if times:
            timed.append((times.get("PyTorch", max(times.values())), _node_count(stage, entry)))
    return sum(time for time, _ in timed) / max(1, sum(count for _, count in timed))


def _time_of(stage: Stage, entry: EngineEntry | None) -> float | None:
    if entry is None:
        return stage.milliseconds.get(stage.choice)
    return entry.milliseconds.get(entry.choice if entry.is_ready else "PyTorch")


def _node_count(stage: Stage, entry: EngineEntry | None) -> int:
    return entry.node_count if entry is not None else len(stage.in_torch) + stage.moves


def _block(report: CompileReport, stage: Stage, entry: EngineEntry | None, share: float) -> Block:
    time, count = _time_of(stage, entry), _node_count(stage, entry)
    if entry is not None:
        place = entry.choice if entry.is_ready else "PyTorch"
        sources = [SourceLine.from_text(text, number) for text, number in entry.sources.items()]
        return Block(_kind(place), entry.name, count, _why(report, entry), share, time, [], sources, entry)
    lines = collections.Counter(node.source for node in stage.in_torch if node.source)
    sources = [SourceLine.from_text(text, number) for text, number in lines.items()]
    rows: Rows = [(op, count, reason) for op, count, reason, _ in torch_rows(stage.in_torch)]
    return Block(_kind(stage.choice), stage.name, count, _why_in_torch(stage, rows), share, time, rows, sources, None)


def _kind(place: str) -> Kind:
    return "engine" if place == "engine" else "inductor" if place == "inductor" else "torch"


def _why(report: CompileReport, entry: EngineEntry) -> str:
    """Return why the subgraph of an engine runs where it does."""
    if not entry.serves:
        return f"Meant for an engine; it runs in {instead(entry)}."
    if is_plan(report):
        return "TensorRT can run each of these nodes."
    found = ["TensorRT runs these nodes"]
    if entry.error is not None:
        found.append(f"its results differ from PyTorch's by {error_text(entry.error)}")
    others = [f"{name} {time:.3g} ms" for name, time in entry.milliseconds.items() if name != "engine"]
    if "engine" in entry.milliseconds:
        found.append(", ".join([f"it takes {entry.milliseconds['engine']:.3g} ms", *others]))
    if entry.unquantized:
        found.append(f"it is computed without quantization: {entry.unquantized}")
    return "; ".join(found) + "."


def _why_in_torch(stage: Stage, rows: Rows) -> str:
    """Return why nodes stay in PyTorch: the three most frequent reasons."""
    if stage.reason:
        return stage.reason
    reasons = [f"{op}{f' ({count} nodes)' if count != '1' else ''}: {reason}" for op, count, reason in rows[:3]]
    if len(rows) > 3:
        reasons.append(f"and {len(rows) - 3} more")
    if stage.moves:
        reasons.append(f"{counted(stage.moves, 'call')} of views, copies or sizes, which compute no elements")
    return "; ".join(reasons) or "PyTorch runs the whole graph"


def dtype_parts(entry: EngineEntry) -> list[tuple[str, int, float]]:
    """Return the dtypes of an engine's nodes, each with its count and its share."""
    whole = sum(entry.dtypes.values()) or 1
    return [(SHORT.get(name, name), count, count / whole) for name, count in entry.dtypes.items()]


def largest(entries: Iterable[EngineEntry]) -> int:
    """Return the size of the largest engine in bytes, at least 1."""
    return max([1, *(entry.bytes for entry in entries)])
