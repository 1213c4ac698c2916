"""Properties of a node: by its operator's schema, by the constant that it reads, and its place in the source."""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import fx

from torchtrt_bridge.graph import packed, recurrent
from torchtrt_bridge.graph.torch_internals import is_operator, schema_of

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>.+)\n\s*(?P<code>.*)')
_CELL = re.compile(r"/ipykernel_\d+/(?P<code>\d+)\.py$")  # the name of a cell's file is a digest of its code
_LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), "<")  # and code that was made


def operator_name(op: Any) -> str:
    """Return an operator's name without namespace and overload, as ``"softmax"``; "" for what has no schema."""
    schema = schema_of(op)
    return "" if schema is None else str(schema.name).split("::")[-1]


def returns_view(node: fx.Node) -> bool:
    """Return whether a result shares memory with an argument."""
    schema = schema_of(node.target)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)


def reads_memory(node: fx.Node) -> bool:
    """Return whether a call reads by offsets into the memory of its first argument, not by its elements."""
    return operator_name(node.target).startswith("as_strided")


def constant_of(node: Any) -> torch.Tensor | None:
    """Return the tensor that `node` reads if it is a constant, else None."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    module = node.graph.owning_module
    value = getattr(module, str(node.target), None)
    return value if isinstance(value, torch.Tensor) else None


def gpu_of(module: fx.GraphModule) -> torch.device | None:
    """Return the GPU of the tensors in a graph; None if they are all elsewhere."""
    gpu = next((gpu for node in module.graph.nodes if (gpu := gpu_of_node(node)) is not None), None)
    return gpu if gpu is None or gpu.index is not None else torch.device("cuda", torch.cuda.current_device())


def gpu_of_node(node: fx.Node) -> torch.device | None:
    """Return the GPU of a node's results; None for those on the CPU, and for sizes."""
    return next((value.device for value in tensors_of_node(node) if value.device.type == "cuda"), None)


def tensors_of_node(node: fx.Node) -> list[torch.Tensor]:
    """Return the fake tensors among a node's results."""
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else [value]
    return [value for value in values if isinstance(value, torch.Tensor)]


def graph_of(node: Any) -> fx.GraphModule | None:
    """Return the graph that `node` reads, as a branch of `torch.cond`; None for other nodes."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    module = node.graph.owning_module
    value = getattr(module, str(node.target), None)
    return value if isinstance(value, fx.GraphModule) else None


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a call by their names in its operator's schema, defaults included."""
    schema = schema_of(node.target)
    found = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
    found.update(zip((argument.name for argument in schema.arguments), node.args, strict=False))
    return found | node.kwargs


def is_random(node: fx.Node) -> bool:
    """Return whether a node's results change from call to call; an attention's or a recurrent layer's by dropout."""
    if node.target in recurrent.OPERATORS | packed.LAYERS:
        return recurrent.is_random(arguments_of(node))
    if not is_operator(node.target) or torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    return arguments_of(node).get("dropout_p") != 0.0


def source_of(node: fx.Node) -> str | None:
    """Return `file:line: code` of the innermost frame outside PyTorch that made `node`; None if it is unknown."""
    return source_of_trace(node.meta.get("stack_trace") or "")


def source_of_trace(trace: str) -> str | None:
    """Return `file:line: code` of the innermost frame outside PyTorch of a stack trace; None if there is none."""
    frame = _frame_of(trace)
    return f"{shown_file(frame['file'])}:{frame['line']}: {frame['code'].strip()}" if frame else None


def shown_file(file: str) -> str:
    """Return the name of a source file for messages: a notebook's cell, of which Jupyter makes a file, as "In[5]"."""
    if not _CELL.search(file):
        return file
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    label_of = getattr(getattr(shell, "compile", None), "format_code_name", None)
    own = _CELL.sub(rf"/ipykernel_{os.getpid()}/\g<code>.py", file)  # a graph in the cache is of an earlier process
    label = (label_of(file) or label_of(own)) if label_of else None
    return label[1] if label else "a notebook's cell"


def least_trace(node: fx.Node) -> str | None:
    """Return the part of the stack trace of `node` that `source_of` reads; None if there is none."""
    frame = _frame_of(node.meta.get("stack_trace") or "")
    return frame[0] if frame else None


@functools.lru_cache(maxsize=4096)
def _frame_of(trace: str) -> re.Match[str] | None:
    frames = [frame for frame in _FRAME.finditer(trace) if not frame["file"].startswith("<eval_with_key>")]
    outside = [frame for frame in frames if not frame["file"].startswith(_LIBRARIES)]
    return (outside or frames)[-1] if frames else None


def describe(node: fx.Node) -> str:
    """Name a node in messages: operator, node, source line."""
    source = source_of(node)
    return f"{node.target} (node {node.name}{', ' + source if source else ''})"
