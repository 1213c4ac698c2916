"""What a graph computes of packed sequences, and whether it can compute the same of padded ones."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import torch
from torch import fx

from torchtrt_bridge.graph.edit import is_call
from torchtrt_bridge.graph.nodes import arguments_of, is_random
from torchtrt_bridge.graph.packed import PADDED_OF_PACKED, own
from torchtrt_bridge.graph.shapes import expression_of
from torchtrt_bridge.graph.torch_internals import is_operator

aten = torch.ops.aten

OF_ANY_TOTAL_LENGTH = "the total_length of pad_packed_sequence is known only at run time"

# Operators that compute each row of their result from one row of an argument, by the index of that, and the least
# number of dimensions that it has for this; beside those that go element by element.
_BY_ROW: dict[Any, tuple[int, int]] = {
    aten.linear.default: (0, 2),
    aten._to_copy.default: (0, 1),
    aten.clone.default: (0, 1),
    aten.alias.default: (0, 1),
    aten.embedding.default: (1, 1),
}


@dataclasses.dataclass
class Readers:
    """The calls that read packed elements, in order.

    problem: why they cannot read padded ones; None if they can.
    wants_true_rows: whether one of them raises for numbers of some values, as those beyond the end of a sequence may
        be: an embedding does for an index outside of its table.
    """

    calls: list[fx.Node] = dataclasses.field(default_factory=list)
    problem: str | None = None
    wants_true_rows: bool = False


def readers_of(pack: fx.Node) -> Readers:
    """Return what reads the elements that `pack` packs, up to the first call that cannot read padded sequences."""
    search = _Search(pack)
    for node in pack.graph.nodes:
        if search.packed.isdisjoint(node.all_input_nodes) or is_size_check(node):
            continue
        search.found.calls.append(node)
        search.found.problem = search.problem_of(node)
        if search.found.problem is not None:
            break
    return search.found


class _Search:
    """A walk over the calls that read packed elements.

    packed: the nodes of such elements. true: those that are computed row by row, without a layer: all of their rows are
        of true elements if those of the padded input are.
    """

    def __init__(self, pack: fx.Node) -> None:
        self.found = Readers()
        self.sizes = item_of(pack, 1)
        self.packed = {item_of(pack, 0)}
        self.true = set(self.packed)

    def problem_of(self, node: fx.Node) -> str | None:
        """Return why a call cannot read padded sequences; None if it can."""
        if node.target is own.pad_packed_sequence.default and node.args[1] is self.sizes:
            return None if _is_length(arguments_of(node)["total_length"], self.sizes) else OF_ANY_TOTAL_LENGTH
        if node.target in PADDED_OF_PACKED and node.args[1] is self.sizes:
            self.packed.add(item_of(node, 0))
            return None
        if self._goes_by_row(node):
            self.packed.add(node)
            return None
        reader = "the caller" if node.op == "output" else str(node.target)
        return f"its packed elements are read by {reader}, and not only padded again"

    def _goes_by_row(self, node: fx.Node) -> bool:
        read = [each for each in node.all_input_nodes if each in self.packed]
        if not _is_by_row(node, read):
            return False
        is_true = self.true.issuperset(read)
        if is_true:
            self.true.add(node)
        if all(map(_takes_any_value, (node, *read))):
            return True
        self.found.wants_true_rows |= is_true
        return is_true


def item_of(node: fx.Node, index: int) -> fx.Node | None:
    """Return the node of one of several results; None if nothing reads it."""
    return next((user for user in node.users if is_call(user, operator.getitem) and user.args[1] == index), None)


def is_size_check(node: fx.Node) -> bool:
    """Return whether a node is the number of packed elements, which is only looked at whether it is above 0."""
    return is_call(node, aten.sym_size.int) and all(
        is_call(check, operator.ge) and all(is_call(each, aten._assert_scalar.default) for each in check.users)
        for check in node.users
    )


def _is_length(total: Any, sizes: fx.Node | None) -> bool:
    """Return whether the length of padded sequences is a number, or that of the longest one."""
    return isinstance(total, int) or (is_call(total, aten.sym_size.int) and total.args[0] is sizes)


def _takes_any_value(node: fx.Node) -> bool:
    """Return whether no operator raises for what a node may hold, as some do for integers: 0, or an index too large."""
    dtype = node.meta["val"].dtype
    return bool(dtype.is_floating_point) or dtype == torch.bool


def _is_by_row(node: fx.Node, read: list[fx.Node]) -> bool:
    """Return whether each row of a result is computed from the same row of what it reads of packed elements."""
    value, args = node.meta.get("val"), list(node.args)
    if not isinstance(value, torch.Tensor) or not all(isinstance(size, int) for size in value.shape[1:]):
        return False
    if any(each.meta["val"].device != value.device for each in read):
        return False
    if node.target in _BY_ROW:
        index, least = _BY_ROW[node.target]
        return read == [args[index]] and read[0].meta["val"].dim() >= least
    if node.target is aten.layer_norm.default:
        return read == args[:1] and len(arguments_of(node)["normalized_shape"]) < value.dim()
    if not is_operator(node.target) or torch.Tag.pointwise not in node.target.tags or is_random(node):
        return False
    others = [each.meta.get("val") for each in node.all_input_nodes if each not in read]
    ranks = {each.meta["val"].dim() for each in read}
    return ranks == {value.dim()} and all(_is_for_each_row(each, value.dim()) for each in others)


def _is_for_each_row(value: Any, rank: int) -> bool:
    """Return whether a tensor is the same for each row of one of `rank` dimensions; true of numbers."""
    if not isinstance(value, torch.Tensor) or value.dim() < rank:
        return True
    return value.dim() == rank and bool(expression_of(value.shape[0]) == 1)
