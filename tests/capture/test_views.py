"""A captured graph computes whatever strides its values have: those of the trace are not those of every call."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.graph.edit import fake_mode_of, infer
from torchtrt_bridge.options import Options
from torchtrt_bridge.passes import normalize


class MergedHeads(nn.Module):
    """Merges the heads of attention, which is a view where they lie one behind the other for each token."""

    def forward(self, heads: torch.Tensor) -> torch.Tensor:
        batch, count, length, width = heads.shape
        return heads.transpose(1, 2).reshape(batch, length, count * width).relu()


TRACED = torch.randn(2, 7, 4, 8).transpose(1, 2)  # as PyTorch's attention gives them on a CPU
OTHER = TRACED.contiguous()  # as it gives them on CUDA where the head size is no multiple of 8


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_other_strides_than_those_of_the_trace(precision: str) -> None:
    captured = graph_from_program(export_program(MergedHeads().eval(), (TRACED,)))
    module = normalize(captured.module, Options(precision=precision))  # type: ignore[arg-type]
    expected = MergedHeads()(OTHER)
    for heads in (TRACED, OTHER):
        (result,) = module(heads)
        torch.testing.assert_close(result, expected)


def test_sizes_are_inferred_for_other_strides() -> None:
    module = graph_from_program(export_program(MergedHeads().eval(), (TRACED,))).module
    mode = fake_mode_of(module)
    nodes = list(module.graph.nodes)
    nodes[0].meta["val"] = mode.from_tensor(OTHER)
    shapes = [infer(node, mode).shape for node in nodes if node.op == "call_function"]
    assert shapes[-1] == (2, 7, 32)
