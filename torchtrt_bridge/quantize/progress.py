"""Progress: a bar while batches are read and choices are measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from torchtrt_bridge.report.progress import bars_of, is_shown

T = TypeVar("T")


class Progress:
    """wanted: None shows bars on a terminal only."""

    def __init__(self, wanted: bool | None) -> None:
        self.is_shown = is_shown(wanted)

    def track(self, items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
        """The items, with a bar; without an end where `total` is None."""
        if not self.is_shown:
            yield from items
            return
        with _bar() as bar:
            task = bar.add_task(what, total=total)
            for item in items:
                yield item
                bar.advance(task)


def _bar() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

    return bars_of(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
