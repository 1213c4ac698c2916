"""Keys of the engines of small models, and the models."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim

from tests.models import Called
from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.engine.engine_key import engine_key
from torchtrt_bridge.options import Options
from torchtrt_bridge.partition import extract_subgraphs, propose
from torchtrt_bridge.passes import normalize
from torchtrt_bridge.pipeline import bounded
from torchtrt_bridge.trt import library as libraries

TARGETS = ("sm_89",)


def subgraph_of(call: Any, args: tuple[torch.Tensor, ...], shapes: Any, options: Options) -> tuple[fx.GraphModule, Any]:
    model = call if isinstance(call, nn.Module) else Called(call)
    if shapes is not None and not isinstance(call, nn.Module):
        shapes = (shapes,)  # `forward` takes one tuple of arguments
    captured = graph_from_program(export_program(model.eval(), args, dynamic_shapes=shapes))
    module = normalize(captured.module, options)
    (subgraph,) = extract_subgraphs(module, propose(module, options).subgraphs).values()
    return subgraph, bounded(captured.ranges, options)


def key_of(call: Any, *args: torch.Tensor, shapes: Any = None, **options: Any) -> str:
    checked = Options(**{"engine": "tensorrt_rtx", "targets": TARGETS, **options})
    subgraph, ranges = subgraph_of(call, args, shapes, checked)
    return engine_key(subgraph, libraries.load("tensorrt_rtx"), checked, ranges)


def square(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (4, 4, 4)), generator=torch.Generator().manual_seed(1))


def linear(seed: int = 0, bias: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(4, 4, bias=bias)


def batch(high: int, low: int = 1) -> Any:
    return ({0: Dim("batch", min=low, max=high)},)
