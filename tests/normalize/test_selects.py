"""Selects: parts are taken before they are moved, and are the same parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.normalize.case import assert_computes, aten, calls, passed
from torchtrt_bridge.normalize.selects import select_first

Function = Callable[[torch.Tensor], object]

CHAINS: dict[str, Function] = {
    "packed q, k, v": lambda x: [p * 2 for p in x.view(2, 4, 3, 5).permute(2, 0, 1, 3).contiguous().unbind(0)],
    "nn.MultiheadAttention": lambda x: x.view(2, 4, 3, 5).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()[1] * 2,
    "behind the removed dimension": lambda x: x.view(8, 3, 5).permute(1, 2, 0)[:, 4] * 2,
    "the added dimension": lambda x: x.unsqueeze(1)[:, 0] * 2,
    "before the added dimension": lambda x: x.unsqueeze(2)[1] * 2,
    "behind the added dimension": lambda x: x.unsqueeze(0)[:, :, 3] * 2,
    "before squeezed dimensions": lambda x: x.view(2, 1, 4, 1, 15).squeeze((1, 3))[:, 2] * 2,
    "negative numbers": lambda x: x.view(2, 4, 3, 5).permute(0, -2, -3, -1)[..., -2, :] * 2,
}


@pytest.mark.parametrize("name", CHAINS)
def test_what_is_computed_stays(name: str) -> None:
    x = torch.randn(2, 4, 15)
    assert_computes(passed(CHAINS[name], x, select_first), CHAINS[name], x)


@pytest.mark.parametrize("name", CHAINS)
def test_selects_follow_nothing_but_views(name: str) -> None:
    module = passed(CHAINS[name], torch.randn(2, 4, 15), select_first)
    movers = (aten.permute.default, aten.clone.default, aten.squeeze.dims, aten.unsqueeze.default)
    for node in module.graph.find_nodes(op="call_function", target=aten.select.int):
        assert node.args[0].target not in movers


def test_attention_of_pytorch() -> None:
    model = nn.MultiheadAttention(8, 2, batch_first=True)

    def attend(x: torch.Tensor) -> torch.Tensor:
        return model(x, x, x, need_weights=False)[0]

    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        module = passed(attend, x, select_first)
        assert_computes(module, attend, x)
    first = next(node for node in module.graph.find_nodes(op="call_function", target=aten.select.int))
    assert first.args[0].target is aten.view.default


def test_a_copy_stays_a_copy() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x.clone()[0]

    x = torch.randn(2, 3)
    module = passed(model, x, select_first)
    assert calls(module) == [aten.select.int, aten.clone.default]
    assert module(x)[0].data_ptr() != x.data_ptr()


def test_a_graph_without_selects_is_left_alone() -> None:
    module = passed(lambda x: x.permute(1, 0) * 2, torch.randn(2, 3), select_first)
    assert calls(module) == [aten.permute.default, aten.mul.Tensor]
