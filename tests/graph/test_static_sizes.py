"""A graph for one size of each dimension: no size is left to a call, and results are those of the graph for all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from torchtrt_bridge.graph.edit import copy_graph
from torchtrt_bridge.graph.static_sizes import like, with_static_sizes


class Mixed(nn.Module):
    """Sizes in arguments, in products, in a mask and in a range."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 12)
        self.convolution = nn.Conv1d(12, 4, 3, padding=1)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        batch, length = x.shape[:2]
        positions = torch.arange(length, device=x.device, dtype=x.dtype)
        inner = self.inner(x + positions[None, :, None] / length).masked_fill(mask[..., None], 0.0)
        outer = self.convolution(inner.transpose(1, 2))
        return outer.reshape(batch * 2, length * 2), inner.reshape(batch, -1)[:, : length + 3]


def captured(model: nn.Module, *inputs: torch.Tensor) -> torch.fx.GraphModule:
    sizes = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    program = torch.export.export(model, inputs, dynamic_shapes=tuple(sizes for _ in inputs)).run_decompositions({})
    flat: Any = program.module()
    return torch.fx.GraphModule(flat, copy_graph(flat.graph))


@pytest.fixture(scope="module")
def graph() -> torch.fx.GraphModule:
    torch.manual_seed(0)
    found = captured(Mixed().eval(), torch.randn(3, 10, 8), torch.zeros(3, 10, dtype=torch.bool))
    for node in found.graph.find_nodes(op="call_module"):  # the checks of the inputs, which are no part of a subgraph
        found.graph.erase_node(node)
    for name, value in list(found.named_parameters()):
        parent, _, last = name.rpartition(".")
        owner = found.get_submodule(parent)
        delattr(owner, last)
        owner.register_buffer(last, value.detach())
    found.recompile()
    return found


def values_of(module: torch.fx.GraphModule) -> list[Any]:
    return [node.meta["val"] for node in module.graph.nodes if node.op != "output"]


@pytest.mark.parametrize("sizes", [(3, 10), (1, 1), (2, 7), (5, 33)])
def test_it_computes_the_same(graph: torch.fx.GraphModule, sizes: tuple[int, int]) -> None:
    inputs = torch.randn(*sizes, 8), torch.rand(sizes) > 0.5
    static = with_static_sizes(graph, like(inputs))
    for actual, expected in zip(static(*inputs), graph(*inputs), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_no_size_is_left_to_a_call(graph: torch.fx.GraphModule) -> None:
    assert any(isinstance(value, torch.SymInt) for value in values_of(graph))
    static = with_static_sizes(graph, like((torch.randn(2, 7, 8), torch.zeros(2, 7, dtype=torch.bool))))
    values = values_of(static)
    assert all(isinstance(value, torch.Tensor) for value in values)
    assert all(isinstance(size, int) for value in values for size in value.shape)
    (results,) = static.graph.find_nodes(op="output")
    assert [tuple(node.meta["val"].shape) for node in results.args[0]] == [(4, 14), (2, 10)]


def test_the_graph_for_all_sizes_stays_as_it_was(graph: torch.fx.GraphModule) -> None:
    before = str(graph.graph)
    static = with_static_sizes(graph, like((torch.randn(2, 7, 8), torch.zeros(2, 7, dtype=torch.bool))))
    assert str(graph.graph) == before
    own = {value.data_ptr() for value in graph.buffers()}
    assert {value.data_ptr() for value in static.buffers()} <= own  # no weight is copied


def test_inputs_keep_their_strides() -> None:
    value = torch.randn(4, 6).t()
    (twin,) = like([value])
    assert (twin.shape, twin.stride()) == (value.shape, value.stride())


def test_sizes_that_an_operator_refuses_raise(graph: torch.fx.GraphModule) -> None:
    with pytest.raises(RuntimeError):
        with_static_sizes(graph, like((torch.randn(2, 7, 9), torch.zeros(2, 7, dtype=torch.bool))))
