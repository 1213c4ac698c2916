"""Loops of recurrent layers: as many layers at any length, and engines that TensorRT builds of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.lower.cases.recurrent import FEATURES, OfLengths
from tests.lower.cases.recurrent import layer as layer_of
from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.engine.build import engine_from_network
from torchtrt_bridge.lower.network import Network, network_from_graph
from torchtrt_bridge.options import Options
from torchtrt_bridge.trt import library as libraries

OPTIONS = Options(engine="tensorrt_rtx", cache_dir="", targets=("sm_89",))


class Layer(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: bool) -> None:
        super().__init__()
        self.layer = kind(8, 16, batch_first=True, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.layer(x)[0]
        return output


def network_of(model: nn.Module, length: int) -> Network:
    return network_for(model, torch.zeros(2, length, 8))


def network_for(model: nn.Module, *inputs: torch.Tensor) -> Network:
    captured = graph_from_program(export_program(model.eval(), inputs))
    return network_from_graph(captured.module, libraries.load("tensorrt_rtx"))


def kinds(network: Network) -> list[str]:
    definition = network.definition
    return [definition.get_layer(index).type.name for index in range(definition.num_layers)]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_length_does_not_change_the_number_of_layers(kind: type[nn.RNNBase], bidirectional: bool) -> None:
    model = Layer(kind, bidirectional=bidirectional)
    short, long = (network_of(model, length) for length in (3, 400))
    assert kinds(short) == kinds(long)
    assert kinds(long).count("TRIP_LIMIT") == 1
    assert kinds(long).count("MATRIX_MULTIPLY") == 2  # of all inputs, and of the hidden state in each step
    assert short.layers == long.layers < 60


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_one_loop_computes_sequences_of_several_lengths(kind: type[nn.RNNBase]) -> None:
    model = OfLengths(layer_of(kind, bidirectional=True))
    short, long = (network_for(model, torch.zeros(n, 2, FEATURES), torch.tensor([-n, -1])) for n in (3, 400))
    assert kinds(short) == kinds(long)
    assert kinds(long).count("TRIP_LIMIT") == 1
    assert kinds(long).count("MATRIX_MULTIPLY") == 2


def test_layers_of_a_loop_are_named_after_the_node() -> None:
    network = network_of(Layer(nn.GRU), 3)
    names = {network.definition.get_layer(index).name for index in range(network.layers)}
    assert {"gru/loop_iterator", "gru/loop_recurrence", "gru/loop_outputs"} <= {
        name.rsplit("_", 1)[0] for name in names
    }


def test_tensorrt_builds_an_encoder_of_400_frames() -> None:
    library = libraries.load("tensorrt_rtx")
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), Layer(nn.LSTM, bidirectional=True))
    assert len(engine_from_network(network_of(model, 400), library, OPTIONS))


def test_tensorrt_builds_a_loop_over_sequences_of_several_lengths() -> None:
    library = libraries.load("tensorrt_rtx")
    model = OfLengths(layer_of(nn.LSTM, bidirectional=True, num_layers=2))
    network = network_for(model, torch.zeros(400, 2, FEATURES), torch.tensor([-400, -1]))
    assert len(engine_from_network(network, library, OPTIONS))
