"""torch_tensorrt's converters, for operators that have none here.

It is imported at the first such operator, and only where a GPU is visible: its import looks for one. Each node is first
written into a network of its own, before the graph is partitioned, so that a failing converter costs its node only.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from torchtrt_bridge.errors import LoweringError
from torchtrt_bridge.graph.shapes import UNBOUNDED, Range
from torchtrt_bridge.graph.torch_internals import is_operator, schema_of
from torchtrt_bridge.lower.context import Context
from torchtrt_bridge.lower.network import network_from_graph
from torchtrt_bridge.lower.registry import NO_CONVERTER, tensor_reason
from torchtrt_bridge.options import Options
from torchtrt_bridge.report.log import warn_once
from torchtrt_bridge.trt import library as libraries
from torchtrt_bridge.trt.library import TensorRTLibrary

aten = torch.ops.aten

# The converter (2.11) takes stored statistics of zeros and ones, where PyTorch computes those of the batch.
WRONG = {aten._native_batch_norm_legit.no_stats}


@dataclasses.dataclass(frozen=True)
class PeerLibrary:
    """Parts of torch_tensorrt that this package uses.

    network_type: the class of the networks that its converters write.
    converters: its registry: the converters of each operator, the preferred one first.
    new_context: makes the context that a converter takes, from a network and settings.
    new_settings: makes its default compilation settings.
    """

    version: str
    network_type: Any
    converters: Mapping[Any, Sequence[Any]]
    new_context: Callable[[Any, Any], Any]
    new_settings: Callable[[], Any]


@functools.cache
def find() -> PeerLibrary | str:
    """Import torch_tensorrt; return its parts, or the reason why it is not available here."""
    if importlib.util.find_spec("torch_tensorrt") is None:
        return "not installed"
    if not torch.cuda.is_available():
        return "installed, but not imported without a GPU: its import looks for one"
    try:
        return _import()
    except Exception as error:  # a missing package, another TensorRT or another PyTorch: it raises several kinds
        return f"installed, but does not import: {type(error).__name__}: {error}"


def _import() -> PeerLibrary:
    import torch_tensorrt
    from torch_tensorrt.dynamo._settings import CompilationSettings
    from torch_tensorrt.dynamo.conversion._ConversionContext import ConversionContext
    from torch_tensorrt.dynamo.conversion._ConverterRegistry import DYNAMO_ATEN_CONVERTERS
    from torch_tensorrt.dynamo.types import TRTNetwork

    return PeerLibrary(
        torch_tensorrt.__version__, TRTNetwork, DYNAMO_ATEN_CONVERTERS, ConversionContext, CompilationSettings
    )


def mismatch(peer: PeerLibrary, library: TensorRTLibrary) -> str | None:
    """Return why these converters cannot write networks of `library`; None if they can."""
    if peer.network_type is library.trt.INetworkDefinition:
        return None
    return f"torch_tensorrt {peer.version} writes networks of another TensorRT than {library}"


def provider_for(options: Options) -> TorchTensorRT | None:
    """Return the provider of one compilation; None if the options exclude torch_tensorrt."""
    return None if options.torch_tensorrt == "off" else TorchTensorRT(options)


class TorchTensorRT:
    """`ConverterProvider` that writes nodes by torch_tensorrt's converters, in one compilation.

    A node that it writes computes in the dtypes of the user's graph, whatever `precision` is.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self._refused: dict[str, str] = {}
        self._wants_tensors: set[str] = set()

    def refuse(self, nodes: Sequence[str], reason: str) -> None:
        """Leave nodes of these names to PyTorch from now on."""
        self._refused.update(dict.fromkeys(nodes, f"torch_tensorrt's converter fails: {reason}"))

    def why_not(self, node: fx.Node) -> str | None:
        """Return why `node` stays in PyTorch; None if torch_tensorrt writes it."""
        if node.name in self._refused:
            return self._refused[node.name]
        if not _is_function(node.target) or self._library is None or not self._candidates(node):
            return NO_CONVERTER
        reason = tensor_reason(node) or _size_reason(node)
        if reason is not None:
            return reason
        if self._chosen(node) is None:
            return f"{NO_CONVERTER}, and torch_tensorrt's declines it"
        return self._try_alone(node)

    def lower(self, ctx: Context, *args: Any, **kwargs: Any) -> Any:
        """Write ``ctx.node``; the arguments are those of any converter."""
        peer, chosen = self._library, self._chosen(ctx.node)
        if peer is None or chosen is None:
            raise LoweringError("torch_tensorrt has no converter for it.")
        context = peer.new_context(ctx.network, self._settings)
        if hasattr(context, "current_node"):
            context.current_node = ctx.node
        form = ctx.tensor if ctx.node.name in self._wants_tensors else _copy_on_cpu
        args, kwargs = pytree.tree_map_only(torch.Tensor, form, (args, kwargs))
        ctx.keep((context, args, kwargs))  # the network's constants point to their memory
        result = chosen.converter_implementation(context, ctx.node.target, args, kwargs, ctx.node.name)
        if context.requires_output_allocator or getattr(context, "aliased_outputs", None):
            raise LoweringError("torch_tensorrt's converter wants results that only its own runtime can return.")
        _check_kind(ctx, result)
        return result

    def identity(self, node: fx.Node) -> str:
        """Return the version, name and source digest of the converter of a node, for the key of its engine."""
        peer, chosen = self._library, self._chosen(node)
        assert peer is not None
        assert chosen is not None
        function = inspect.unwrap(chosen.converter_implementation)
        name = getattr(function, "__qualname__", type(function).__qualname__)
        return f"torch_tensorrt {peer.version} {function.__module__}.{name} {_file_digest(function)};"

    @functools.cached_property
    def _tensorrt(self) -> TensorRTLibrary:
        return libraries.choose(self.options.engine)

    @functools.cached_property
    def _library(self) -> PeerLibrary | None:
        found = find()
        if isinstance(found, PeerLibrary):
            found = mismatch(found, self._tensorrt) or found
        if isinstance(found, PeerLibrary):
            return found
        if found != "not installed":
            warn_once(f"torch_tensorrt's converters are not used: {found}.")
        return None

    @functools.cached_property
    def _settings(self) -> Any:
        assert self._library is not None
        return self._library.new_settings()

    def _candidates(self, node: fx.Node) -> Sequence[Any]:
        if self._library is None or node.target in WRONG:
            return ()
        return self._library.converters.get(node.target, ())

    def _chosen(self, node: fx.Node) -> Any:
        """Return the first converter that takes the node, its sizes and its arguments; None if there is none."""
        is_dynamic = any(_is_dynamic(n.meta.get("val")) for n in (node, *node.all_input_nodes))
        for candidate in self._candidates(node):
            if candidate.requires_output_allocator or (is_dynamic and not candidate.supports_dynamic_shapes):
                continue
            if candidate.capability_validator(node, self._settings):
                return candidate
        return None

    def _try_alone(self, node: fx.Node) -> str | None:
        """Write the node into a network of its own; return why that fails, None if it does not.

        Some converters want constants as PyTorch's tensors, others cannot take these: both are tried.
        """
        reason = self._write_alone(node)
        if reason is not None and any(source.op == "get_attr" for source in node.all_input_nodes):
            self._wants_tensors.add(node.name)
            return reason if self._write_alone(node) is not None else None
        return reason

    def _write_alone(self, node: fx.Node) -> str | None:
        ranges: Mapping[Any, Range] = collections.defaultdict(lambda: (1, UNBOUNDED))
        try:
            network_from_graph(_graph_of(node), self._tensorrt, ranges, provider=self)
        except Exception as error:  # whatever a converter raises
            cause = error.__cause__ or error
            kind = "" if isinstance(cause, LoweringError) else f"{type(cause).__name__}: "
            return f"torch_tensorrt's converter fails: {kind}{cause}"
        return None


def _is_function(target: Any) -> bool:
    """Return whether a target is an operator without side effects and without random results."""
    if not is_operator(target):
        return False
    return not schema_of(target).is_mutable and torch.Tag.nondeterministic_seeded not in target.tags


def _size_reason(node: fx.Node) -> str | None:
    """Return why a size among the inputs excludes the node: torch_tensorrt has other tensors for sizes."""
    is_number = [not isinstance(n.meta.get("val"), torch.Tensor) for n in node.all_input_nodes]
    return "a number that is known only at run time, given to torch_tensorrt's converter" if any(is_number) else None


def _is_dynamic(value: Any) -> bool:
    values = value if isinstance(value, (tuple, list)) else [value]
    return any(not isinstance(size, int) for v in values if isinstance(v, torch.Tensor) for size in v.shape)


def _copy_on_cpu(value: torch.Tensor) -> torch.Tensor:
    """Return a copy of a constant, as some converters write into it."""
    return value.detach().to("cpu", copy=True).contiguous()


def _check_kind(ctx: Context, result: Any) -> None:
    """Raise LoweringError unless each part of a result that the graph reads is a tensor of the network."""
    is_several = isinstance(ctx.node.meta.get("val"), (tuple, list))
    read = [user.args[1] for user in ctx.node.users if user.target is operator.getitem] if is_several else []
    values = [result[index] for index in read] if is_several else [result]
    for value in values:
        if not isinstance(value, ctx.trt.ITensor):
            raise LoweringError(f"torch_tensorrt's converter gave a {type(value).__name__} instead of a tensor.")


def _graph_of(node: fx.Node) -> fx.GraphModule:
    """Return a graph of one node, and of the items that are read of its results."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for source in node.all_input_nodes:
        is_constant = source.op == "get_attr"
        copies[source] = graph.get_attr(str(source.target)) if is_constant else graph.placeholder(source.name)
        copies[source].meta = dict(source.meta)
    copies[node] = graph.node_copy(node, copies.__getitem__)
    items = [user for user in node.users if user.target is operator.getitem]
    results = [graph.node_copy(item, copies.__getitem__) for item in items]
    graph.output(tuple(results) if isinstance(node.meta.get("val"), (tuple, list)) else (copies[node],))
    owner = node.graph.owning_module
    return fx.GraphModule(torch.nn.Module() if owner is None else owner, graph)


def _file_digest(function: Any) -> str:
    try:
        path = inspect.getsourcefile(function)
    except TypeError:  # a callable object
        path = inspect.getsourcefile(type(function))
    return "" if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()
