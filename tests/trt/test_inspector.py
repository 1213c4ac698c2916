"""What an engine says of itself: its steps, without a GPU."""

from __future__ import annotations

import torch
from torch import nn

import torchtrt_bridge as trtb
from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.engine.build import engine_from_network
from torchtrt_bridge.graph.kv_cache import own
from torchtrt_bridge.lower.network import network_from_graph
from torchtrt_bridge.options import Options
from torchtrt_bridge.reference import NetworkInterpreter
from torchtrt_bridge.trt import library as libraries
from torchtrt_bridge.trt.inspector import Step, outputs_taken_for_inputs, steps


def steps_of(model: nn.Module, *inputs: torch.Tensor, **options: object) -> list[Step]:
    program = trtb.export(model.eval(), inputs, precision="fp16", targets=("sm_86",), trial="off", **options)  # type: ignore[arg-type]
    (plan,) = program.plans.values()
    return steps(plan)


def test_products_come_in_their_order() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 64))
    found = steps_of(model, torch.randn(32, 64), fp16_accumulation=True)
    products = [step for step in found if step.kind == "fully_connected"]
    assert [step.sums_in for step in products] == ["float16"] * 2
    first, second = products
    assert first.name.startswith("linear/")
    assert second.name.startswith("linear_1/")
    assert any(step.kind == "function" for step in found[found.index(first) : found.index(second)])


def test_products_summed_in_fp32() -> None:
    found = steps_of(nn.Linear(64, 128), torch.randn(32, 64))
    assert [step.sums_in for step in found if step.kind == "fully_connected"] == ["float32"]


def test_convolutions_and_what_is_fused() -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Softmax(1))
    found = steps_of(model, torch.randn(2, 16, 12, 12))
    assert sum(step.kind == "corrltn" for step in found) == 2
    assert any(step.kind == "function" and "Exp" in step.name for step in found)


def test_bytes_that_are_no_engine() -> None:
    assert steps(b"nothing of that kind") == []


class Rejoined(nn.Module):
    """Slices of an input that are joined again: TensorRT takes the result for the input."""

    def forward(self, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.cat([part * 1.0 for part in x.split(2, 1)], 1), y.neg(), torch.stack(z.unbind(1), 1)


def test_an_output_that_is_taken_for_an_input_is_copied() -> None:
    model, inputs = Rejoined(), (torch.randn(8, 4), torch.randn(8, 4), torch.randn(8, 4))
    library = libraries.load("tensorrt_rtx")
    network = network_from_graph(graph_from_program(export_program(model, inputs)).module, library)
    options = Options(engine="tensorrt_rtx", cache_dir="", targets=("sm_86",))
    config = network.builder.create_builder_config()
    library.set_targets(config, options.targets)
    wrong = bytes(network.builder.build_serialized_network(network.definition, config))
    assert outputs_taken_for_inputs(wrong) == [0, 2]
    plan = engine_from_network(network, library, options)
    assert outputs_taken_for_inputs(plan) == []
    names = [spec.name for spec in network.outputs]
    assert [network.definition.get_output(place).name for place in range(3)] == names
    found = NetworkInterpreter(library.trt, network.definition, network.constants)(*inputs)
    assert all(map(torch.equal, found, model(*inputs)))
    assert outputs_taken_for_inputs(b"nothing of that kind") == []


class Cached(nn.Module):
    def forward(self, cache: torch.Tensor, update: torch.Tensor, start: torch.Tensor) -> tuple[torch.Tensor, ...]:
        cache = own.kv_cache_update(cache, update, start)
        return cache, cache.relu()


def test_a_cache_that_is_updated_in_place_is_no_such_output() -> None:
    inputs = (torch.randn(1, 2, 16, 8), torch.randn(1, 2, 1, 8), torch.tensor(3))
    library = libraries.load("tensorrt_rtx")
    network = network_from_graph(graph_from_program(export_program(Cached(), inputs)).module, library)
    assert network.in_place == {0}
    layers = network.layers
    engine_from_network(network, library, Options(engine="tensorrt_rtx", cache_dir="", targets=("sm_86",)))
    assert network.layers == layers
