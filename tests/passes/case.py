"""Run passes on a captured model, and compare what the graph computes before and after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.options import Options

aten = torch.ops.aten
Pass = Callable[[fx.GraphModule, Options], fx.GraphModule]


class Called(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: torch.Tensor) -> Any:
        return self.call(x)


def passed(model: Any, x: torch.Tensor, *passes: Pass, **options: Any) -> fx.GraphModule:
    """Return the graph of `model` after `passes`."""
    model = model if isinstance(model, nn.Module) else Called(model)
    module = graph_from_program(export_program(model.eval(), (x,))).module
    checked = Options(**options)
    for run_pass in passes:
        module = run_pass(module, checked)
    module.graph.lint()
    return module


def calls(module: fx.GraphModule) -> list[Any]:
    """Return the operators of the graph, in order."""
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


def call(module: fx.GraphModule, op: Any) -> fx.Node:
    """Return the one call of `op`."""
    (node,) = module.graph.find_nodes(op="call_function", target=op)
    return node


def constants(module: fx.GraphModule) -> list[torch.Tensor]:
    return [getattr(module, str(node.target)) for node in module.graph.nodes if node.op == "get_attr"]


def assert_computes(
    module: fx.GraphModule, model: Any, x: torch.Tensor, rtol: float = 1e-5, atol: float = 1e-5
) -> None:
    """Assert that the graph computes what `model` computes, and that its fake values fit its results."""
    with torch.no_grad():
        expected, actual = model(x), module(x)
    expected = expected if isinstance(expected, (tuple, list)) else (expected,)
    torch.testing.assert_close(list(actual), list(expected), rtol=rtol, atol=atol)
    output = next(node for node in module.graph.nodes if node.op == "output")
    fakes = [node.meta["val"] for node in output.args[0]]
    assert [(fake.dtype, fake.shape) for fake in fakes] == [(value.dtype, value.shape) for value in expected]
