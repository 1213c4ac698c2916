"""Transposes: a linear layer works row by row, so a transpose before it moves behind it, and often meets an inverse."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from torchtrt_bridge.graph.edit import fake_mode_of, finish, infer, insert_call, insert_constant, is_call
from torchtrt_bridge.graph.nodes import arguments_of, reads_memory
from torchtrt_bridge.graph.ops import own
from torchtrt_bridge.graph.shapes import expression_of
from torchtrt_bridge.graph.torch_internals import has_unbacked_symbols, is_operator
from torchtrt_bridge.options import Options
from torchtrt_bridge.passes.patch_convolutions import Patches, patches_of
from torchtrt_bridge.passes.rearrangement import Atom, Dim, Rearrangement, flat, is_movement, plain, shape_of, sizes_of

aten = torch.ops.aten
LINEAR = aten.linear.default
ROUNDING = (own.quantize.default, own.dequantize.default)
SELECT = aten.select.int


def drop_transposes(module: fx.GraphModule, options: Options) -> fx.GraphModule:
    """Move transposes behind linear layers and selects, up to the operator that needs another order of rows.

    `nn.MultiheadAttention` transposes its input to (length, batch, features), and copies q, k and v: none of these
    copies is left if the batch comes first. Rows of divided dimensions, such as windows of an image, stay as they are.
    A convolution over patches becomes a linear layer, and its results are moved only as far as their reader needs.
    """
    if any(map(reads_memory, module.graph.nodes)):  # in the order in which it lies
        return module
    carrier = _Carrier(module, options)
    for node in list(module.graph.nodes):
        carrier.visit(node)
    return finish(module, changed=carrier.has_carried)


class _Carrier:
    """A walk through a graph that knows, for each node, which tensor it rearranges.

    New nodes stand beside the old ones, which lose their users.
    """

    def __init__(self, module: fx.GraphModule, options: Options) -> None:
        self._mode = fake_mode_of(module)
        self._options = options
        self._returned = _moved_for_the_caller(module.graph)
        self._promised = [_strides(value) for value in _results(module.graph)]
        self._known: dict[fx.Node, Rearrangement] = {}
        self._new: set[fx.Node] = set()
        self._written: dict[tuple[fx.Node, tuple[Dim, ...]], fx.Node | None] = {}
        self._rounded: dict[tuple[fx.Node, fx.Node], fx.Node] = {}
        self._restrided: set[fx.Node] = set()
        self._sizes: dict[Any, fx.Node] = {}

    @property
    def has_carried(self) -> bool:
        return bool(self._new)

    def visit(self, node: fx.Node) -> None:
        if isinstance(node.meta.get("val"), torch.SymInt):
            self._sizes.setdefault(expression_of(node.meta["val"]), node)
        known = self._rearranged(node)
        if known is not None:
            self._known[node] = known
        else:
            self._read_new_sources(node)
        if node.op == "output":
            self._keep_strides(node)
        elif not self._restrided.isdisjoint(node.all_input_nodes):
            self._infer_anew(node)

    # Rearrangements of nodes -------------------------------------------------------------------------------------

    def _rearranged(self, node: fx.Node) -> Rearrangement | None:
        source = node.args[0] if node.op == "call_function" and node.args else None
        if not isinstance(source, fx.Node) or node in self._returned:
            return None
        if is_call(node, LINEAR):
            return self._through_linear(node, *_unrounded(source))
        known = self._known.get(source)
        patches = patches_of(node, self._options)
        if patches is not None:
            return self._through_patches(node, patches, known or Rearrangement.of(source))
        if is_call(node, SELECT):
            return None if known is None else self._through_select(node, known)
        return (known or Rearrangement.of(source)).after(node) if is_movement(node) else None

    def _through_linear(self, node: fx.Node, moved: fx.Node, rounding: Sequence[fx.Node]) -> Rearrangement | None:
        """Apply the layer to rows in the order of their source; None if they have that order, or are divided.

        rounding: the calls between the moved tensor and the layer, the last one first.
        """
        known = self._known.get(moved)
        if known is None or not known.is_moved or not known.dims or node.kwargs:
            return None
        *wanted, features = known.dims
        if known.start[-1] == features:
            rows = known.start[:-1]
            is_in_place = rows == tuple(wanted)
        else:
            rows = tuple(dim for dim in known.start if dim and not set(dim) & set(features))
            is_in_place = flat(rows) == flat(wanted)
        is_whole = all(len(dim) <= 1 for dim in rows) and set(flat(rows)) == set(flat(wanted))
        if is_in_place or not is_whole:
            return None
        source = self._as(known, (*rows, features), node)
        if source is None:
            return None
        for call in reversed(rounding):
            source = self._rounded_by(call, source, node)
        layer = self._inserted(node, LINEAR, source, *node.args[1:])
        last = Rearrangement.of(layer).dims[-1]
        return Rearrangement(layer, (*rows, last), (*known.dims[:-1], last), is_moved=True)

    def _through_select(self, node: fx.Node, known: Rearrangement) -> Rearrangement | None:
        """Select from the source of a rearrangement, before anything is moved."""
        _, dim, index = node.args
        assert isinstance(dim, int)
        dim %= len(known.dims)
        if not known.is_moved or len(known.dims[dim]) > 1:
            return None
        if not known.dims[dim]:  # an added dimension
            return dataclasses.replace(known, dims=(*known.dims[:dim], *known.dims[dim + 1 :]))
        (atom,) = known.dims[dim]
        apart = _with_apart(known.start, atom)
        source = self._as(known, apart, node)
        if source is None:
            return None
        place = apart.index((atom,))
        part = self._inserted(node, SELECT, source, place, index)
        start = (*apart[:place], *apart[place + 1 :])
        return Rearrangement(part, start, (*known.dims[:dim], *known.dims[dim + 1 :]), is_moved=True)

    def _through_patches(self, node: fx.Node, patches: Patches, known: Rearrangement) -> Rearrangement | None:
        """Apply a linear layer to one row for each patch, and move its results to the convolution's order."""
        apart = known.viewed(patches.shape)
        if apart is None:
            return None
        batch, channels, *divided = apart.dims
        rows = self._as(apart, (batch, flat(divided[::2]), flat([channels, *divided[1::2]])), node)
        if rows is None:
            return None
        weight = insert_constant(node, patches.weight, "patches_weight", self._mode)
        layer = self._inserted(node, LINEAR, rows, weight, patches.bias)
        result = Rearrangement.of(layer).viewed([patches.batch, *patches.grid, patches.weight.shape[0]])
        assert result is not None
        batch, *grid, features = result.dims
        return result.moved([batch, features, *grid])

    def _rounded_by(self, call: fx.Node, source: fx.Node, before: fx.Node) -> fx.Node:
        op: Any = call.target
        if (call, source) not in self._rounded:
            self._rounded[call, source] = insert_call(before, self._mode, op, source, *call.args[1:])
        return self._rounded[call, source]

    def _inserted(self, node: fx.Node, op: Any, *args: Any) -> fx.Node:
        new = insert_call(node, self._mode, op, *args)
        self._new.add(new)
        return new

    # Nodes for rearrangements ------------------------------------------------------------------------------------

    def _read_new_sources(self, node: fx.Node) -> None:
        """Let a node that computes read its inputs from the new nodes."""
        for source in node.all_input_nodes:
            known = self._known.get(source)
            if known is None or known.source not in self._new:
                continue
            written = self._as(known, known.dims, node)
            if written is not None:
                node.replace_input_with(source, written)
                if _strides(written) != _strides(source):
                    self._restrided.add(written)

    def _as(self, known: Rearrangement, dims: tuple[Dim, ...], before: fx.Node) -> fx.Node | None:
        """Return the source of a rearrangement in `dims`; None if a size depends on data, or has no node."""
        key = (known.source, dims)
        if key not in self._written:
            self._written[key] = self._arranged(known, dims, before)
        return self._written[key]

    def _arranged(self, known: Rearrangement, dims: tuple[Dim, ...], before: fx.Node) -> fx.Node | None:
        """Insert a view that divides dimensions, a permutation, and a view that merges some, as far as needed."""
        if flat(known.start) == flat(dims):
            return self._viewed(known.source, shape_of(dims), before)
        ones = [()] * dims.count(())  # in front, until the permutation
        units = [*ones, *known.units(dims)]
        divided = self._viewed(known.source, shape_of(units), before)
        if divided is None:
            return None
        permuted = insert_call(before, self._mode, aten.permute.default, divided, _order(units, dims))
        return self._viewed(permuted, shape_of(dims), before)

    def _viewed(self, source: fx.Node, shape: Sequence[Any], before: fx.Node) -> fx.Node | None:
        if sizes_of(source) == list(shape):
            return source
        sizes = [size if isinstance(size, int) else self._sizes.get(size) for size in shape]
        if sizes.count(None) > 1 or has_unbacked_symbols(source.meta["val"]):
            return None
        sizes = [-1 if size is None else size for size in sizes]
        return insert_call(before, self._mode, aten.reshape.default, source, sizes)

    # Strides of the fake values of later nodes -------------------------------------------------------------------

    def _infer_anew(self, node: fx.Node) -> None:
        if not is_operator(node.target) or has_unbacked_symbols(node.meta["val"]):
            return
        before = _strides(node)
        infer(node, self._mode)
        if _strides(node) != before:
            self._restrided.add(node)

    def _keep_strides(self, output: fx.Node) -> None:
        """Copy results that were contiguous and are no longer."""
        results = _results(output.graph)
        for index, (node, promised) in enumerate(zip(results, self._promised, strict=True)):
            if _strides(node) != promised == _contiguous_strides(node):
                results[index] = self._copied(node, output)
        output.args = (tuple(results),)

    def _copied(self, node: fx.Node, before: fx.Node) -> fx.Node:
        return insert_call(before, self._mode, aten.clone.default, node, memory_format=torch.contiguous_format)


def _results(graph: fx.Graph) -> list[Any]:
    (output,) = graph.find_nodes(op="output")
    return list(output.args[0])


def _strides(node: Any) -> list[Any]:
    """Return the strides of all tensors that a node gives."""
    values = pytree.tree_leaves(node.meta.get("val")) if isinstance(node, fx.Node) else []
    return [plain(value.stride()) for value in values if isinstance(value, torch.Tensor)]


def _contiguous_strides(node: fx.Node) -> list[Any]:
    sizes = sizes_of(node)
    return [[math.prod(sizes[dim + 1 :]) for dim in range(len(sizes))]]


def _unrounded(node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """Return the node that per-tensor quantization rounds to `node`, and the rounding calls, the last one first."""
    calls: list[fx.Node] = []
    while any(is_call(node, op) for op in ROUNDING) and arguments_of(node)["axis"] is None:
        calls.append(node)
        node = node.args[0]  # type: ignore[assignment]
    return node, calls


def _moved_for_the_caller(graph: fx.Graph) -> set[fx.Node]:
    """Return the calls that only rearrange or cut results: the caller sees whether these share memory."""
    found: set[fx.Node] = set()
    waiting = [node for output in graph.find_nodes(op="output") for node in output.all_input_nodes]
    while waiting:
        node = waiting.pop()
        if (is_movement(node) or is_call(node, SELECT)) and node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _order(units: Sequence[Dim], dims: Sequence[Dim]) -> list[int]:
    """Return the positions of `units`, some of which `dims` merge, in the order of `dims`."""
    places = {unit[0]: place for place, unit in enumerate(units) if unit}
    ones = (place for place, unit in enumerate(units) if not unit)
    return [place for dim in dims for place in ([places[a] for a in dim if a in places] if dim else [next(ones)])]


def _with_apart(dims: Sequence[Dim], atom: Atom) -> tuple[Dim, ...]:
    """Return `dims` with the dimension of `atom` divided into its atoms."""
    return tuple(part for dim in dims for part in ([(each,) for each in dim] if atom in dim else [dim]))
