"""Layers of a float graph: those that can be quantized, and those that stay in floating point, with reasons."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections import Counter
from typing import Any, cast

import torch
from torch import fx, nn

from torchtrt_bridge.capture.transformers_classes import is_conv1d
from torchtrt_bridge.errors import OptionsError
from torchtrt_bridge.graph import packed, recurrent
from torchtrt_bridge.graph.edit import constant_of
from torchtrt_bridge.quantize.config import Settings
from torchtrt_bridge.quantize.float_graph import ATTENTION, why_whole

aten = torch.ops.aten
ADD = aten.add.Tensor
RECURRENT = recurrent.OPERATORS | packed.LAYERS
OF_SEQUENCES = "the rounding of its state would add up over the steps of a sequence"
NO_MODULE = "of models with generate, linear layers are quantized that a call of the model computes once"
PRODUCT_OF_TWO = "a product of two activations: attention=True quantizes these"


@dataclasses.dataclass(frozen=True)
class QuantizableLayer:
    """A convolution or a product of matrices.

    name: the path of its module in the user's model, made unique.
    node: its name in the graph.
    reads: the arguments that are activations, each as the name of a node and the index of its argument. The first is
        the layer's own input; a convolution also has the other input of the sum that it is added to, which TensorRT
        computes with it.
    weight, axis: the index of its weight's argument, and the dimension of the output channels in it; None for a
        product of two activations.
    bias: the index of its bias's argument, if it has one.
    channels: the dimension of the input channels in its input.
    """

    name: str
    op: str
    node: str
    reads: tuple[tuple[str, int], ...]
    weight: int | None
    axis: int | None
    bias: int | None
    channels: int | None


@dataclasses.dataclass(frozen=True)
class FloatLayer:
    """A layer that stays in floating point, with the reason."""

    name: str
    op: str
    reason: str


def find_layers(module: fx.GraphModule, settings: Settings) -> tuple[list[QuantizableLayer], list[FloatLayer]]:
    """Find the layers to quantize, in the order of the graph, and the others; OptionsError for a wrong `skip`."""
    names = _names(module.graph)
    found, floats = [], []
    used: set[str] = set()
    for node, name in names.items():
        patterns = {p for p in settings.skip if fnmatch.fnmatchcase(name, p) or _is_inside(name, p)}
        used |= patterns
        reason = f"skip={min(patterns)!r}" if patterns else _why_float(node, settings)
        if reason is not None:
            floats.append(FloatLayer(name, _op(node), reason))
        else:
            found.append(_layer(node, name))
    for pattern in settings.skip:
        if pattern not in used:
            raise OptionsError(f"skip={pattern!r} is no layer of the model. Layers: {', '.join(names.values())}.")
    return _with_residuals(module.graph, found, settings), floats


def only_linear_modules(
    model: nn.Module, layers: list[QuantizableLayer], floats: list[FloatLayer]
) -> tuple[list[QuantizableLayer], list[FloatLayer]]:
    """Leave in floating point all layers but linear modules of `model` that are called once."""
    calls = Counter(layer.name.split(":")[0] for layer in layers)
    modules = dict(model.named_modules())
    found = [layer for layer in layers if calls[layer.name] == 1 and _is_linear(modules.get(layer.name))]
    others = [FloatLayer(layer.name, layer.op, NO_MODULE) for layer in layers if layer not in found]
    return found, [*floats, *others]


def _is_linear(module: nn.Module | None) -> bool:
    return type(module) is nn.Linear or is_conv1d(module)


def nodes_by_name(module: fx.GraphModule) -> dict[str, fx.Node]:
    return {node.name: node for node in module.graph.nodes}


def _names(graph: fx.Graph) -> dict[fx.Node, str]:
    """Return the layers' nodes with the paths of their modules; several in one module are numbered."""
    paths = {node: _path(node) or node.name for node in graph.nodes if _op(node)}
    seen: dict[str, int] = {}
    names = {}
    for node, path in paths.items():
        seen[path] = seen.get(path, 0) + 1
        names[node] = path if seen[path] == 1 else f"{path}:{seen[path]}"
    return names


def _path(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _is_inside(name: str, pattern: str) -> bool:
    """Check if a layer belongs to the module that `pattern` names."""
    return name.startswith(f"{pattern}.") or name.split(":")[0] == pattern


def _op(node: fx.Node) -> str:
    if node.op != "call_function":
        return ""
    if node.target is aten.convolution.default:
        return "transposed convolution" if node.args[6] else "convolution"
    return _OPS.get(node.target, "")


def _layer(node: fx.Node, name: str) -> QuantizableLayer:
    op = _op(node)
    if op.endswith("convolution"):
        return QuantizableLayer(name, op, node.name, ((node.name, 0),), 1, 1 if node.args[6] else 0, 2, 1)
    if node.target is aten.addmm.default:
        return QuantizableLayer(name, op, node.name, ((node.name, 1),), 2, 1, 0, -1)
    if op == "linear":
        return QuantizableLayer(name, op, node.name, ((node.name, 0),), 1, 0, 2, -1)
    if constant_of(node.args[1]) is not None:
        return QuantizableLayer(name, op, node.name, ((node.name, 0),), 1, _rank(node.args[1]) - 1, None, -1)
    return QuantizableLayer(name, op, node.name, ((node.name, 0), (node.name, 1)), None, None, None, None)


def _rank(node: Any) -> int:
    return int(node.meta["val"].dim())


def _why_float(node: fx.Node, settings: Settings) -> str | None:
    if node.target in RECURRENT:
        return OF_SEQUENCES
    if node.target is ATTENTION:
        return why_whole(node) if settings.config.attention else PRODUCT_OF_TWO
    layer, value = _layer(node, ""), node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"its result is {getattr(value, 'dtype', 'no tensor')}"
    if layer.weight is None:
        if settings.dtype == "int4":
            return "int4 is for weights, and this multiplies two activations"
        return None if settings.config.attention else PRODUCT_OF_TWO
    if constant_of(node.args[layer.weight]) is None:
        return "its weight is computed in each call"
    if _rank(node.args[layer.weight]) < 2 or (layer.op == "matmul" and _rank(node.args[layer.weight]) != 2):
        return f"its weight has {_rank(node.args[layer.weight])} dimensions"
    if any(node.kwargs.get(name, 1) != 1 for name in ("alpha", "beta")):
        return "its product and its bias have factors"
    if constant_of(node.args[layer.reads[0][1]]) is not None:
        return "its input is a constant"
    return _why_not_int4(node, layer, settings) if settings.dtype == "int4" else None


def _why_not_int4(node: fx.Node, layer: QuantizableLayer, settings: Settings) -> str | None:
    if layer.op != "linear":
        return "int4 is for the weights of linear layers"
    assert layer.weight is not None
    weight = constant_of(node.args[layer.weight])
    assert weight is not None
    assert layer.axis is not None
    inputs = weight.shape[1 - layer.axis]
    if inputs % settings.config.block_size:
        return f"its {inputs} inputs do not divide into blocks of {settings.config.block_size}"
    return None


# The residual input of sums -------------------------------------------------------------------------------------


def _with_residuals(graph: fx.Graph, layers: list[QuantizableLayer], settings: Settings) -> list[QuantizableLayer]:
    """Let convolutions that are added to something read the other input of that sum too."""
    if settings.dtype == "int4":
        return layers
    by_node = {layer.node: layer for layer in layers if layer.op.endswith("convolution")}
    for add in graph.find_nodes(op="call_function", target=ADD):
        convolution = _fused_convolution(add, by_node)
        if convolution is not None:
            layer, index = convolution
            by_node[layer.node] = dataclasses.replace(layer, reads=(*layer.reads, (add.name, 1 - index)))
    return [by_node.get(layer.node, layer) for layer in layers]


def _fused_convolution(add: fx.Node, layers: dict[str, QuantizableLayer]) -> tuple[QuantizableLayer, int] | None:
    """Return the convolution that TensorRT computes with a sum, the later one of two, and its place in the sum."""
    terms = add.args[:2]
    if not all(isinstance(term, fx.Node) and constant_of(term) is None for term in terms):
        return None
    first, second = cast(tuple[fx.Node, fx.Node], terms)
    if first is second or add.kwargs.get("alpha", 1) != 1 or first.meta["val"].shape != second.meta["val"].shape:
        return None
    places = [i for i, term in enumerate((first, second)) if term.name in layers and len(term.users) == 1]
    if not places:
        return None
    order = {node: position for position, node in enumerate(add.graph.nodes)}
    index = max(places, key=lambda i: order[(first, second)[i]])
    return layers[(first, second)[index].name], index


_OPS: dict[Any, str] = {
    aten.linear.default: "linear",
    aten.addmm.default: "linear",
    aten.mm.default: "matmul",
    aten.bmm.default: "matmul",
    aten.matmul.default: "matmul",
    ATTENTION: "attention",
    **dict.fromkeys(RECURRENT, "recurrent layer"),
}
