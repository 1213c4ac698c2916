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
from torchtrt_bridge.graph.export_internals import has_hints, size_settings
from torchtrt_bridge.graph.nodes import least_trace
from torchtrt_bridge.graph.torch_internals import (
    functorch_settings,
    has_unbacked_symbols,
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

    Values of weights are not part of it, as a capture does not read them. Graphs with sizes that depend on data, with
    parts that are graphs themselves, or with functions and operators that are not PyTorch's are not cached.
    """
    code, nodes = _code(module), dynamo.placeholders(module)
    ints = [index for index, node in enumerate(nodes) if isinstance(node.meta.get("example_value"), torch.SymInt)]
    others = sorted({*numbers, *ints})
    if code is None or not _is_plain(nodes, args, others):
        return None
    values = [number_from(args[index]) for index in others]
    sources = [least_trace(node) for node in module.graph.nodes]  # the report shows them
    inputs = [_tensors(args, others), list(map(_sizes, nodes)), repr(values)]
    parts = [environment(), code, sources, inputs, list(weights), list(numbers)]
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


def _is_plain(nodes: Sequence[fx.Node], args: Sequence[Any], others: Sequence[int]) -> bool:
    """Return whether the arguments are dense tensors, no subclasses, of sizes that depend on no data.

    others: the positions of numbers.
    """
    known = not any(map(_depends_on_data, nodes))
    return known and all(_is_dense(value) for index, value in enumerate(args) if index not in others)


def _depends_on_data(node: fx.Node) -> bool:
    value = node.meta.get("example_value")
    return isinstance(value, (torch.Tensor, torch.SymInt)) and has_unbacked_symbols(value)


def _is_dense(value: Any) -> bool:
    is_tensor = type(value) in (torch.Tensor, nn.Parameter)
    return is_tensor and value.layout is torch.strided and not value.is_nested and not has_hints(value)


def _sizes(node: fx.Node) -> Any:
    """Return what a capture reads of an argument's symbolic sizes: which are equal to others, and their ranges."""
    value = node.meta.get("example_value")
    if isinstance(value, torch.SymInt):
        return str(value.node.expr)
    return {dim: [str(size.node.expr), *dynamo.range_of(size)] for dim, size in dynamo.free_dims(node).items()}


def _tensors(args: Sequence[Any], others: Sequence[int]) -> list[Any]:
    """Return what a capture reads of each tensor, and which tensors share memory; None for a number."""
    memories: dict[int, int] = {}
    return [None if index in others else _tensor(value, memories) for index, value in enumerate(args)]


def _tensor(value: torch.Tensor, memories: dict[int, int]) -> list[Any]:
    memory = memories.setdefault(storage_id(value), len(memories))
    kinds = [type(value).__name__, str(value.dtype), *_device(value.device)]
    flags = [value.requires_grad, value.is_inference(), value.is_conj(), value.is_neg()]
    return [*kinds, list(value.shape), list(value.stride()), value.storage_offset(), memory, *flags]


def _device(device: torch.device) -> list[Any]:
    """Return the name of a device; of a GPU its capability too, as attention has strides by it."""
    return [str(device), *(torch.cuda.get_device_capability(device) if device.type == "cuda" else ())]


def environment() -> dict[str, Any]:
    """Return the versions, the source code and the settings of PyTorch that a capture may depend on."""
    converted = [str(op) for op in CONVERTERS if is_operator(op)]
    attention, einsum = torch.backends.cuda, torch.backends.opt_einsum
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
        "attention": [
            attention.flash_sdp_enabled(),
            attention.mem_efficient_sdp_enabled(),
            attention.cudnn_sdp_enabled(),
        ],
        "einsum": [einsum.is_available(), einsum.enabled, einsum.strategy],
        "functorch": functorch_settings(),
        "sizes": size_settings(),
    }
