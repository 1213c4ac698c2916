"""Progress: a bar while batches are read and choices are measured."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class Progress:
    """wanted: None shows bars on a terminal only."""

    def __init__(self, wanted: bool | None) -> None:
        self.is_shown = sys.stderr.isatty() if wanted is None else wanted

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
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Bars(*columns, console=Console(stderr=True), transient=True)
