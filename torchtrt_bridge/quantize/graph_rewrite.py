"""A rewrite of the float graph: a copy on its way to a quantized graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from torchtrt_bridge.graph.edit import constant_of, copy_graph, finish, free_name
from torchtrt_bridge.graph.memory import memory_of
from torchtrt_bridge.quantize.layers import QuantizableLayer, nodes_by_name
from torchtrt_bridge.quantize.statistics import Observed

aten = torch.ops.aten


class GraphRewrite:
    """A copy of the float graph, with the layers to quantize in it and the factors by which activations were rescaled.

    module: shares its weights with the float graph until they are replaced.
    layers: those that become quantized; `float_layers` names those that do not.
    observed: the statistics of the float graph's activations.
    factors: by activation, the divisors of its channels: the observed values are divided by them before quantization.
    origins: by the product that divides an activation, the name of that activation.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        layers: Sequence[QuantizableLayer],
        float_layers: Collection[str],
        observed: Observed,
    ) -> None:
        self.module = fx.GraphModule(module, copy_graph(module.graph))
        self.nodes = nodes_by_name(self.module)
        self.layers = [
            layer for layer in layers if layer.name not in float_layers and _is_reached(self.nodes, layer, observed)
        ]
        self.observed = observed
        self.factors: dict[str, Tensor] = {}
        self.origins: dict[str, str] = {}

    def source(self, read: tuple[str, int]) -> fx.Node:
        """Return the activation that a layer reads there."""
        return cast(fx.Node, self.nodes[read[0]].args[read[1]])

    def origin(self, read: tuple[str, int]) -> str:
        """Return the name of the observed activation that a layer reads there."""
        name = self.source(read).name
        return self.origins.get(name, name)

    def argument(self, layer: QuantizableLayer, index: int | None) -> Tensor | None:
        """Return the constant among a layer's arguments; None if there is none."""
        args = self.nodes[layer.node].args
        return None if index is None or index >= len(args) else constant_of(args[index])

    def weight(self, layer: QuantizableLayer) -> Tensor:
        """Return the weight of a layer that has one."""
        value = self.argument(layer, layer.weight)
        assert value is not None
        return value

    def readers(self) -> dict[str, list[QuantizableLayer]]:
        """Group the layers by the activation that is their own input."""
        found: dict[str, list[QuantizableLayer]] = defaultdict(list)
        for layer in self.layers:
            found[self.origin(layer.reads[0])].append(layer)
        return found

    def shares_weight(self, layer: QuantizableLayer) -> bool:
        """Check if another node reads the weight of a layer too, be it under another name."""
        own = memory_of(self.weight(layer))
        reads = self.module.graph.find_nodes(op="get_attr")
        users = [read.users for read in reads if _storage_address(read) == own]
        return sum(len(each) for each in users) > 1

    def put_constant(self, node: fx.Node, index: int, value: Tensor, hint: str) -> None:
        """Let an argument of `node` be a new constant."""
        args = list(node.args) + [None] * (index + 1 - len(node.args))
        args[index] = self.constant(node, value, hint)
        node.args = tuple(args)

    def constant(self, before: fx.Node, value: Tensor, hint: str) -> fx.Node:
        """Insert a new constant in front of `before`."""
        name = free_name(self.module, hint)
        self.module.register_buffer(name, value.detach().contiguous())
        with self.module.graph.inserting_before(before):
            return self.module.graph.get_attr(name)

    def call(self, before: fx.Node, op: Any, *args: Any, on_behalf: fx.Node | None = None) -> fx.Node:
        """Insert a call in front of `before`, with the source line of `before` or of the node `on_behalf`."""
        with self.module.graph.inserting_before(before):
            node = self.module.graph.call_function(op, args)
        origin = on_behalf or before
        node.meta.update({key: origin.meta[key] for key in ("stack_trace", "nn_module_stack") if key in origin.meta})
        return node

    def finish(self) -> fx.GraphModule:
        """Remove the nodes and constants that nothing reads any more; return the graph."""
        finished = finish(self.module, changed=True)
        finished.graph.lint()
        return finished


def next_place(node: fx.Node) -> fx.Node:
    """Return the node in front of which a call that reads `node` may be inserted."""
    following = node.next
    while following.op == "placeholder":
        following = following.next
    return following


def _is_reached(nodes: dict[str, fx.Node], layer: QuantizableLayer, observed: Observed) -> bool:
    """Check if the data ran through a layer, in all that it reads."""
    sources = [cast(fx.Node, nodes[reader].args[index]).name for reader, index in layer.reads]
    return all(observed[source].batches > 0 for source in sources)


def _storage_address(read: fx.Node) -> int | None:
    value = constant_of(read)
    return None if value is None else memory_of(value)
