"""torch_tensorrt's converters, for operators that have none here.

It is imported when the first such operator is met, and only where a GPU is visible: its import looks for one. Each
node is rehearsed in a network of its own before the graph is cut, so that a converter that fails costs its node only.
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
from torchtrt_bridge.lower.context import Context
from torchtrt_bridge.lower.network import network_from_graph
from torchtrt_bridge.lower.registry import NO_CONVERTER, tensor_reason
from torchtrt_bridge.options import Options
from torchtrt_bridge.report.log import warn_once
from torchtrt_bridge.trt import library as libraries
from torchtrt_bridge.trt.library import TensorRTLibrary

aten = torch.ops.aten

# Operators that PyTorch captures under another name, with the same arguments and results in inference.
SAME_AS: dict[Any, Any] = {aten._embedding_bag_forward_only.default: aten._embedding_bag.default}

# Its converter (2.11) takes stored statistics of zeros and ones, where PyTorch computes those of the batch.
WRONG = {aten._native_batch_norm_legit.no_stats}


@dataclasses.dataclass(frozen=True)
class PeerLibrary:
    """What is used of torch_tensorrt.

    network_type: the class of the networks that its converters write.
    converters: its registry: for each operator, the ways to write it, the first choice first.
    new_context: what its converters take in place of a network, from a network and settings.
    new_settings: its compilation settings, as they are by default.
    """

    version: str
    network_type: Any
    converters: Mapping[Any, Sequence[Any]]
    new_context: Callable[[Any, Any], Any]
    new_settings: Callable[[], Any]


@functools.cache
def find() -> PeerLibrary | str:
    """torch_tensorrt, imported; or why it cannot be had here."""
    if importlib.util.find_spec("torch_tensorrt") is None:
        return "not installed"
    if not torch.cuda.is_available():
        return "installed, but not imported without a GPU: its import looks for one"
    try:
        return _import()
    except Exception as error:  # a missing peer, another TensorRT or another PyTorch: it raises several kinds
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
    """Why networks of `library` are not for these converters; None if they are."""
    if peer.network_type is library.trt.INetworkDefinition:
        return None
    return f"torch_tensorrt {peer.version} writes networks of another TensorRT than {library}"


def provider_for(options: Options) -> TorchTensorRT | None:
    """The provider of one compilation; None where the options have none."""
    return None if options.torch_tensorrt == "off" else TorchTensorRT(options)


class TorchTensorRT:
    """A `ConverterProvider` of the registry: writes nodes by torch_tensorrt's converters, in one compilation.

    A node that it writes computes in the dtypes of the user's graph: `precision` leaves it alone.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self._refused: dict[str, str] = {}
        self._wants_tensors: set[str] = set()

    def refuse(self, nodes: Sequence[str], reason: str) -> None:
        """Leave nodes of these names to PyTorch from now on."""
        self._refused.update(dict.fromkeys(nodes, f"torch_tensorrt's converter fails: {reason}"))

    def why_not(self, node: fx.Node) -> str | None:
        """Why `node` stays in PyTorch; None if torch_tensorrt writes it."""
        if node.name in self._refused:
            return self._refused[node.name]
        if not _is_function(node.target) or self._library is None or not self._candidates(node):
            return NO_CONVERTER
        reason = tensor_reason(node) or _size_reason(node)
        if reason is not None:
            return reason
        if self._chosen(node) is None:
            return f"{NO_CONVERTER}, and torch_tensorrt's declines it"
        return self._rehearsed(node)

    def lower(self, ctx: Context, *args: Any, **kwargs: Any) -> Any:
        """Write ``ctx.node``; the arguments are as those of any converter."""
        peer, chosen = self._library, self._chosen(ctx.node)
        if peer is None or chosen is None:
            raise LoweringError("torch_tensorrt has no converter for it.")
        context = peer.new_context(ctx.network, self._settings)
        if hasattr(context, "current_node"):
            context.current_node = ctx.node
        form = ctx.tensor if ctx.node.name in self._wants_tensors else _copy_on_cpu
        args, kwargs = pytree.tree_map_only(torch.Tensor, form, (args, kwargs))
        ctx.keep((context, args, kwargs))  # their memory is what the network's constants point to
        result = chosen.converter_implementation(context, _key(ctx.node), args, kwargs, ctx.node.name)
        if context.requires_output_allocator or getattr(context, "aliased_outputs", None):
            raise LoweringError("torch_tensorrt's converter wants results that only its own runtime serves.")
        _check_kind(ctx, result)
        return result

    def identity(self, node: fx.Node) -> str:
        """What an engine with this node depends on: the version, and the file of the converter, if it is a user's."""
        peer, chosen = self._library, self._chosen(node)
        assert peer is not None
        assert chosen is not None
        function = inspect.unwrap(chosen.converter_implementation)
        name = getattr(function, "__qualname__", type(function).__qualname__)
        return f"torch_tensorrt {peer.version} {function.__module__}.{name} {_file_digest(function)};"

    @functools.cached_property
    def _flavour(self) -> TensorRTLibrary:
        return libraries.choose(self.options.engine)

    @functools.cached_property
    def _library(self) -> PeerLibrary | None:
        found = find()
        if isinstance(found, PeerLibrary):
            found = mismatch(found, self._flavour) or found
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
        return self._library.converters.get(_key(node), ())

    def _chosen(self, node: fx.Node) -> Any:
        """The first converter that takes the node, its sizes and its arguments; None if none does."""
        is_dynamic = any(_is_dynamic(n.meta.get("val")) for n in (node, *node.all_input_nodes))
        for candidate in self._candidates(node):
            if candidate.requires_output_allocator or (is_dynamic and not candidate.supports_dynamic_shapes):
                continue
            if candidate.capability_validator(node, self._settings):
                return candidate
        return None

    def _rehearsed(self, node: fx.Node) -> str | None:
        """Write the node into a network of its own; why it cannot be.

        Some converters want constants as PyTorch's tensors, others cannot take these: both are tried.
        """
        reason = self._written_alone(node)
        if reason is not None and any(source.op == "get_attr" for source in node.all_input_nodes):
            self._wants_tensors.add(node.name)
            return reason if self._written_alone(node) is not None else None
        return reason

    def _written_alone(self, node: fx.Node) -> str | None:
        ranges: Mapping[Any, Range] = collections.defaultdict(lambda: (1, UNBOUNDED))
        try:
            network_from_graph(_alone(node), self._flavour, ranges, provider=self)
        except Exception as error:  # whatever a converter raises
            cause = error.__cause__ or error
            kind = "" if isinstance(cause, LoweringError) else f"{type(cause).__name__}: "
            return f"torch_tensorrt's converter fails: {kind}{cause}"
        return None


def _key(node: fx.Node) -> Any:
    """The operator under which the registry has a node's converters."""
    return SAME_AS.get(node.target, node.target)


def _is_function(target: Any) -> bool:
    """Whether an operator gives the same results for the same arguments, and leaves these as they are."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags


def _size_reason(node: fx.Node) -> str | None:
    """The registry's sizes are other tensors than those of the converters here."""
    is_number = [not isinstance(n.meta.get("val"), torch.Tensor) for n in node.all_input_nodes]
    return "a number that is known only at run time, given to torch_tensorrt's converter" if any(is_number) else None


def _is_dynamic(value: Any) -> bool:
    values = value if isinstance(value, (tuple, list)) else [value]
    return any(not isinstance(size, int) for v in values if isinstance(v, torch.Tensor) for size in v.shape)


def _copy_on_cpu(value: torch.Tensor) -> torch.Tensor:
    """A copy of a constant: some converters write into theirs."""
    return value.detach().to("cpu", copy=True).contiguous()


def _check_kind(ctx: Context, result: Any) -> None:
    """What the graph reads of a result must be a tensor of the network."""
    is_several = isinstance(ctx.node.meta.get("val"), (tuple, list))
    read = [user.args[1] for user in ctx.node.users if user.target is operator.getitem] if is_several else []
    values = [result[index] for index in read] if is_several else [result]
    for value in values:
        if not isinstance(value, ctx.trt.ITensor):
            raise LoweringError(f"torch_tensorrt's converter gave a {type(value).__name__} instead of a tensor.")


def _alone(node: fx.Node) -> fx.GraphModule:
    """A graph of one node, and of the items that are read of its results."""
    graph = fx.Graph()
    twins: dict[fx.Node, fx.Node] = {}
    for source in node.all_input_nodes:
        is_constant = source.op == "get_attr"
        twins[source] = graph.get_attr(str(source.target)) if is_constant else graph.placeholder(source.name)
        twins[source].meta = dict(source.meta)
    twins[node] = graph.node_copy(node, twins.__getitem__)
    items = [user for user in node.users if user.target is operator.getitem]
    results = [graph.node_copy(item, twins.__getitem__) for item in items]
    graph.output(tuple(results) if isinstance(node.meta.get("val"), (tuple, list)) else (twins[node],))
    owner = node.graph.owning_module
    return fx.GraphModule(torch.nn.Module() if owner is None else owner, graph)


def _file_digest(function: Any) -> str:
    try:
        path = inspect.getsourcefile(function)
    except TypeError:  # a callable object
        path = inspect.getsourcefile(type(function))
    return "" if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()
