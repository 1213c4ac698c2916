"""Progress bars, for engines that build and for loops."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class BuildProgress:
    """Progress bars, one for each engine that is being built.

    wanted: None shows them on a terminal only. Engines may begin and end in any thread.
    """

    def __init__(self, wanted: bool | None) -> None:
        self.is_shown = is_shown(wanted)
        self._bars: Any = None
        self._begun: dict[str, Any] = {}
        self._active = 0
        self._lock = threading.Lock()

    def begin(self, name: str, total: int) -> Callable[[float], bool] | None:
        """Show the bar of one of `total` engines; return the callback that takes the fraction that is done."""
        if not self.is_shown:
            return None
        with self._lock:
            bars = self._bars = self._bars or _started_bars()
            task = bars.add_task(f"building {name} ({len(self._begun) + 1} of {total})", total=1.0)
            self._begun[name] = task
            self._active += 1

        def on_progress(fraction: float) -> bool:
            bars.update(task, completed=fraction)
            return True

        return on_progress

    def end(self, name: str) -> None:
        """Hide the bar of an engine that is built or failed."""
        with self._lock:
            if self._bars is None:
                return
            self._bars.update(self._begun[name], visible=False)
            self._active -= 1
            if self._active == 0:
                self._bars.stop()
                self._bars = None


class LoopProgress:
    """Progress bars of loops, as over the batches of a loader.

    wanted: None shows them on a terminal only.
    """

    def __init__(self, wanted: bool | None) -> None:
        self.is_shown = is_shown(wanted)

    def track(self, items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
        """Yield the items and advance a bar, which has no end if `total` is None."""
        if not self.is_shown:
            yield from items
            return
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with bars_of(*columns) as bar:
            task = bar.add_task(description, total=total)
            for item in items:
                yield item
                bar.advance(task)


def _started_bars() -> Any:
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

    bars = bars_of(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    bars.start()
    return bars


def is_shown(wanted: bool | None) -> bool:
    """Return whether bars are shown: None wants them on a terminal only."""
    return sys.stderr.isatty() if wanted is None else wanted


def bars_of(*columns: Any) -> Any:
    """Return progress bars of these columns, which disappear at the end."""
    from rich.console import Console
    from rich.progress import Progress

    return Progress(*columns, console=Console(stderr=True), transient=True)
