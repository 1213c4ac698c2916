"""Results that are views: PyTorch makes them, from a result of its own, so that memory and strides are eager's.

An engine gives each result memory of its own, contiguous. The caller would see it: what is written to one view of a
tensor would not be in another, and strides would differ. So the views are taken out of a graph before it is
normalized, and are its last calls afterwards, which no engine computes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from torchtrt_bridge.errors import CaptureError
from torchtrt_bridge.graph.edit import fake_mode_of, insert_call
from torchtrt_bridge.graph.shapes import expression_of
from torchtrt_bridge.graph.views import AT_BORDER, is_strided, lies_in_order, memory_order, views_from

aten = torch.ops.aten


@dataclasses.dataclass
class ReturnedViews:
    """The last calls of a graph, which make its results.

    graph: takes inputs and results of the other graph, and returns what the caller gets.
    inputs: the inputs of the other graph, by the placeholder of `graph` that takes each.
    bases: the placeholders that take the results of the other graph, in their order.
    """

    graph: fx.Graph
    inputs: dict[fx.Node, fx.Node]
    bases: list[fx.Node]

    def append_to(self, module: fx.GraphModule) -> None:
        """Make these calls the last ones of `module`."""
        output = _output(module)
        results = list(output.args[0])  # type: ignore[arg-type]
        count = len(self.bases)
        twins: dict[fx.Node, Any] = self.inputs | dict(zip(self.bases, results[:count], strict=True))
        with module.graph.inserting_before(output):
            returned: Any = module.graph.graph_copy(self.graph, twins)
        output.args = ((*returned, *results[count:]),)
        module.graph.lint()
        module.recompile()


def take_returned_views(module: fx.GraphModule, outputs: int | None = None) -> ReturnedViews | None:
    """Let `module` return what its results are views of; return the calls that make its results of these.

    outputs: the number of results that the caller gets, before those that are written to inputs; None for all.
    Returns None, with `module` as it was, if each result is contiguous and has memory of its own.
    Raises CaptureError for results that share memory and have sizes that are known only within the graph.
    """
    output = _output(module)
    results: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    returned, written = results[:outputs], results[len(results[:outputs]) :]
    sources = _sources(returned, written)
    if all(node is source and _lies_as_returned(node) for node, source in sources.items()):
        return None
    taker = _Taker(module, output)
    taker.recipe.output(tuple(taker.result(node, sources.get(node)) for node in returned))
    output.args = ((*taker.bases, *written),)
    module.graph.eliminate_dead_code()
    module.recompile()
    return ReturnedViews(taker.recipe, taker.inputs, list(taker.bases.values()))


def _sources(returned: Sequence[Any], written: Sequence[Any]) -> dict[fx.Node, fx.Node]:
    """Return, for each tensor among the results, the one that PyTorch makes it from, which may be itself."""
    chains = {node: views_from(node) for node in returned if isinstance(node, fx.Node) and is_strided(_value(node))}
    roots = [chain[-1] for chain in chains.values()]
    shared = {root for root in roots if roots.count(root) > 1 or root.op != "call_function" or root in written}
    return {node: chain[-1] if chain[-1] in shared else _nearest(chain) for node, chain in chains.items()}


def _nearest(chain: Sequence[fx.Node]) -> fx.Node:
    """Return the first of a view and its sources that an engine can give: a contiguous one, else one without gaps."""
    tensors = [node for node in chain if is_strided(_value(node))]
    contiguous = (node for node in tensors if lies_in_order(_value(node)))
    without_gaps = (node for node in tensors if memory_order(_value(node)) is not None)
    return next(contiguous, None) or next(without_gaps, chain[0])


def _lies_as_returned(node: fx.Node) -> bool:
    return node.op != "call_function" or _moved_order(node) is None


def _moved_order(node: fx.Node) -> list[int] | None:
    """Return the dimensions of a tensor as they lie in memory; None if an engine gives it so, or cannot."""
    value = _value(node)
    if node.op != "call_function" or not is_strided(value) or lies_in_order(value):
        return None
    return memory_order(value)


class _UnknownSizeError(Exception):
    """A size has no place in the inputs of a graph."""


class _Taker:
    """Copies the views among the results of a graph into a graph of their own."""

    def __init__(self, module: fx.GraphModule, output: fx.Node) -> None:
        self.recipe = fx.Graph()
        self.inputs: dict[fx.Node, fx.Node] = {}
        self.bases: dict[fx.Node, fx.Node] = {}
        self._output = output
        self._mode = fake_mode_of(module)
        self._made: dict[fx.Node, fx.Node] = {}
        self._sizes = {
            expression_of(size): (node, dim)
            for node in module.graph.find_nodes(op="placeholder")
            if isinstance(_value(node), torch.Tensor)
            for dim, size in enumerate(_value(node).shape)
        }

    def result(self, result: Any, source: fx.Node | None) -> Any:
        """Return the node that makes a result of `source`; numbers and other results are what they are."""
        if not isinstance(result, fx.Node):
            return result
        try:
            return self._copied(result, source or result)
        except _UnknownSizeError as error:
            raise CaptureError(
                f"its result {result} is a view whose size {error} no input has; return a clone() of it"
            ) from error

    def _copied(self, node: fx.Node, source: fx.Node) -> fx.Node:
        if node not in self._made:
            if node.op == "placeholder":
                self._made[node] = self._input(node)
            elif node is source:
                self._made[node] = self._base(node)
            else:
                base, *others = node.all_input_nodes
                known = {base: self._copied(base, source)} | {n: self._size(n) for n in others}
                self._made[node] = self._call(node.target, *fx.map_arg((node.args, node.kwargs), known.get), node)
        return self._made[node]

    def _call(self, op: Any, args: Any, kwargs: Any, like: fx.Node) -> fx.Node:
        node = self.recipe.call_function(op, args, kwargs)
        node.meta = dict(like.meta) | {AT_BORDER: True}
        return node

    def _base(self, node: fx.Node) -> fx.Node:
        """Let the graph return a tensor in the order in which it lies in memory; return the tensor as it was."""
        order = _moved_order(node)
        if order is None:
            return self._taken(node)
        moved = insert_call(self._output, self._mode, aten.permute.default, node, order)
        back = [order.index(dim) for dim in range(len(order))]
        return self._call(aten.permute.default, (self._taken(moved), back), {}, node)

    def _taken(self, node: fx.Node) -> fx.Node:
        self.bases[node] = self._placeholder(node)
        return self.bases[node]

    def _input(self, node: fx.Node) -> fx.Node:
        placeholder = self._placeholder(node)
        self.inputs[placeholder] = node
        return placeholder

    def _placeholder(self, node: fx.Node) -> fx.Node:
        placeholder = self.recipe.placeholder(node.name)
        placeholder.meta = dict(node.meta)
        return placeholder

    def _size(self, node: fx.Node) -> Any:
        """Return a size, computed from the sizes of the inputs."""
        expression = expression_of(_value(node))
        if isinstance(expression, int):
            return expression
        if node not in self._made:
            if expression in self._sizes:
                tensor, dim = self._sizes[expression]
                args: tuple[Any, ...] = self._copied(tensor, tensor), dim
                self._made[node] = self._call(aten.sym_size.int, args, {}, node)
            elif node.op == "placeholder":
                self._made[node] = self._input(node)
            elif any(isinstance(_value(n), torch.Tensor) for n in node.all_input_nodes) or not node.all_input_nodes:
                raise _UnknownSizeError(expression)
            else:
                known = {n: self._size(n) for n in node.all_input_nodes}
                self._made[node] = self._call(node.target, *fx.map_arg((node.args, node.kwargs), known.get), node)
        return self._made[node]


def _output(module: fx.GraphModule) -> fx.Node:
    output: fx.Node
    (output,) = module.graph.find_nodes(op="output")
    return output


def _value(node: fx.Node) -> Any:
    return node.meta.get("val")
