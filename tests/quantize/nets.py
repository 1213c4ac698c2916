"""Small networks, and what their quantized graphs are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

import torchtrt_bridge as trtb
from torchtrt_bridge.quantize.place import DEQUANTIZE, QUANTIZE

aten = torch.ops.aten

# Nothing is searched, and no table printed.
PLAIN: dict[str, Any] = {
    "method": "absmax", "smooth": None, "equalize": False, "correct_bias": False, "table": False,
}  # fmt: skip


class Apply(nn.Module):
    """A function of some layers."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


class Doubler(nn.Module):
    """A batch norm that doubles, so that folding it can be seen."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=0.0)
        nn.init.constant_(self.norm.weight, 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


def loader(*shape: int, batches: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(batches)]


def quantized(model: nn.Module, data: Any, **options: Any) -> trtb.QuantizedModel:
    return trtb.quantize(model.eval(), data, **{**PLAIN, **options})


def calls(model: fx.GraphModule, op: Any) -> list[fx.Node]:
    return model.graph.find_nodes(op="call_function", target=op)


def is_dequantized(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is DEQUANTIZE


def scale_read(dequantized: fx.Node, model: fx.GraphModule) -> torch.Tensor:
    """The scale of a dequantize node."""
    return getattr(model, dequantized.args[1].target)


def quantize_of(dequantized: fx.Node) -> fx.Node:
    """The quantize node before an activation's dequantize node."""
    (source,) = [dequantized.args[0]]
    assert source.target is QUANTIZE
    return source


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    with torch.no_grad():
        return float((found - expected).norm() / expected.norm())
