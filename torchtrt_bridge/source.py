"""Where in the user's code a node comes from."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch.fx import Node

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>.+)\n\s*(?P<code>.*)')
_LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


def source_of(node: Node) -> str | None:
    """`file:line: code` of the innermost frame outside PyTorch that made `node`; None if it is not known."""
    frames = list(_FRAME.finditer(node.meta.get("stack_trace") or ""))
    outside = [frame for frame in frames if not frame["file"].startswith(_LIBRARIES)]
    if not frames:
        return None
    frame = (outside or frames)[-1]
    return f"{frame['file']}:{frame['line']}: {frame['code'].strip()}"


def describe(node: Node) -> str:
    """A node as it is named in messages: operator, node, source line."""
    source = source_of(node)
    return f"{node.target} (node {node.name}{', ' + source if source else ''})"
