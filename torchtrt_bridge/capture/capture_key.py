"""The key of a captured graph: a digest of all that a capture reads, so that no graph is recalled for another."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._functorch import config as functorch_config

from torchtrt_bridge.cache import source_digest
from torchtrt_bridge.capture import dynamo
from torchtrt_bridge.capture.constant_guard import number_from
from torchtrt_bridge.graph.nodes import least_trace
from torchtrt_bridge.lower import CONVERTERS

# Operators whose code comes with PyTorch or with this package; of others, nobody tells when it changes.
NAMESPACES = ("aten", "prim", "prims", "torchtrt_bridge")

# What the code of a graph may name beside PyTorch's own functions, as fx writes code.
BUILT_IN = {"inf", "nan", "NoneType", "torch", "device", "fx_pytree", "pytree"}


def capture_key(
    module: fx.GraphModule, args: Sequence[Any], weights: Sequence[int], numbers: Sequence[int]
) -> str | None:
    """The digest, in hexadecimal, of a graph of Dynamo's as `dynamo.capture` meets it; None for one that is not kept.

    The values of weights are not in it, as a capture does not read them. Not kept are graphs with sizes that are known
    only at run time, with parts that are graphs themselves, and with functions or operators that are not PyTorch's.
    """
    code = _code(module)
    if code is None or not _is_plain(module, args, numbers):
        return None
    values = [number_from(args[index]) for index in numbers]
    sources = [least_trace(node) for node in module.graph.nodes]  # which the report shows
    parts = [_surroundings(), code, sources, _tensors(args, numbers), repr(values), list(weights), list(numbers)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _code(module: fx.GraphModule) -> str | None:
    """The Python code of a graph; None if it calls what is not PyTorch's, or holds what has no text."""
    for node in module.graph.nodes:
        if node.op in ("get_attr", "call_module") or not _is_known(node.target):
            return None
    code = module.graph.python_code("self")
    strangers = [name for name, value in code.globals.items() if name not in BUILT_IN and not _is_of_python(value)]
    return None if strangers else str(code.src)


def _is_known(target: Any) -> bool:
    if isinstance(target, torch._ops.OpOverload):
        return target.namespace in NAMESPACES
    if isinstance(target, torch._ops.OpOverloadPacket):
        return target._qualified_op_name.split("::")[0] in NAMESPACES
    return not isinstance(target, torch._ops.OperatorBase)


def _is_of_python(value: Any) -> bool:
    return getattr(value, "__module__", None) in ("builtins", "_operator", "math")


def _is_plain(module: fx.GraphModule, args: Sequence[Any], numbers: Sequence[int]) -> bool:
    """Whether the arguments are dense tensors of static sizes and bound numbers, and no subclasses with their code.

    Numbers are symbols to Dynamo; what else is one is a size.
    """
    if any(dynamo.free_dims(node) for node in dynamo.placeholders(module)):
        return False
    return all(_is_dense(value) for index, value in enumerate(args) if index not in numbers)


def _is_dense(value: Any) -> bool:
    is_tensor = type(value) in (torch.Tensor, nn.Parameter)
    return is_tensor and value.layout is torch.strided and not value.is_nested


def _tensors(args: Sequence[Any], numbers: Sequence[int]) -> list[Any]:
    """What a capture sees of each tensor, and which share memory; None for a number."""
    memories: dict[Any, int] = {}
    return [None if index in numbers else _tensor(value, memories) for index, value in enumerate(args)]


def _tensor(value: torch.Tensor, memories: dict[Any, int]) -> list[Any]:
    memory = memories.setdefault(value.untyped_storage()._cdata, len(memories))
    kinds = [type(value).__name__, str(value.dtype), str(value.device)]
    flags = [value.requires_grad, value.is_inference(), value.is_conj(), value.is_neg()]
    return [*kinds, list(value.shape), list(value.stride()), value.storage_offset(), memory, *flags]


def _surroundings() -> dict[str, Any]:
    """Versions, source code and PyTorch's settings, as far as a capture may depend on them."""
    converted = [str(op) for op in CONVERTERS if isinstance(op, torch._ops.OpOverload)]
    autocast = {d: [torch.is_autocast_enabled(d), str(torch.get_autocast_dtype(d))] for d in ("cpu", "cuda")}
    return {
        "torch": [str(torch.__version__), torch.version.git_version],
        "python": platform.python_version(),
        "source": source_digest(),
        "converters": sorted(converted),
        "autocast": autocast,
        "defaults": [str(torch.get_default_dtype()), str(torch.get_default_device())],
        "modes": [torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()],
        "inference": torch.is_inference_mode_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "fast paths": torch.backends.mha.get_fastpath_enabled(),
        "libraries": [torch.backends.cudnn.enabled, torch.backends.mkldnn.enabled],
        "functorch": functorch_config.get_hash().hex(),
    }
