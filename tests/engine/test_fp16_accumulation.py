"""What products of fp16 matrices are summed in: an engine of TensorRT-RTX says it, and fp32 costs no memory."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.engine.build import engine_from_network
from torchtrt_bridge.lower.network import network_from_graph
from torchtrt_bridge.options import Options
from torchtrt_bridge.trt import library as libraries

FP16, FP32 = 0, 2  # as the text of an engine has it


class Attention(nn.Module):
    """Grouped products of two inputs, as attention in parts has them."""

    def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (q @ k.transpose(-1, -2)).relu()


class Conv1D(nn.Module):
    """The linear layer of GPT-2, whose weights are [inputs, outputs]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(256, 128) / 16), nn.Parameter(torch.randn(128))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x, self.weight)


MODELS: dict[str, tuple[nn.Module, list[tuple[int, ...]], int]] = {
    "linear": (nn.Sequential(nn.Linear(256, 128), nn.GELU(), nn.Linear(128, 256)), [(32, 256)], 2),
    "few rows": (nn.Linear(1024, 512), [(4, 1024)], 1),
    "matrix of inputs first": (Conv1D(), [(32, 256)], 1),
    "inputs": (Attention(), [(2, 16, 64), (2, 24, 64)], 1),
}


def half(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    model, shapes, _ = MODELS[name]
    return model.half().eval(), tuple(torch.randn(shape).half() for shape in shapes)


def plan_of(name: str, fp16_accumulation: bool) -> bytes:
    model, inputs = half(name)
    module = graph_from_program(export_program(model, inputs)).module
    library = libraries.load("tensorrt_rtx")
    options = Options(engine="tensorrt_rtx", cache_dir="", targets=("sm_86",))
    network = network_from_graph(module, library, fp16_accumulation=fp16_accumulation)
    return engine_from_network(network, library, options)


@pytest.mark.parametrize("name", MODELS)
def test_the_engine_sums_as_the_option_says(name: str) -> None:
    sizes = []
    for fp16_accumulation, kind in ((True, FP16), (False, FP32)):
        plan = plan_of(name, fp16_accumulation)
        assert re.findall(rb"accumulation_type=(\d)", plan) == [str(kind).encode()] * MODELS[name][2]
        sizes.append(len(plan))
    in_fp16, in_fp32 = sizes
    assert in_fp32 < 1.05 * in_fp16, "weights are held in fp32"


@pytest.mark.parametrize("name", MODELS)
def test_results_are_those_of_pytorch(name: str) -> None:
    model, inputs = half(name)
    program = trtb.export(model, inputs, engine="reference", fp16_accumulation=False, fallback="error")
    with torch.no_grad():
        torch.testing.assert_close(program(*inputs), model(*inputs), rtol=5e-3, atol=5e-3)


def test_fp32_is_as_before() -> None:
    """The option is about fp16 alone: a network in fp32 has no casts."""
    module = graph_from_program(export_program(nn.Linear(8, 8).eval(), (torch.randn(32, 8),))).module
    network = network_from_graph(module, libraries.load("tensorrt_rtx"), fp16_accumulation=False)
    assert "cast" not in " ".join(network.definition.get_layer(i).name for i in range(network.definition.num_layers))
