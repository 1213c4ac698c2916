"""A progress bar while engines build."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


class BuildProgress:
    """A context manager that shows one bar per engine, on a terminal only unless asked otherwise."""

    def __init__(self, total: int, wanted: bool | None) -> None:
        self.total = total
        self.is_shown = total > 0 and (sys.stderr.isatty() if wanted is None else wanted)
        self._bars: Any = None
        self._count = 0

    def __enter__(self) -> BuildProgress:
        if self.is_shown:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            self._bars = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bars.start()
        return self

    def next(self, name: str) -> Callable[[float], bool] | None:
        """The callback of the next engine's build, given the fraction that is done."""
        self._count += 1
        if self._bars is None:
            return None
        task = self._bars.add_task(f"building {name} ({self._count} of {self.total})", total=1.0)

        def on_progress(fraction: float) -> bool:
            self._bars.update(task, completed=fraction)
            return True

        return on_progress

    def __exit__(self, *error: object) -> None:
        if self._bars is not None:
            self._bars.stop()
