"""Key of an engine: a digest of everything that shapes it, so that the cache never gives a wrong engine."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import fx

from torchtrt_bridge.cache import combined_digest, source_digest
from torchtrt_bridge.graph.shapes import Range, spec_of
from torchtrt_bridge.graph.version import __version__
from torchtrt_bridge.lower.registry import ConverterProvider, is_foreign
from torchtrt_bridge.options import Options, builder_settings
from torchtrt_bridge.trt.library import PORTABLE, TensorRTLibrary, current_target


def engine_key(
    module: fx.GraphModule,
    library: TensorRTLibrary,
    options: Options,
    ranges: Mapping[Any, Range],
    provider: ConverterProvider | None = None,
) -> str:
    """Return the digest, in hexadecimal, of a subgraph, its constants' contents, its ranges, options, TensorRT, target.

    provider: for a node that it writes, its identity of the node is part of the key.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps(_environment(library, options)).encode())
    order = {node: index for index, node in enumerate(module.graph.nodes)}
    symbols: dict[str, str] = {}
    for node in module.graph.nodes:
        digest.update(_with_numbered_symbols(_describe(node, order, ranges), symbols).encode())
        if provider is not None and is_foreign(node):
            digest.update(provider.identity(node).encode())
    digest.update(_digest_of_constants(module).encode())
    return digest.hexdigest()


def _environment(library: TensorRTLibrary, options: Options) -> list[Any]:
    targets = list(options.targets) or [current_target() or PORTABLE]
    settings = {**builder_settings(options), "targets": targets}
    return [__version__, source_digest(), library.name, library.version, settings]


def _describe(node: fx.Node, order: Mapping[fx.Node, int], ranges: Mapping[Any, Range]) -> str:
    if node.op == "placeholder":
        spec = spec_of("", node.meta["val"], ranges)
        return f"input {spec.dtype} {spec.ranges} {spec.example} {spec.sizes};"
    if node.op == "get_attr":
        return "constant;"
    args, kwargs = fx.map_arg((node.args, node.kwargs), cast(Any, lambda n: _Reference(order[n])))
    return f"{node.op} {node.target} {args!r} {sorted(kwargs.items())!r};"


class _Reference:
    """Node among arguments, printed as its place in the graph: names of nodes are not part of the key."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __repr__(self) -> str:
        return f"%{self.index}"


def _with_numbered_symbols(text: str, symbols: dict[str, str]) -> str:
    """Return the description of a node with its symbols numbered by first appearance in the graph.

    PyTorch names a symbol after its place in the user's model. Which sizes have the same symbol stays visible, as
    converters may rely on equal sizes.
    symbols: the symbols of the nodes before, which this call extends.
    """

    def numbered(symbol: re.Match[str]) -> str:
        return symbols.setdefault(symbol[0], f"s{len(symbols)}")

    return re.sub(r"'([^']*)'", lambda quoted: "'" + re.sub(r"\b[su]\d+\b", numbered, quoted[1]) + "'", text)


def _digest_of_constants(module: fx.GraphModule) -> str:
    """Return a digest of the dtypes, sizes and elements of all constants, in the order in which they are read."""
    constants = [module.get_buffer(str(node.target)) for node in module.graph.find_nodes(op="get_attr", sort=True)]
    for device in {value.device for value in constants if value.is_cuda}:
        torch.cuda.current_stream(device).synchronize()  # what computes them may still be queued, and threads see none
    return combined_digest(constants, _digest_of)


def _digest_of(value: torch.Tensor) -> bytes:
    host = value.detach().to("cpu").contiguous()
    digest = hashlib.sha256(f"{host.dtype} {tuple(host.shape)};".encode())
    if host.numel():
        digest.update(host.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()
