"""Recurrent layers over packed sequences compute padded ones, of which an engine needs to know the lengths only.

Between layers, packed elements become the rows of all steps; those beyond the end of a sequence mean nothing. PyTorch
sorts the sequences, which is undone where nothing else sees their order.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from torchtrt_bridge.graph.edit import fake_mode_of, finish, insert_call, insert_constant, is_call
from torchtrt_bridge.graph.nodes import arguments_of
from torchtrt_bridge.graph.packed import OF_PACKED, PADDED_OF_PACKED, WHY_PACKED, own
from torchtrt_bridge.graph.shapes import expression_of
from torchtrt_bridge.graph.torch_internals import symbolic_dispatch
from torchtrt_bridge.lower import why_not
from torchtrt_bridge.lower.converters.recurrent import OF_ANY_LENGTH
from torchtrt_bridge.options import Options
from torchtrt_bridge.passes.packed_readers import Readers, is_size_check, item_of, readers_of

if TYPE_CHECKING:
    from torchtrt_bridge.graph.torch_internals import FakeTensorMode

aten = torch.ops.aten


_SORTS = (aten.sort.default, aten.sort.stable)


def pad_sequences(module: fx.GraphModule, options: Options) -> fx.GraphModule:
    """Let recurrent layers compute padded sequences where these are packed in the graph, and padded again."""
    packs = module.graph.find_nodes(op="call_function", target=own.pack_padded_sequence.default)
    if not packs:
        return module
    mode = fake_mode_of(module)
    for pack in packs:
        padded, read = _Padded(pack, mode, options), readers_of(pack)
        reason = read.problem
        if any(node.target in PADDED_OF_PACKED for node in read.calls):
            reason = padded.why_not_steps() or reason or padded.insert(read)
        for node in (pack, *read.calls):
            if node.target in OF_PACKED:
                node.meta[WHY_PACKED] = reason
    return finish(module, changed=True)


# The order of sequences ----------------------------------------------------------------------------------------------


def _order_of(pack: fx.Node) -> fx.Node | None:
    """Return the order in which PyTorch sorted all sequences and lengths before it packed them; None if it did not."""
    padded, lengths, batch_first = _args(pack)
    if not is_call(padded, aten.index_select.default) or not is_call(lengths, operator.getitem):
        return None
    source, dim, order = _args(padded)
    sort, index = _args(lengths)
    if sort.target not in _SORTS or index != 0 or not arguments_of(sort)["descending"]:
        return None
    places = _without_copies(order)
    counts = source.meta["val"].shape[dim], sort.args[0].meta["val"].shape[0]
    is_sorted = is_call(places, operator.getitem) and places.args == (sort, 1)
    is_whole = dim == (0 if batch_first else 1) and expression_of(counts[0]) == expression_of(counts[1])
    return order if is_sorted and is_whole else None


def _args(node: fx.Node) -> Any:
    return node.args


def _without_copies(node: Any) -> Any:
    while is_call(node, aten._to_copy.default):
        node = node.args[0]
    return node


def _is_inverse(node: Any, order: fx.Node) -> bool:
    """Return whether a node is the order that undoes another, as PyTorch computes it: 0, 1, ... at the places of it."""
    found = _without_copies(node)
    if not is_call(found, aten.scatter.src):
        return False
    _, dim, places, numbers = found.args
    counts_up = is_call(numbers, aten.arange.start_step) and numbers.args[0] == 0 and len(numbers.args) == 2
    return dim == 0 and places is order and counts_up


# The padded form -----------------------------------------------------------------------------------------------------


class _Padded:
    """Calls on padded sequences, in the order in which the user gave them, in place of those on packed ones."""

    def __init__(self, pack: fx.Node, mode: FakeTensorMode, options: Options) -> None:
        arguments = arguments_of(pack)
        self.pack, self.mode, self.options = pack, mode, options
        self.place = pack  # in front of which calls are inserted
        self.inserted: list[fx.Node] = []
        self.order = _order_of(pack)
        self.sorted_lengths: fx.Node = arguments["lengths"]
        self.input: fx.Node = arguments["input"]
        if self.order is not None:
            self.input = self.input.all_input_nodes[0]
        self.is_batch_first: bool = arguments["batch_first"]
        self.length: Any = self.input.meta["val"].shape[1 if self.is_batch_first else 0]
        self.steps: dict[fx.Node | None, fx.Node] = {}  # what is packed, of shape (steps, sequences, ...)
        self.rows: dict[fx.Node | None, fx.Node] = {}  # the same, of shape (steps * sequences, ...)
        self.zero_beyond: set[fx.Node] = set()  # those of `steps` that are zero beyond the end of each sequence

    def why_not_steps(self) -> str | None:
        """Return why no loop has the steps of the sequences; None if one can."""
        return None if isinstance(self.length, int) else OF_ANY_LENGTH

    def insert(self, read: Readers) -> str | None:
        """Let padded sequences be computed; return why not, with the graph as it was, where no engine takes a layer."""
        self._check_lengths()
        first = self._swapped(self.input) if self.is_batch_first else self.input
        self.steps[item_of(self.pack, 0)] = self._repeated(first) if read.wants_true_rows else first
        results: list[tuple[fx.Node, list[fx.Node]]] = []
        for node in read.calls:
            self.place = node
            if node.target is own.pad_packed_sequence.default:
                results.append((node, [self._pad(node)]))
            elif node.target not in PADDED_OF_PACKED:
                self.rows[node] = self._by_row(node)
            else:
                layer = self._layer(node)
                if (reason := self._why_not(layer)) is not None:
                    self._erase()
                    return reason
                results.append((node, self._items(node, layer)))
        for node, values in results:
            self._replace_results(node, values)
        self._replace_sizes()
        return None

    def call(self, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = insert_call(self.place, self.mode, op, *args, **kwargs)
        self.inserted.append(node)
        return node

    def _swapped(self, node: fx.Node) -> fx.Node:
        """Insert a permutation that swaps steps and sequences."""
        return self.call(aten.permute.default, node, [1, 0, *range(2, node.meta["val"].dim())])

    def _erase(self) -> None:
        for node in reversed(self.inserted):
            node.graph.erase_node(node)

    def _why_not(self, layer: fx.Node) -> str | None:
        return "the option torch_ops names it" if str(layer.target) in self.options.torch_ops else why_not(layer)

    def _check_lengths(self) -> None:
        """Insert the check of the lengths, which also counts the sequences that have each step.

        It gives the sizes that depend on data the symbols that they have in what reads them.
        """
        sort = self.sorted_lengths.all_input_nodes[0] if self.order is not None else None
        lengths = self.sorted_lengths if sort is None else sort.all_input_nodes[0]
        device = self.input.meta["val"].device
        with self.pack.graph.inserting_before(self.pack):
            arguments = (lengths, self.length, sort is None)
            node = self.pack.graph.call_function(own.batch_sizes.default, arguments, {"device": device})
        self.inserted.append(node)
        with symbolic_dispatch(self.mode):
            on_device = torch.empty_like(lengths.meta["val"], device=device)
        sizes = self.pack.meta["val"][1]
        node.meta = {**self.pack.meta, "val": (on_device, sizes)}
        symbols = {symbol for size in sizes.shape for symbol in getattr(expression_of(size), "free_symbols", ())}
        bindings = self.pack.meta.get("unbacked_bindings") or {}
        node.meta["unbacked_bindings"] = {symbol: path for symbol, path in bindings.items() if symbol in symbols}
        self.lengths, self.sizes = (self.call(operator.getitem, node, index) for index in range(2))

    # What reads packed elements --------------------------------------------------------------------------------------

    def _by_step(self, packed: fx.Node) -> fx.Node:
        if packed not in self.steps:
            self.steps[packed] = self._reshaped(self.rows[packed], [self.length, -1], packed)
        return self.steps[packed]

    def _by_rows(self, packed: fx.Node) -> fx.Node:
        if packed not in self.rows:
            self.rows[packed] = self._reshaped(self.steps[packed], [-1], packed)
        return self.rows[packed]

    def _reshaped(self, node: fx.Node, sizes: list[int], packed: fx.Node) -> fx.Node:
        return self.call(aten.reshape.default, node, [*sizes, *packed.meta["val"].shape[1:]])

    def _by_row(self, node: fx.Node) -> fx.Node:
        """Insert a call that goes row by row, for the rows of all steps."""
        known = {*self.steps, *self.rows}
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self._by_rows(n) if n in known else n)
        return self.call(node.target, *args, **kwargs)

    def _layer(self, node: fx.Node) -> fx.Node:
        args: Any = node.args
        data, _, hx, *options = args
        states = self._unsorted(hx) if isinstance(hx, fx.Node) else [self._unsorted(state) for state in hx]
        return self.call(PADDED_OF_PACKED[node.target], self._by_step(data), self.lengths, states, *options)

    def _items(self, node: fx.Node, layer: fx.Node) -> list[fx.Node]:
        """Return the results of the new layer, of which the first is what the old one packed."""
        output, *last = (self.call(operator.getitem, layer, index) for index in range(len(layer.meta["val"])))
        self.steps[item_of(node, 0)] = output
        self.zero_beyond.add(output)
        return [output, *last]

    def _unsorted(self, state: fx.Node) -> fx.Node:
        """Return a first state in the order of the user's sequences."""
        if self.order is None or is_call(_without_copies(state), aten.full.default):
            return state
        if is_call(state, aten.index_select.default) and state.args[1:] == (1, self.order):
            return state.all_input_nodes[0]
        back = self.call(operator.getitem, self.call(aten.sort.default, self.order), 1)
        return self.call(aten.index_select.default, state, 1, back)

    def _pad(self, node: fx.Node) -> fx.Node:
        """Insert what pads sequences to the length that the caller wants."""
        arguments = arguments_of(node)
        total, padding = arguments["total_length"], arguments["padding_value"]
        padded = self._by_step(arguments["data"])
        value = padded.meta["val"]
        if padding != 0 or padded not in self.zero_beyond:
            padded = self.call(aten.masked_fill.Scalar, padded, self._beyond(value), padding)
        if not isinstance(total, int) or total < self.length:
            end = total if isinstance(total, int) else self.call(aten.sym_size.int, self.sizes, 0)
            padded = self.call(aten.slice.Tensor, padded, 0, 0, end)
        elif total > self.length:
            ends = [0] * (2 * value.dim() - 1)
            padded = self.call(aten.constant_pad_nd.default, padded, [*ends, total - self.length], padding)
        if not arguments["batch_first"]:
            return padded
        swapped = self._swapped(padded)
        if self.order is None:
            return swapped
        return self.call(aten.clone.default, swapped, memory_format=torch.contiguous_format)  # as PyTorch sorts it back

    def _repeated(self, steps: fx.Node) -> fx.Node:
        """Insert the first step of each sequence in place of what lies beyond its end, which may be no right input."""
        first = self.call(aten.slice.Tensor, steps, 0, 0, 1)
        return self.call(aten.where.self, self._beyond(steps.meta["val"]), first, steps)

    def _beyond(self, value: torch.Tensor) -> fx.Node:
        """Insert the mask of the steps beyond the end of each sequence."""
        numbers = torch.arange(self.length, device=value.device).reshape(self.length, 1)
        constant = insert_constant(self.place, numbers, "steps", self.mode)
        self.inserted.append(constant)
        mask = self.call(aten.ge.Tensor, constant, self.lengths)
        for dim in range(2, value.dim()):
            mask = self.call(aten.unsqueeze.default, mask, dim)
        return mask

    # What reads the results ------------------------------------------------------------------------------------------

    def _replace_results(self, node: fx.Node, values: Sequence[fx.Node]) -> None:
        """Let the users of a call's results read the new ones."""
        if node.target in PADDED_OF_PACKED:
            for index, value in enumerate(values[1:], 1):
                self._replace(item_of(node, index), value, 1)
            return
        self._replace(item_of(node, 0), values[0], 0 if arguments_of(node)["batch_first"] else 1)
        if (lengths := item_of(node, 1)) is not None:
            self.place = lengths
            lengths.replace_all_uses_with(self.call(aten.clone.default, self.sorted_lengths))

    def _replace(self, item: fx.Node | None, value: fx.Node, dim: int) -> None:
        """Let the users of a result read `value`, in the order of sorted sequences where they do not undo that."""
        users = [] if item is None else list(item.users)
        for user in users:
            if self._undoes_order(user, dim):
                user.replace_all_uses_with(value)
                user.graph.erase_node(user)
        if item is not None and item.users:
            self.place = item
            in_order = value if self.order is None else self.call(aten.index_select.default, value, dim, self.order)
            item.replace_all_uses_with(in_order)

    def _undoes_order(self, node: fx.Node, dim: int) -> bool:
        if self.order is None or not is_call(node, aten.index_select.default):
            return False
        _, along, order = _args(node)
        return bool(along == dim) and _is_inverse(order, self.order)

    def _replace_sizes(self) -> None:
        """Let what reads how many sequences have each step read the new sizes, and drop checks of packed elements."""
        if (sizes := item_of(self.pack, 1)) is not None:
            sizes.replace_all_uses_with(self.sizes)
        graph = self.pack.graph
        packed = [self.pack, *self.rows, *self.steps]
        for node in [user for each in packed if each is not None for user in each.users if is_size_check(user)]:
            for check in list(node.users):
                for each in list(check.users):
                    graph.erase_node(each)
