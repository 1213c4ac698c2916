"""Where in the user's code a node comes from."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import torch
from torch.fx import Node

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>.+)\n\s*(?P<code>.*)')
_LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


def source_of(node: Node) -> str | None:
    """`file:line: code` of the innermost frame outside PyTorch that made `node`; None if it is not known."""
    frame = _frame_of(node.meta.get("stack_trace") or "")
    return f"{frame['file']}:{frame['line']}: {frame['code'].strip()}" if frame else None


def least_trace(node: Node) -> str | None:
    """Of the stack trace of `node` what `source_of` reads; None if it has none."""
    frame = _frame_of(node.meta.get("stack_trace") or "")
    return frame[0] if frame else None


@functools.lru_cache(maxsize=4096)
def _frame_of(trace: str) -> re.Match[str] | None:
    frames = list(_FRAME.finditer(trace))
    outside = [frame for frame in frames if not frame["file"].startswith(_LIBRARIES)]
    return (outside or frames)[-1] if frames else None


def describe(node: Node) -> str:
    """A node as it is named in messages: operator, node, source line."""
    source = source_of(node)
    return f"{node.target} (node {node.name}{', ' + source if source else ''})"
