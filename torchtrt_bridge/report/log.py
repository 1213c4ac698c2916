"""Logger of the package, with warnings that are given once."""

from __future__ import annotations

import logging

logger = logging.getLogger("torchtrt_bridge")
_warned: set[str] = set()


def warn_once(message: str) -> None:
    """Log a warning at its first occurrence in this process."""
    if message not in _warned:
        _warned.add(message)
        logger.warning("torchtrt_bridge: %s", message)
