"""The key of an engine: a digest of everything that shapes it, so that a cached engine is never a wrong one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import fx

from torchtrt_bridge.cache import source_digest
from torchtrt_bridge.graph.shapes import Range, spec_of
from torchtrt_bridge.graph.version import __version__
from torchtrt_bridge.lower.registry import ConverterProvider, is_foreign
from torchtrt_bridge.options import Options
from torchtrt_bridge.trt.library import PORTABLE, TensorRTLibrary, current_target


def engine_key(
    module: fx.GraphModule,
    library: TensorRTLibrary,
    options: Options,
    ranges: Mapping[Any, Range],
    provider: ConverterProvider | None = None,
) -> str:
    """The digest, in hexadecimal, of a subgraph, its constants' contents, its ranges, options, TensorRT and target.

    provider: what it writes goes in with the version of its converters.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps(_environment(library, options)).encode())
    order = {node: index for index, node in enumerate(module.graph.nodes)}
    for node in module.graph.nodes:
        digest.update(_canonical(_describe(node, order, ranges)).encode())
        if provider is not None and is_foreign(node):
            digest.update(provider.identity(node).encode())
        if node.op == "get_attr":
            _add_tensor(digest, module.get_buffer(str(node.target)))
    return digest.hexdigest()


def _environment(library: TensorRTLibrary, options: Options) -> list[Any]:
    target = list(options.targets) or [current_target() or PORTABLE]
    build = [options.optimization_level, options.workspace_bytes, options.tf32]
    source = source_digest()
    return [__version__, source, library.name, library.version, target, build]


def _describe(node: fx.Node, order: Mapping[fx.Node, int], ranges: Mapping[Any, Range]) -> str:
    if node.op == "placeholder":
        spec = spec_of("", node.meta["val"], ranges)
        return f"input {spec.dtype} {spec.ranges} {spec.example} {spec.sizes};"
    if node.op == "get_attr":
        return "constant;"
    args, kwargs = fx.map_arg((node.args, node.kwargs), cast(Any, lambda n: _Reference(order[n])))
    return f"{node.op} {node.target} {args!r} {sorted(kwargs.items())!r};"


class _Reference:
    """A node among arguments, by its place in the graph."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __repr__(self) -> str:
        return f"%{self.index}"


def _canonical(text: str) -> str:
    """Node and input names are left out above; symbols are numbered by PyTorch per process, so they go too."""
    return re.sub(r"'([^']*)'", lambda m: "'" + re.sub(r"\b[su]\d+\b", "s", m[1]) + "'", text)


def _add_tensor(digest: Any, value: torch.Tensor) -> None:
    host = value.detach().to("cpu").contiguous()
    digest.update(f"{host.dtype} {tuple(host.shape)};".encode())
    if host.numel():
        digest.update(host.reshape(-1).view(torch.uint8).numpy().data)
