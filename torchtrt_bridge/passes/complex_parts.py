"""Complex tensors of a graph as pairs: the calls that make, split and join them, and arithmetic with their parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from torchtrt_bridge.graph.edit import constant_of, fake_mode_of, insert_call, insert_constant
from torchtrt_bridge.graph.nodes import tensors_of_node
from torchtrt_bridge.graph.shapes import expression_of
from torchtrt_bridge.graph.views import AT_BORDER

if TYPE_CHECKING:
    from torchtrt_bridge.graph.torch_internals import FakeTensorMode

aten = torch.ops.aten

# A node, or a number that is the same for all elements.
Part = fx.Node | float
Parts = tuple[Part, Part]


def complex_dtype(node: fx.Node) -> torch.dtype | None:
    """Return the dtype of a complex tensor, or of several; None for all other nodes."""
    return next((value.dtype for value in tensors_of_node(node) if value.is_complex()), None)


class Pairs:
    """The pairs of the complex tensors of one graph.

    here: the node that is rewritten; new calls stand in front of it.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.here: fx.Node
        self._mode: FakeTensorMode = fake_mode_of(module)
        self._pairs: dict[fx.Node, fx.Node] = {}
        self._complex: dict[fx.Node, fx.Node] = {}
        self._parts: dict[fx.Node, Parts] = {}

    def call(self, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Insert a call in front of the node that is rewritten."""
        return insert_call(self.here, self._mode, op, *args, **kwargs)

    # From complex to pairs and back --------------------------------------------------------------------------------

    def has_pair(self, node: fx.Node) -> bool:
        """Return whether a complex node has become a pair, or several."""
        return node in self._pairs

    def set_pair(self, node: fx.Node, pair: fx.Node) -> None:
        self._pairs[node] = pair

    def pair(self, node: fx.Node) -> fx.Node:
        """Return the pair of a complex tensor."""
        if node not in self._pairs:
            constant = constant_of(node)
            if constant is None:
                real = self._at_border(aten.resolve_conj.default, node)  # a caller may give a lazy conjugate
                self._pairs[node] = self._at_border(aten.view_as_real.default, real)
            else:
                pair = torch.view_as_real(constant.resolve_conj())
                self._pairs[node] = insert_constant(self.here, pair, f"{node.name}_pair", self._mode)
            self._complex[node] = node
        return self._pairs[node]

    def as_complex(self, node: fx.Node) -> fx.Node:
        """Return a complex tensor for what PyTorch computes."""
        if node not in self._complex:
            pair = self._at_border(aten.contiguous.default, self._pairs[node])
            self._complex[node] = self._at_border(aten.view_as_complex.default, pair)
        return self._complex[node]

    def _at_border(self, op: Any, *args: Any) -> fx.Node:
        node = self.call(op, *args)
        node.meta[AT_BORDER] = True
        return node

    def parts(self, value: Any) -> Parts:
        """Return the real and the imaginary part of a tensor or a number."""
        if not isinstance(value, fx.Node):
            return complex(value).real, complex(value).imag
        if not complex_dtype(value):
            return value, 0.0
        if value not in self._parts:
            pair = self.pair(value)
            last = pair.meta["val"].dim() - 1
            self._parts[value] = self.call(aten.select.int, pair, last, 0), self.call(aten.select.int, pair, last, 1)
        return self._parts[value]

    # From parts to pairs -------------------------------------------------------------------------------------------

    def joined(self, real: Part, imaginary: Part) -> fx.Node:
        """Return the pair of two parts, each broadcast to the shape of the node that is rewritten."""
        nodes = [part for part in (real, imaginary) if isinstance(part, fx.Node)]
        parts = [part if isinstance(part, fx.Node) else self._filled(nodes[0], part) for part in (real, imaginary)]
        dim = self.here.meta["val"].dim()
        return self.call(
            aten.cat.default, [self.call(aten.unsqueeze.default, self._spread(p, nodes), dim) for p in parts], dim
        )

    def _filled(self, like: fx.Node, number: float) -> fx.Node:
        return self.call(aten.full_like.default, like, number)

    def _spread(self, part: fx.Node, sources: Sequence[fx.Node]) -> fx.Node:
        """Broadcast a part; sizes that are known only at run time are read from `sources`."""
        own, wanted = (list(map(expression_of, node.meta["val"].shape)) for node in (part, self.here))
        if own == wanted:
            return part
        known = {
            expression_of(size): (source, dim)
            for source in sources
            for dim, size in enumerate(source.meta["val"].shape)
        }
        sizes = [size if isinstance(size, int) else self.call(aten.sym_size.int, *known[size]) for size in wanted]
        return self.call(aten.expand.default, part, sizes)

    # Arithmetic of parts -------------------------------------------------------------------------------------------

    def product(self, left: Parts, right: Parts) -> Parts:
        """Multiply by the formula of the textbook, as PyTorch does: an infinity times 0 is NaN."""
        (a, b), (c, d) = left, right
        return self._difference(self._times(a, c), self._times(b, d)), self._sum(self._times(a, d), self._times(b, c))

    def sum(self, left: Parts, right: Parts, alpha: Any) -> Parts:
        """Add `alpha` times a number, which PyTorch multiplies even by 1."""
        scaled = self.product(self.parts(alpha), right)
        return self._sum(left[0], scaled[0]), self._sum(left[1], scaled[1])

    def _times(self, left: Part, right: Part) -> Part:
        if not isinstance(left, fx.Node):
            left, right = right, left
        if not isinstance(left, fx.Node):
            return left * right  # type: ignore[operator]
        return left if right == 1.0 else self.call(aten.mul.Tensor, left, right)

    def _sum(self, left: Part, right: Part) -> Part:
        if not isinstance(left, fx.Node):
            left, right = right, left
        return self.call(aten.add.Tensor, left, right) if isinstance(left, fx.Node) else left + right  # type: ignore[operator]

    def _difference(self, left: Part, right: Part) -> Part:
        if isinstance(left, fx.Node):
            return self.call(aten.sub.Tensor, left, right)
        return self.call(aten.rsub.Scalar, right, left) if isinstance(right, fx.Node) else left - right
