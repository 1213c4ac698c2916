"""Conversion of a subgraph into an unbuilt TensorRT network: inputs, one converter for each node, outputs."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import fx

from torchtrt_bridge.errors import BridgeError, LoweringError, UnsupportedOpError
from torchtrt_bridge.graph.edit import copy_graph
from torchtrt_bridge.graph.kv_cache import own
from torchtrt_bridge.graph.nodes import describe
from torchtrt_bridge.graph.shapes import TensorSpec, spec_of
from torchtrt_bridge.graph.torch_internals import SizeGuardError, sizes_unread
from torchtrt_bridge.lower.context import Context, NamedNetwork
from torchtrt_bridge.lower.grouped_heads import share_heads
from torchtrt_bridge.lower.projections import MERGED, merge_projections
from torchtrt_bridge.lower.registry import CONVERTERS, ConverterProvider
from torchtrt_bridge.trt.dtypes import trt_dtype_from_torch
from torchtrt_bridge.trt.error_log import ErrorLog
from torchtrt_bridge.trt.library import TensorRTLibrary


@dataclasses.dataclass
class Network:
    """A network, with all that must live until it is built.

    inputs, outputs: names, dtypes and sizes, in the order of the subgraph's arguments and results.
    in_place: places of the outputs that are caches, which an engine writes where they lie.
    constants: value of each constant layer by name.
    layers: how many layers TensorRT was given.
    """

    definition: Any
    builder: Any
    log: ErrorLog
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    in_place: frozenset[int]
    constants: dict[str, torch.Tensor]
    kept: Any = dataclasses.field(repr=False)

    @property
    def layers(self) -> int:
        return int(self.definition.num_layers)

    def copy_outputs(self, places: Collection[int]) -> None:
        """Let the outputs at these places be copies of what they were, with a layer of their own; the order stays."""
        tensors = [self.definition.get_output(index) for index in range(self.definition.num_outputs)]
        for tensor in tensors:
            self.definition.unmark_output(tensor)
        for place, tensor in enumerate(tensors):
            output, name = tensor, tensor.name
            if place in places:
                tensor.name = f"copied:{name}"
                output = self.definition.add_identity(tensor).get_output(0)
                output.name = name
            self.definition.mark_output(output)


def _supports_all(capability: str) -> bool:
    """Answer for `Context.supports` where nothing was probed."""
    return True


def network_from_graph(
    module: fx.GraphModule,
    library: TensorRTLibrary,
    ranges: Mapping[Any, tuple[int, int]] | None = None,
    supports: Callable[[str], bool] = _supports_all,
    provider: ConverterProvider | None = None,
    fp16_accumulation: bool = False,
) -> Network:
    """Write every node of `module` into a new network.

    ranges: smallest and largest value of each symbolic size.
    supports: tells whether TensorRT builds the network of the probe of this name; by default it builds all.
    provider: writes the nodes that have no converter here.
    fp16_accumulation: whether products of fp16 matrices may be summed in fp16.
    Raises LoweringError, naming operator, node and source line.
    """
    log = library.new_log()
    builder = library.new_builder(log)
    definition = library.new_network(builder)
    ctx = Context(library.trt, NamedNetwork(definition, log), supports, fp16_accumulation)
    ranges = {} if ranges is None else ranges
    values: dict[fx.Node, Any] = {}
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    module = _in_network_form(module)
    for node in module.graph.nodes:
        ctx.node = node
        ctx.network.enter("+".join(node.meta.get(MERGED, [node.name])))
        if node.op == "placeholder":
            spec = spec_of(node.name, node.meta["val"], ranges)
            inputs.append(spec)
            values[node] = _add_input(ctx, spec)
        elif node.op == "get_attr":
            values[node] = module.get_buffer(str(node.target))
        elif node.op == "call_function":
            values[node] = _lower(ctx, node, values, provider)
        elif node.op == "output":
            outputs = _mark_outputs(ctx, node, values, ranges)
    _drop_constants(module)
    return Network(definition, builder, log, inputs, outputs, _caches_among(module.graph), ctx.constants, ctx)


def _in_network_form(module: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of a subgraph as it is written into a network; merged weights lie in host memory."""
    twin = fx.GraphModule(module, copy_graph(module.graph))
    share_heads(twin.graph)
    merge_projections(twin, device="cpu")
    return twin


def _drop_constants(module: fx.GraphModule) -> None:
    """Drop what the network does not hold: a graph and its nodes refer to each other, so that they live on for long."""
    for name in [name for name, _ in module.named_buffers(recurse=False, remove_duplicate=False)]:
        delattr(module, name)


def _add_input(ctx: Context, spec: TensorSpec) -> Any:
    shape = tuple(-1 if low != high else low for low, high in spec.ranges)
    return ctx.network.definition.add_input(spec.name, trt_dtype_from_torch(ctx.trt, spec.dtype), shape)


def _lower(ctx: Context, node: fx.Node, values: Mapping[fx.Node, Any], provider: ConverterProvider | None) -> Any:
    mapped: Any = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
    args, kwargs = mapped
    if node.target is operator.getitem:
        return args[0][args[1]]
    found = CONVERTERS.get(node.target) or provider
    if found is None:
        raise UnsupportedOpError(f"{describe(node)} has no converter.")
    try:
        with sizes_unread(n.meta.get("val") for n in (*node.all_input_nodes, node)):
            result = found.lower(ctx, *args, **kwargs)
        _check(ctx, result, node.meta.get("val"))
        ctx.network.raise_errors()
    except BridgeError as error:
        raise LoweringError(f"{describe(node)} could not be lowered: {error}") from error
    except SizeGuardError as error:
        raise LoweringError(
            f"{describe(node)} could not be lowered: its converter reads a size that is known only at run time as a "
            f"number ({error})."
        ) from error
    except Exception as error:
        reported = ctx.network.take_errors()
        raise LoweringError(
            f"{describe(node)} could not be lowered: {type(error).__name__}: {error}; TensorRT: {reported}"
        ) from error
    return result


def _check(ctx: Context, result: Any, expected: Any) -> None:
    """Check that a converter's result has the dtype, rank and known sizes that PyTorch gives the node."""
    if isinstance(expected, (tuple, list)):
        for one, value in zip(result, expected, strict=False):
            if one is not None:
                _check(ctx, one, value)
        return
    if not isinstance(expected, torch.Tensor) or isinstance(result, torch.Tensor):
        return
    if ctx.dtype(result) != expected.dtype:
        raise LoweringError(f"the converter gave {ctx.dtype(result)} instead of {expected.dtype}.")
    actual, wanted = tuple(result.shape), tuple(expected.shape)
    known = [(a, b) for a, b in zip(actual, wanted, strict=False) if a >= 0 and isinstance(b, int)]
    if len(actual) != len(wanted) or any(a != b for a, b in known):
        raise LoweringError(f"the converter gave the shape {actual} instead of {wanted}.")


def _caches_among(graph: fx.Graph) -> frozenset[int]:
    """Return the places, among the results of a graph, of updated caches."""
    results = _results_of(graph.output_node())
    return frozenset(place for place, node in enumerate(results) if node.target is own.kv_cache_update.default)


def _results_of(node: fx.Node) -> tuple[Any, ...]:
    return tuple(node.args[0]) if isinstance(node.args[0], (tuple, list)) else (node.args[0],)


def _mark_outputs(
    ctx: Context, node: fx.Node, values: Mapping[fx.Node, Any], ranges: Mapping[Any, tuple[int, int]]
) -> list[TensorSpec]:
    """Mark the results, each under its node's name and as a tensor of its own."""
    specs = []
    for index, source in enumerate(_results_of(node)):
        assert isinstance(source, fx.Node)
        expected = source.meta["val"]
        tensor = ctx.tensor(values[source])
        if tensor.is_network_input or tensor.is_network_output or isinstance(values[source], torch.Tensor):
            tensor = ctx.network.add_identity(tensor).get_output(0)
        tensor.name = f"out{index}:{source.name}"
        ctx.network.definition.mark_output(tensor)
        specs.append(spec_of(tensor.name, expected, ranges))
    ctx.network.raise_errors()
    return specs
