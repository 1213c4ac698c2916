"""What a fork leaves to the child: one thread, and locks as the other threads held them."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, Protocol


class HoldsLocks(Protocol):
    """Something whose locks, and work in other threads, do not survive a fork."""

    def after_fork(self) -> None:
        """Make the locks new, and expect nothing of threads; called in the child."""


_holders: weakref.WeakSet[Any] = weakref.WeakSet()


def in_each_child(callback: Callable[[], None]) -> None:
    """Have `callback` called in every process that is forked from this one."""
    if hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=callback)


def renewed_in_children(holder: HoldsLocks) -> None:
    """Have `holder` renewed in every process that is forked from this one, while it lives."""
    _holders.add(holder)


def _renew() -> None:
    for holder in list(_holders):
        holder.after_fork()


in_each_child(_renew)
