"""Captured graphs as JSON. PyTorch's own archive takes 1.0 s to read the graph of ResNet-50, this form 0.2 s."""

from __future__ import annotations

import base64
import json
import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from torchtrt_bridge.capture.export import CapturedGraph
from torchtrt_bridge.capture.size_json import SIZE_TYPES, NoTextError, SizeReader, SizeWriter
from torchtrt_bridge.graph.edit import set_constant
from torchtrt_bridge.graph.nodes import least_trace, reads_memory
from torchtrt_bridge.graph.torch_internals import is_operator, new_export_mode

# The largest constant that a text holds, in bytes; it holds no weights.
MOST_BYTES = 2**20

# Functions of Python and PyTorch that a graph calls beside operators: it computes sizes by them.
FUNCTIONS: dict[str, Any] = {
    f"{module.__name__.strip('_')}.{name}": getattr(module, name)
    for module, names in (
        (operator, "getitem add sub mul floordiv mod neg pow truediv eq ne lt le gt ge and_ or_"),
        (math, "ceil floor trunc"),
        (torch, "sym_float sym_int sym_ite sym_max sym_min sym_not sym_sqrt sym_sum"),
    )
    for name in names.split()
}
NAMES = {function: name for name, function in FUNCTIONS.items()}


def text_from_graph(captured: CapturedGraph, weights: Mapping[str, torch.Tensor]) -> str:
    """Return a graph as text.

    weights: tensors whose values the text leaves out, by the name of the origin of a constant.
    Raises NoTextError.
    """
    writer = _Writer(captured.module)
    nodes = list(map(writer.text_of_node, captured.module.graph.nodes))
    constants = {
        name: origin if origin in weights else _text_of_constant(captured.module.get_buffer(name))
        for name, origin in captured.origins.items()
    }
    content = {
        "nodes": nodes,
        "traces": list(writer.traces),
        "constants": constants,
        "outputs": captured.outputs,
        "mutations": captured.mutations,
        "state": captured.state,
        "sizes": writer.text_of_sizes(captured),
    }
    return json.dumps(content)


def graph_from_text(text: str, weights: Mapping[str, torch.Tensor]) -> CapturedGraph:
    """Return the graph of a text, with these weights; ValueError where its lists do not fit each other."""
    content = json.loads(text)
    module = fx.GraphModule(nn.Module(), fx.Graph())
    origins = {}
    for name, constant in content["constants"].items():
        is_weight = isinstance(constant, str)
        set_constant(module, name, weights[constant] if is_weight else _constant_from(constant))
        origins[name] = constant if is_weight else name
    sizes = None if content["sizes"] is None else SizeReader(content["sizes"])
    module.graph = _graph_from(content["nodes"], content["traces"], sizes)
    module.graph.lint()
    mutations, state = tuple(content["mutations"]), tuple(content["state"])
    ranges = {} if sizes is None else sizes.ranges
    captured = CapturedGraph(module, content["outputs"], mutations, state, ranges, origins)
    check_lists(captured, weights)
    return captured


def check_lists(captured: CapturedGraph, weights: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError where the lists of a graph do not fit its placeholders, its outputs or these weights."""
    nodes = list(captured.module.graph.nodes)
    inputs = [node.name for node in nodes if node.op == "placeholder"]
    if nodes[-1].op != "output":
        raise ValueError("its output does not come last")
    results = nodes[-1].args[0]
    if not isinstance(results, (tuple, list)) or len(results) != captured.outputs + len(captured.mutations):
        raise ValueError(f"it has other outputs than {captured.outputs} and {len(captured.mutations)} mutations")
    if not all(type(index) is int and 0 <= index < len(inputs) for index in captured.mutations):
        raise ValueError(f"it has {len(inputs)} inputs and mutates those of indices {captured.mutations}")
    if len(set(captured.state)) < len(captured.state) or not weights.keys() >= set(captured.state):
        raise ValueError(f"its state {captured.state} is not of the weights of this call")
    if captured.outputs < 0 or len(captured.state) > len(inputs):
        raise ValueError(f"it has {captured.outputs} outputs, {len(inputs)} inputs and {len(captured.state)} of state")


class _Writer:
    """Writer of the nodes of one graph.

    traces: the stack traces of its nodes, each with its place among them.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.traces: dict[str | None, int] = {}
        self._order = {node: index for index, node in enumerate(module.graph.nodes)}
        self._sizes = SizeWriter()

    def text_of_node(self, node: fx.Node) -> list[Any]:
        trace = self.traces.setdefault(least_trace(node), len(self.traces))
        parts = map(self._text_of, (node.args, node.kwargs, node.meta.get("val")))
        return [node.op, node.name, trace, _text_of_target(node), *parts]

    def text_of_sizes(self, captured: CapturedGraph) -> Any:
        """Return what is known of the symbolic sizes in the nodes that were written; None if there are none."""
        if not captured.ranges:
            if self._sizes.rows:
                raise NoTextError("it has sizes without a range")
            return None
        if any(map(reads_memory, self._order)):
            raise NoTextError("it reads memory by offsets that depend on sizes")
        return self._sizes.facts(captured.ranges)

    def _text_of(self, value: Any) -> Any:
        """Return an argument or a fake value as JSON.

        A value that JSON has is written as it is, any other as an object whose one field names its kind.
        """
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, fx.Node):
            return {"node": self._order[value]}
        if isinstance(value, SIZE_TYPES):
            return self._sizes.text_of(value)
        if isinstance(value, torch.device):
            return {"device": str(value)}
        if isinstance(value, torch.Tensor):
            form = [value.dtype, value.shape, value.stride(), value.device, *_memory_of(value)]
            return {"tensor": self._text_of(form)}
        if isinstance(value, tuple):
            return {"tuple": [self._text_of(part) for part in value]}
        if isinstance(value, list):
            return [self._text_of(part) for part in value]
        if isinstance(value, dict):
            return {"dict": {key: self._text_of(part) for key, part in value.items()}}
        return _text_of_name(value)


def _memory_of(value: torch.Tensor) -> list[Any]:
    """Return where a fake tensor lies in memory that holds more, and how many elements that has; [] for another.

    It matters to operators that read memory by offsets. Of memory of a symbolic size it is left out.
    """
    if value.layout is not torch.strided:
        raise NoTextError(f"a tensor of layout {value.layout} has no text")
    sizes, steps, start, size = value.shape, value.stride(), value.storage_offset(), value.untyped_storage().nbytes()
    if not all(type(number) is int for number in (*sizes, *steps, start, size)):
        return []
    elements, rest = divmod(size, value.element_size())
    if rest:
        raise NoTextError("a tensor lies in memory of another dtype")
    least = 0 if 0 in sizes else 1 + sum((length - 1) * step for length, step in zip(sizes, steps, strict=True))
    return [] if (start, elements) == (0, least) else [start, elements]


def _graph_from(nodes: list[Any], traces: list[str | None], sizes: SizeReader | None) -> fx.Graph:
    graph = fx.Graph()
    reader = _Reader(sizes)
    making_values = new_export_mode() if sizes is None else sizes.making_values()
    with torch.inference_mode(False), torch.no_grad(), making_values:
        for op, name, trace, *parts in nodes:
            target, args, kwargs, value = map(reader.value, parts)
            target = _call_from(target) if op == "call_function" else target
            node = graph.create_node(op, target, args, kwargs, name=name)
            node.name = name  # fx would rename a node that is called like a builtin, as an argument `input`
            if value is not None:
                node.meta["val"] = value
            if traces[trace] is not None:
                node.meta["stack_trace"] = traces[trace]
            reader.nodes.append(node)
    return graph


def _text_of_target(node: fx.Node) -> str:
    if node.op != "call_function" or is_operator(node.target):
        return str(node.target)
    if node.target in NAMES:
        return NAMES[node.target]
    raise NoTextError(f"{node.target} is not an operator of PyTorch")


def _call_from(name: str) -> Any:
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    namespace, packet, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload)


NAMED = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


def _text_of_name(value: Any) -> dict[str, str]:
    for name, kind in NAMED.items():
        if isinstance(value, kind):
            return {name: str(value).removeprefix("torch.")}
    raise NoTextError(f"a {type(value).__name__} has no text")


class _Reader:
    """Reader of what a `_Writer` wrote; nodes: those that were made so far."""

    def __init__(self, sizes: SizeReader | None) -> None:
        self.nodes: list[fx.Node] = []
        self._sizes = sizes

    def value(self, text: Any) -> Any:
        if isinstance(text, list):
            return [self.value(part) for part in text]
        if not isinstance(text, dict):
            return text
        ((kind, value),) = text.items()
        if kind == "node":
            return self.nodes[value]
        if kind == "device":
            return torch.device(value)
        if kind == "tensor":
            return _tensor_from(*self.value(value))
        if kind == "tuple":
            return tuple(self.value(part) for part in value)
        if kind == "dict":
            return {key: self.value(part) for key, part in value.items()}
        if kind in NAMED:
            return _named(kind, value)
        if self._sizes is None:
            raise ValueError(f"a {kind} in a graph of known sizes")
        return self._sizes.number(kind, value)


def _named(kind: str, name: str) -> Any:
    """Return PyTorch's dtype, layout or memory format of this name."""
    found = getattr(torch, name)
    if not isinstance(found, NAMED[kind]):
        raise ValueError(f"torch.{name} is not a {kind}")
    return found


def _tensor_from(
    dtype: torch.dtype, shape: Any, stride: Any, device: torch.device, start: int = 0, elements: int | None = None
) -> torch.Tensor:
    """Return a tensor of the current fake mode, in memory of its own of so many elements."""
    if elements is None:
        return torch.empty_strided(shape, stride, dtype=dtype, device=device)
    return torch.empty(elements, dtype=dtype, device=device).as_strided(shape, stride, start)


def _text_of_constant(value: torch.Tensor) -> dict[str, Any]:
    """Return the text of a constant that is not a weight, with its elements."""
    if value.numel() * value.element_size() > MOST_BYTES:
        raise NoTextError(f"a constant of {value.numel()} elements is too large")
    elements = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return {
        **_text_of_name(value.dtype),
        "shape": list(value.shape),
        "device": str(value.device),
        "elements": base64.b64encode(bytes(elements.tolist())).decode(),
    }


def _constant_from(text: Mapping[str, Any]) -> torch.Tensor:
    elements = torch.tensor(list(base64.b64decode(text["elements"])), dtype=torch.uint8)
    return elements.view(_named("dtype", text["dtype"])).reshape(text["shape"]).to(text["device"])
