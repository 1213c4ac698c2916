"""The PyTorch form of a subgraph computes the same, without products that PyTorch would expand into batches."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import torchtrt_bridge as trtb
from torchtrt_bridge.capture.export import CapturedGraph, export_program, graph_from_program
from torchtrt_bridge.runtime.inductor import flatten_linear_inputs


class SequenceFirst(nn.Module):
    """As attention with the sequence before the batch: the input of the layer is not contiguous."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 6, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.transpose(0, 1)).relu()


def captured(model: nn.Module, x: torch.Tensor, dynamic: bool = False) -> CapturedGraph:
    shapes = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},) if dynamic else None
    return graph_from_program(export_program(model.eval(), (x,), dynamic_shapes=shapes))


def operators_of(run: nn.Module, x: torch.Tensor) -> set[str]:
    """What PyTorch's kernels are called that run."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        run(x)
    return {event.key for event in recorded.key_averages()}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
def test_it_computes_the_same_in_one_product(bias: bool, dynamic: bool) -> None:
    model, x = SequenceFirst(bias), torch.randn(5, 3, 8)
    module = captured(model, x, dynamic).module
    (before,) = module(x)
    assert "aten::bmm" in operators_of(module, x)
    flatten_linear_inputs(module)
    assert "aten::bmm" not in operators_of(module, x)
    torch.testing.assert_close(module(x)[0], before)
    if dynamic:
        other = torch.randn(2, 7, 8)
        torch.testing.assert_close(module(other)[0], model(other))


def test_a_contiguous_input_is_left_alone() -> None:
    module = captured(nn.Linear(8, 6), torch.randn(5, 3, 8)).module
    code = module.code
    flatten_linear_inputs(module)
    assert module.code == code


def test_the_network_is_lowered_from_the_graph_as_it_was() -> None:
    model, x = SequenceFirst().eval(), torch.randn(5, 3, 8)
    fast = trtb.compile(model, engine="reference", torch_ops=("aten.relu.default",))
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), model(x))
    (engine,) = trtb.report(fast).engines
    assert engine.nodes == {"aten.permute.default": 1, "aten.linear.default": 1}
