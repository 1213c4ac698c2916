"""Names of an engine's layers as people know them: the nodes of the subgraph, or what TensorRT fused, in words."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence

from torch import fx

from torchtrt_bridge.graph.nodes import source_of_trace
from torchtrt_bridge.report.model import op_name
from torchtrt_bridge.trt.engine_program import ProgramStep, nodes_in_name, program_steps, result_nodes

_NUMBER = re.compile(r"_myl\d+_\d+$")  # of the program and of the step, behind the name of the step
_FUSED = re.compile(r"__myl_((?:[A-Z][a-z0-9]*)+)")
_MOST_FUSED = 8  # operations of a layer that are spelled out
_MOST_NODES = 4
_ATTENTION = "mha"
_NORMALIZATION = "MeanSubMulMean"

_OPERATIONS = {
    "Conc": "concatenate", "Corr": "convolution", "Div": "divide", "Exp": "exponential", "Fc": "matrix product",
    "Gath": "gather", "Inor": "instance norm", "Maxr": "maximum", "Mul": "multiply", "Neg": "negate", "Repl": "repeat",
    "Resh": "reshape", "Resi": "resize", "Roun": "round", "Sele": "select", "Sigm": "sigmoid", "Slic": "slice",
    "Sqrt": "square root", "Sub": "subtract", "Tran": "transpose", "Etc": "and more",
}  # fmt: skip
_KINDS = {"corrltn": "convolution", "deconvolution": "transposed convolution", "fully_connected": "matrix product"}


# Steps that often name no node, and the operators that have one such step each.
_IN_ORDER: tuple[tuple[Callable[[ProgramStep], bool], frozenset[str]], ...] = (
    (lambda step: _ATTENTION in step.name, frozenset({"scaled_dot_product_attention"})),
    (lambda step: _NORMALIZATION in step.name, frozenset({"layer_norm"})),
    (
        lambda step: step.is_product,
        frozenset({"linear", "addmm", "mm", "bmm", "baddbmm", "matmul", "convolution"}),
    ),
)


@dataclasses.dataclass(frozen=True)
class NodeFacts:
    """What a layer's name needs of a node.

    operator: empty for a node that is no call.
    trace: the stack trace of the user's code.
    inputs: the names of the nodes that it reads.
    is_result: whether the subgraph returns its value.
    """

    operator: str
    trace: str
    inputs: tuple[str, ...]
    is_result: bool = False

    @property
    def short_operator(self) -> str:
        """The operator without namespace and overload."""
        return self.operator.split(".")[1] if "." in self.operator else self.operator


Nodes = Mapping[str, NodeFacts]


def node_facts(module: fx.GraphModule) -> dict[str, NodeFacts]:
    """Return the facts of all nodes of a subgraph, in order."""
    return {
        node.name: NodeFacts(
            op_name(node) if node.op == "call_function" else "",
            node.meta.get("stack_trace") or "",
            tuple(each.name for each in node.all_input_nodes),
            any(user.op == "output" for user in node.users),
        )
        for node in module.graph.nodes
    }


@dataclasses.dataclass(frozen=True)
class LayerName:
    """A layer of an engine.

    nodes: those that it computes, as far as they are known, in the order of the subgraph. It may compute others too.
    kind: what TensorRT does there, in words.
    """

    nodes: tuple[str, ...]
    kind: str

    @property
    def text(self) -> str:
        """The nodes, as "linear_4 + gelu"; the kind where none is known."""
        more = len(self.nodes) - _MOST_NODES
        return " + ".join(self.nodes[:_MOST_NODES]) + (f" and {more} more" if more > 0 else "") or self.kind

    def sources(self, nodes: Nodes) -> list[str]:
        """Return the lines of the user's source that it comes from."""
        found = (source_of_trace(nodes[name].trace) for name in self.nodes)
        return [source for source in dict.fromkeys(found) if source is not None]


def layer_names(layers: Sequence[str], plan: bytes, nodes: Nodes) -> list[LayerName]:
    """Return the names of an engine's layers.

    layers: as TensorRT's profiler has them, in order: the second layer of a name is the second step of that name.
    nodes: those of the subgraph that the engine computes.
    """
    steps = program_steps(plan)
    known = _nodes_of_steps(steps, result_nodes(plan), nodes)
    places = collections.defaultdict(list)
    for place, step in enumerate(steps):
        places[step.name].append(place)
    bases = [_NUMBER.sub("", layer) for layer in layers]
    counts, seen = collections.Counter(bases), collections.Counter[str]()
    found = []
    for base in bases:
        if counts[base] == len(places[base]):
            place = places[base][seen[base]]
            found.append(LayerName(known[place], _kind(base, steps[place].kind)))
        else:
            found.append(LayerName(_calls_among(nodes_in_name(base), nodes), _kind(base, "")))
        seen[base] += 1
    return found


def _calls_among(names: Sequence[str], nodes: Nodes) -> tuple[str, ...]:
    """Return the calls among these nodes, in the order of the subgraph."""
    return tuple(name for name, facts in nodes.items() if facts.operator and name in names)


# Nodes ---------------------------------------------------------------------------------------------------------------


def _nodes_of_steps(steps: Sequence[ProgramStep], results: set[str], nodes: Nodes) -> list[tuple[str, ...]]:
    """Return the nodes of each step.

    An engine from the cache may have been built for a graph that is equal but for the names of its nodes. If it names
    one that this subgraph lacks, or others as its results, no step has any.
    """
    named = {name for step in steps for name in step.nodes}
    if not named.issubset(nodes) or any(name not in nodes or not nodes[name].is_result for name in results):
        return [()] * len(steps)
    found = [_calls_among(step.nodes, nodes) for step in steps]
    for is_such, operators in _IN_ORDER:
        groups = _ordered([name for name, facts in nodes.items() if facts.short_operator in operators], nodes)
        known = {place: _group_of(found[place], groups) for place, step in enumerate(steps) if is_such(step)}
        # Products of other nodes, as those of a recurrent layer, are not in this order.
        others = {place for place, group in known.items() if steps[place].is_product and found[place] and group is None}
        places = [place for place in known if place not in others]
        for place, group in zip(places, _filled([known[place] for place in places], len(groups)), strict=True):
            if group is not None and known[place] is None:
                found[place] = _calls_among([*found[place], *groups[group]], nodes)
    return found


def _ordered(names: Sequence[str], nodes: Nodes) -> list[list[str]]:
    """Return nodes in groups, each of which can only be computed once all of the group before it are.

    Nothing if they have no such order.
    """
    bits = {name: 1 << place for place, name in enumerate(names)}
    before: dict[str, int] = {}  # for each node, those of `names` that it depends on
    for name, facts in nodes.items():
        before[name] = 0
        for each in facts.inputs:
            before[name] |= before[each] | bits.get(each, 0)
    groups: list[list[str]] = []
    for name in names:
        last = sum(bits[other] for other in groups[-1]) if groups else 0
        if not groups or before[name] & last == last:
            groups.append([name])
        elif before[name] & last == 0 and (len(groups) < 2 or _depends_on_all(before[name], groups[-2], bits)):
            groups[-1].append(name)
        else:
            return []
    return groups


def _depends_on_all(before: int, names: Sequence[str], bits: Mapping[str, int]) -> bool:
    return all(before & bits[name] for name in names)


def _group_of(names: Sequence[str], groups: Sequence[Sequence[str]]) -> int | None:
    """Return the place of the group that has one of these nodes; None if none has."""
    return next((place for place, group in enumerate(groups) if not set(names).isdisjoint(group)), None)


def _filled(places: Sequence[int | None], count: int) -> list[int | None]:
    """Return the groups of steps in order, of which some are known.

    Between two known ones, the others are found if there are as many of them as groups. None is, if the order differs.
    """
    found = list(places)
    ends = [(-1, -1), *((i, place) for i, place in enumerate(places) if place is not None), (len(places), count)]
    if any(after < before for (_, before), (_, after) in itertools.pairwise(ends)):
        return [None] * len(found)
    for (start, before), (end, after) in itertools.pairwise(ends):
        if end - start == after - before:
            found[start + 1 : end] = range(before + 1, after)
    return found


# Words ---------------------------------------------------------------------------------------------------------------


def _kind(name: str, kind: str) -> str:
    """Return what TensorRT does in a step, in words."""
    if _ATTENTION in name:
        return f"attention ({name})"
    fused = _FUSED.match(name)
    if fused is not None:
        operations = [_OPERATIONS.get(word, word.lower()) for word in re.findall("[A-Z][a-z0-9]*", fused[1])]
        more = len(operations) - _MOST_FUSED
        return ", ".join(operations[:_MOST_FUSED]) + (f" and {more} more" if more > 0 else "")
    joined = f", {name.count('+') + 1} joined" if kind in _KINDS and "+" in name else ""
    return _KINDS.get(kind, kind.replace("_", " ") or name) + joined
