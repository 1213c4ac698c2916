"""Key of a captured graph: a digest of everything that a capture reads, so that the cache never gives a wrong graph."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from torchtrt_bridge.cache import source_digest
from torchtrt_bridge.capture import dynamo
from torchtrt_bridge.capture.constant_guard import number_from
from torchtrt_bridge.graph.nodes import least_trace
from torchtrt_bridge.graph.torch_internals import (
    functorch_settings,
    is_operator,
    mode_counts,
    operator_namespace,
    storage_id,
)
from torchtrt_bridge.lower import CONVERTERS

# Operators whose code comes with PyTorch or with this package; nothing shows when the code of others changes.
NAMESPACES = ("aten", "prim", "prims", "torchtrt_bridge")

# Names that fx writes into the code of a graph, beside those of PyTorch's functions.
BUILT_IN = {"inf", "nan", "NoneType", "torch", "device", "fx_pytree", "pytree"}


def capture_key(
    module: fx.GraphModule, args: Sequence[Any], weights: Sequence[int], numbers: Sequence[int]
) -> str | None:
    """Return the digest, in hexadecimal, of a Dynamo graph and its arguments; None for a graph that is not cached.

    Values of weights are not part of it, as a capture does not read them. Graphs with sizes that are known only at run
    time, with parts that are graphs themselves, or with functions and operators that are not PyTorch's are not cached.
    """
    code = _code(module)
    if code is None or not _is_plain(module, args, numbers):
        return None
    values = [number_from(args[index]) for index in numbers]
    sources = [least_trace(node) for node in module.graph.nodes]  # the report shows them
    parts = [environment(), code, sources, _tensors(args, numbers), repr(values), list(weights), list(numbers)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _code(module: fx.GraphModule) -> str | None:
    """Return the Python code of a graph; None if it reads attributes, or calls functions that are not PyTorch's."""
    for node in module.graph.nodes:
        if node.op in ("get_attr", "call_module") or not _is_known(node.target):
            return None
    code = module.graph.python_code("self")
    strangers = [name for name, value in code.globals.items() if name not in BUILT_IN and not _is_of_python(value)]
    return None if strangers else str(code.src)


def _is_known(target: Any) -> bool:
    namespace = operator_namespace(target)
    return namespace is None or namespace in NAMESPACES


def _is_of_python(value: Any) -> bool:
    return getattr(value, "__module__", None) in ("builtins", "_operator", "math")


def _is_plain(module: fx.GraphModule, args: Sequence[Any], numbers: Sequence[int]) -> bool:
    """Return whether the arguments are dense tensors of static sizes and bound numbers, and no tensor subclasses.

    A symbol of Dynamo that is not a bound number is a size.
    """
    if any(dynamo.free_dims(node) for node in dynamo.placeholders(module)):
        return False
    return all(_is_dense(value) for index, value in enumerate(args) if index not in numbers)


def _is_dense(value: Any) -> bool:
    is_tensor = type(value) in (torch.Tensor, nn.Parameter)
    return is_tensor and value.layout is torch.strided and not value.is_nested


def _tensors(args: Sequence[Any], numbers: Sequence[int]) -> list[Any]:
    """Return what a capture reads of each tensor, and which tensors share memory; None for a number."""
    memories: dict[int, int] = {}
    return [None if index in numbers else _tensor(value, memories) for index, value in enumerate(args)]


def _tensor(value: torch.Tensor, memories: dict[int, int]) -> list[Any]:
    memory = memories.setdefault(storage_id(value), len(memories))
    kinds = [type(value).__name__, str(value.dtype), str(value.device)]
    flags = [value.requires_grad, value.is_inference(), value.is_conj(), value.is_neg()]
    return [*kinds, list(value.shape), list(value.stride()), value.storage_offset(), memory, *flags]


def environment() -> dict[str, Any]:
    """Return the versions, the source code and the settings of PyTorch that a capture may depend on."""
    converted = [str(op) for op in CONVERTERS if is_operator(op)]
    autocast = {d: [torch.is_autocast_enabled(d), str(torch.get_autocast_dtype(d))] for d in ("cpu", "cuda")}
    return {
        "torch": [str(torch.__version__), torch.version.git_version],
        "python": platform.python_version(),
        "source": source_digest(),
        "converters": sorted(converted),
        "autocast": autocast,
        "defaults": [str(torch.get_default_dtype()), str(torch.get_default_device())],
        "modes": mode_counts(),
        "inference": torch.is_inference_mode_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "fast paths": torch.backends.mha.get_fastpath_enabled(),
        "libraries": [torch.backends.cudnn.enabled, torch.backends.mkldnn.enabled],
        "functorch": functorch_settings(),
    }
