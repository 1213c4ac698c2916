"""Draft: a copy of the float graph on its way to a quantized one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from torchtrt_bridge.graph.edit import constant_of, copy_graph, finish, free_name
from torchtrt_bridge.quantize.layers import Layer, nodes_by_name
from torchtrt_bridge.quantize.observe import Observed

aten = torch.ops.aten


class Draft:
    """The copied graph, and how its activations differ from those that were observed.

    module: shares its weights with the float graph until they are replaced.
    layers: those that become quantized.
    factors: by activation, what the observed values of each channel are divided by before they are quantized.
    origins: by the product that divides an activation, the name of that activation.
    """

    def __init__(self, module: fx.GraphModule, layers: Sequence[Layer], kept: Collection[str], seen: Observed) -> None:
        self.module = fx.GraphModule(module, copy_graph(module.graph))
        self.nodes = nodes_by_name(self.module)
        self.layers = [layer for layer in layers if layer.name not in kept and is_reached(self.nodes, layer, seen)]
        self.seen = seen
        self.factors: dict[str, Tensor] = {}
        self.origins: dict[str, str] = {}

    def source(self, read: tuple[str, int]) -> fx.Node:
        """The activation that a layer reads there."""
        return cast(fx.Node, self.nodes[read[0]].args[read[1]])

    def origin(self, read: tuple[str, int]) -> str:
        """The name of the observed activation that a layer reads there."""
        name = self.source(read).name
        return self.origins.get(name, name)

    def argument(self, layer: Layer, index: int | None) -> Tensor | None:
        """The constant among a layer's arguments; None if there is none."""
        args = self.nodes[layer.node].args
        return None if index is None or index >= len(args) else constant_of(args[index])

    def weight(self, layer: Layer) -> Tensor:
        value = self.argument(layer, layer.weight)
        assert value is not None
        return value

    def readers(self) -> dict[str, list[Layer]]:
        """The layers by the activation that is their own input."""
        found: dict[str, list[Layer]] = defaultdict(list)
        for layer in self.layers:
            found[self.origin(layer.reads[0])].append(layer)
        return found

    def shares_weight(self, layer: Layer) -> bool:
        """Whether something else reads the weight of a layer too, be it under another name."""
        own = self.weight(layer).untyped_storage().data_ptr()
        reads = self.module.graph.find_nodes(op="get_attr")
        users = [read.users for read in reads if _memory(read) == own]
        return sum(len(each) for each in users) > 1

    def put_constant(self, node: fx.Node, index: int, value: Tensor, hint: str) -> None:
        """Let an argument of `node` be a new constant."""
        args = list(node.args) + [None] * (index + 1 - len(node.args))
        args[index] = self.constant(node, value, hint)
        node.args = tuple(args)

    def constant(self, before: fx.Node, value: Tensor, hint: str) -> fx.Node:
        """A new constant, readable in front of `before`."""
        name = free_name(self.module, hint)
        self.module.register_buffer(name, value.detach().contiguous())
        with self.module.graph.inserting_before(before):
            return self.module.graph.get_attr(name)

    def call(self, before: fx.Node, op: Any, *args: Any, on_behalf: fx.Node | None = None) -> fx.Node:
        """A call in front of `before` that carries the source line of what it is made for."""
        with self.module.graph.inserting_before(before):
            node = self.module.graph.call_function(op, args)
        origin = on_behalf or before
        node.meta.update({key: origin.meta[key] for key in ("stack_trace", "nn_module_stack") if key in origin.meta})
        return node

    def finished(self) -> fx.GraphModule:
        """The graph without what nothing reads any more."""
        finished = finish(self.module, changed=True)
        finished.graph.lint()
        return finished


def is_reached(nodes: dict[str, fx.Node], layer: Layer, seen: Observed) -> bool:
    """Whether the data ran through a layer, in all that it reads."""
    sources = [cast(fx.Node, nodes[reader].args[index]).name for reader, index in layer.reads]
    return all(seen[source].batches > 0 for source in sources)


def after(node: fx.Node) -> fx.Node:
    """Where a call that reads `node` may be put."""
    following = node.next
    while following.op == "placeholder":
        following = following.next
    return following


def _memory(read: fx.Node) -> int | None:
    value = constant_of(read)
    return None if value is None else value.untyped_storage().data_ptr()
