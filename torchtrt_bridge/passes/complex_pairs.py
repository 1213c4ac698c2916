"""Complex numbers as pairs: a complex64 tensor becomes an fp32 one, whose last dimension has its two parts.

TensorRT has no complex numbers. An operator with a rule computes with pairs, as rotary embeddings need them. Any other
one, as a Fourier transform, stays complex, in PyTorch, between `view_as_complex` and `view_as_real`, which are free.
"""

from __future__ import annotations

import operator
from collections.abc import Set

import torch
from torch import fx

from torchtrt_bridge.graph.edit import finish
from torchtrt_bridge.graph.nodes import arguments_of
from torchtrt_bridge.options import Options
from torchtrt_bridge.passes.complex_parts import Pairs, complex_dtype
from torchtrt_bridge.passes.complex_rules import RULES

aten = torch.ops.aten


def use_complex_pairs(module: fx.GraphModule, options: Options) -> fx.GraphModule:
    """Compute with pairs of reals where numbers are complex64, as far as there are rules for it.

    Complex128 is float64 in pairs, and stays in PyTorch unless the options let float64 be fp32.
    """
    if not any(map(complex_dtype, module.graph.nodes)):
        return module
    dtypes = {torch.complex64} if options.float64 == "pytorch" else {torch.complex64, torch.complex128}
    pairs = Pairs(module)
    for node in list(module.graph.nodes):
        pairs.here = node
        found = _rewritten(node, pairs, dtypes)
        if found is None:
            _give_complex(node, pairs)
        elif complex_dtype(node):
            pairs.set_pair(node, found)
        else:
            node.replace_all_uses_with(found)
    _negate_now(module.graph)
    return finish(module, changed=True)


def _rewritten(node: fx.Node, pairs: Pairs, dtypes: Set[torch.dtype]) -> fx.Node | None:
    """Return what a call gives by its rule; None if it has none, or other complex dtypes than `dtypes`."""
    rule = RULES.get(node.target) if node.op == "call_function" else None
    own = {dtype for each in (node, *node.all_input_nodes) if (dtype := complex_dtype(each)) is not None}
    if rule is None or not own or not own <= dtypes:
        return None
    return rule(pairs, *node.args) if node.target is operator.getitem else rule(pairs, **arguments_of(node))


def _give_complex(node: fx.Node, pairs: Pairs) -> None:
    """Let a node that is not rewritten have complex inputs."""
    for source in node.all_input_nodes:
        if pairs.has_pair(source):
            node.replace_input_with(source, pairs.as_complex(source))


def _negate_now(graph: fx.Graph) -> None:
    """Negate what PyTorch would negate when it is read, as the imaginary part of a conjugate."""
    for node in graph.find_nodes(op="call_function", target=aten._neg_view.default):
        node.target = aten.neg.default
