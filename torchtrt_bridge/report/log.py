"""Logger of the package, with warnings that are given once."""

from __future__ import annotations

import logging
import os

LEVELS = ("debug", "info", "warning", "error")

logger = logging.getLogger("torchtrt_bridge")
_warned: set[str] = set()


def warn_once(message: str) -> None:
    """Log a warning at its first occurrence in this process."""
    if message not in _warned:
        _warned.add(message)
        logger.warning("torchtrt_bridge: %s", message)


def info(message: str) -> None:
    """Log what was done, for those who asked for it."""
    logger.info("torchtrt_bridge: %s", message)


def set_level(name: str) -> None:
    """Log from the level of this name on, one of `LEVELS`; lower ones than warnings go to stderr."""
    if name.lower() not in LEVELS:
        warn_once(f"TORCHTRT_BRIDGE_LOG={name!r} is no level; take one of {', '.join(LEVELS)}.")
        return
    logger.setLevel(name.upper())
    if logger.level < logging.WARNING and not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False  # else the application's handlers would show each message again


if os.environ.get("TORCHTRT_BRIDGE_LOG"):
    set_level(os.environ["TORCHTRT_BRIDGE_LOG"])
