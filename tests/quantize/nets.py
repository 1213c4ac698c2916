"""Small networks, their calibration, and questions about their quantized graphs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

import torchtrt_bridge as trtb
from torchtrt_bridge.quantize.calibration import Calibration, CalibrationResult
from torchtrt_bridge.quantize.config import settings_from
from torchtrt_bridge.quantize.graph_rewrite import GraphRewrite
from torchtrt_bridge.quantize.qdq import DEQUANTIZE, QUANTIZE
from torchtrt_bridge.report.progress import LoopProgress

aten = torch.ops.aten

SPREAD = torch.logspace(-1.5, 1.5, 8)

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
    """Return the scale of a dequantize node."""
    return getattr(model, dequantized.args[1].target)


def quantize_of(dequantized: fx.Node) -> fx.Node:
    """Return the quantize node before an activation's dequantize node."""
    (source,) = [dequantized.args[0]]
    assert source.target is QUANTIZE
    return source


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    with torch.no_grad():
        return float((found - expected).norm() / expected.norm())


# Rewrites of calibrated graphs ----------------------------------------------------------------------------------------


def calibrated(model: nn.Module, data: list[torch.Tensor], **settings: Any) -> CalibrationResult:
    model.eval()
    with torch.no_grad():
        return Calibration(model, settings_from(**settings)).read(data, LoopProgress(False))


def rewrite_of(found: CalibrationResult, float_layers: Collection[str] = ()) -> GraphRewrite:
    return GraphRewrite(found.graph.module, found.layers, float_layers, found.observed)


def uneven(conv: nn.Module) -> nn.Module:
    """Make the ranges of a layer's output channels differ a thousandfold."""
    with torch.no_grad():
        conv.weight.mul_(SPREAD.view(-1, *[1] * (conv.weight.dim() - 1)))
        conv.bias.mul_(SPREAD)
    return conv


def outlying(shape: tuple[int, ...] = (8, 6, 16)) -> list[torch.Tensor]:
    """Return inputs with two channels that are fifty times as large as the others."""
    return [x * torch.tensor([50.0, 50.0, *[1.0] * (shape[-1] - 2)]) for x in loader(*shape)]


def uneven_chain(between: Callable[[torch.Tensor], torch.Tensor], two: nn.Module) -> nn.Module:
    """Build a layer with uneven channels, and another one that reads them."""
    return Apply(lambda m, x: m.two(between(m.one(x))), one=uneven(nn.Conv2d(3, 8, 3)), two=two)


CHAINS: dict[str, Callable[[], nn.Module]] = {
    "pointwise": lambda: uneven_chain(F.relu, nn.Conv2d(8, 4, 1)),
    "depthwise": lambda: uneven_chain(F.relu, nn.Conv2d(8, 8, 3, groups=8)),
    "grouped": lambda: uneven_chain(F.leaky_relu, nn.Conv2d(8, 4, 1, groups=2)),
    "relu6": lambda: uneven_chain(F.relu6, nn.Conv2d(8, 4, 1)),
    "pooled": lambda: uneven_chain(lambda x: F.max_pool2d(F.relu(x), 2), nn.Conv2d(8, 4, 1)),
    "linear": lambda: Apply(
        lambda m, x: m.two(F.relu(m.one(x.flatten(1)))), one=uneven(nn.Linear(192, 8)), two=nn.Linear(8, 4)
    ),
}
