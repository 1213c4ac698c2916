"""Transposes: linear layers and selects read the source of a transpose, and the transpose is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from tests.passes.case import Called, assert_computes, aten, calls, passed
from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.graph.ops import own
from torchtrt_bridge.options import Options
from torchtrt_bridge.passes.transposes import drop_transposes

Function = Callable[[torch.Tensor], object]

LAYER = nn.Linear(15, 6).eval().requires_grad_(False)
SCALE = torch.tensor([0.05])
MOVERS = (aten.permute.default, aten.clone.default)

PARTS: dict[str, Function] = {
    "packed q, k, v": lambda x: [p * 2 for p in x.view(2, 4, 3, 5).permute(2, 0, 1, 3).contiguous().unbind(0)],
    "nn.MultiheadAttention": lambda x: x.view(2, 4, 3, 5).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()[1] * 2,
    "behind the removed dimension": lambda x: x.view(8, 3, 5).permute(1, 2, 0)[:, 4] * 2,
    "of a dimension that is divided later": lambda x: x.transpose(0, 1)[:, 1].view(4, 3, 5).transpose(1, 2) * 2,
    "of a divided dimension": lambda x: x.view(2, 4, 3, 5).permute(0, 2, 1, 3)[:, 1] * 2,
    "the added dimension": lambda x: x.transpose(0, 1).unsqueeze(1)[:, 0] * 2,
    "negative numbers": lambda x: x.view(2, 4, 3, 5).permute(0, -2, -3, -1)[..., -2, :] * 2,
}

LAYERS: dict[str, Function] = {
    "transposed and back": lambda x: LAYER(x.transpose(0, 1)).transpose(0, 1) * 2,
    "as rows": lambda x: LAYER(x.transpose(0, 1).reshape(8, 15)).view(4, 2, 6).transpose(0, 1) * 2,
    "with a dimension of one": lambda x: LAYER(x.transpose(0, 1).unsqueeze(1)).squeeze(1).transpose(0, 1) * 2,
    "heads": lambda x: LAYER(x.view(2, 4, 3, 5).permute(1, 0, 2, 3).reshape(8, 15)).view(4, 2, 6).transpose(0, 1) * 2,
    "two layers": lambda x: LAYER(LAYER(x.transpose(0, 1)).repeat_interleave(5, -1)[..., :15]).transpose(0, 1) * 2,
}

LEFT: dict[str, Function] = {
    "no layer": lambda x: x.permute(1, 0, 2) * 2,
    "a layer in place": lambda x: LAYER(x.view(8, 15)).view(2, 4, 6) * 2,
    "windows": lambda x: LAYER(x.view(2, 2, 2, 15).transpose(0, 2).reshape(-1, 15)) * 2,
    "features that move": lambda x: LAYER(x.view(2, 4, 3, 5).permute(0, 1, 3, 2).reshape(8, 15)) * 2,
    "dimensions that overlap": lambda x: LAYER(x.transpose(0, 1).reshape(4, 5, 6).reshape(8, 15)) * 2,
    "no elements": lambda x: LAYER(x[:, :0].transpose(0, 1).reshape(-1, 15)) * 2,
    "rows among features": lambda x: LAYER(x.view(8, 3, 5).transpose(0, 1).reshape(8, 15)) * 2,
    "what is returned": lambda x: x.clone()[0],
    "parts of what is moved back": lambda x: x.transpose(0, 1).transpose(0, 1).unsqueeze(0),
}


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 4, 15)


@pytest.mark.first(7)
@pytest.mark.parametrize("name", [*PARTS, *LAYERS, *LEFT])
def test_what_is_computed_stays(name: str, x: torch.Tensor) -> None:
    model = {**PARTS, **LAYERS, **LEFT}[name]
    assert_computes(passed(model, x, drop_transposes), model, x)


@pytest.mark.parametrize("name", PARTS)
def test_parts_are_taken_before_they_are_moved(name: str, x: torch.Tensor) -> None:
    for node in passed(PARTS[name], x, drop_transposes).graph.find_nodes(op="call_function", target=aten.select.int):
        assert node.args[0].target not in MOVERS


@pytest.mark.parametrize("name", ["transposed and back", "as rows", "with a dimension of one"])
def test_what_restores_the_order_is_gone(name: str, x: torch.Tensor) -> None:
    assert not set(calls(passed(LAYERS[name], x, drop_transposes))) & set(MOVERS)


@pytest.mark.first(4)
@pytest.mark.parametrize("name", LEFT)
def test_other_graphs_are_left_alone(name: str, x: torch.Tensor) -> None:
    assert calls(passed(LEFT[name], x, drop_transposes)) == calls(passed(LEFT[name], x))


# Attention ---------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attended: torch.Tensor = self.attention(x, x, x, need_weights=False)[0]
        return attended * 2


def captured(model: nn.Module, x: torch.Tensor, dynamic: dict[int, Any]) -> fx.GraphModule:
    shapes = {"x": dynamic} if dynamic else None
    return graph_from_program(export_program(model.eval(), (x,), dynamic_shapes=shapes)).module


AUTO = torch.export.Dim.AUTO


@pytest.mark.first(3)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("dynamic", [{}, {0: AUTO}, {1: AUTO}, {0: AUTO, 1: AUTO}], ids=["static", "0", "1", "both"])
def test_attention_of_pytorch(batch_first: bool, dynamic: dict[int, Any]) -> None:
    model = Attention(batch_first).requires_grad_(False)
    module = captured(model, torch.randn(2, 5, 8), dynamic)
    symbols = str(next(iter(module.graph.find_nodes(op="placeholder"))).meta["val"].shape)
    module = drop_transposes(module, Options())
    module.graph.lint()
    assert str(next(iter(module.graph.find_nodes(op="placeholder"))).meta["val"].shape) == symbols
    for sizes in ((2, 5), (7 if 0 in dynamic else 2, 9 if 1 in dynamic else 5)):
        x = torch.randn(*sizes, 8)
        (result,), expected = module(x), model(x)
        torch.testing.assert_close(result, expected)
        assert result.stride() == expected.stride()


@pytest.mark.parametrize("batch", [1, 3])
def test_nothing_but_heads_moves_where_the_batch_comes_first(batch: int) -> None:
    module = drop_transposes(captured(Attention(True), torch.randn(batch, 5, 8), {}), Options())
    assert aten.clone.default not in calls(module)
    permuted = [node.meta["val"].shape for node in module.graph.find_nodes(op="call_function", target=MOVERS[0])]
    assert [tuple(shape) for shape in permuted[:3]] == [(batch, 2, 5, 4)] * 3
    first = next(node for node in module.graph.find_nodes(op="call_function", target=aten.linear.default))
    assert first.args[0].op == "placeholder"


def test_sizes_that_depend_on_data() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        rows = x[x[:, 0] > 0].view(-1, 3, 5).transpose(0, 1)
        return LAYER(rows.reshape(3, -1, 5).transpose(0, 1).reshape(-1, 15)).view(-1, 2, 3).transpose(1, 2) * 2

    module = passed(model, torch.randn(6, 15), drop_transposes)
    for x in (torch.randn(6, 15), torch.randn(6, 15)):
        torch.testing.assert_close(module(x)[0], model(x))


def rounded(x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = own.dequantize(own.quantize(x, SCALE, None, torch.int8), SCALE, None, torch.float32)
    return result


def test_quantized_layers_are_rounded_where_they_are() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        rows = rounded(x.transpose(0, 1).contiguous())
        return LAYER(rows).transpose(0, 1) * 2 + LAYER(rows).transpose(0, 1) * 3

    x = torch.randn(2, 4, 15)
    module = passed(model, x, drop_transposes)
    assert_computes(module, model, x)
    assert not set(calls(module)) & set(MOVERS)
    assert calls(module).count(own.quantize.default) == 1


def test_quantized_layers_round_what_is_moved_for_them() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        heads = x.view(2, 4, 3, 5).transpose(1, 2) * 2
        return LAYER(rounded(heads.permute(2, 0, 1, 3).reshape(4, 2, 15))).transpose(0, 1) * 2

    x = torch.randn(2, 4, 15)
    module = passed(model, x, drop_transposes)
    assert_computes(module, model, x)
    (layer,) = module.graph.find_nodes(op="call_function", target=aten.linear.default)
    assert layer.args[0].target is own.dequantize.default
    assert calls(module)[-2:] == [aten.linear.default, aten.mul.Tensor]


# What the caller sees ----------------------------------------------------------------------------------------------


def test_a_copy_stays_a_copy(x: torch.Tensor) -> None:
    module = passed(lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)[0], x, drop_transposes)
    assert module(x)[0].untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


def test_results_keep_their_strides() -> None:
    x = torch.randn(4, 6, 15)

    def model(x: torch.Tensor) -> list[torch.Tensor]:
        rows = LAYER(x.transpose(0, 1))
        return [rows, rows + 1, LAYER(x.transpose(0, 1).reshape(-1, 15))]

    module = passed(model, x, drop_transposes)
    assert [result.stride() for result in module(x)] == [result.stride() for result in model(x)]
    output = next(node for node in module.graph.nodes if node.op == "output")
    assert [node.meta["val"].stride() for node in output.args[0]] == [result.stride() for result in model(x)]


@pytest.mark.parametrize("read", [torch.as_strided, torch.as_strided_copy])
def test_a_graph_that_reads_memory_as_it_lies_is_left_alone(read: Any, x: torch.Tensor) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return read(LAYER(x.transpose(0, 1)), (4, 2), (12, 1)) * 2

    assert calls(passed(Called(model), x, drop_transposes)) == calls(passed(Called(model), x))
